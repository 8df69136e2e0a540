//! Saves of every form, under a new name and over an old one.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog;
use tch_checkpoint::group::Channel;
use tch_checkpoint::layout::Debris;
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{Error, ErrorKind, OnExisting, ProcessGroup, Result, SaveOptions, save};

use super::matrix::{After, Scenario, able, poor};
use super::tensors;
use crate::harness::*;

const FILE: &str = "runs/a.safetensors";
const NEW_FILE: &str = "runs/b.safetensors";

fn older(memory: &MemoryStorage, ranks: u32) {
    saved(memory.clone(), ranks, "runs/a", &tensors(), 1);
}

fn older_file(memory: &MemoryStorage, ranks: u32) {
    let memory = memory.clone();
    on_ranks(ranks, move |group| save_file(&group, &memory, FILE, 1).unwrap());
}

fn save_file(group: &ProcessGroup, storage: &dyn Storage, at: &str, step: u64) -> Result<()> {
    save_file_as(group, storage, at, step, OnExisting::Replace)
}

fn save_file_as(
    group: &ProcessGroup,
    storage: &dyn Storage,
    at: &str,
    step: u64,
    on_existing: OnExisting,
) -> Result<()> {
    let state = state(&tensors(), group, step);
    let options = SaveOptions { step, on_existing, ..SaveOptions::default() };
    save_single_file(group, storage, &path(at), &state, &options).map(drop)
}

fn beside(group: &ProcessGroup, storage: &Arc<dyn Storage>, at: &str) -> Result<()> {
    let pending = save_beside(group, storage, at, &tensors(), 2)?;
    for _ in 0..3 {
        group.phase_all(Channel::Training, "step", || Ok(()), |_| Ok(())).unwrap();
    }
    pending.wait().map(drop)
}

/// The older one lies beside under a name of its own, and stays.
fn check_new(after: &After<'_>, old: &str, new: &str) {
    let (storage, what) = (after.memory, after.what);
    assert_good(storage, old);
    assert_eq!(step_at(storage, old), Some(1), "{what}: the older one");
    let is_there = match step_at(storage, new) {
        None => false,
        Some(step) => {
            assert_eq!(step, 2, "{what}");
            assert_good(storage, new);
            true
        }
    };
    check_verdict(after, is_there);
}

/// The older one has the name; until the verdict is good it is not lost, wherever it lies.
fn check_replaced(after: &After<'_>, at: &str) {
    let (storage, what) = (after.memory, after.what);
    assert_good(storage, at);
    let step = step_at(storage, at).unwrap();
    assert!(step == 1 || step == 2, "{what}: step {step}");
    check_verdict(after, step == 2);
    if step == 2 && after.verdict.is_some() && at == "runs/a" {
        assert!(holds_hidden(storage, 1), "{what}: what was replaced is gone too early");
    }
}

fn check_verdict(after: &After<'_>, is_there: bool) {
    let what = after.what;
    let mut writes = ["create_file", "reserve", "write_at", "finish"].iter();
    let is_written = writes.any(|write| after.hit.starts_with(write));
    assert!(!is_written || after.verdict.is_some(), "{what}: a file that is not whole");
    match after.verdict.map(Error::kind) {
        None | Some(ErrorKind::DurabilityUncertain) => {
            assert!(is_there, "{what}: {:?}, but not there", after.verdict);
        }
        Some(ErrorKind::OutcomeUnknown) => {}
        Some(_) => assert!(!is_there, "{what}: {:?}, but there", after.verdict),
    }
}

fn step_at(storage: &MemoryStorage, at: &str) -> Option<u64> {
    match catalog::find(storage, &wanted(at)) {
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        found => Some(found.unwrap().manifest.step()),
    }
}

/// Whether a hidden directory holds the whole checkpoint of `step`.
fn holds_hidden(storage: &MemoryStorage, step: u64) -> bool {
    let runs = storage.open_dir(Path::new("runs")).unwrap();
    entries(storage, "runs").iter().filter(|name| Debris::parse(name).is_some()).any(|name| {
        let manifest = runs.open_dir(name).and_then(|dir| catalog::read_manifest(dir.as_ref()));
        manifest.is_ok_and(|manifest| manifest.step() == step)
    })
}

/// What a failed save took is given back before another one begins, which may need that space.
fn check_space(after: &After<'_>, older: &str) {
    let is_known = |error: &Error| {
        !matches!(error.kind(), ErrorKind::DurabilityUncertain | ErrorKind::OutcomeUnknown)
    };
    if after.verdict.is_some_and(is_known) {
        // It is refused, but not before it has swept.
        let refused = match older.ends_with(".safetensors") {
            true => save_file_as(&solo(), after.memory, older, 3, OnExisting::Refuse),
            false => save_as(&solo(), after.memory, older, OnExisting::Refuse),
        };
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let left = entries(after.memory, "runs");
        assert_eq!(format!("runs/{}", left.join(" ")), older, "{}: keeps space", after.what);
    }
}

