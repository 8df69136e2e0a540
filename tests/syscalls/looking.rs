//! Commands that only look, and whether what looks at calls here sees all of them.

use std::collections::BTreeMap;
use std::fs::{create_dir, write};
use std::path::Path;
use std::process::Command;

use crate::scene::{Stage, stress};
use crate::scenes;
use crate::tier::{self, Need};
use crate::tracer::{self, Act, Call, STDOUT};

fn look(top: &Path, arguments: &[&str]) -> Vec<Call> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    command.args(arguments).current_dir(top);
    let run = tracer::run(command, top, &mut |_| Act::Pass);
    assert_eq!(run.code, Some(0), "{arguments:?}: {}{}", run.stdout, run.stderr);
    run.calls
}

/// Closing and unlocking change nothing.
fn is_change(call: &Call) -> bool {
    call.changes && call.name != "close" && call.path != STDOUT
}

#[test]
fn looking_changes_nothing() {
    let stage = Stage::set(&scenes::RETENTION);
    let tried = stage.play(&mut |_| Act::Pass);
    let dir = &tried.dir;
    let id = "0123456789abcdef0123456789abcdef";
    for debris in [format!(".trash-{id}"), format!(".step-00000007.{id}.partial")] {
        create_dir(dir.join(&debris)).unwrap();
        write(dir.join(&debris).join("manifest.bin"), b"TCHCKPT\n").unwrap();
    }
    let (mut looks, name) = (0, dir.file_name().unwrap().to_str().unwrap());
    for arguments in [
        &["latest", "--dir", name][..],
        &["latest", "--dir", "missing/directory"],
        &["verify", "--dir", name],
        &["verify", "--dir", name, "--all"],
        &["verify", "--dir", "missing"],
        &["stress", "load", "--dir", name],
        &["verify", &format!("{name}/latest")],
        &["inspect", &format!("{name}/step-00000003")],
    ] {
        let calls = look(dir.parent().unwrap(), arguments);
        let changes: Vec<_> = calls.iter().filter(|c| is_change(c)).map(Call::label).collect();
        assert_eq!(changes, [""; 0], "{arguments:?}");
        let looked = calls.iter().filter(|c| !c.changes).count();
        assert!(looked > 0, "{arguments:?}: nothing was seen");
        looks += looked;
    }
    tier::figure("calls that only look, of commands that look", looks);
}

/// Counts the same calls by another program; those of them that only checkpoints need.
#[test]
fn all_calls_are_seen() {
    if !tier::has(&[Need::Program("strace")]) {
        return;
    }
    const NAMES: [&str; 8] = [
        "fsync",
        "pwrite64",
        "fallocate",
        "flock",
        "mkdirat",
        "renameat2",
        "unlinkat",
        "symlinkat",
    ];
    let calls = Stage::set(&scenes::RETENTION).undisturbed();
    let place = tempfile::tempdir().unwrap();
    let (dir, trace) = (place.path().join("checkpoints"), place.path().join("trace"));
    for step in [1, 2] {
        assert!(stress(&dir, step, 2, &["--keep", "9"]).status().unwrap().success());
    }
    let save = stress(&dir, 3, 2, &["--keep", "2"]);
    let mut strace = tier::program("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={}", NAMES.join(",")), "-o"]).arg(&trace);
    strace.arg(save.get_program()).args(save.get_args());
    assert!(strace.status().unwrap().success());
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
    for call in calls.iter().filter(|call| NAMES.contains(&call.name)) {
        *ours.entry(call.name).or_insert(0) += 1;
    }
    // `<thread> <call>(…`, and for the other side of a call that was interrupted by that of
    // another thread `<thread> <... <call> resumed>…`.
    for line in std::fs::read_to_string(&trace).unwrap().lines() {
        let call = line.split_whitespace().nth(1).and_then(|rest| rest.split_once('('));
        if let Some(name) = call.and_then(|(name, _)| NAMES.iter().find(|n| **n == name)) {
            *theirs.entry(*name).or_insert(0) += 1;
        }
    }
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), NAMES.len(), "{ours:?}");
}
