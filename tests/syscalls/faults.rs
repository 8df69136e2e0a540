//! Each call of a save fails, with each error, once and from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::scene::{Scene, Stage, Try};
use crate::tracer::{Act, Call, STDOUT};
use crate::{scenes, tier};

const ERRNOS: [(i32, &str); 7] = [
    (libc::EIO, "EIO"),
    (libc::EINTR, "EINTR"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EDQUOT, "EDQUOT"),
    (libc::ESTALE, "ESTALE"),
    (libc::EACCES, "EACCES"),
    (libc::EROFS, "EROFS"),
];

/// What the error of a call must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// Nothing is committed, and the program says so.
    NotCommitted,
    /// Committed and visible; whether a power cut takes it back is not known.
    Uncertain,
    /// What comes after the commit never undoes it, and what was only read or unlocked is no
    /// matter.
    None,
}

/// The commit: the rename to the name, and the fsync after it, by their places.
fn commit(calls: &[Call], scene: &Scene) -> (usize, usize) {
    let name = format!("step-{:08}", scene.step);
    let is_name = |c: &Call| c.new_path.as_ref().is_some_and(|to| to.ends_with(&name));
    let rename = calls.iter().position(|c| c.name == "renameat2" && is_name(c)).unwrap();
    let fsync = calls.iter().skip(rename).position(|c| c.name == "fsync").unwrap();
    (rename, rename + fsync)
}

fn duty(index: usize, call: &Call, (rename, fsync): (usize, usize), calls: &[Call]) -> Duty {
    let is_written = || calls.iter().any(|c| c.name == "pwrite64" && c.path == call.path);
    match call.name {
        // The first to be closed of equal paths is the one that was written.
        "close" if call.nth > 0 || !is_written() => Duty::None,
        "flock" if call.unlocks() => Duty::None,
        _ if index <= rename => Duty::NotCommitted,
        _ if index == fsync => Duty::Uncertain,
        _ => Duty::None,
    }
}

/// All that is wrong after a call has failed.
fn fault_of(stage: &Stage, tried: &Try, errno: i32, duty: Duty, only_once: bool) -> Option<String> {
    let Some(hit) = tried.run.calls.iter().find(|call| call.injected) else {
        return Some("nothing has failed".to_owned());
    };
    let code = tried.run.code;
    let is_right = match duty {
        _ if errno == libc::EINTR && only_once => code == Some(0),
        // Interrupted for ever is no error that a disk makes.
        _ if errno == libc::EINTR => true,
        Duty::NotCommitted => code == Some(3),
        Duty::Uncertain => code == Some(6),
        Duty::None if only_once => code == Some(0) || hit.path == STDOUT,
        Duty::None => matches!(code, Some(0 | 3 | 6)),
    };
    if !is_right {
        return Some(format!("it exits {code:?}, that call asks for {duty:?}"));
    }
    second_fsync(&tried.run.calls, errno).or_else(|| stage.fault_of(tried))
}

/// A file that is fsynced again after that failed: the second success would be a lie.
fn second_fsync(calls: &[Call], errno: i32) -> Option<String> {
    let failed = calls.iter().position(|c| c.injected && c.name == "fsync")?;
    let (hit, later) = calls.split_at(failed + 1);
    let path = &hit.last()?.path;
    let is_file = hit.iter().any(|c| c.creates() && c.path == *path);
    let again = later.iter().any(|c| c.name == "fsync" && c.path == *path);
    (errno != libc::EINTR && is_file && again).then(|| format!("{path} is fsynced again"))
}

/// Fails each call of the scene that changes something, with each error, once and from then on;
/// in the short tier one of `stride` calls.
fn enumerate(scene: &'static Scene, stride: u64) {
    let stage = Stage::set(scene);
    let calls = stage.undisturbed();
    let commit = commit(&calls, scene);
    // What libtest writes to its standard output is no part of ours.
    let is_ours = |call: &Call| scene.is_command || call.path != STDOUT;
    let changes = || calls.iter().enumerate().filter(|(_, call)| call.changes && is_ours(call));
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let (mut faults, mut longest) = (Vec::new(), Duration::ZERO);
    for (n, (index, call)) in changes().enumerate().step_by(tier::count(stride, 1) as usize) {
        let duty = duty(index, call, commit, &calls);
        for (errno, name, only_once) in errors_for(n) {
            let tried = stage.play(&mut fail_at(call.label(), errno, only_once));
            let outcome = format!("exit {:?}", tried.run.code);
            longest = longest.max(tried.run.took);
            *outcomes.entry(outcome).or_default() += 1;
            if let Some(fault) = fault_of(&stage, &tried, errno, duty, only_once) {
                let once = if only_once { "once" } else { "from then on" };
                let said = tried.run.stderr.trim();
                faults.push(format!("{} {name} {once}: {fault}\n    {said}", call.label()));
            }
        }
    }
    tier::figure(&format!("{}: calls that change something", scene.title), changes().count());
    tier::figure(&format!("{}: faults injected", scene.title), format!("{outcomes:?}"));
    tier::figure(&format!("{}: longest run", scene.title), format!("{longest:?}"));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// In the short tier each call fails by an error of the device and by a signal, and most
/// for ever.
fn errors_for(n: usize) -> Vec<(i32, &'static str, bool)> {
    let all =
        ERRNOS.iter().flat_map(|(errno, name)| [(*errno, *name, true), (*errno, *name, false)]);
    if tier::is_full() {
        return all.collect();
    }
    let for_ever = match n % 6 {
        0 | 3 => Some((libc::EROFS, "EROFS", false)),
        1 => Some((libc::EINTR, "EINTR", false)),
        _ => None,
    };
    let once = [(libc::EIO, "EIO", true), (libc::EINTR, "EINTR", true)];
    once.into_iter().chain(for_ever).collect()
}

fn fail_at(label: String, errno: i32, only_once: bool) -> impl FnMut(&Call) -> Act {
    let mut has_begun = false;
    move |call| {
        let is_it = call.label() == label;
        has_begun |= is_it;
        let fails = is_it || has_begun && !only_once && call.changes && call.path != STDOUT;
        match call.name {
            _ if !fails => Act::Pass,
            // The kernel has closed the descriptor, whatever it then says.
            "close" => Act::LoseAnswer(errno),
            _ => Act::Fail(errno),
        }
    }
}

#[test]
fn each_call_of_a_first_save_fails() {
    enumerate(&scenes::FIRST, 1);
}

#[test]
fn each_call_of_a_save_beside_an_older_one_fails() {
    enumerate(&scenes::BESIDE, 1);
}

#[test]
fn each_call_of_a_replacement_fails() {
    enumerate(&scenes::REPLACING, 1);
}

#[test]
fn each_call_of_retention_and_of_moving_links_fails() {
    enumerate(&scenes::RETENTION, 1);
}

/// An error of one rank is the error of all.
#[test]
fn each_call_of_a_rank_that_is_a_process_fails() {
    enumerate(&scenes::PROCESSES, 3);
}
