//! Loading into a live handler: all or nothing, or poisoned.

use std::sync::Arc;

use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{History, NNHandler};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{Fault, Storage};
use tch_checkpoint::torch::{Adam, AdamW, OptimizerConfig, Sgd, cpu_rng_state};
use tch_checkpoint::{Atomicity, CheckpointPath, Error, ErrorKind};

use crate::harness::*;
use crate::models::*;

const EIO: i32 = 5;

/// Everything that training goes on from.
#[derive(Debug, Clone, PartialEq)]
struct Snapshot {
    hash: String,
    epoch: u64,
    step: u64,
    losses: Vec<f64>,
    random: blake3::Hash,
}

fn losses(history: &History) -> Vec<f64> {
    history.series("loss").to_vec()
}

impl Snapshot {
    fn of(handler: &NNHandler<Net>) -> Self {
        Self {
            hash: handler.state_hash().unwrap(),
            epoch: handler.epoch(),
            step: handler.step(),
            losses: losses(handler.history()),
            random: blake3::hash(&cpu_rng_state().unwrap()),
        }
    }
}

/// A checkpoint of epoch 1 on `ranks` ranks, on a storage that rank `failing` can make fail.
fn staged(ranks: u32, failing: u32) -> Stage {
    let stage = Stage::new(failing);
    let inner = stage.clone();
    on_ranks_alone(ranks, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.memory.clone());
        let mut handler = usual(&group, &storage);
        handler.train(1).unwrap();
        handler.save("runs/one").unwrap();
    });
    stage
}

/// A handler in epoch 2 that is about to go back to epoch 1.
fn live(group: &ProcessGroup, stage: &Stage) -> NNHandler<Net> {
    let mut handler = usual(group, &stage.storage(group));
    handler.train(2).unwrap();
    if stage.is_failing(group) {
        stage.faulty.reset();
    }
    // No rank seeds or reads while another one still takes its snapshot.
    group.all_reduce_sum(&mut [0.0]).unwrap();
    handler
}

#[test]
fn a_restore_goes_back_to_the_checkpoint() {
    let _generator = exclusive();
    let stage = staged(1, 0);
    let solo = ProcessGroup::solo();
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        let mut handler = live(&solo, &stage);
        let wanted = Snapshot::of(&loaded(&solo, &stage.storage(&solo), "runs/one").unwrap());
        handler.restore("runs/one", atomicity).unwrap();
        assert_eq!(Snapshot::of(&handler), wanted);
        assert_eq!(handler.epoch(), 1);
        handler.train(1).unwrap();
    }
}

#[test]
fn a_restore_that_fails_at_any_operation_changes_nothing() {
    let _generator = exclusive();
    for (ranks, failing) in [(1, 0), (2, 0), (2, 1)] {
        let stage = staged(ranks, failing);
        for operation in 1.. {
            let inner = stage.clone();
            let results = on_ranks_alone(ranks, move |group| {
                let mut handler = live(&group, &inner);
                let before = Snapshot::of(&handler);
                if inner.is_failing(&group) {
                    inner.faulty.fail_at(operation, Fault::Error(EIO), false);
                }
                group.all_reduce_sum(&mut [0.0]).unwrap();
                let restored = handler.restore("runs/one", Atomicity::Atomic);
                if restored.is_err() {
                    assert_eq!(Snapshot::of(&handler), before, "operation {operation}");
                    handler.train(0).unwrap();
                    handler.save("runs/again").unwrap();
                }
                restored.map(drop)
            });
            if results[0].is_ok() {
                assert!(stage.faulty.operations() < operation, "a fault was overlooked");
                assert!(operation > 4, "there were only {operation} operations");
                break;
            }
            let error = one_error(&results);
            assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
            assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(failing), "{error}");
        }
    }
}

/// Fails the last read of an in-place restore.
fn half_restored(group: &ProcessGroup, stage: &Stage) -> (NNHandler<Net>, Error) {
    let mut handler = live(group, stage);
    handler.restore("runs/one", Atomicity::InPlace).unwrap();
    if stage.is_failing(group) {
        let last = stage.faulty.operations();
        stage.faulty.reset();
        stage.faulty.fail_at(last, Fault::Error(EIO), false);
    }
    let error = handler.restore("runs/one", Atomicity::InPlace).unwrap_err();
    if stage.is_failing(group) {
        stage.faulty.reset();
    }
    (handler, error)
}