fn solo() -> ProcessGroup {
    ProcessGroup::solo()
}

fn save_as(
    group: &ProcessGroup,
    storage: &dyn Storage,
    at: &str,
    on_existing: OnExisting,
) -> Result<()> {
    let options = SaveOptions { step: 3, on_existing, ..SaveOptions::default() };
    save(group, storage, &path(at), &state(&tensors(), group, 3), &options).map(drop)
}

/// The next save, in which nothing fails, leaves what is named and nothing else.
fn check_next(after: &After<'_>, at: &'static str, left: &[&str]) {
    let storage = after.memory.clone();
    let saves = on_ranks(after.ranks, move |group| match at.ends_with(".safetensors") {
        true => save_file(&group, &storage, at, 3),
        false => save_state(&group, &storage, at, &tensors(), 3).map(drop),
    });
    saves.into_iter().for_each(|save| save.unwrap_or_else(|e| panic!("{}: {e}", after.what)));
    assert_good(after.memory, at);
    assert_eq!(entries(after.memory, "runs"), left, "{}: debris stays", after.what);
}

const NEW: Scenario = Scenario {
    name: "save under a new name",
    storage: able,
    before: older,
    act: |group, storage, arm| {
        arm();
        save_state(group, storage.as_ref(), "runs/b", &tensors(), 2).map(drop)
    },
    check: |after| {
        check_new(after, "runs/a", "runs/b");
        check_space(after, "runs/a");
        check_next(after, "runs/b", &["a", "b"]);
    },
};

const OVER: Scenario = Scenario {
    name: "save over an older one",
    act: |group, storage, arm| {
        arm();
        save_state(group, storage.as_ref(), "runs/a", &tensors(), 2).map(drop)
    },
    check: |after| {
        check_replaced(after, "runs/a");
        check_space(after, "runs/a");
        check_next(after, "runs/a", &["a"]);
    },
    ..NEW
};

const OVER_POOR: Scenario =
    Scenario { name: "save over an older one without exchange and locks", storage: poor, ..OVER };

const NEW_SINGLE: Scenario = Scenario {
    name: "single file under a new name",
    before: older_file,
    act: |group, storage, arm| {
        arm();
        save_file(group, storage.as_ref(), NEW_FILE, 2)
    },
    check: |after| {
        check_new(after, FILE, NEW_FILE);
        check_space(after, FILE);
        check_next(after, NEW_FILE, &["a.safetensors", "b.safetensors"]);
    },
    ..NEW
};

const OVER_SINGLE: Scenario = Scenario {
    name: "single file over an older one",
    act: |group, storage, arm| {
        arm();
        save_file(group, storage.as_ref(), FILE, 2)
    },
    check: |after| {
        check_replaced(after, FILE);
        check_space(after, FILE);
        check_next(after, FILE, &["a.safetensors"]);
    },
    ..NEW_SINGLE
};

const NEW_BESIDE: Scenario = Scenario {
    name: "save beside training under a new name",
    act: |group, storage, arm| {
        arm();
        beside(group, storage, "runs/b")
    },
    ..NEW
};

const OVER_BESIDE: Scenario = Scenario {
    name: "save beside training over an older one",
    act: |group, storage, arm| {
        arm();
        beside(group, storage, "runs/a")
    },
    ..OVER
};

/// All of them, for faults of other kinds.
pub const ALL: [Scenario; 7] =
    [NEW, OVER, OVER_POOR, NEW_SINGLE, OVER_SINGLE, NEW_BESIDE, OVER_BESIDE];

#[test]
fn every_error_of_a_save_under_a_new_name() {
    NEW.fails_at_each_operation();
}

#[test]
fn every_error_of_a_save_over_an_older_one() {
    OVER.fails_at_each_operation();
}

#[test]
fn every_error_of_a_save_on_a_storage_without_exchange_and_locks() {
    OVER_POOR.fails_at_each_operation();
}

#[test]
fn every_error_of_a_single_file() {
    NEW_SINGLE.fails_at_each_operation();
    OVER_SINGLE.fails_at_each_operation();
}

#[test]
fn every_error_of_a_save_beside_training() {
    NEW_BESIDE.fails_at_each_operation();
    OVER_BESIDE.fails_at_each_operation();
}
