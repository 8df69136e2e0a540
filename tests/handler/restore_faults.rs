//! Faults of a restore into a live handler, with the tensors of libtorch: each leaves it as it was,
//! or poisoned on every rank.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;
use tch::{Device, Kind, Tensor};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::NNHandler;
use tch_checkpoint::storage::{Fault, MemoryStorage, Storage};
use tch_checkpoint::torch::*;
use tch_checkpoint::{Atomicity, Error, ErrorKind};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::models::*;
use crate::parts::{Set, ema, small_scaler};

fn epoch_one(ranks: u32, storage: &MemoryStorage) {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    on_ranks_alone(ranks, move |group| {
        let mut handler = usual(&group, &storage);
        handler.train(1).unwrap();
        handler.save("runs/one").unwrap();
    });
}

fn is_poisoned(handler: &NNHandler<Net>) -> bool {
    let saved = handler.save("runs/probe");
    if let Err(error) = &saved {
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    }
    saved.is_err()
}

/// A variable becomes another tensor while the checkpoint is read: its bytes have nowhere to go,
/// which is found before anything else changes. In place, where they go there as they come, reading
/// fails.
#[test]
fn a_restore_that_fails_while_it_places_poisons_every_rank_and_before_that_none() {
    let _generator = exclusive();
    for (ranks, failing) in [(1, 0), (2, 0), (2, 1)] {
        for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
            let memory = MemoryStorage::new();
            epoch_one(ranks, &memory);
            let results = on_ranks_alone(ranks, move |group| {
                let victim: Arc<Mutex<Option<Tensor>>> = Arc::default();
                let inner = victim.clone();
                let hooked = Hooked::new(&memory, move |call| {
                    // Asked for its targets to plan, not yet to fill them.
                    let is_due = call.operation == "read_at" && call.path.ends_with_data();
                    match (inner.lock().take_if(|_| is_due), atomicity) {
                        (None, _) => Ok(()),
                        (Some(mut tensor), Atomicity::Atomic) => {
                            tensor.set_data(&Tensor::zeros([7], (Kind::Float, Device::Cpu)));
                            Ok(())
                        }
                        (Some(_), _) => Err(Error::new(ErrorKind::Storage, "cannot be read")),
                    }
                });
                let storage: Arc<dyn Storage> = Arc::new(hooked);
                let mut handler = usual(&group, &storage);
                handler.train(2).unwrap();
                let variable = handler.vars().variables().remove("input.bias").unwrap();
                let whole = variable.detach().copy();
                if group.rank().get() == failing {
                    *victim.lock() = Some(variable.shallow_clone());
                }
                let before = handler.state_hash().unwrap();
                let error = handler.restore("runs/one", atomicity).unwrap_err();
                let (phase, is_whole) = match atomicity {
                    Atomicity::Atomic => ("read", true),
                    _ => ("place", false),
                };
                assert_eq!(error.phase(), Some(phase), "{error}");
                if !is_whole {
                    assert_eq!(handler.train(1).unwrap_err().kind(), ErrorKind::Poisoned);
                    assert!(is_poisoned(&handler));
                    handler.restore("runs/none", Atomicity::Atomic).unwrap_err();
                    assert!(is_poisoned(&handler));
                }
                // The program puts its variable right; only a load makes the handler whole.
                if group.rank().get() == failing {
                    let mut variable = variable;
                    variable.set_data(&whole);
                }
                assert_eq!(is_poisoned(&handler), !is_whole);
                if is_whole {
                    assert_eq!(handler.state_hash().unwrap(), before);
                    handler.train(1).unwrap();
                }
                handler.restore("runs/one", Atomicity::Atomic).unwrap();
                let good = loaded(&group, &storage, "runs/one").unwrap();
                assert_eq!(handler.state_hash().unwrap(), good.state_hash().unwrap());
                assert!(!is_poisoned(&handler));
                handler.train(1).unwrap();
                Err::<(), _>(error)
            });
            let error = one_error(&results);
            let kind = match atomicity {
                Atomicity::Atomic => ErrorKind::Mismatch,
                _ => ErrorKind::Storage,
            };
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(failing));
        }
    }
}

trait EndsWithData {
    fn ends_with_data(&self) -> bool;
}

impl EndsWithData for std::path::PathBuf {
    /// Whether it is a data file of a checkpoint.
    fn ends_with_data(&self) -> bool {
        self.extension().is_some_and(|end| end == "safetensors")
    }
}

