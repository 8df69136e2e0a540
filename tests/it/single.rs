//! One file that holds everything: saved by any number of ranks, loaded by any other.

use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use tch_checkpoint::catalog;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::{Fault, FaultyStorage, LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{
    Checkpoint, ErrorKind, OnExisting, ProcessGroup, Rank, Result, SaveOptions, load,
};

use crate::harness::*;

const FILE: &str = "runs/a.safetensors";

fn options(generation: u64, on_existing: OnExisting) -> SaveOptions {
    SaveOptions { step: generation, epoch: 7, on_existing, ..SaveOptions::default() }
}

fn save_file(
    group: &ProcessGroup,
    storage: &dyn Storage,
    tensors: &[TestTensor],
    generation: u64,
) -> Result<Checkpoint> {
    let (state, options) =
        (state(tensors, group, generation), options(generation, OnExisting::Replace));
    save_single_file(group, storage, &path(FILE), &state, &options)
}

fn saved_file(storage: &MemoryStorage, ranks: u32, generation: u64) -> Checkpoint {
    let storage = storage.clone();
    let save =
        move |g: ProcessGroup| save_file(&g, &storage, &usual_tensors(), generation).unwrap();
    on_ranks(ranks, save).remove(0)
}

fn whole(tensor: &TestTensor, generation: u64) -> Vec<u8> {
    content(&tensor.name, &tensor.spec, &Slice::full(tensor.spec.shape()), generation)
}

/// Also boxes that only one rank holds, of rows and of columns.
#[test]
fn files_of_one_two_and_three_ranks_load_on_one_two_and_three() {
    for saving in 1..=3 {
        let memory = MemoryStorage::new();
        let checkpoint = saved_file(&memory, saving, 3);
        assert_eq!(checkpoint.path, Path::new(FILE));
        assert_good(&memory, FILE);
        assert_eq!(entries(&memory, "runs"), ["a.safetensors"], "nothing hidden stays");
        for loading in 1..=3 {
            for verdict in loaded(memory.clone(), loading, FILE, &usual_tensors(), 3) {
                let manifest = verdict.unwrap().manifest;
                assert_eq!((manifest.step(), manifest.epoch()), (3, 7));
                assert_eq!(manifest.world_size().get(), saving);
                assert_eq!(manifest.values().int("generation").unwrap(), 3);
                for rank in 0..saving {
                    let values = manifest.rank_values(Rank::new(rank)).unwrap();
                    assert_eq!(values.int("rank").unwrap(), i64::from(rank));
                }
            }
        }
    }
}

/// Whole tensors, however they were sharded.
#[test]
fn the_safetensors_crate_opens_a_file_of_three_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a.safetensors");
    let (path, tensors) = (path(at.to_str().unwrap()), usual_tensors());
    let held = tensors.clone();
    on_ranks(3, move |group| {
        let (storage, options) = (LocalStorage::new(), options(3, OnExisting::Refuse));
        save_single_file(&group, &storage, &path, &state(&held, &group, 3), &options).unwrap()
    });
    let bytes = std::fs::read(&at).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), tensors.len());
    for tensor in &tensors {
        let view = read.tensor(&tensor.name).unwrap();
        let shape: Vec<u64> = view.shape().iter().map(|d| *d as u64).collect();
        assert_eq!(shape, tensor.spec.shape(), "{}", tensor.name);
        assert_eq!(view.data(), whole(tensor, 3), "{}", tensor.name);
    }
    let (header_len, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header_len + 8) % 4096, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_good(&LocalStorage::new(), at.to_str().unwrap());
}

/// The file may be renamed and copied.
#[test]
fn a_file_has_no_name_of_its_own() {
    let memory = MemoryStorage::new();
    saved_file(&memory, 2, 3);
    let bytes = memory.read(Path::new(FILE)).unwrap();
    memory.write(Path::new("runs/best model"), &bytes).unwrap();
    for verdict in loaded(memory, 2, "runs/best model", &usual_tensors(), 3) {
        verdict.unwrap();
    }
}

#[test]
fn aliases_components_and_a_state_without_tensors_are_kept() {
    let memory = MemoryStorage::new();
    let solo = ProcessGroup::solo();
    let spec = TensorSpec::new(Dtype::F32, [3]).unwrap();
    let mut state = StateDict::new();
    state.add(&Component::model(), name("a"), spec.clone(), Arc::new(vec![1u8; 12])).unwrap();
    state.add(&Component::optimizer(), name("b"), spec.clone(), Arc::new(vec![2u8; 12])).unwrap();
    state.add_alias(name("tied"), name("a")).unwrap();
    save_single_file(&solo, &memory, &path("runs/x"), &state, &SaveOptions::default()).unwrap();
    let mut bytes = [0u8; 12];
    let mut targets = LoadTargets::new();
    targets.add(name("tied"), spec, Box::new(&mut bytes[..])).unwrap();
    let rules = LoadRules { components: Some(vec![Component::model()]), ..LoadRules::default() };
    let done = load(&solo, &memory, &wanted("runs/x"), &mut targets, &rules, Atomicity::Atomic);
    done.unwrap();
    drop(targets);
    assert_eq!(bytes, [1; 12]);

    let empty = StateDict::new();
    save_single_file(&solo, &memory, &path("runs/e"), &empty, &SaveOptions::default()).unwrap();
    assert_good(&memory, "runs/e");
}

