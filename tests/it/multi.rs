//! One file per component, of one save.

use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::single::{save_multi_files, save_multi_from_single, save_single_file};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, Error, ErrorKind, ProcessGroup, Rank, Result, SaveOptions, load};

use crate::harness::*;

const MODEL: &str = "runs/a_model.safetensors";
const OPTIMIZER: &str = "runs/a_optimizer.safetensors";

fn spec() -> TensorSpec {
    TensorSpec::new(Dtype::F32, [50, 700]).unwrap()
}

/// Two tensors of each component, one of them sharded by rows, and a tied name.
fn state(group: &ProcessGroup, generation: u64) -> StateDict {
    let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let mut state = StateDict::new();
    let shard = TestTensor { name: String::new(), spec: spec(), sharded: Some(0) };
    let optimizer = Component::optimizer();
    for (component, text) in [(Component::model(), "w"), (optimizer, "optimizer.w.exp_avg")] {
        let (whole, mine) = (Slice::full(spec().shape()), shard.held(rank, n).unwrap());
        let sharded = format!("{text}.sharded");
        let bytes = Arc::new(content(text, &spec(), &whole, generation));
        state.add_slice(&component, name(text), spec(), whole, bytes).unwrap();
        let bytes = Arc::new(content(&sharded, &spec(), &mine, generation));
        state.add_slice(&component, name(&sharded), spec(), mine, bytes).unwrap();
    }
    state.add_alias(name("tied"), name("w")).unwrap();
    state.values.set("trainer.step", i64::try_from(generation).unwrap());
    state.rank_values.set("rank", group.rank().get());
    state
}

fn options(generation: u64) -> SaveOptions {
    SaveOptions { step: generation, ..SaveOptions::default() }
}

fn save_files(group: &ProcessGroup, storage: &dyn Storage, generation: u64) -> Result<Checkpoint> {
    save_multi_files(
        group,
        storage,
        &path("runs/a"),
        &state(group, generation),
        &options(generation),
    )
}

fn saved(memory: &MemoryStorage, ranks: u32, generation: u64) {
    let inner = memory.clone();
    on_ranks(ranks, move |group| save_files(&group, &inner, generation).unwrap());
}

/// Loads all of it whole on each of `ranks` ranks, and compares.
fn load_all(memory: &MemoryStorage, ranks: u32, at: &'static str, generation: u64) -> Result<()> {
    let inner = memory.clone();
    let verdicts = on_ranks(ranks, move |group| {
        let names = ["w", "w.sharded", "optimizer.w.exp_avg", "optimizer.w.exp_avg.sharded"];
        let size = usize::try_from(spec().size_bytes()).unwrap();
        let mut buffers: Vec<Vec<u8>> = names.iter().map(|_| vec![0; size]).collect();
        let mut targets = LoadTargets::new();
        for (text, buffer) in names.iter().zip(&mut buffers) {
            targets.add(name(text), spec(), Box::new(buffer.as_mut_slice())).unwrap();
        }
        let rules = LoadRules::default();
        let done = load(&group, &inner, &wanted(at), &mut targets, &rules, Atomicity::Atomic)?;
        drop(targets);
        for (text, buffer) in names.iter().zip(&buffers) {
            let want = content(text, &spec(), &Slice::full(spec().shape()), generation);
            assert!(*buffer == want, "{text}");
        }
        let manifest = done.manifest;
        assert_eq!(manifest.values().int("trainer.step").unwrap(), generation.cast_signed());
        assert_eq!(manifest.tensor("tied").unwrap().name.as_str(), "w");
        for rank in manifest.world_size().ranks() {
            let values = manifest.rank_values(rank).unwrap();
            assert_eq!(values.int("rank").unwrap(), i64::from(rank.get()));
        }
        Ok(())
    });
    if verdicts.iter().all(Result::is_ok) {
        return Ok(());
    }
    Err(one_error(&verdicts, at))
}

fn error_of(memory: &MemoryStorage) -> Error {
    load_all(memory, 2, "runs/a", 1).unwrap_err()
}

#[test]
fn files_load_by_their_stem_and_by_the_model_file() {
    for (saving, loading) in [(1, 2), (2, 3), (3, 1)] {
        let memory = MemoryStorage::new();
        saved(&memory, saving, 1);
        let names = ["a_model.safetensors", "a_optimizer.safetensors"];
        assert_eq!(entries(&memory, "runs"), names);
        for at in ["runs/a", "runs/a.safetensors", MODEL] {
            load_all(&memory, loading, at, 1).unwrap();
            assert_good(&memory, at);
        }
        let model = memory.read(Path::new(MODEL)).unwrap();
        let read = SafeTensors::deserialize(&model).unwrap();
        let mut held = read.names();
        held.sort_unstable();
        assert_eq!(held, ["w", "w.sharded"]);
    }
}

