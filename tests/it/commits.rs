//! What crashed, rival and unlucky jobs leave in a directory of checkpoints, and what the next
//! save and load make of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tch_checkpoint::catalog;
use tch_checkpoint::layout::{self, CheckpointName, SaveId};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{Directory, MemoryStorage, Rename, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, Error, ErrorKind, OnExisting, Result};

use crate::harness::*;
use crate::hooked::{Call, Hooked, unsupported};

fn tensors() -> Vec<TestTensor> {
    vec![TestTensor::new("w", Dtype::F32, &[40, 7], None)]
}

fn id(byte: u8) -> SaveId {
    SaveId::from_bytes([byte; 16])
}

fn named(text: &str) -> CheckpointName {
    CheckpointName::new(text).unwrap()
}

fn runs(storage: &MemoryStorage) -> Arc<dyn Directory> {
    storage.create_dir_all(Path::new("runs")).unwrap()
}

/// A directory with a file in it.
fn litter(parent: &dyn Directory, name: &str) -> Arc<dyn Directory> {
    let dir = parent.create_dir(name).unwrap();
    dir.create_file("half").unwrap().finish().unwrap();
    dir
}

fn step_of(storage: &dyn Storage, at: &str) -> u64 {
    catalog::find(storage, &wanted(at)).unwrap().manifest.step()
}

fn assert_loads(storage: &MemoryStorage, at: &str, generation: u64) {
    for verdict in loaded(storage.clone(), 2, at, &tensors(), generation) {
        verdict.unwrap();
    }
}

/// Saves generation `generation` as `runs/a` on two ranks, over what is there.
fn replaced(storage: impl Storage + Clone + 'static, generation: u64) -> Vec<Result<Checkpoint>> {
    on_ranks(2, move |group| save_state(&group, &storage, "runs/a", &tensors(), generation))
}

#[test]
fn dead_attempts_are_swept_and_live_ones_left() {
    let storage = MemoryStorage::new();
    let parent = runs(&storage);
    let dead = layout::partial_dir(&named("b"), &id(1));
    let live = layout::partial_dir(&named("b"), &id(2));
    litter(parent.as_ref(), &dead);
    let handle = litter(parent.as_ref(), &live);
    let owner = handle.try_lock_self().unwrap().unwrap();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    assert_eq!(entries(&storage, "runs"), [live.as_str(), "a"]);
    assert_eq!(handle.list().unwrap().len(), 1, "a live attempt lost a file");
    drop(owner);
    saved(storage.clone(), 2, "runs/a", &tensors(), 2);
    assert_eq!(entries(&storage, "runs"), ["a"]);
}

#[test]
fn interrupted_deletions_are_finished() {
    let storage = MemoryStorage::new();
    let parent = runs(&storage);
    let trash = litter(parent.as_ref(), &layout::trash_dir(&id(1)));
    litter(litter(trash.as_ref(), "code").as_ref(), "deeper");
    trash.create_link("link", "../../elsewhere").unwrap();
    saved(storage.clone(), 1, "runs/a", &tensors(), 1);
    assert_eq!(entries(&storage, "runs"), ["a"]);
}

/// Between the two renames of a storage without exchange: the name is gone, the old one waits.
#[test]
fn an_interrupted_replacement_is_looked_through_and_undone() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 7);
    saved(storage.clone(), 2, "runs/before", &tensors(), 5);
    let old = layout::old_dir(&named("a"), &id(3));
    runs(&storage).rename("a", &old, Rename::NoReplace).unwrap();
    litter(runs(&storage).as_ref(), &layout::partial_dir(&named("a"), &id(3)));
    assert_loads(&storage, "runs/a", 7);
    assert_good(&storage, "runs/a");
    assert_eq!(step_of(&storage, "runs/latest"), 7, "the newest is the one that waits");
    saved(storage.clone(), 2, "runs/b", &tensors(), 1);
    assert_eq!(entries(&storage, "runs"), ["a", "b", "before"]);
    assert_loads(&storage, "runs/a", 7);
}

