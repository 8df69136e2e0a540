//! Operations that were done and reported as failed, as a network file system does that loses an
//! answer: a request sent twice then says that the name exists, or that there is none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rustix::io::Errno;
use tch_checkpoint::layout::{self, CheckpointName, SaveId};
use tch_checkpoint::retain::{pin, unpin};
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Rename, Storage};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result, SaveOptions, save, sweep};

use super::matrix::{Kind, Scenario};
use super::{links, saves, tensors};
use crate::harness::*;
use crate::hooked::Hooked;
use crate::tier;

/// What a repeated request reports, and of which operations.
const ANSWERS: [(Errno, &[&str]); 3] = [
    (Errno::EXIST, &["create_dir", "create_link", "rename"]),
    (Errno::NOENT, &["rename", "remove_file", "remove_dir"]),
    (
        Errno::STALE,
        &[
            "create_dir_all",
            "create_dir",
            "create_file",
            "create_link",
            "rename",
            "remove_file",
            "remove_dir",
            "sync",
            "write_at",
            "finish",
        ],
    ),
];

fn loses_answers(scenario: Scenario) {
    let worlds: &[u32] = if tier::is_full() { &[1, 2, 4] } else { &[2] };
    let mut faults = 0;
    for &ranks in worlds {
        for (errno, operations) in ANSWERS {
            for persistent in [false, true] {
                let fault = Fault::Lost(errno.raw_os_error());
                faults += scenario.fails(ranks, Kind { fault, persistent, operations });
            }
        }
    }
    tier::figure(&format!("lost answers, {}", scenario.name), faults);
}

#[test]
fn lost_answers_of_saves_of_directories() {
    saves::ALL[..3].iter().copied().for_each(loses_answers);
}

#[test]
fn lost_answers_of_saves_of_single_files() {
    saves::ALL[3..5].iter().copied().for_each(loses_answers);
}

#[test]
fn lost_answers_of_saves_beside_training() {
    saves::ALL[5..].iter().copied().for_each(loses_answers);
}

#[test]
fn lost_answers_of_retention_and_links() {
    loses_answers(links::KEEP);
}

/// The directory of an attempt has a random name: if it exists, it is this attempt's.
#[test]
fn a_directory_that_was_made_twice_is_used() {
    let memory = MemoryStorage::new();
    let faulty = FaultyStorage::new(Arc::new(memory.clone()));
    let save = |step| save_state(&ProcessGroup::solo(), &faulty, "runs/a", &tensors(), step);
    save(1).unwrap();
    faulty.reset();
    save(2).unwrap();
    let log = faulty.log();
    let made = log.iter().position(|line| line.starts_with("create_dir runs/.")).unwrap();
    faulty.reset();
    faulty.fail_at(made as u64 + 1, Fault::Lost(Errno::EXIST.raw_os_error()), false);
    save(3).unwrap();
    assert_eq!(entries(&memory, "runs"), ["a"]);
    assert_good(&memory, "runs/a");
}

/// What an attempt makes has a random name, or lies in what has one: that it is there already says
/// nothing of the name that the caller chose, and is no mistake of the caller's.
#[test]
fn what_was_made_twice_is_no_name_that_is_taken() {
    let in_directory: fn(&dyn Storage) -> Result<()> = |storage| {
        save(&ProcessGroup::solo(), storage, &path("runs/a"), &with_code(), &options()).map(drop)
    };
    let in_file: fn(&dyn Storage) -> Result<()> = |storage| {
        let (group, at) = (ProcessGroup::solo(), path("runs/a.safetensors"));
        save_single_file(&group, storage, &at, &with_code(), &options()).map(drop)
    };
    let mut made = Vec::new();
    for act in [in_directory, in_file] {
        for operation in 1.. {
            let faulty = FaultyStorage::new(Arc::new(MemoryStorage::new()));
            faulty.fail_at(operation, Fault::Lost(Errno::EXIST.raw_os_error()), false);
            let kind = act(&faulty).err().map(|e| e.kind());
            let log = faulty.log();
            let Some(hit) = log.get(operation as usize - 1) else { break };
            if hit.starts_with("create_file") || hit.starts_with("create_dir ") {
                assert!(matches!(kind, None | Some(ErrorKind::Storage)), "{hit}: {kind:?}");
                made.push(hit.clone());
            }
        }
    }
    for what in ["/code", "/model.rs", "/manifest.bin", ".a.safetensors."] {
        assert!(made.iter().any(|line| line.contains(what)), "{what}: {made:?}");
    }
}

