//! What is there after a power cut, at any moment of a save: what was acknowledged, and of what was
//! not, all or nothing.

mod disk;

use std::sync::Arc;

use disk::{Disk, Left};
use tch_checkpoint::storage::{Fault, FaultyStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Checkpoint, ErrorKind, OnExisting, ProcessGroup, Result};

use crate::harness::*;

const EIO: i32 = 5;
const CUTS: [Left; 3] = [Left::Synced, Left::NamesFirst, Left::All];

/// Saves a generation under the one name, as a directory or as a file.
type Save = fn(&ProcessGroup, &dyn Storage, u64) -> Result<Checkpoint>;

fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("w", Dtype::F32, &[40, 70], None),
        TestTensor::new("rows", Dtype::F32, &[6, 5], Some(0)),
    ]
}

fn as_directory(
    group: &ProcessGroup,
    storage: &dyn Storage,
    generation: u64,
) -> Result<Checkpoint> {
    save_state(group, storage, "runs/a", &tensors(), generation)
}

fn as_file(group: &ProcessGroup, storage: &dyn Storage, generation: u64) -> Result<Checkpoint> {
    let options = tch_checkpoint::save::SaveOptions {
        step: generation,
        on_existing: OnExisting::Replace,
        ..Default::default()
    };
    let state = state(&tensors(), group, generation);
    tch_checkpoint::single::save_single_file(group, storage, &path("runs/a"), &state, &options)
}

/// The generation that is whole under the name after that cut.
fn generation_after(disk: &Disk, left: Left, what: &str) -> u64 {
    let memory = disk.after_a_cut(left);
    let found = tch_checkpoint::catalog::find(&memory, &wanted("runs/a"));
    let found = found.unwrap_or_else(|e| panic!("{what}, {left:?}: {e}"));
    let damage = tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap().damage;
    assert_eq!(damage, [], "{what}, {left:?}");
    let generation = found.manifest.step();
    for loaded in loaded(memory, 1, "runs/a", &tensors(), generation) {
        loaded.unwrap_or_else(|e| panic!("{what}, {left:?}: {e}"));
    }
    generation
}

#[test]
fn what_was_saved_is_there_after_a_power_cut() {
    for (save, form) in [(as_directory as Save, "directory"), (as_file, "file")] {
        let disk = Disk::new();
        for generation in [1, 2] {
            let storage = disk.clone();
            on_ranks(2, move |group| save(&group, &storage, generation).unwrap());
            for left in CUTS {
                assert_eq!(generation_after(&disk, left, form), generation, "{form}, {left:?}");
            }
        }
    }
}

/// Each operation of a save over generation 1 fails, and perhaps all after it.
fn fail_each_operation(save: Save, persistent: bool) {
    let group = ProcessGroup::solo();
    for operation in 1.. {
        let disk = Disk::new();
        save(&group, &disk, 1).unwrap();
        let faulty = FaultyStorage::new(Arc::new(disk.clone()));
        faulty.fail_at(operation, Fault::Error(EIO), persistent);
        let verdict = save(&group, &faulty, 2);
        let log = faulty.log();
        if (log.len() as u64) < operation {
            assert!(operation > 10, "{log:#?}");
            return;
        }
        let what = format!("{} failed: {verdict:?}", log[operation as usize - 1]);
        for left in CUTS {
            let found = generation_after(&disk, left, &what);
            match verdict.as_ref().map_err(|e| e.kind()) {
                Ok(_) => assert_eq!(found, 2, "{what}, {left:?}: acknowledged, and lost"),
                Err(ErrorKind::DurabilityUncertain | ErrorKind::OutcomeUnknown) => {}
                Err(_) => assert_eq!(found, 1, "{what}, {left:?}: not committed, but there"),
            }
        }
    }
}

#[test]
fn a_power_cut_at_each_operation_leaves_the_old_or_the_new() {
    fail_each_operation(as_directory, true);
    fail_each_operation(as_file, true);
}

/// The disk fails once, and the power later: a save that went on over an error has lied.
#[test]
fn what_is_acknowledged_after_one_error_is_there_after_a_power_cut() {
    fail_each_operation(as_directory, false);
    fail_each_operation(as_file, false);
}
