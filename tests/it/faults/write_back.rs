//! What the page cache has taken never comes to the device: bytes are lost that no write and no
//! fsync has to report again.

use std::sync::Arc;

use tch_checkpoint::load::Atomicity;
use tch_checkpoint::single::{save_multi_files, save_single_file};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ErrorKind, OnExisting, ProcessGroup, Result, SaveOptions, save};

use super::{EIO, one_verdict, tensors};
use crate::harness::*;

const RANKS: u32 = 2;
/// Of one replica, which the ranks share: each writes more than lies unsettled at first.
const BYTES: u64 = 6 << 20;

type Save = fn(&ProcessGroup, &Arc<dyn Storage>, &str, &StateDict, &SaveOptions) -> Result<()>;

const WAYS: [(&str, Save); 4] = [
    ("save", |group, on, at, state, options| {
        save(group, on.as_ref(), &path(at), state, options).map(drop)
    }),
    ("save_async", |group, on, at, state, options| {
        let after = Box::new(|_: &_| ());
        tch_checkpoint::save::save_async(group, on, &path(at), state, options, after)?
            .wait()
            .map(drop)
    }),
    ("save_single_file", |group, on, at, state, options| {
        save_single_file(group, on.as_ref(), &path(at), state, options).map(drop)
    }),
    ("save_multi_files", |group, on, at, state, options| {
        save_multi_files(group, on.as_ref(), &path(at), state, options).map(drop)
    }),
];

fn large() -> StateDict {
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, [BYTES]).unwrap();
    let bytes = Arc::new(vec![7u8; spec.size_bytes() as usize]);
    state.add(&Component::model(), name("large"), spec, bytes).unwrap();
    state
}

/// The verdict of all ranks on a save into `at` that fails so on rank `odd`, where there is one.
fn save_failing(memory: &MemoryStorage, save: Save, at: &'static str, odd: Option<u32>) {
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let failing = FaultyStorage::new(storage.clone());
    failing.fail_write_back(EIO);
    let failing: Arc<dyn Storage> = Arc::new(failing);
    let verdicts = on_ranks(RANKS, move |group| {
        let is_odd = Some(group.rank().get()) == odd;
        let options =
            SaveOptions { step: 2, on_existing: OnExisting::Replace, ..SaveOptions::default() };
        save(&group, if is_odd { &failing } else { &storage }, at, &large(), &options)
    });
    match odd {
        Some(odd) => {
            let error = one_verdict(&verdicts, odd, at).expect("committed");
            assert_eq!((error.kind(), error.os_code()), (ErrorKind::Storage, Some(EIO)), "{error}");
            assert_eq!(error.phase(), Some("commit"));
            assert!(error.path().is_some() && error.message().contains("write_back"), "{error}");
        }
        None => verdicts.into_iter().for_each(|verdict| verdict.unwrap()),
    }
}

#[test]
fn bytes_that_do_not_come_to_the_device_fail_the_save_on_every_rank() {
    for (way, save) in WAYS {
        for odd in 0..RANKS {
            let memory = MemoryStorage::new();
            saved(memory.clone(), RANKS, "runs/old", &tensors(), 1);
            save_failing(&memory, save, "runs/new", Some(odd));
            let what = format!("{way}, rank {odd}");
            assert_eq!(entries(&memory, "runs"), ["old"], "{what}");
            let inner = memory.clone();
            on_ranks(RANKS, move |group| {
                let atomicity = Atomicity::Atomic;
                load_state(&group, &inner, "runs/old", &tensors(), 1, atomicity).map(drop).unwrap();
            });
            // The next one works where nothing fails.
            save_failing(&memory, save, "runs/new", None);
        }
    }
}
