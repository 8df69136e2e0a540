//! Every storage operation of a retention pass failed in turn, and the process killed at each.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use tch_checkpoint::autosave::{KeepBest, Mode, Retention};
use tch_checkpoint::catalog;
use tch_checkpoint::storage::{Fault, FaultyStorage, LocalStorage, MemoryStorage, Storage};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::retention::{Save, last, pass, pass_in, runs};

const EIO: i32 = 5;
/// What stays by the rules of [`rules`] and the pins of [`fill`].
const STAYS: [&str; 6] = [".s3.pin", "by-hand", "notes.txt", "s2", "s3", "s6"];

/// The newest, and the best by loss.
fn rules() -> Retention {
    let count = 1.try_into().unwrap();
    let best = Some(KeepBest { count, monitor: "loss".to_owned(), mode: Mode::Min });
    Retention { best, ..last(1) }
}

/// Six automatic checkpoints, of which the second is the best and the third pinned, one saved by
/// hand, and a file of somebody's. Steps 1, 4 and 5 are to go.
fn fill(storage: &dyn Storage) {
    for step in 1..=6 {
        let loss = Some(if step == 2 { 0.5 } else { 1.0 });
        Save { loss, ..Save::at(step) }.save_in(storage).unwrap();
    }
    let by_hand = Save { name: "by-hand".to_owned(), automatic: false, ..Save::at(1) };
    by_hand.save_in(storage).unwrap();
    for file in [".s3.pin", "notes.txt"] {
        runs(storage).create_file(file).unwrap().finish().unwrap();
    }
}

/// Nothing that must stay is gone, everything visible is whole, and the next pass finishes.
fn check(storage: &dyn Storage, what: &str) {
    let there = entries(storage, "runs");
    for stays in STAYS {
        assert!(there.iter().any(|name| name == stays), "{what}: {stays} is gone of {there:?}");
    }
    let mut seen = 0;
    catalog::visit(runs(storage).as_ref(), &mut |name, opened| {
        assert!(opened.is_ok(), "{what}: {name}: {opened:?}");
        assert_good(storage, &format!("runs/{name}"));
        seen += 1;
    })
    .unwrap();
    assert!((4..=7).contains(&seen), "{what}: {seen} checkpoints");
    let left = pass(storage, &rules(), &[]).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(left, ["by-hand", "s2", "s3", "s6"], "{what}");
    assert_eq!(entries(storage, "runs"), STAYS, "{what}: debris stays after the next pass");
}

fn fail_each_operation(fault: Fault, persistent: bool) {
    for operation in 1.. {
        let memory = MemoryStorage::new();
        fill(&memory);
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        let parent = runs(&faulty);
        faulty.reset();
        faulty.fail_at(operation, fault, persistent);
        let outcome = pass_in(parent.as_ref(), &rules(), &[]);
        if faulty.operations() < operation {
            assert!(operation > 80, "a pass did {operation} operations");
            return;
        }
        let log = faulty.log();
        let what = format!("{fault:?} at {}: {outcome:?}", log[operation as usize - 1]);
        if let Ok(left) = outcome {
            let mut visible = entries(&memory, "runs");
            visible.retain(|name| !name.starts_with('.') && name != "notes.txt");
            assert_eq!(left, visible, "{what}: what it says is left");
        }
        check(&memory, &what);
    }
}

#[test]
fn one_error_at_each_operation_of_a_pass() {
    fail_each_operation(Fault::Error(EIO), false);
}

#[test]
fn a_disk_that_dies_at_each_operation_of_a_pass() {
    fail_each_operation(Fault::Error(EIO), true);
}

#[test]
fn a_panic_at_each_operation_of_a_pass() {
    fail_each_operation(Fault::Panic, false);
}

/// Where the child works, and at which operation it kills itself.
const DIRECTORY: &str = "RETENTION_TEST_DIRECTORY";
const OPERATION: &str = "RETENTION_TEST_OPERATION";

/// A process of its own that makes a pass, and is killed at each of its storage operations in
/// turn, on the file system.
#[test]
fn a_process_killed_at_each_operation_of_a_pass() {
    let template = tempfile::tempdir().unwrap();
    fill(&InDirectory(template.path()));
    for operation in 1u64.. {
        let place = tempfile::tempdir().unwrap();
        copy_tree(template.path(), place.path());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "retention_faults::child", "--ignored", "--test-threads=1"])
            .env(DIRECTORY, place.path())
            .env(OPERATION, operation.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let status = ended(child);
        let storage = InDirectory(place.path());
        if status.success() {
            assert!(operation > 80, "a pass did {operation} operations");
            assert_eq!(entries(&storage, "runs"), STAYS);
            return;
        }
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(Signal::KILL.as_raw()), "operation {operation}: {status}");
        check(&storage, &format!("killed at operation {operation}"));
    }
}

#[test]
#[ignore = "a process of `a_process_killed_at_each_operation_of_a_pass`, which starts it"]
fn child() {
    let directory = std::env::var_os(DIRECTORY).unwrap();
    let operation: u64 = std::env::var(OPERATION).unwrap().parse().unwrap();
    std::env::set_current_dir(directory).unwrap();
    let operations = AtomicU64::new(0);
    let killing = Hooked::new(&LocalStorage, move |_| {
        if operations.fetch_add(1, Ordering::Relaxed) + 1 == operation {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        Ok(())
    });
    assert_eq!(pass(&killing, &rules(), &[]).unwrap(), ["by-hand", "s2", "s3", "s6"]);
}

/// The file system below a directory.
#[derive(Debug)]
struct InDirectory<'a>(&'a Path);

impl Storage for InDirectory<'_> {
    fn open_dir(
        &self,
        path: &Path,
    ) -> tch_checkpoint::Result<Arc<dyn tch_checkpoint::storage::Directory>> {
        LocalStorage.open_dir(&self.0.join(path))
    }

    fn create_dir_all(
        &self,
        path: &Path,
    ) -> tch_checkpoint::Result<Arc<dyn tch_checkpoint::storage::Directory>> {
        LocalStorage.create_dir_all(&self.0.join(path))
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// How a child ended; one that hangs is a failure.
fn ended(mut child: Child) -> ExitStatus {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