/// One flipped bit anywhere is found, and what is said depends on where it is.
#[test]
fn a_flipped_bit_in_data_header_or_metadata_is_found() {
    let memory = MemoryStorage::new();
    saved_file(&memory, 2, 3);
    let good = memory.read(Path::new(FILE)).unwrap();
    let at = |needle: &str| {
        good.windows(needle.len()).position(|w| w == needle.as_bytes()).unwrap() + needle.len()
    };
    let end = good.len() - 1;
    for (place, mask, fault) in [
        (end, 1, "checksum mismatch"),
        (at("\"dtype\":\"I3"), 1, ""),
        (at("\"tch_checkpoint.step\":\""), 1, "header is not what was saved"),
        (at("\"tch_checkpoint.sums\":\"") + 4, 1, "header is not what was saved"),
        (at("\"tch_checkpoint.manifest\":\"") + 40, 1, "manifest"),
        (at("\"tch_checkpoint.manifest\":\"") + 40, 0x80, ""),
        (at("\"tch_checkpoint.manifes"), 1, "name of its manifest"),
        (at("\"tch_checkpoint.for"), 1, "header is not what was saved"),
        (4090, 1, ""),
        (2, 1, "header"),
    ] {
        let mut bad = good.clone();
        bad[place] ^= mask;
        memory.write(Path::new(FILE), &bad).unwrap();
        let verdicts = loaded(memory.clone(), 2, FILE, &usual_tensors(), 3);
        let error = one_error(&verdicts, fault);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {place}: {error}");
        assert!(error.to_string().contains(fault), "byte {place}, `{fault}`: {error}");
        assert!(error.path().is_some_and(|p| p.ends_with(FILE)), "byte {place}: {error}");
        let seen = catalog::find(&memory, &wanted(FILE))
            .map(|found| tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap().damage.len());
        assert!(seen.is_err() || seen == Ok(1), "byte {place}: {seen:?}");
    }
}

#[test]
fn a_file_that_is_cut_off_or_longer_is_corrupt() {
    let memory = MemoryStorage::new();
    saved_file(&memory, 1, 3);
    let good = memory.read(Path::new(FILE)).unwrap();
    for len in [0, 5, 100, 4096, good.len() - 1] {
        memory.write(Path::new(FILE), &good[..len]).unwrap();
        let error = one_error(&loaded(memory.clone(), 2, FILE, &usual_tensors(), 3), "cut");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}");
    }
    memory.write(Path::new(FILE), &[&good[..], b"x"].concat()).unwrap();
    let error = one_error(&loaded(memory, 2, FILE, &usual_tensors(), 3), "longer");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

/// No manifest: nothing could be verified, so a load of everything refuses it.
#[test]
fn a_file_of_another_tool_is_refused() {
    let memory = MemoryStorage::new();
    let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, b"xy"].concat();
    memory.open_dir(Path::new("/")).unwrap().create_dir("runs").unwrap();
    memory.write(Path::new(FILE), &file).unwrap();
    let error = one_error(&loaded(memory.clone(), 2, FILE, &usual_tensors(), 3), "foreign");
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    // And it is never replaced.
    let verdicts = on_ranks(2, {
        let memory = memory.clone();
        move |g| save_file(&g, &memory, &usual_tensors(), 4)
    });
    assert_eq!(one_error(&verdicts, "taken").kind(), ErrorKind::AlreadyExists);
    assert_eq!(memory.read(Path::new(FILE)).unwrap(), file);
}

