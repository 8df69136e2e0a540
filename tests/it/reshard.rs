//! Saved by N ranks, loaded by M, for all N and M in 1…5 and random state.

use std::sync::Arc;

use proptest::prelude::*;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::{LocalStorage, MemoryStorage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};

use crate::harness::*;

fn tensors() -> impl Strategy<Value = Vec<TestTensor>> {
    let shape = prop::collection::vec(0u64..60, 0..4);
    let tensor = (shape, 0..Dtype::ALL.len(), any::<prop::sample::Index>(), any::<bool>());
    prop::collection::vec(tensor, 1..8).prop_map(|list| {
        let build = |(i, (shape, dtype, dimension, sharded)): (
            usize,
            (Vec<u64>, _, prop::sample::Index, bool),
        )| {
            let whole = shape.contains(&0) || shape.is_empty() || !sharded;
            let along = (!whole).then(|| dimension.index(shape.len()));
            TestTensor::new(&format!("t{i}"), Dtype::ALL[dtype], &shape, along)
        };
        list.into_iter().enumerate().map(build).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_world_size_loads_what_any_other_saved(
        tensors in tensors(), n in 1u32..6, m in 1u32..6, direct in any::<bool>(),
    ) {
        let storage = MemoryStorage::new();
        check(Arc::new(storage.clone()), "runs/a", &tensors, n, m, direct);
        assert_good(&storage, "runs/a");
    }
}

/// Their files end where the headers end.
#[test]
fn tensors_without_elements_may_be_all_there_is() {
    let storage = MemoryStorage::new();
    let empty = [TestTensor::new("a", Dtype::F32, &[0, 4], None)];
    check(Arc::new(storage.clone()), "runs/a", &empty, 2, 3, false);
    assert_good(&storage, "runs/a");
}

fn check(
    storage: Arc<dyn tch_checkpoint::storage::Storage>,
    at: &str,
    tensors: &[TestTensor],
    n: u32,
    m: u32,
    direct: bool,
) {
    let (tensors, at) = (tensors.to_vec(), at.to_owned());
    let (saved_tensors, saved_at, saved_in) = (tensors.clone(), at.clone(), storage.clone());
    let saved = on_ranks(n, move |group| {
        save_state(&group, saved_in.as_ref(), &saved_at, &saved_tensors, 7)
    });
    let first = saved[0].as_ref().unwrap().clone();
    assert!(saved.iter().all(|s| s.as_ref().unwrap() == &first), "one verdict on all ranks");
    let atomicity = if direct { Atomicity::InPlace } else { Atomicity::Atomic };
    let loaded = on_ranks(m, move |group| {
        let loaded = load_state(&group, storage.as_ref(), &at, &tensors, 7, atomicity).unwrap();
        let own = loaded.manifest.rank_values(group.rank());
        assert_eq!(own.is_some(), group.rank().get() < n, "per-rank values by rank");
        if let Some(own) = own {
            assert_eq!(own.int("rank").unwrap(), i64::from(group.rank().get()));
        }
        loaded.save_id
    });
    assert!(loaded.iter().all(|id| *id == first.save_id));
}

/// Every pair, on the file system, with tensors of every kind.
#[test]
fn every_pair_of_world_sizes_up_to_five() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..6 {
        for m in 1..6 {
            let at = dir.path().join(format!("{n}-to-{m}"));
            check(
                Arc::new(LocalStorage::new()),
                at.to_str().unwrap(),
                &usual_tensors(),
                n,
                m,
                (n + m) % 2 == 0,
            );
        }
    }
}

/// A rank that wants one row in eight reads about one byte in eight.
#[test]
fn only_the_wanted_bytes_are_read() {
    let storage = MemoryStorage::new();
    let tensors = vec![TestTensor::new("w", Dtype::F32, &[8192, 128], Some(0))];
    let (s, t) = (storage.clone(), tensors.clone());
    on_ranks(1, move |group| save_state(&group, &s, "runs/a", &t, 1).unwrap());
    let read = on_ranks(8, move |group| {
        load_state(&group, &storage, "runs/a", &tensors, 1, Atomicity::InPlace).unwrap().bytes_read
    });
    let wanted = 8192 * 128 * 4 / 8;
    for bytes in read {
        assert!(bytes >= wanted, "fewer bytes than wanted: {bytes}");
        assert!(bytes <= wanted + wanted / 20, "{bytes} bytes read for {wanted} wanted");
    }
}

/// The shapes of one layer of a small language model and of its embedding, zeroes: what a rank of
/// 14 reads beyond its rows are blocks at their ends, and sums.
#[test]
fn a_real_state_on_many_ranks_is_read_about_once() {
    const D: u64 = 768;
    let weights = [[10_000, D], [D, 3 * D], [D, D], [D, 4 * D], [4 * D, D]];
    let vectors = [D, D, 3 * D, D, D, D, 4 * D, D];
    let shapes = weights.iter().map(|shape| shape.to_vec()).chain(vectors.map(|len| vec![len]));
    let specs: Vec<_> = shapes.map(|shape| TensorSpec::new(Dtype::F32, shape).unwrap()).collect();
    let (storage, to_save) = (MemoryStorage::new(), specs.clone());
    let saved_in = storage.clone();
    on_ranks(1, move |group| {
        let mut state = StateDict::new();
        for (number, spec) in to_save.iter().enumerate() {
            let zeroes = vec![0u8; spec.size_bytes() as usize];
            let name = name(&format!("t{number}"));
            state.add(&Component::model(), name, spec.clone(), Arc::new(zeroes)).unwrap();
        }
        save(&group, &saved_in, &path("runs/a"), &state, &SaveOptions::default()).unwrap()
    });
    let read = on_ranks(14, move |group| {
        let (rank, ranks) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        let rows = |spec: &TensorSpec| {
            let rows = spec.shape()[0];
            Slice::full(spec.shape()).rows(rows * rank / ranks..rows * (rank + 1) / ranks).unwrap()
        };
        let wanted: Vec<_> = specs.iter().map(|spec| (spec, rows(spec))).collect();
        let len = |(_, slice): &(_, Slice)| 4 * slice.elements() as usize;
        let mut memory: Vec<Vec<u8>> = wanted.iter().map(|own| vec![1; len(own)]).collect();
        let mut targets = LoadTargets::new();
        for (number, ((spec, slice), out)) in wanted.into_iter().zip(&mut memory).enumerate() {
            let (name, sink) = (name(&format!("t{number}")), Box::new(out.as_mut_slice()));
            targets.add_slice(name, spec.clone(), slice, sink).unwrap();
        }
        let (wanted, rules) = (crate::harness::wanted("runs/a"), LoadRules::default());
        let loaded =
            load(&group, &storage, &wanted, &mut targets, &rules, Atomicity::InPlace).unwrap();
        drop(targets);
        assert!(memory.iter().flatten().all(|byte| *byte == 0));
        (loaded.bytes_read, memory.iter().map(|part| part.len() as u64).sum::<u64>())
    });
    let (read, wanted) = read.into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert!(read >= wanted, "fewer bytes than wanted: {read} of {wanted}");
    assert!(read <= wanted + wanted / 20, "{read} bytes read for {wanted} wanted");
}
