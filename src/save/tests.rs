//! Saves of a process that gets no threads.

use std::fmt::Debug;

use super::*;
use crate::catalog::{Wanted, find};
use crate::load::{Atomicity, load};
use crate::plan::load::LoadRules;
use crate::single::save_single_file;
use crate::slice::Slice;
use crate::state::LoadTargets;
use crate::storage::MemoryStorage;
use crate::sync::refusing;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};
use crate::verify::verify;

/// More than the most that is saved without a thread anyway, in parts of odd lengths.
const LENS: [u64; 3] = [(9 << 20) + 1, 12_345, (11 << 20) + 777];

fn named(number: usize) -> (TensorName, TensorSpec) {
    let spec = TensorSpec::new(Dtype::U8, [LENS[number]]).unwrap();
    (TensorName::new(format!("t{number}")).unwrap(), spec)
}

fn bytes(number: usize) -> Vec<u8> {
    let len = usize::try_from(LENS[number]).unwrap();
    (0..=250u8).cycle().skip(number).take(len).collect()
}

fn state() -> StateDict {
    let mut state = StateDict::new();
    for number in 0..LENS.len() {
        let (name, spec) = named(number);
        state.add(&Component::model(), name, spec, Arc::new(bytes(number))).unwrap();
    }
    state
}

/// Every byte is there, and proved by its sum.
fn check(group: &ProcessGroup, storage: &MemoryStorage, path: &str) {
    let wanted = Wanted::parse(path).unwrap();
    let verified = verify(&find(storage, &wanted).unwrap(), &mut |_| {}).unwrap();
    assert!(verified.damage.is_empty(), "{path}: {:?}", verified.damage);
    let mut loaded: Vec<Vec<u8>> = (0..LENS.len()).map(|n| vec![0; bytes(n).len()]).collect();
    let mut targets = LoadTargets::new();
    for (number, out) in loaded.iter_mut().enumerate() {
        let (name, spec) = named(number);
        let slice = Slice::full(spec.shape());
        targets.add_slice(name, spec, slice, Box::new(out.as_mut_slice())).unwrap();
    }
    let rules = LoadRules::default();
    load(group, storage, &wanted, &mut targets, &rules, Atomicity::InPlace).unwrap();
    drop(targets);
    assert!(loaded.iter().enumerate().all(|(number, out)| *out == bytes(number)), "{path}");
}

fn saved_without_threads<T: Debug>(
    path: &str,
    save: impl FnOnce(&ProcessGroup, &Arc<dyn Storage>, &CheckpointPath, &StateDict) -> Result<T>,
) {
    let (group, storage) = (ProcessGroup::solo(), MemoryStorage::new());
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let target = CheckpointPath::parse(path).unwrap();
    let (saved, refused) = refusing(|| save(&group, &shared, &target, &state()));
    saved.unwrap();
    assert!(refused > 0, "no thread was asked for");
    check(&group, &storage, path);
}

#[test]
fn a_save_needs_no_thread() {
    saved_without_threads("runs/a", |group, storage, path, state| {
        save(group, storage.as_ref(), path, state, &SaveOptions::default())
    });
}

#[test]
fn a_save_of_one_file_needs_no_thread() {
    saved_without_threads("runs/a.safetensors", |group, storage, path, state| {
        save_single_file(group, storage.as_ref(), path, state, &SaveOptions::default())
    });
}

#[test]
fn a_save_beside_training_needs_no_thread() {
    saved_without_threads("runs/a", |group, storage, path, state| {
        let options = SaveOptions::default();
        let pending = save_async(group, storage, path, state, &options, Box::new(|_| {}))?;
        assert!(pending.is_done());
        pending.wait()
    });
}
