//! A checkpoint that is replaced or removed while it is being loaded: the load starts again and
//! gives the new one, never a mix; or says that it is gone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, TensorSink};
use tch_checkpoint::storage::{MemoryStorage, Rename, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Checkpoint, ErrorKind, OnExisting, ProcessGroup, Result, SaveOptions, save};

use crate::harness::*;
use crate::hooked::{Hooked, unsupported};

fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("first", Dtype::F32, &[100, 50], None),
        TestTensor::new("second", Dtype::F32, &[100, 50], None),
        TestTensor::new("third", Dtype::F32, &[3], None),
    ]
}

/// A sink that lets another job act before the first `times` writes.
struct Acting<'a> {
    bytes: &'a mut [u8],
    act: Arc<dyn Fn() + Send + Sync>,
}

impl TensorSink for Acting<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        (self.act)();
        self.bytes.write_at(offset, bytes)
    }
}

/// Does `act` the first `times` times that it is called, with the number of the call.
fn at_most(
    times: usize,
    act: impl Fn(usize) + Send + Sync + 'static,
) -> Arc<dyn Fn() + Send + Sync> {
    let calls = AtomicUsize::new(0);
    Arc::new(move || {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        if call < times {
            act(call);
        }
    })
}

/// Loads on one rank while `act` happens before the writes; the content of every tensor.
fn load_acting(
    storage: &MemoryStorage,
    atomicity: Atomicity,
    act: Arc<dyn Fn() + Send + Sync>,
) -> Result<Vec<Vec<u8>>> {
    let storage = storage.clone();
    let body = move |group| {
        let tensors = tensors();
        let mut buffers: Vec<Vec<u8>> =
            tensors.iter().map(|t| vec![0; t.spec.size_bytes() as usize]).collect();
        let mut targets = LoadTargets::new();
        for (tensor, bytes) in tensors.iter().zip(&mut buffers) {
            let sink = Acting { bytes, act: act.clone() };
            targets.add(name(&tensor.name), tensor.spec.clone(), Box::new(sink)).unwrap();
        }
        let rules = LoadRules::default();
        load(&group, &storage, &wanted("runs/a"), &mut targets, &rules, atomicity)?;
        drop(targets);
        Ok(buffers)
    };
    on_ranks(1, body).remove(0)
}

fn of_generation(generation: u64) -> Vec<Vec<u8>> {
    let whole =
        |t: &TestTensor| content(&t.name, &t.spec, &Slice::full(t.spec.shape()), generation);
    tensors().iter().map(whole).collect()
}

/// The files of the first one are gone after the first write: all of it comes from the second.
#[test]
fn replaced_during_an_in_place_load() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let other = storage.clone();
    let act = at_most(1, move |_| drop(saved(other.clone(), 3, "runs/a", &tensors(), 2)));
    let bytes = load_acting(&storage, Atomicity::InPlace, act).unwrap();
    assert!(bytes == of_generation(2), "not the content of the one that is there");
}

/// Everything was verified and staged before: the old one, whole.
#[test]
fn replaced_while_an_atomic_load_places() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let other = storage.clone();
    let act = at_most(1, move |_| drop(saved(other.clone(), 3, "runs/a", &tensors(), 2)));
    let bytes = load_acting(&storage, Atomicity::Atomic, act).unwrap();
    assert!(bytes == of_generation(1), "not the content that was staged");
}

/// Whatever file a rank is about to open when the checkpoint is replaced: the ranks load one and
/// the same checkpoint, whole. `load_state` compares every byte.
#[test]
fn replaced_before_each_open() {
    for rank in 0..2 {
        for nth in 0.. {
            let storage = MemoryStorage::new();
            saved(storage.clone(), 2, "runs/a", &tensors(), 1);
            let (other, opens) = (storage.clone(), Arc::new(AtomicUsize::new(0)));
            let count = opens.clone();
            let hooked = Hooked::new(&storage, move |call| {
                let opening = call.operation == "open_file" || call.operation == "open_dir";
                if opening && count.fetch_add(1, Ordering::SeqCst) == nth {
                    saved(other.clone(), 3, "runs/a", &tensors(), 2);
                }
                Ok(())
            });
            let verdicts = on_ranks(2, move |group| {
                let hooks = group.rank().get() == rank;
                let storage: &dyn Storage = if hooks { &hooked } else { &storage };
                let (at, tensors) = ("runs/a", tensors());
                load_either(&group, storage, at, &tensors)
            });
            let steps: Vec<u64> = verdicts.into_iter().map(|v| v.unwrap()).collect();
            assert_eq!(steps[0], steps[1], "rank {rank}, open {nth}: a mix");
            if opens.load(Ordering::SeqCst) <= nth {
                assert!(nth > 5 && steps == [1, 1], "rank {rank} opened {nth} times: {steps:?}");
                break;
            }
        }
    }
}

