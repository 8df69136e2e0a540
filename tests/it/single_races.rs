//! Files on storages that lack something, and beside other jobs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch_checkpoint::catalog;
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::storage::{FaultyStorage, MemoryStorage, Rename, Storage};
use tch_checkpoint::{Checkpoint, Error, ErrorKind, OnExisting, ProcessGroup, Result, SaveOptions};

use crate::harness::*;
use crate::hooked::{Hooked, unsupported};

const FILE: &str = "runs/a.safetensors";

fn save_on(storage: &dyn Storage, generation: u64) -> Result<Checkpoint> {
    let group = ProcessGroup::solo();
    let options = SaveOptions {
        step: generation,
        on_existing: OnExisting::Replace,
        ..SaveOptions::default()
    };
    let state = state(&usual_tensors(), &group, generation);
    save_single_file(&group, storage, &path(FILE), &state, &options)
}

/// Another job, on a thread of its own as phases demand.
fn other_job(storage: &(impl Storage + Clone + 'static), generation: u64) {
    let storage = storage.clone();
    std::thread::spawn(move || save_on(&storage, generation).unwrap()).join().unwrap();
}

fn without_locks(memory: &MemoryStorage) -> Hooked {
    Hooked::new(memory, |call| {
        if call.operation.starts_with("try_lock") { Err(unsupported()) } else { Ok(()) }
    })
}

fn step(storage: &dyn Storage) -> u64 {
    catalog::find(storage, &wanted(FILE)).unwrap().manifest.step()
}

#[test]
fn where_names_cannot_be_exchanged_the_file_is_replaced_at_once() {
    let memory = MemoryStorage::new();
    save_on(&memory, 1).unwrap();
    let poor = Hooked::new(&memory, |call| match call.mode {
        Some(Rename::Exchange) => Err(unsupported()),
        _ => Ok(()),
    });
    save_on(&poor, 2).unwrap();
    assert_eq!(step(&memory), 2);
    assert_eq!(entries(&memory, "runs"), ["a.safetensors"]);
}

/// Another job commits under the name between the phases: with locks it is seen before the rename,
/// without them after, and undone.
#[test]
fn a_file_of_another_job_is_never_replaced_unseen() {
    let moments = [(true, "open_for_writing"), (false, "open_for_writing"), (false, "rename")];
    for (has_locks, before) in moments {
        let memory = MemoryStorage::new();
        save_on(&memory, 1).unwrap();
        let (inner, calls) = (memory.clone(), AtomicUsize::new(0));
        let hooked = Hooked::new(&memory, move |call| {
            if call.operation.starts_with("try_lock") && !has_locks {
                return Err(unsupported());
            }
            if call.operation == before && calls.fetch_add(1, Ordering::Relaxed) == 0 {
                if has_locks { other_job(&inner, 9) } else { other_job(&without_locks(&inner), 9) }
            }
            Ok(())
        });
        let error = save_on(&hooked, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Superseded, "{has_locks} {before}: {error}");
        assert_eq!(step(&memory), 9, "{has_locks} {before}");
        assert_good(&memory, FILE);
    }
}

/// Also where the file that was to be replaced is damaged: what another job put there meanwhile is
/// not, and comes back.
#[test]
fn a_file_that_replaced_a_damaged_one_meanwhile_is_kept() {
    let memory = MemoryStorage::new();
    save_on(&memory, 1).unwrap();
    // In the text of the manifest.
    memory.corrupt(Path::new(FILE), 300, 1).unwrap();
    assert_eq!(catalog::find(&memory, &wanted(FILE)).unwrap_err().kind(), ErrorKind::Corrupt);
    let (inner, calls) = (memory.clone(), AtomicUsize::new(0));
    let hooked = Hooked::new(&memory, move |call| {
        if call.operation.starts_with("try_lock") {
            return Err(unsupported());
        }
        if call.operation == "rename" && calls.fetch_add(1, Ordering::Relaxed) == 0 {
            other_job(&without_locks(&inner), 9);
        }
        Ok(())
    });
    let error = save_on(&hooked, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Superseded, "{error}");
    assert_eq!(step(&memory), 9);
    assert_good(&memory, FILE);
}

/// Without locks there is a look after the exchange. If it fails, the new file is visible all the
/// same: the error must not say that nothing was committed.
#[test]
fn a_failed_look_after_the_exchange_leaves_the_outcome_unknown() {
    let memory = MemoryStorage::new();
    save_on(&memory, 1).unwrap();
    let renamed = AtomicUsize::new(0);
    let hooked = Hooked::new(&memory, move |call| match call.operation {
        "try_lock" | "try_lock_self" => Err(unsupported()),
        "rename" => {
            renamed.store(1, Ordering::Relaxed);
            Ok(())
        }
        "list" if renamed.load(Ordering::Relaxed) == 1 => {
            Err(Error::new(ErrorKind::Storage, "cannot be listed"))
        }
        _ => Ok(()),
    });
    let error = save_on(&hooked, 2).unwrap_err();
    assert_eq!(step(&memory), 2, "the new file is visible");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(!error.help().unwrap_or_default().contains("nothing was committed"), "{error}");
}

/// The file is replaced whenever a load is about to open it: to find it, and to read it. The load
/// gives the new one, never a mix.
#[test]
fn a_file_that_is_replaced_while_it_is_loaded_is_loaded_anew() {
    for at in 1..=2 {
        let memory = MemoryStorage::new();
        save_on(&memory, 1).unwrap();
        let (inner, calls) = (memory.clone(), Arc::new(AtomicUsize::new(0)));
        let seen = calls.clone();
        let hooked = Hooked::new(&memory, move |call| {
            let opens = call.operation == "open_file" && call.path.ends_with(Path::new(FILE));
            if opens && calls.fetch_add(1, Ordering::Relaxed) + 1 == at {
                other_job(&inner, 2);
            }
            Ok(())
        });
        let verdicts = loaded(hooked, 1, FILE, &usual_tensors(), 2);
        assert!(seen.load(Ordering::Relaxed) >= at, "a load opens its file twice");
        verdicts.into_iter().for_each(|verdict| drop(verdict.unwrap()));
    }
}

/// The bytes of all ranks and the header are durable before the rename, the rename before what it
/// replaced is unlinked.
#[test]
fn a_file_is_durable_step_by_step() {
    let memory = MemoryStorage::new();
    save_on(&memory, 1).unwrap();
    let counting = FaultyStorage::new(Arc::new(memory));
    let id = save_on(&counting, 2).unwrap().save_id.to_string();
    let log: Vec<String> = counting.log().iter().map(|line| line.replace(&id, "ID")).collect();
    let places = |start: &str| -> Vec<usize> {
        let all: Vec<_> = (0..log.len()).filter(|i| log[*i].starts_with(start)).collect();
        assert!(!all.is_empty(), "no `{start}` in {log:#?}");
        all
    };
    let partial = "runs/.a.safetensors.ID.partial";
    let written = places(&format!("write_at {partial}"));
    let finished = places(&format!("finish {partial}"));
    let [of_rank, of_coordinator] = finished[..] else { panic!("{log:#?}") };
    let (data, header) = (written[written.len() - 2], written[written.len() - 1]);
    assert!(data < of_rank && of_rank < header && header < of_coordinator, "{log:#?}");
    let renamed = places(&format!("rename {partial}"))[0];
    assert!(of_coordinator < renamed, "{log:#?}");
    let committed = places("sync runs").into_iter().find(|i| *i > renamed).unwrap();
    assert!(committed < places("remove_file")[0], "unlinked too early: {log:#?}");
}

/// What a crashed job had replaced may be all that is left: it stays until something newer is
/// committed. What never was a checkpoint goes at once.
#[test]
fn a_file_that_a_crashed_job_replaced_goes_only_after_a_commit() {
    let memory = MemoryStorage::new();
    save_on(&memory, 1).unwrap();
    let good = memory.read(Path::new(FILE)).unwrap();
    let hidden = |id: char| format!(".a.safetensors.{}.partial", id.to_string().repeat(32));
    memory.write(&Path::new("runs").join(hidden('1')), &good).unwrap();
    memory.write(&Path::new("runs").join(hidden('2')), &good[..5000]).unwrap();
    let group = ProcessGroup::solo();
    let (state, refuse) = (state(&usual_tensors(), &group, 2), SaveOptions::default());
    let refused = save_single_file(&group, &memory, &path(FILE), &state, &refuse).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{refused}");
    assert_eq!(entries(&memory, "runs"), [hidden('1').as_str(), "a.safetensors"]);
    save_on(&memory, 3).unwrap();
    assert_eq!(entries(&memory, "runs"), ["a.safetensors"]);
}

/// A network file system that loses bytes where two ranks wrote into one page is found out before
/// the commit.
#[test]
fn bytes_that_were_spoiled_where_ranks_meet_are_found_before_the_commit() {
    let memory = MemoryStorage::new();
    let inner = memory.clone();
    let verdicts = on_ranks(2, move |group| {
        let spoiled = inner.clone();
        let hooked = Hooked::new(&inner, move |call| {
            if call.operation == "open_file"
                && call.path.extension().is_some_and(|e| e == "partial")
            {
                let end = spoiled.read(&call.path).unwrap().len() as u64 - 1;
                spoiled.corrupt(&call.path, end, 1).unwrap();
            }
            Ok(())
        });
        let storage: &dyn Storage = if group.is_coordinator() { &hooked } else { &inner };
        let state = state(&usual_tensors(), &group, 1);
        save_single_file(&group, storage, &path(FILE), &state, &SaveOptions::default())
    });
    let error = one_error(&verdicts, "spoiled");
    assert_eq!(error.kind(), ErrorKind::NotShared, "{error}");
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}
