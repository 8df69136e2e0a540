//! Finding, listing and loading: nothing is written, and what is hidden by a failure is never
//! taken for absent.

use std::path::Path;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::SaveOptions;
use tch_checkpoint::catalog::{Order, find_checkpoints_on};
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::storage::MemoryStorage;

use super::matrix::{After, Scenario, able};
use super::tensors;
use crate::harness::*;

/// Two steps, the second of which is the latest, and a file.
fn before(memory: &MemoryStorage, ranks: u32) {
    saved(memory.clone(), ranks, "runs/a", &tensors(), 1);
    saved(memory.clone(), ranks, "runs/b", &tensors(), 2);
    let memory = memory.clone();
    on_ranks(ranks, move |group| {
        let options = SaveOptions { step: 3, ..SaveOptions::default() };
        let state = state(&tensors(), &group, 3);
        save_single_file(&group, &memory, &path("runs/c.safetensors"), &state, &options).unwrap()
    });
}

/// A failure is an error of the storage; and nothing was touched.
fn check(after: &After<'_>) {
    let verdict = after.verdict.map(tch_checkpoint::Error::kind);
    assert_eq!(verdict, Some(ErrorKind::Storage), "{}: {:?}", after.what, after.verdict);
    for at in ["runs/a", "runs/b", "runs/c.safetensors"] {
        assert_good(after.memory, at);
    }
    assert_eq!(entries(after.memory, "runs"), ["a", "b", "c.safetensors"], "{}", after.what);
}

const LIST: Scenario = Scenario {
    name: "listing",
    storage: able,
    before,
    act: |group, storage, arm| {
        arm();
        let listed =
            find_checkpoints_on(group, storage.as_ref(), Path::new("runs"), &Order::Latest)?;
        let steps: Vec<u64> = listed.iter().map(|info| info.step).collect();
        assert_eq!(steps, [2, 1]);
        Ok(())
    },
    check,
};

const LATEST: Scenario = Scenario {
    name: "loading the latest",
    act: |group, storage, arm| {
        arm();
        let at = "runs/latest";
        let loaded = load_state(group, storage.as_ref(), at, &tensors(), 2, Atomicity::Atomic);
        loaded.map(drop)
    },
    ..LIST
};

const FILE: Scenario = Scenario {
    name: "loading a single file",
    act: |group, storage, arm| {
        arm();
        let at = "runs/c.safetensors";
        let loaded = load_state(group, storage.as_ref(), at, &tensors(), 3, Atomicity::Atomic);
        loaded.map(drop)
    },
    ..LIST
};

#[test]
fn every_error_of_listing() {
    LIST.fails_at_each_operation();
}

#[test]
fn every_error_of_loading_the_latest() {
    LATEST.fails_at_each_operation();
}

#[test]
fn every_error_of_loading_a_single_file() {
    FILE.fails_at_each_operation();
}
