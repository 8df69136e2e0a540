//! Runs that go on from checkpoints that were written anew as those of another number of ranks.

use std::sync::Arc;

use tch_checkpoint::catalog::{CheckpointPath, Found, Wanted, find};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::reshard::{ReshardOptions, reshard};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::torch::{Adam, cpu_rng_state};
use tch_checkpoint::{Rank, WorldSize};

use crate::harness::*;
use crate::models::*;

const DROPOUT: f64 = 0.3;

fn found(storage: &Arc<dyn Storage>, name: &str) -> Found {
    find(storage.as_ref(), &Wanted::parse(name).unwrap()).unwrap()
}

fn resharded(storage: &Arc<dyn Storage>, from: &str, to: &str, ranks: u32) {
    let path = CheckpointPath::parse(to).unwrap();
    let options = ReshardOptions { world_size: WorldSize::new(ranks).unwrap(), overwrite: false };
    let solo = ProcessGroup::solo();
    reshard(&solo, storage.as_ref(), &found(storage, from), &path, &options).unwrap();
}

/// The random state that rank 0 has saved.
fn saved_random(storage: &Arc<dyn Storage>, name: &str) -> Vec<u8> {
    let manifest = found(storage, name).manifest;
    manifest.rank_values(Rank::new(0)).unwrap().bytes("rng.cpu").unwrap()
}

/// The random state with which a load leaves one rank, which may train on.
fn loaded_random(storage: &Arc<dyn Storage>, name: &str) -> Vec<u8> {
    tch::manual_seed(77);
    let mut handler = loaded(&ProcessGroup::solo(), storage, name).unwrap();
    let random = cpu_rng_state().unwrap();
    handler.train(1).unwrap();
    random
}

/// Saved in the middle of an epoch.
fn train_and_save(group: &ProcessGroup, storage: &Arc<dyn Storage>, name: &str) {
    let mut handler = handler(group, storage, DROPOUT, Adam::default());
    handler.train_steps(4).unwrap();
    handler.save(name).unwrap();
}

#[test]
fn random_state_goes_on_only_where_as_many_ranks_saved_it() {
    let _generator = exclusive();
    let (_, storage) = memory();
    let at = storage.clone();
    on_ranks_alone(2, move |group| train_and_save(&group, &at, "runs/two"));
    train_and_save(&ProcessGroup::solo(), &storage, "runs/one");
    for (from, to, ranks) in [
        ("runs/one", "runs/one-as-one", 1),
        ("runs/one", "runs/one-as-two", 2),
        ("runs/one-as-two", "runs/one-as-two-as-one", 1),
        ("runs/two", "runs/two-as-one", 1),
    ] {
        resharded(&storage, from, to, ranks);
    }
    let kept = saved_random(&storage, "runs/one");
    assert_eq!(loaded_random(&storage, "runs/one"), kept);
    assert_eq!(loaded_random(&storage, "runs/one-as-one"), kept);
    // As ranks of another number are seeded that load what two have saved.
    let anew = loaded_random(&storage, "runs/two");
    assert_eq!(loaded_random(&storage, "runs/two-as-one"), anew);
    assert_ne!(saved_random(&storage, "runs/two-as-one"), anew);
    assert_eq!(loaded_random(&storage, "runs/one-as-two-as-one"), anew);
    assert_ne!(kept, anew);
}

/// Most of the ranks find nothing of their own, and are seeded all the same.
#[test]
fn a_run_goes_on_with_as_many_ranks_as_it_was_written_anew_for() {
    let (_, storage) = memory();
    let at = storage.clone();
    let whole = on_ranks(1, move |group| {
        let mut handler = usual(&group, &at);
        handler.train_steps(4).unwrap();
        handler.save("runs/cut").unwrap();
        handler.train(1).unwrap();
        (handler.history().series("loss").to_vec(), parameters(&handler))
    });
    for ranks in [2, 3] {
        let (at, name) = (storage.clone(), format!("runs/as-{ranks}"));
        resharded(&storage, "runs/cut", &name, ranks);
        let resumed = on_ranks(ranks, move |group| {
            let mut handler = loaded(&group, &at, &name).unwrap();
            assert_eq!(handler.step(), 4);
            handler.train(1).unwrap();
            (handler.history().series("loss").to_vec(), parameters(&handler))
        });
        for (loss, parameters) in resumed {
            assert_eq!(loss.len(), whole[0].0.len());
            for (a, b) in loss.iter().zip(&whole[0].0) {
                assert!((a - b).abs() < 1e-6, "{loss:?} {:?}", whole[0].0);
            }
            assert_close(&parameters, &whole[0].1);
        }
    }
}