/// A replacement that was complete but for its tidying up: the new one stays, the old one goes.
#[test]
fn an_old_one_whose_successor_is_there_is_removed() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let old = layout::old_dir(&named("a"), &id(3));
    runs(&storage).rename("a", &old, Rename::NoReplace).unwrap();
    storage.create_dir_all(Path::new("runs/keep")).unwrap();
    // Another save would restore the old one, hence by hand.
    saved(storage.clone(), 2, "elsewhere/a", &tensors(), 2);
    copy_checkpoint(&storage, "elsewhere/a", "runs/a");
    assert_loads(&storage, "runs/a", 2);
    saved(storage.clone(), 2, "runs/b", &tensors(), 1);
    assert_eq!(entries(&storage, "runs"), ["a", "b", "keep"]);
    assert_loads(&storage, "runs/a", 2);
}

fn copy_checkpoint(storage: &MemoryStorage, from: &str, to: &str) {
    let (from, to) = (Path::new(from), Path::new(to));
    storage.create_dir_all(to).unwrap();
    for entry in storage.open_dir(from).unwrap().list().unwrap() {
        let bytes = storage.read(&from.join(&entry.name)).unwrap();
        storage.write(&to.join(&entry.name), &bytes).unwrap();
    }
}

/// Before every single operation of a replacement, with exchange and without, a reader finds the
/// old checkpoint or the new one, whole.
#[test]
fn a_reader_always_finds_one_or_the_other() {
    for exchange in [true, false] {
        let storage = MemoryStorage::new();
        saved(storage.clone(), 2, "runs/a", &tensors(), 1);
        let (reader, seen) = (storage.clone(), Arc::new(AtomicUsize::new(0)));
        let looks = seen.clone();
        let hooked = Hooked::new(&storage, move |call| {
            // The other rank may be anywhere; only the coordinator renames.
            if call.path.starts_with("runs") {
                let step = step_of(&reader, "runs/a");
                assert!([1, 2].contains(&step), "step {step} before {call:?}");
                assert_good(&reader, "runs/a");
                looks.fetch_add(1, Ordering::Relaxed);
            }
            match call.mode {
                Some(Rename::Exchange) if !exchange => Err(unsupported()),
                _ => Ok(()),
            }
        });
        for verdict in replaced(hooked, 2) {
            verdict.unwrap();
        }
        assert!(seen.load(Ordering::Relaxed) > 20);
        assert_eq!(entries(&storage, "runs"), ["a"], "exchange: {exchange}");
        assert_loads(&storage, "runs/a", 2);
    }
}

/// The reader saw neither the old name nor `.old`, because the successor arrived in between.
#[test]
fn a_reader_between_two_renames() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    saved(storage.clone(), 2, "runs/next", &tensors(), 2);
    let old = layout::old_dir(&named("a"), &id(3));
    runs(&storage).rename("a", &old, Rename::NoReplace).unwrap();
    let (inner, done) = (storage.clone(), AtomicBool::new(false));
    let hooked = Hooked::new(&storage, move |call| {
        if call.operation == "list" && !done.swap(true, Ordering::Relaxed) {
            let trash = layout::trash_dir(&id(4));
            runs(&inner).rename("next", "a", Rename::NoReplace)?;
            runs(&inner).rename(&old, &trash, Rename::NoReplace)?;
        }
        Ok(())
    });
    assert_eq!(step_of(&hooked, "runs/a"), 2);
}

/// A source that lets something else happen first, once.
struct Meanwhile {
    happens: Box<dyn Fn() + Send + Sync>,
    happened: AtomicBool,
}

impl TensorSource for Meanwhile {
    fn read_into(&self, _offset: u64, out: &mut [u8]) -> Result<()> {
        if !self.happened.swap(true, Ordering::Relaxed) {
            (self.happens)();
        }
        out.fill(9);
        Ok(())
    }
}