fn with_code() -> StateDict {
    let mut state = state(&tensors(), &ProcessGroup::solo(), 1);
    state.attach_file("code/model.rs", b"struct Model;".as_slice()).unwrap();
    state
}

fn options() -> SaveOptions {
    SaveOptions { step: 1, ..SaveOptions::default() }
}

/// Does something at once or at the second try, with a fault at each operation of the first: when
/// it says that it is done, an fsync that did not fail has followed what it did to `entry`.
fn is_durable_once_done(does: &str, act: impl Fn(&FaultyStorage, SaveId) -> Result<()>) {
    let lost = [Errno::NOENT, Errno::STALE].map(|e| Fault::Lost(e.raw_os_error()));
    let mut durable = 0;
    for fault in lost.into_iter().chain([Fault::Error(Errno::IO.raw_os_error())]) {
        for operation in 1.. {
            let memory = MemoryStorage::new();
            let id = saved(memory.clone(), 1, "runs/a", &tensors(), 1).save_id;
            pin(memory.open_dir(Path::new("runs")).unwrap().as_ref(), &name_a(), &pace()).unwrap();
            let faulty = FaultyStorage::new(Arc::new(memory));
            faulty.fail_at(operation, fault, false);
            act(&faulty, id).or_else(|_| act(&faulty, id)).unwrap();
            let log = faulty.log();
            if log.len() < operation as usize {
                break;
            }
            let failed = operation as usize - 1;
            let changes = ["rename", "remove", "sync"].iter().any(|c| log[failed].starts_with(c));
            if matches!(fault, Fault::Lost(_)) && !changes {
                continue;
            }
            let done = log.iter().rposition(|line| line.starts_with(does)).unwrap();
            let synced = (done..log.len()).any(|i| log[i] == "sync runs" && i != failed);
            assert!(synced, "{fault:?} at {}: not durable: {log:#?}", log[failed]);
            durable += 1;
        }
    }
    assert!(durable > 6, "{durable} operations");
}

fn name_a() -> CheckpointName {
    CheckpointName::new("a").unwrap()
}

#[test]
fn what_was_removed_is_durably_gone_also_at_the_second_try() {
    is_durable_once_done("rename runs/a", |storage, save_id| {
        let parent = storage.open_dir(Path::new("runs"))?;
        sweep::remove(parent.as_ref(), &name_a(), &save_id, &pace())
    });
}

#[test]
fn a_pin_is_durably_gone_also_at_the_second_try() {
    is_durable_once_done("remove_file runs/.a.pin", |storage, _| {
        unpin(storage.open_dir(Path::new("runs"))?.as_ref(), &name_a())
    });
}

/// Without a lock, somebody else may take it away between the look and the rename.
#[test]
fn what_somebody_else_removes_meanwhile_is_durably_gone() {
    let memory = MemoryStorage::new();
    let id = saved(memory.clone(), 1, "runs/a", &tensors(), 1).save_id;
    let (inner, synced) = (memory.clone(), Arc::new(AtomicBool::new(false)));
    let has_synced = synced.clone();
    let hooked = Hooked::new(&memory, move |call| {
        match call.operation {
            "rename" => {
                let parent = inner.open_dir(Path::new("runs"))?;
                parent.rename("a", &layout::trash_dir(&SaveId::random()?), Rename::NoReplace)?;
            }
            "sync" => synced.store(true, SeqCst),
            _ => {}
        }
        Ok(())
    });
    let parent = hooked.open_dir(Path::new("runs")).unwrap();
    sweep::remove(parent.as_ref(), &name_a(), &id, &pace()).unwrap();
    assert!(has_synced.load(SeqCst), "a power cut could bring it back");
}
