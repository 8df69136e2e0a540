//! Saves that do not fit: refused before anything is written, the same on all ranks.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::checkpointer::{At, Checkpointer, CheckpointerConfig, Parts};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::state::{Shared, StateDict, TensorSource};
use tch_checkpoint::storage::{LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, Error, ErrorKind, OnExisting, ProcessGroup, Result};
use tracing::Level;

use crate::harness::*;

type Save = fn(&ProcessGroup, &dyn Storage, u64) -> Result<Checkpoint>;

fn tensors() -> Vec<TestTensor> {
    vec![TestTensor::new("w", Dtype::F32, &[1000, 100], None)]
}

fn options(generation: u64) -> SaveOptions {
    SaveOptions { step: generation, on_existing: OnExisting::Replace, ..SaveOptions::default() }
}

fn as_directory(
    group: &ProcessGroup,
    storage: &dyn Storage,
    generation: u64,
) -> Result<Checkpoint> {
    save_state(group, storage, "runs/a", &tensors(), generation)
}

fn as_file(group: &ProcessGroup, storage: &dyn Storage, generation: u64) -> Result<Checkpoint> {
    let state = state(&tensors(), group, generation);
    save_single_file(group, storage, &path("runs/a"), &state, &options(generation))
}

/// Every name below `runs`, and how much all files take.
fn inventory(storage: &MemoryStorage) -> (Vec<String>, u64) {
    let runs = storage.open_dir(Path::new("runs")).unwrap();
    let mut names: Vec<_> = runs.list().unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    (names, storage.used_bytes())
}

fn refused(error: &Error, phase: &str) {
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!((error.path(), error.phase()), (Some("runs"), Some(phase)), "{error}");
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn what_does_not_fit_is_the_same_error_on_all_ranks_and_the_old_one_stays() {
    let directory = (3, as_directory as Save, "plan");
    for (n, save, phase) in [directory, (1, as_file, "plan file"), (4, as_file, "plan file")] {
        let storage = MemoryStorage::new();
        let saved = |generation: u64| {
            let storage = storage.clone();
            on_ranks(n, move |group| save(&group, &storage, generation))
        };
        saved(1).into_iter().for_each(|verdict| drop(verdict.unwrap()));
        let before = inventory(&storage);
        storage.set_capacity(Some(before.1 + 300_000));
        let errors: Vec<Error> = saved(2).into_iter().map(Result::unwrap_err).collect();
        errors.iter().for_each(|error| refused(error, phase));
        assert!(errors.windows(2).all(|pair| pair[0] == pair[1]), "{errors:?}");
        assert_eq!(inventory(&storage), before, "nothing was written");
        for verdict in loaded(storage.clone(), n, "runs/a", &tensors(), 1) {
            verdict.unwrap();
        }
        storage.set_capacity(Some(before.1 + 900_000));
        saved(3).into_iter().for_each(|verdict| drop(verdict.unwrap()));
    }
}

#[test]
fn debris_is_swept_before_space_is_looked_at() {
    let storage = MemoryStorage::new();
    let runs = storage.create_dir_all(Path::new("runs")).unwrap();
    let debris = runs.create_dir(&format!(".a.{}.partial", "0".repeat(32))).unwrap();
    let half = debris.create_file("half").unwrap();
    half.write_at(0, &vec![0; 5_000_000]).unwrap();
    half.finish().unwrap();
    drop((debris, runs));
    storage.set_capacity(Some(5_100_000));
    let saving = storage.clone();
    for verdict in on_ranks(2, move |group| as_directory(&group, &saving, 1)) {
        verdict.unwrap();
    }
}

/// More bytes than any disk has, none of which is ever asked for.
struct Endless;

impl TensorSource for Endless {
    fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Device, "something was written"))
    }
}