/// Loads every tensor whole; the step of the generation whose content all of them have.
fn load_either(
    group: &tch_checkpoint::ProcessGroup,
    storage: &dyn Storage,
    at: &str,
    tensors: &[TestTensor],
) -> Result<u64> {
    let mut buffers: Vec<Vec<u8>> =
        tensors.iter().map(|t| vec![0; t.spec.size_bytes() as usize]).collect();
    let mut targets = LoadTargets::new();
    for (tensor, bytes) in tensors.iter().zip(&mut buffers) {
        targets.add(name(&tensor.name), tensor.spec.clone(), Box::new(bytes.as_mut_slice()))?;
    }
    let rules = LoadRules::default();
    let loaded = load(group, storage, &wanted(at), &mut targets, &rules, Atomicity::Atomic)?;
    drop(targets);
    let step = loaded.manifest.step();
    assert!(buffers == of_generation(step), "not the content of step {step}");
    Ok(step)
}

/// Replaced again and again: a load does not start again for ever.
#[test]
fn replaced_at_every_attempt() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let (other, saves) = (storage.clone(), Arc::new(AtomicUsize::new(0)));
    let count = saves.clone();
    let act = at_most(100, move |call| {
        count.fetch_add(1, Ordering::Relaxed);
        saved(other.clone(), 2, "runs/a", &tensors(), call as u64 + 2);
    });
    let error = load_acting(&storage, Atomicity::InPlace, act).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Superseded, "{error}");
    assert_eq!(saves.load(Ordering::Relaxed), 4, "the load and three more");
    assert!(error.help().is_some_and(|help| help.contains("load again")), "{error}");
}

/// Removed while it is loaded, with nothing in its place: gone, not damaged.
#[test]
fn removed_while_it_is_loaded() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let other = storage.clone();
    let act = at_most(1, move |_| {
        let parent = other.open_dir(Path::new("runs")).unwrap();
        let found = tch_checkpoint::catalog::find(&other, &wanted("runs/a")).unwrap();
        let id = found.manifest.save_id();
        tch_checkpoint::sweep::remove(parent.as_ref(), &found.name, &id, &pace()).unwrap();
    });
    let error = load_acting(&storage, Atomicity::InPlace, act).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(error.path(), Some("runs/a"), "{error}");
}

/// Moved aside, files intact, while it is loaded: open handles lead to the same files.
#[test]
fn moved_while_it_is_loaded() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 2, "runs/a", &tensors(), 1);
    let other = storage.clone();
    let act = at_most(1, move |_| {
        let parent = other.open_dir(Path::new("runs")).unwrap();
        parent.rename("a", "moved", Rename::NoReplace).unwrap();
    });
    let bytes = load_acting(&storage, Atomicity::InPlace, act).unwrap();
    assert!(bytes == of_generation(1));
}

/// Without locks another job may come between the last look and the exchange, also where what was
/// to be replaced is damaged.
#[test]
fn what_replaced_a_damaged_one_meanwhile_is_kept() {
    let storage = MemoryStorage::new();
    saved(storage.clone(), 1, "runs/a", &tensors(), 1);
    storage.corrupt(Path::new("runs/a/manifest.bin"), 40, 1).unwrap();
    let (other, calls) = (storage.clone(), AtomicUsize::new(0));
    let hooked = Hooked::new(&storage, move |call| {
        if call.operation.starts_with("try_lock") {
            return Err(unsupported());
        }
        if call.operation == "rename" && calls.fetch_add(1, Ordering::Relaxed) == 0 {
            let refusing = Hooked::new(&other, |call| {
                if call.operation.starts_with("try_lock") { Err(unsupported()) } else { Ok(()) }
            });
            on_ranks(1, move |group| save_over(&group, &refusing, 9)).remove(0)?;
        }
        Ok(())
    });
    let verdict = on_ranks(1, move |group| save_over(&group, &hooked, 2)).remove(0);
    assert_eq!(verdict.unwrap_err().kind(), ErrorKind::Superseded);
    let found = tch_checkpoint::catalog::find(&storage, &wanted("runs/a")).unwrap();
    assert_eq!(found.manifest.step(), 9);
    assert_good(&storage, "runs/a");
}

fn save_over(group: &ProcessGroup, storage: &dyn Storage, generation: u64) -> Result<Checkpoint> {
    let options = SaveOptions {
        step: generation,
        on_existing: OnExisting::Replace,
        ..SaveOptions::default()
    };
    save(group, storage, &path("runs/a"), &state(&tensors(), group, generation), &options)
}