/// Saves to `runs/a`; `meanwhile` happens after phase "plan" and before the commit.
fn save_while(
    storage: &MemoryStorage,
    on_existing: OnExisting,
    meanwhile: impl Fn() + Send + Sync + 'static,
) -> Vec<Result<Checkpoint>> {
    let storage = storage.clone();
    let source: Arc<dyn TensorSource> =
        Arc::new(Meanwhile { happens: Box::new(meanwhile), happened: AtomicBool::new(false) });
    on_ranks(2, move |group| {
        let mut state = StateDict::new();
        let spec = TensorSpec::new(Dtype::U8, vec![64]).unwrap();
        state.add(&Component::model(), name("w"), spec, source.clone()).unwrap();
        let options = SaveOptions { step: 9, on_existing, ..SaveOptions::default() };
        save(&group, &storage, &path("runs/a"), &state, &options)
    })
}

#[test]
fn another_job_commits_under_the_name_meanwhile() {
    for on_existing in [OnExisting::Refuse, OnExisting::Replace] {
        let storage = MemoryStorage::new();
        if on_existing == OnExisting::Replace {
            saved(storage.clone(), 2, "runs/a", &tensors(), 1);
        }
        let theirs = storage.clone();
        let verdicts = save_while(&storage, on_existing, move || {
            saved(theirs.clone(), 1, "runs/a", &tensors(), 2);
        });
        let error = one_error(&verdicts, "superseded");
        assert_eq!(error.kind(), ErrorKind::Superseded, "{error}");
        assert_eq!(error.path(), Some("runs/a"), "{error}");
        assert_eq!(entries(&storage, "runs"), ["a"], "theirs is there, ours left nothing");
        assert_good(&storage, "runs/a");
        assert_loads(&storage, "runs/a", 2);
    }
}

/// What is replaced is what was seen in phase "plan": a name that became free is no reason to
/// put something there.
#[test]
fn what_was_to_be_replaced_is_removed_meanwhile() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let theirs = storage.clone();
    let verdicts = save_while(&storage, OnExisting::Replace, move || {
        let moved = runs(&theirs).rename("a", "kept", Rename::NoReplace);
        moved.unwrap();
    });
    for verdict in verdicts {
        verdict.unwrap();
    }
    assert_eq!(entries(&storage, "runs"), ["a", "kept"], "nothing stood in the way");
}

/// The name goes away between two looks at it, as while another job replaces it.
#[test]
fn a_name_that_goes_away_while_it_is_looked_at() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let (inner, moved) = (storage.clone(), AtomicBool::new(false));
    let hooked = Hooked::new(&storage, move |call| {
        let looks = call.operation == "open_dir" && call.path == Path::new("runs/a");
        if looks && !moved.swap(true, Ordering::Relaxed) {
            runs(&inner).rename("a", "moved", Rename::NoReplace)?;
        }
        Ok(())
    });
    replaced(hooked, 2).into_iter().for_each(|verdict| drop(verdict.unwrap()));
    assert_eq!(entries(&storage, "runs"), ["a", "moved"]);
    assert_loads(&storage, "runs/a", 2);
}

#[test]
fn a_lock_that_another_job_keeps() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let lock = runs(&storage).try_lock(layout::LOCK).unwrap().unwrap();
    let error = one_error(&replaced(storage.clone(), 2), "lock kept");
    assert_eq!(error.kind(), ErrorKind::Deadline, "{error}");
    assert!(error.path().is_some_and(|path| path.ends_with(layout::LOCK)), "{error}");
    assert_eq!(entries(&storage, "runs"), ["a"], "nothing is left behind");
    assert_loads(&storage, "runs/a", 1);
    drop(lock);
    replaced(storage.clone(), 2).into_iter().for_each(|verdict| drop(verdict.unwrap()));
    assert_loads(&storage, "runs/a", 2);
}