#[test]
fn a_real_disk_is_asked() {
    let place = tempfile::tempdir().unwrap();
    let runs = place.path().join("runs").to_string_lossy().into_owned();
    let at = path(&format!("{runs}/a"));
    let errors = on_ranks(2, move |group| {
        let mut state = StateDict::new();
        // 2^60 bytes; ext4 ends at 2^60, XFS at 2^63, and no machine has them.
        let spec = TensorSpec::new(Dtype::U8, [1 << 30, 1 << 30]).unwrap();
        state.add(&Component::model(), name("w"), spec, Arc::new(Endless)).unwrap();
        save(&group, &LocalStorage::new(), &at, &state, &options(1)).unwrap_err()
    });
    for error in &errors {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(error.path(), Some(runs.as_str()));
        assert!(error.message().contains("the checkpoint takes 107"), "{error}");
    }
    let left = std::fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name != ".tch-checkpoint.lock").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_race_for_the_last_bytes_is_an_error_of_the_storage() {
    let storage = MemoryStorage::new();
    storage.set_capacity(Some(10));
    let dir = storage.create_dir_all(Path::new("d")).unwrap();
    let file = dir.create_file("a").unwrap();
    file.write_at(0, b"0123456789").unwrap();
    let error = file.write_at(5, b"567890").unwrap_err();
    assert_eq!((error.kind(), error.os_code()), (ErrorKind::Storage, Some(28)));
    file.write_at(5, b"56789").unwrap();
    assert_eq!((storage.used_bytes(), dir.space().unwrap().unwrap().usable_bytes()), (10, 0));
    dir.remove_file("a").unwrap();
    assert_eq!(storage.used_bytes(), 10, "still open");
    drop(file);
    assert_eq!(storage.used_bytes(), 0);
}

/// Saves at two steps by a checkpointer on `storage`.
fn train(storage: &MemoryStorage) -> Result<()> {
    let config = CheckpointerConfig::new("run").in_directory("runs").every_steps(1);
    let group = ProcessGroup::solo();
    let mut checkpointer = Checkpointer::with_storage(&group, Arc::new(storage.clone()), config)?;
    for step in 1..=2 {
        let mut weight = 1_i64;
        let mut model = Shared(&mut weight);
        let _ = checkpointer.step_callback(&At::step(step), &mut Parts::new().model(&mut model))?;
    }
    Ok(())
}

#[test]
fn unknown_or_little_space_is_told_once_and_hinders_nothing() {
    let storage = MemoryStorage::new();
    let told = logged(Level::WARN, || train(&storage).unwrap());
    assert_eq!(told.matches("free space is not known").count(), 1, "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    storage.set_capacity(Some(1 << 30));
    assert_eq!(logged(Level::WARN, || train(&storage).unwrap()), "");
    storage.set_capacity(Some(400 << 20));
    let told = logged(Level::WARN, || train(&storage).unwrap());
    let first = told.lines().next().unwrap();
    for part in ["little space is left", "available=", "MiB minimum=500.00 MiB", "path=runs/run"] {
        assert!(first.contains(part), "{part}: {told}");
    }
    assert_eq!(told.matches("space is getting scarce").count(), 2, "{told}");
}

#[test]
fn a_save_that_seems_not_to_fit_is_tried_where_that_was_asked_for() {
    let storage = MemoryStorage::new();
    as_directory(&ProcessGroup::solo(), &storage, 1).unwrap();
    let taken = storage.used_bytes();
    for single in [false, true] {
        let storage = MemoryStorage::new();
        // What is said to be taken is a little more than what is.
        storage.set_capacity(Some(taken));
        let save_with = |ignore_space| {
            let group = ProcessGroup::solo();
            let state = state(&tensors(), &group, 1);
            let options = SaveOptions { ignore_space, ..options(1) };
            let how = if single { save_single_file } else { save };
            how(&group, &storage, &path("runs/a"), &state, &options)
        };
        let error = save_with(false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let told = logged(Level::WARN, || drop(save_with(true).unwrap()));
        assert!(told.contains("is tried all the same"), "{told}");
    }
}
