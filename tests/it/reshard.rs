//! Saved by N ranks, loaded by M, for all N and M in 1…5 and random state.

use std::sync::Arc;

use proptest::prelude::*;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{LocalStorage, MemoryStorage};
use tch_checkpoint::tensor::Dtype;

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