/// At no operation is a handler changed, and yet fit to train.
#[test]
fn a_restore_in_place_that_fails_at_any_operation_changes_nothing_or_poisons() {
    let _generator = exclusive();
    for (ranks, failing) in [(1, 0), (2, 1)] {
        let stage = Stage::new(failing);
        epoch_one(ranks, &stage.memory);
        let (changed, poisoned) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        for operation in 1.. {
            let (inner, counts) = (stage.clone(), (changed.clone(), poisoned.clone()));
            let results = on_ranks_alone(ranks, move |group| {
                let mut handler = usual(&group, &inner.storage(&group));
                handler.train(2).unwrap();
                let before = handler.state_hash().unwrap();
                if inner.is_failing(&group) {
                    inner.faulty.reset();
                    inner.faulty.fail_at(operation, Fault::Error(5), false);
                }
                group.all_reduce_sum(&mut [0.0]).unwrap();
                let restored = handler.restore("runs/one", Atomicity::InPlace);
                if inner.is_failing(&group) {
                    inner.faulty.fail_at(u64::MAX, Fault::Error(5), false);
                }
                if restored.is_err() {
                    let is_changed = handler.state_hash().unwrap() != before;
                    let is_poisoned = is_poisoned(&handler);
                    assert!(is_poisoned || !is_changed, "operation {operation}: half loaded");
                    counts.0.fetch_add(u64::from(is_changed), SeqCst);
                    counts.1.fetch_add(u64::from(is_poisoned), SeqCst);
                }
                restored.map(drop)
            });
            if results.iter().all(Result::is_ok) {
                break;
            }
            assert_eq!(one_error(&results).kind(), ErrorKind::Storage);
        }
        assert!(changed.load(SeqCst) > 0 && poisoned.load(SeqCst) > 0, "nothing was in place");
        assert!(stage.memory.open_dir(Path::new("runs")).is_ok());
    }
}

fn with_schedule(handler: &mut NNHandler<Net>) -> tch_checkpoint::Result<()> {
    handler.set_scheduler(StepLr { step_size: 2, gamma: 0.5 }, SchedulerUnit::Step)
}

const SGD: Sgd =
    Sgd { lr: 1e-2, momentum: 0.9, dampening: 0.0, weight_decay: 0.0, nesterov: false };

/// What belongs to training, each in one kind of handler.
const KINDS: [(&str, Set); 8] = [
    ("Adam", |h| h.set_optimizer(Adam::default())),
    ("AdamW", |h| h.set_optimizer(AdamW::default())),
    ("SGD", |h| h.set_optimizer(SGD)),
    ("RMSprop", |h| h.set_optimizer(RmsProp::default())),
    ("two groups", |h| {
        let groups = [ParamGroupConfig { names: vec!["input.bias".into()], ..Default::default() }];
        h.set_optimizer_groups(Adam::default(), &groups)
    }),
    ("a schedule", |h| {
        h.set_optimizer(Adam::default())?;
        with_schedule(h)
    }),
    ("a scaler", |h| {
        h.set_optimizer(Adam::default())?;
        h.set_grad_scaler(small_scaler())
    }),
    ("averages", |h| {
        h.set_optimizer(Adam::default())?;
        h.set_ema(ema())
    }),
];

/// A checkpoint of any kind of handler into any other is refused, and nothing of it is loaded.
#[test]
fn every_kind_of_training_state_fits_itself_alone() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let make = |set: Set| {
        let mut handler = equip(bare(&solo, &storage, 0.0));
        set(&mut handler).unwrap();
        handler.train(1).unwrap();
        handler
    };
    let mut pairs = 0;
    for (saved, set) in KINDS {
        make(set).save("runs/saved").unwrap();
        for (live, set) in KINDS {
            let mut handler = make(set);
            let before = handler.state_hash().unwrap();
            let restored = handler.restore("runs/saved", Atomicity::Atomic);
            if saved == live {
                restored.unwrap();
                continue;
            }
            let error = restored.expect_err(&format!("{saved} into {live}"));
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{saved} into {live}: {error}");
            assert_eq!(handler.state_hash().unwrap(), before, "{saved} into {live}: {error}");
            handler.train(1).unwrap();
            pairs += 1;
        }
    }
    assert_eq!(pairs, 56);
}