#[test]
fn a_restore_in_place_that_fails_poisons_until_one_succeeds() {
    let _generator = exclusive();
    for (ranks, failing) in [(1, 0), (2, 0), (2, 1)] {
        let stage = staged(ranks, failing);
        let results = on_ranks_alone(ranks, move |group| {
            let (mut handler, error) = half_restored(&group, &stage);
            assert_eq!(error.phase(), Some("place"), "{error}");
            assert_eq!(handler.train(1).unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(handler.save("runs/bad").unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(visible(&stage.memory, "runs"), ["one"]);

            let missing = handler.restore("runs/none", Atomicity::Atomic).unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
            assert_eq!(handler.train(1).unwrap_err().kind(), ErrorKind::Poisoned);

            handler.restore("runs/one", Atomicity::Atomic).unwrap();
            let good = loaded(&group, &stage.storage(&group), "runs/one").unwrap();
            assert_eq!(handler.state_hash().unwrap(), good.state_hash().unwrap());
            handler.train(1).unwrap();
            handler.save("runs/good").unwrap();
            Err::<(), _>(error)
        });
        assert_eq!(one_error(&results).kind(), ErrorKind::Storage);
    }
}

/// A wrong path is found out before anything changes.
#[test]
fn a_restore_in_place_of_what_is_not_there_poisons_nothing() {
    let _generator = exclusive();
    let stage = staged(1, 0);
    let solo = ProcessGroup::solo();
    let mut handler = live(&solo, &stage);
    let before = Snapshot::of(&handler);
    let error = handler.restore("runs/none", Atomicity::InPlace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(Snapshot::of(&handler), before);
    handler.train(1).unwrap();
}

/// What `restore` says of a checkpoint of `saved` into `live`, which must not change.
fn refused(saved: &NNHandler<Net>, mut live: NNHandler<Net>) -> Error {
    saved.save("runs/other").unwrap();
    let before = Snapshot::of(&live);
    let error = live.restore("runs/other", Atomicity::Atomic).unwrap_err();
    assert_eq!(Snapshot::of(&live), before, "{error}");
    if live.optimizer().is_some() {
        live.train(1).unwrap();
    }
    error
}

#[test]
fn the_state_of_another_optimizer_is_refused_and_changes_nothing() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let with = |optimizer: OptimizerConfig| {
        let mut made = handler(&solo, &storage, 0.0, optimizer);
        made.train(1).unwrap();
        made
    };
    // The tensors of these two have the same names.
    let adam = || with(Adam::default().into());
    let error = refused(&adam(), with(AdamW::default().into()));
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    // Plain SGD has no tensors at all.
    let sgd = || with(Sgd::default().into());
    let error = refused(&bare(&solo, &storage, 0.0), sgd());
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    let error = refused(&sgd(), adam());
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    // Without an optimizer the model alone is taken.
    let mut plain = bare(&solo, &storage, 0.0);
    adam().save("runs/adam").unwrap();
    plain.restore("runs/adam", Atomicity::Atomic).unwrap();
    assert_eq!(parameters(&plain), parameters(&adam()));
}

#[test]
fn values_that_make_no_sense_change_nothing() {
    type Change = fn(&mut StateDict);
    let changes: [Change; 6] = [
        |s| s.values.set("trainer.epoch", i64::MAX),
        |s| s.values.set("history.loss", vec![0.5; 7]),
        |s| s.values.set("optimizer.lr", vec![1.0; 2]),
        |s| s.values.set("optimizer.weight_decay", "much"),
        |s| s.rank_values.set("rng.cpu", vec![0u8; 16]),
        |s| {
            let random = s.rank_values.bytes("rng.cpu").unwrap();
            s.rank_values.set("rng.cpu", vec![0xff; random.len()]);
        },
    ];
    let _generator = exclusive();
    let stage = staged(1, 0);
    let solo = ProcessGroup::solo();
    for (index, change) in changes.into_iter().enumerate() {
        let mut handler = live(&solo, &stage);
        let mut state = handler.state_dict().unwrap();
        change(&mut state);
        let path = CheckpointPath::parse(format!("runs/bad{index}")).unwrap();
        save(&solo, &stage.memory, &path, &state, &SaveOptions::default()).unwrap();
        drop(state);
        handler.train(1).unwrap();
        let before = Snapshot::of(&handler);
        let error = handler.restore(path.full(), Atomicity::Atomic).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{index}: {error}");
        assert_eq!(Snapshot::of(&handler), before, "{index}: {error}");
        handler.train(1).unwrap();
    }
}
