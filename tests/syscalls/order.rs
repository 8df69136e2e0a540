//! What is made durable, and when.

use crate::scene::{Scene, Stage};
use crate::tracer::{Call, STDOUT};
use crate::{scenes, tier};

/// The rename by which the checkpoint gets its name.
fn commit<'a>(calls: &'a [Call], scene: &Scene) -> &'a Call {
    let name = format!("step-{:08}", scene.step);
    let is_name = |c: &&Call| c.new_path.as_ref().is_some_and(|to| to.ends_with(&name));
    calls.iter().find(is_name).unwrap()
}

/// Whether `path` is fsynced, with success, between the end of `after` and the begin of `before`.
fn is_synced(calls: &[Call], path: &str, after: &Call, before: &Call) -> bool {
    calls.iter().any(|c| {
        c.name == "fsync"
            && c.path == path
            && c.succeeded()
            && Some(c.begun) > after.ended
            && c.ended.is_some_and(|ended| ended < before.begun)
    })
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Everything that a power cut could take from a checkpoint that is said to be committed.
fn undurable(calls: &[Call], scene: &Scene) -> Vec<String> {
    let rename = commit(calls, scene);
    let attempt = rename.path.as_str();
    let mut faults = Vec::new();
    let mut check = |what: &str, path: &str, after: &Call, before: &Call| {
        if !is_synced(calls, path, after, before) {
            faults.push(format!("{what}: {path:?} not fsynced between {after:?} and {before:?}"));
        }
    };
    for made in calls.iter().filter(|c| c.creates() && parent(&c.path) == attempt) {
        let is_write = |c: &&Call| c.name.contains("write") && c.path == made.path;
        check("content", &made.path, calls.iter().rfind(is_write).unwrap_or(made), rename);
        check("entry", attempt, made, rename);
    }
    for made in calls.iter().filter(|c| c.name == "mkdirat" && c.path != attempt) {
        check("ancestor", parent(&made.path), made, rename);
    }
    let said = calls.iter().rfind(|c| c.path == STDOUT).unwrap();
    check("name", parent(attempt), rename, said);
    // Also if it was there: whoever made it may have died before.
    let above = parent(parent(attempt));
    let is_named = |c: &Call| c.name == "fsync" && c.path == above && c.succeeded();
    if !calls.iter().any(|c| is_named(c) && c.ended.is_some_and(|ended| ended < rename.begun)) {
        faults.push(format!("name of the directory: {above:?} not fsynced before {rename:?}"));
    }
    let visible = rename.new_path.as_deref().unwrap();
    for late in calls.iter().filter(|c| parent(&c.path) == visible && c.changes) {
        if late.creates() || late.name.contains("write") {
            faults.push(format!("changed while it is visible: {late:?}"));
        }
    }
    faults
}

/// What is unlinked before it is out of sight durably, or before what replaces it is durable.
fn rash(calls: &[Call], scene: &Scene) -> Vec<String> {
    let rename = commit(calls, scene);
    let mut faults = Vec::new();
    let checkpoints = parent(&rename.path);
    for unlink in calls.iter().filter(|c| c.name == "unlinkat" && parent(&c.path) != checkpoints) {
        let dir = parent(&unlink.path);
        let away = calls.iter().find(|c| c.new_path.as_deref() == Some(dir) && c.succeeded());
        let is_away = dir.contains(".trash-")
            && away.is_some_and(|a| is_synced(calls, parent(dir), a, unlink));
        if !is_away || !is_synced(calls, parent(&rename.path), rename, unlink) {
            faults.push(format!("{unlink:?}"));
        }
    }
    faults
}

#[test]
fn what_a_save_makes_is_durable_before_it_has_its_name() {
    let saves = [&scenes::FIRST, &scenes::BESIDE, &scenes::FOUR_RANKS, &scenes::REPLACING];
    let more = [&scenes::RETENTION, &scenes::PROCESSES, &scenes::LARGE];
    for scene in saves.into_iter().chain(more) {
        let calls = Stage::set(scene).undisturbed();
        let made: Vec<_> = calls.iter().filter(|c| c.creates()).map(|c| c.path.as_str()).collect();
        assert!(made.iter().any(|path| path.ends_with("/manifest.bin")), "{made:?}");
        let faults = undurable(&calls, scene);
        assert!(faults.is_empty(), "{}: {}", scene.title, faults.join("\n"));
        let fsyncs = calls.iter().filter(|c| c.name == "fsync").count();
        tier::figure(&format!("{}: fsyncs", scene.title), fsyncs);
    }
}

#[test]
fn what_goes_is_out_of_sight_durably_before_it_is_unlinked() {
    for scene in [&scenes::REPLACING, &scenes::RETENTION, &scenes::PROCESSES] {
        let calls = Stage::set(scene).undisturbed();
        let unlinks = calls.iter().filter(|c| c.name == "unlinkat").count();
        assert!(unlinks > 5, "{}: {unlinks}", scene.title);
        assert_eq!(rash(&calls, scene), [""; 0], "{}", scene.title);
    }
}