#[test]
fn a_sibling_that_is_missing_or_of_another_save_is_named() {
    let memory = MemoryStorage::new();
    saved(&memory, 2, 1);
    let mine = memory.read(Path::new(OPTIMIZER)).unwrap();
    let other = MemoryStorage::new();
    saved(&other, 2, 1);
    let theirs = other.read(Path::new(OPTIMIZER)).unwrap();

    memory.write(Path::new(OPTIMIZER), &theirs).unwrap();
    let error = error_of(&memory);
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.path().unwrap().ends_with(OPTIMIZER), "{error}");

    let dir = memory.open_dir(Path::new("runs")).unwrap();
    dir.remove_file("a_optimizer.safetensors").unwrap();
    let error = error_of(&memory);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.message().contains("component optimizer is gone"), "{error}");
    assert!(error.path().unwrap().ends_with(OPTIMIZER), "{error}");

    memory.write(Path::new(OPTIMIZER), &mine).unwrap();
    load_all(&memory, 2, "runs/a", 1).unwrap();
    memory.corrupt(Path::new(OPTIMIZER), mine.len() as u64 - 1, 4).unwrap();
    let error = error_of(&memory);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.path().unwrap().ends_with(OPTIMIZER), "{error}");
}

#[test]
fn existing_files_are_never_replaced() {
    let memory = MemoryStorage::new();
    saved(&memory, 1, 1);
    let dir = memory.open_dir(Path::new("runs")).unwrap();
    for left in ["a_model.safetensors", "a_optimizer.safetensors"] {
        let inner = memory.clone();
        let verdicts = on_ranks(2, move |group| save_files(&group, &inner, 2));
        let error = one_error(&verdicts, left);
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        load_all(&memory, 1, "runs/a", 1)
            .map_or_else(|e| assert_eq!(left, "a_optimizer.safetensors", "{e}"), drop);
        let _ = dir.remove_file("a_model.safetensors");
    }
    assert_eq!(entries(&memory, "runs"), ["a_optimizer.safetensors"]);
}

/// Whatever fails: all files, or no `model` file, and nothing under any name that would load.
#[test]
fn files_that_fail_anywhere_on_any_rank_are_all_there_or_none() {
    for (rank, fault) in [(0, Fault::Error(5)), (0, Fault::Panic), (1, Fault::Torn)] {
        for operation in 1.. {
            let memory = MemoryStorage::new();
            let faulty = FaultyStorage::new(Arc::new(memory.clone()));
            faulty.fail_at(operation, fault, false);
            let (inner, failing) = (memory.clone(), faulty.clone());
            let verdicts = on_ranks(2, move |group| {
                let is_failing = group.rank().get() == rank;
                let storage: &dyn Storage = if is_failing { &failing } else { &inner };
                save_files(&group, storage, 1)
            });
            if faulty.operations() < operation {
                assert!(operation > 4);
                break;
            }
            let what = format!("{rank} {}", faulty.log()[operation as usize - 1]);
            match &verdicts[0] {
                Ok(_) => load_all(&memory, 2, "runs/a", 1).unwrap(),
                Err(_) => {
                    let error = one_error(&verdicts, &what);
                    assert_eq!(error.rank(), Some(Rank::new(rank)), "{what}: {error}");
                    if error.kind() == ErrorKind::DurabilityUncertain {
                        load_all(&memory, 2, "runs/a", 1).unwrap();
                    } else {
                        let visible = entries(&memory, "runs");
                        let shown = visible.iter().any(|n| !n.starts_with('.'));
                        assert!(!shown, "{what}: {visible:?}");
                    }
                }
            }
        }
    }
}

fn saved_single(memory: &MemoryStorage, ranks: u32) {
    let inner = memory.clone();
    on_ranks(ranks, move |group| {
        let (at, state) = (path("runs/a.safetensors"), state(&group, 1));
        save_single_file(&group, &inner, &at, &state, &options(1)).unwrap()
    });
}

#[test]
fn a_single_file_is_split_into_its_components() {
    let memory = MemoryStorage::new();
    saved_single(&memory, 3);
    let made = save_multi_from_single(&memory, &path("runs/a.safetensors"), None).unwrap();
    assert_eq!(made.path, Path::new(MODEL));
    let names = ["a.safetensors", "a_model.safetensors", "a_optimizer.safetensors"];
    assert_eq!(entries(&memory, "runs"), names);
    load_all(&memory, 2, "runs/a", 1).unwrap();
    assert_good(&memory, "runs/a");
    let again = save_multi_from_single(&memory, &path("runs/a.safetensors"), None).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");
    assert_eq!(entries(&memory, "runs"), names);
}

#[test]
fn chosen_components_of_a_single_file_are_split_off() {
    let memory = MemoryStorage::new();
    saved_single(&memory, 2);
    let at = path("runs/a.safetensors");
    let ema = Component::new("ema").unwrap();
    let error = save_multi_from_single(&memory, &at, Some(&[ema])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.help().unwrap().contains("model, optimizer"), "{error}");
    save_multi_from_single(&memory, &at, Some(&[Component::model()])).unwrap();
    assert_eq!(entries(&memory, "runs"), ["a.safetensors", "a_model.safetensors"]);
    assert_good(&memory, MODEL);
}

/// What is copied is verified: a damaged file makes no files that look whole.
#[test]
fn a_damaged_single_file_is_not_split() {
    let memory = MemoryStorage::new();
    saved_single(&memory, 1);
    let file = Path::new("runs/a.safetensors");
    let len = memory.read(file).unwrap().len() as u64;
    memory.corrupt(file, len - 3, 1).unwrap();
    let error = save_multi_from_single(&memory, &path("runs/a.safetensors"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(entries(&memory, "runs"), ["a.safetensors"]);
    saved_directory_is_no_file();
}

fn saved_directory_is_no_file() {
    let memory = MemoryStorage::new();
    crate::harness::saved(memory.clone(), 1, "runs/d", &usual_tensors(), 1);
    let error = save_multi_from_single(&memory, &path("runs/d"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
