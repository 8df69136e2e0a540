//! Where a save writes: under names that nobody can guess, nothing that was there before is opened
//! for writing, and nothing outside its directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::retain::pin;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::sweep::Pace;

use crate::alone;
use crate::outside::{Watch, snapshot};
use crate::tracer::{self, Act, Call};

const LOCK: &str = ".tch-checkpoint.lock";

fn save(dir: &Path, step: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    command.args(["stress", "save", "--bytes", "65536", "--ranks", "2", "--keep", "2", "--dir"]);
    command.arg(dir).args(["--step", &step.to_string()]);
    command
}

/// Whether a part of the path has 128 random bits.
fn is_random(path: &str) -> bool {
    let is_id = |part: &str| part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
    path.split(['/', '.', '-']).any(is_id)
}

fn makes(call: &&Call) -> bool {
    call.succeeded()
        && (call.creates() || matches!(call.name, "mkdirat" | "symlinkat" | "linkat" | "mkdir"))
}

/// Links to a file outside under every name that a guess would hit, and what they lead to.
#[test]
fn what_is_made_is_new_and_has_a_name_that_nobody_can_guess() {
    let _alone = alone();
    let top = tempfile::tempdir().unwrap();
    let (dir, outside) = (top.path().join("checkpoints"), top.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(outside.join("victim"), "not yours").unwrap();
    for name in [
        "step-00000001.tmp",
        "step-00000001.partial",
        ".step-00000001.partial",
        ".step-00000001.tmp",
        ".step-00000001.pin",
        ".pointer",
        ".trash",
        "latest",
        "latest.json",
        "latest.tmp",
        "manifest.bin",
    ] {
        symlink(outside.join("victim"), dir.join(name)).unwrap();
    }
    let (before, watch) = (snapshot(&outside), Watch::over(&outside));
    let mut made = Vec::new();
    for step in 1..=4 {
        let run = tracer::run(save(&dir, step), top.path(), &mut |_| Act::Pass);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        made.extend(run.calls.into_iter().filter(|call| makes(&call)));
    }
    assert!(made.len() > 20, "{made:?}");
    for call in &made {
        let name = call.path.rsplit('/').next().unwrap_or_default();
        assert!(is_random(&call.path) || name == LOCK, "{}", call.label());
        if call.name == "openat" {
            let flags = call.arguments[2];
            assert_ne!(flags & libc::O_NOFOLLOW as u64, 0, "{}", call.label());
            assert!(flags & libc::O_EXCL as u64 != 0 || name == LOCK, "{}", call.label());
        }
    }
    assert_eq!(watch.seen(), [""; 0]);
    assert_eq!(snapshot(&outside), before);
}

/// A link in the place of what a save has to open is refused, not followed.
#[test]
fn links_in_the_place_of_what_is_written_are_not_followed() {
    let _alone = alone();
    for name in [LOCK, "step-00000001"] {
        let top = tempfile::tempdir().unwrap();
        let (dir, outside) = (top.path().join("checkpoints"), top.path().join("outside"));
        fs::create_dir_all(outside.join("victim")).unwrap();
        fs::create_dir(&dir).unwrap();
        symlink(outside.join("victim"), dir.join(name)).unwrap();
        let (before, watch) = (snapshot(&outside), Watch::over(&outside));
        let output = save(&dir, 1).output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{name}: {output:?}");
        assert!(output.status.code().is_some_and(|code| [3, 7].contains(&code)), "{output:?}");
        assert_eq!(watch.seen(), [""; 0], "{name}");
        assert_eq!(snapshot(&outside), before, "{name}");
    }
}

#[test]
fn a_pin_is_not_written_through_a_link() {
    let _alone = alone();
    let top = tempfile::tempdir().unwrap();
    let (dir, victim) = (top.path().join("checkpoints"), top.path().join("victim"));
    fs::create_dir_all(dir.join("a")).unwrap();
    symlink(&victim, dir.join(".a.pin")).unwrap();
    let pace = Pace { patience: std::time::Duration::from_secs(1), progress: Default::default() };
    let parent = LocalStorage::new().open_dir(&dir).unwrap();
    pin(parent.as_ref(), &CheckpointName::new("a").unwrap(), &pace).unwrap();
    assert!(!victim.exists());
    let gone = pin(parent.as_ref(), &CheckpointName::new("b").unwrap(), &pace).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

/// The file of a trace has the name that its user gave: not the one of a link that lies there.
#[test]
fn a_trace_is_not_written_through_a_link() {
    let _alone = alone();
    let top = tempfile::tempdir().unwrap();
    let (trace, victim) = (top.path().join("trace.json"), top.path().join("victim"));
    symlink(&victim, &trace).unwrap();
    let mut command = save(&top.path().join("checkpoints"), 1);
    let output = command.env("TCH_CHECKPOINT_TRACE", &trace).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!victim.exists(), "the trace was written elsewhere");
}