#[test]
fn an_existing_file_is_refused_replaced_or_numbered() {
    let memory = MemoryStorage::new();
    saved_file(&memory, 2, 1);
    saved_file(&memory, 3, 2);
    assert_eq!(catalog::find(&memory, &wanted(FILE)).unwrap().manifest.step(), 2);
    assert_eq!(entries(&memory, "runs"), ["a.safetensors"]);
    let solo = ProcessGroup::solo();
    let save = |on_existing| {
        let state = state(&usual_tensors(), &solo, 3);
        save_single_file(&solo, &memory, &path(FILE), &state, &options(3, on_existing))
    };
    let error = save(OnExisting::Refuse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert_eq!(save(OnExisting::Number).unwrap().name.as_str(), "a-v1.safetensors");
    assert_eq!(entries(&memory, "runs"), ["a-v1.safetensors", "a.safetensors"]);
    // A directory of that name is no file to be replaced.
    saved(memory.clone(), 1, "runs/d", &usual_tensors(), 1);
    let state = state(&usual_tensors(), &solo, 3);
    let replace = options(3, OnExisting::Replace);
    let error = save_single_file(&solo, &memory, &path("runs/d"), &state, &replace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
}

/// Sums of two million rows do not fit into a header; nothing is written then.
#[test]
fn a_header_that_would_be_too_long_is_refused_before_anything_is_written() {
    struct Nothing;
    impl tch_checkpoint::state::TensorSource for Nothing {
        fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
            panic!("nothing is to be read");
        }
    }
    let memory = MemoryStorage::new();
    let solo = ProcessGroup::solo();
    let spec = TensorSpec::new(Dtype::U8, [2_000_000, 2]).unwrap();
    let column = |c| Slice::new(vec![0, c], vec![2_000_000, 1]).unwrap();
    let mut columns = StateDict::new();
    for c in 0..2 {
        let (spec, source) = (spec.clone(), Arc::new(Nothing));
        columns.add_slice(&Component::model(), name("w"), spec, column(c), source).unwrap();
    }
    let mut huge = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, [1u64 << 40]).unwrap();
    huge.add(&Component::model(), name("w"), spec, Arc::new(Nothing)).unwrap();
    for state in [columns, huge] {
        let options = SaveOptions::default();
        let error = save_single_file(&solo, &memory, &path(FILE), &state, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.help().unwrap().contains("directory"), "{error}");
        assert_eq!(entries(&memory, "runs"), [""; 0]);
    }
}

/// Every operation of every rank failed in turn: the old file or the new one, never half of one.
#[test]
fn a_save_that_fails_anywhere_on_any_rank_leaves_the_old_file() {
    let tensors = || usual_tensors().split_off(3);
    for (ranks, rank, fault, persistent) in [
        (1, 0, Fault::Error(5), false),
        (1, 0, Fault::Panic, true),
        (2, 0, Fault::Torn, true),
        (2, 1, Fault::Error(28), false),
        (2, 1, Fault::Torn, true),
    ] {
        for operation in 1.. {
            let memory = MemoryStorage::new();
            let inner = memory.clone();
            on_ranks(ranks, move |g| save_file(&g, &inner, &tensors(), 1).unwrap());
            let faulty = FaultyStorage::new(Arc::new(memory.clone()));
            faulty.fail_at(operation, fault, persistent);
            let (inner, failing) = (memory.clone(), faulty.clone());
            let verdicts = on_ranks(ranks, move |g| {
                let is_failing = g.rank().get() == rank;
                let storage: &dyn Storage = if is_failing { &failing } else { &inner };
                save_file(&g, storage, &tensors(), 2)
            });
            if faulty.operations() < operation {
                assert!(operation > 4, "rank {rank} did {operation} operations");
                break;
            }
            assert!(operation < 200, "a save has fewer operations");
            let what = format!("{ranks}/{rank} {:?}", faulty.log()[operation as usize - 1]);
            let found = catalog::find(&memory, &wanted(FILE)).unwrap();
            assert_good(&memory, FILE);
            let step = found.manifest.step();
            match &verdicts[0] {
                Ok(_) => assert!(verdicts.iter().all(Result::is_ok) && step == 2, "{what}"),
                Err(_) => {
                    let error = one_error(&verdicts, &what);
                    let expected = match error.kind() {
                        ErrorKind::DurabilityUncertain => 2,
                        _ => 1,
                    };
                    assert_eq!(error.rank(), Some(Rank::new(rank)), "{what}: {error}");
                    assert_eq!(step, expected, "{what}: {error}");
                }
            }
            // What a dead rank left is swept by the next save.
            let inner = memory.clone();
            on_ranks(ranks, move |g| save_file(&g, &inner, &tensors(), 3).unwrap());
            assert_good(&memory, FILE);
            assert_eq!(entries(&memory, "runs"), ["a.safetensors"], "{what}");
        }
    }
}

/// A rank whose storage is another one finds no file to write into.
#[test]
fn a_directory_that_is_not_shared_is_named() {
    let shared = MemoryStorage::new();
    let inner = shared.clone();
    let verdicts = on_ranks(2, move |g| {
        let own = MemoryStorage::new();
        own.create_dir_all(Path::new("runs")).unwrap();
        let storage = if g.is_coordinator() { inner.clone() } else { own };
        save_file(&g, &storage, &usual_tensors(), 1)
    });
    let error = one_error(&verdicts, "not shared");
    assert_eq!(error.kind(), ErrorKind::NotShared, "{error}");
    assert_eq!(entries(&shared, "runs"), [""; 0]);
}