/// The rename happened, its durability is unknown: said so, and what was replaced is kept until a
/// later save has made it durable.
#[test]
fn the_directory_cannot_be_fsynced_after_the_rename() {
    for exchange in [true, false] {
        let storage = MemoryStorage::new();
        saved(storage.clone(), 2, "runs/a", &tensors(), 1);
        let (renamed, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        let hooked = Hooked::new(&storage, move |call| {
            if call.mode == Some(Rename::Exchange) && !exchange {
                return Err(unsupported());
            }
            renamed.fetch_or(call.operation == "rename", Ordering::Relaxed);
            let fsync = call.operation == "sync" && call.path == Path::new("runs");
            // Once: a second fsync that succeeds proves nothing about the first.
            let due = fsync && renamed.load(Ordering::Relaxed);
            if due && !failed.swap(true, Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Storage, "the disk is gone"));
            }
            Ok(())
        });
        let error = one_error(&replaced(hooked, 2), "no fsync");
        assert_eq!(error.kind(), ErrorKind::DurabilityUncertain, "{error}");
        assert_eq!(error.exit_code(), 6);
        assert_loads(&storage, "runs/a", 2);
        let left = entries(&storage, "runs");
        assert_eq!(left.len(), 2, "the one that was replaced is kept: {left:?}");
        let old = runs(&storage).open_dir(&left[0]).unwrap();
        assert_eq!(catalog::read_manifest(old.as_ref()).unwrap().step(), 1);
        replaced(storage.clone(), 3).into_iter().for_each(|verdict| drop(verdict.unwrap()));
        assert_eq!(entries(&storage, "runs"), ["a"]);
        assert_loads(&storage, "runs/a", 3);
    }
}

/// A newest checkpoint that cannot be read does not hide the one before it; asked for by name it
/// is refused.
#[test]
fn the_newest_is_the_newest_that_can_be_read() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 1, "runs/a", &tensors(), 1);
    saved(storage.clone(), 1, "runs/z", &tensors(), 2);
    storage.corrupt(Path::new("runs/z/manifest.bin"), 40, 1).unwrap();
    assert_eq!(step_of(&storage, "runs/latest"), 1);
    let error = catalog::find(&storage, &wanted("runs/z")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// Names that look like ours but are not, and all else, outlive saves and replacements.
#[test]
fn files_of_the_user_are_never_touched() {
    let storage = MemoryStorage::new();
    let parent = runs(&storage);
    let hex = id(1);
    let directories =
        ["mine", ".a.partial", ".trash-1", ".a.old", &format!(".trash-{hex}.bak"), "a.old"];
    let files = [
        "notes.txt".to_owned(),
        "latest".to_owned(),
        layout::partial_dir(&named("a"), &hex),
        layout::old_dir(&named("a"), &hex),
        layout::trash_dir(&hex),
    ];
    for name in directories {
        litter(parent.as_ref(), name);
    }
    for name in &files {
        parent.create_file(name).unwrap().finish().unwrap();
    }
    let before = entries(&storage, "runs");
    for generation in 1..4 {
        saved(storage.clone(), 2, "runs/a", &tensors(), generation);
    }
    let mut after = entries(&storage, "runs");
    after.retain(|name| name != "a");
    assert_eq!(after, before);
    for name in directories {
        assert_eq!(parent.open_dir(name).unwrap().list().unwrap().len(), 1, "{name}");
    }
}

/// Without working locks a job still saves and replaces, and leaves the attempts of others alone.
#[test]
fn a_storage_without_locks() {
    let storage = MemoryStorage::new();
    let others = layout::partial_dir(&named("b"), &id(1));
    litter(runs(&storage).as_ref(), &others);
    let hooked = Hooked::new(&storage, |call: &Call| match call.operation {
        "try_lock" | "try_lock_self" => Err(unsupported()),
        _ => Ok(()),
    });
    for generation in 1..3 {
        for verdict in replaced(hooked.clone(), generation) {
            verdict.unwrap();
        }
        assert_loads(&storage, "runs/a", generation);
    }
    assert_eq!(entries(&storage, "runs"), [others.as_str(), "a"]);
}
