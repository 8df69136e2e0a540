//! Several ranks train one model; the world size may change between runs; ranks may be lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::nn;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{InitOptions, Loader, Model, NNHandler};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::{ErrorKind, Result};

use crate::harness::*;
use crate::models::*;

/// Everything that ranks must agree on, and the parameters.
fn outcome(handler: &NNHandler<Net>) -> (String, Vec<f32>) {
    (handler.state_hash().unwrap(), parameters(handler))
}

/// Parameters after training on `n` ranks, which all ended with the same bits.
fn agreed(outcomes: Vec<(String, Vec<f32>)>) -> Vec<f32> {
    assert!(outcomes.iter().all(|(hash, _)| *hash == outcomes[0].0), "ranks differ");
    outcomes.into_iter().next().unwrap().1
}

fn train_on(n: u32, epochs: u64) -> Vec<f32> {
    agreed(on_ranks(n, move |group| {
        let mut handler = usual(&group, &memory().1);
        handler.train(epochs).unwrap();
        outcome(&handler)
    }))
}

#[test]
fn ranks_end_with_the_same_bits_and_close_to_one_rank() {
    let one = train_on(1, 3);
    assert_ne!(one, train_on(1, 2), "training does nothing");
    for n in [2, 3] {
        assert_close(&train_on(n, 3), &one);
    }
}

#[test]
fn batches_smaller_than_the_world_and_incomplete_ones_count_every_sample_once() {
    let train = |n| {
        agreed(on_ranks(n, |group| {
            let mut handler = usual(&group, &memory().1);
            // 7 samples in batches of 3: shards of one sample and of none; the last batch is one.
            let loader = Loader { global_batch_size: Some(3), shuffle: true, ..Loader::default() };
            handler.set_train_loader(data(7), loader);
            handler.set_val_loader(data(2), Loader { batch_size: 2, ..Loader::default() });
            handler.add_metric("error", |o, t| squared_error(o, t).double_value(&[]));
            handler.train(2).unwrap();
            assert_eq!(handler.step(), 6);
            for series in ["loss", "val_loss", "error", "val_error"] {
                let numbers = handler.history().series(series);
                assert!(numbers.len() == 2 && numbers.iter().all(|x| x.is_finite()), "{numbers:?}");
            }
            assert_eq!(handler.history().series("loss"), handler.history().series("error"));
            outcome(&handler)
        }))
    };
    let one = train(1);
    for n in [2, 3, 5] {
        assert_close(&train(n), &one);
    }
}

#[test]
fn a_run_saved_on_two_ranks_goes_on_with_one_and_three() {
    let whole = train_on(1, 4);
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: std::sync::Arc<dyn Storage> = std::sync::Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        handler.train(2).unwrap();
        handler.save("runs/half").unwrap();
    });
    for n in [1, 2, 3] {
        let inner = memory.clone();
        let end = agreed(on_ranks(n, move |group| {
            let storage: std::sync::Arc<dyn Storage> = std::sync::Arc::new(inner.clone());
            let mut handler = loaded(&group, &storage, "runs/half").unwrap();
            assert_eq!((handler.epoch(), handler.step()), (2, 6));
            handler.train(2).unwrap();
            assert_eq!(handler.history().series("loss").len(), 4);
            outcome(&handler)
        }));
        assert_close(&end, &whole);
    }
}

/// The ranks that are left end with a typed error that blames the one that is gone.
fn assert_lost(lost: u32, results: Vec<Option<Result<(), tch_checkpoint::Error>>>) {
    for (rank, result) in results.into_iter().enumerate() {
        let Some(Err(error)) = result else {
            assert_eq!(rank, lost as usize, "{result:?}");
            continue;
        };
        let gone = [ErrorKind::PeerLost, ErrorKind::CoordinatorLost];
        assert!(gone.contains(&error.kind()), "rank {rank}: {error}");
    }
}

#[test]
fn a_rank_whose_loss_panics_ends_the_others() {
    for (n, lost) in [(2, 0), (2, 1), (3, 2)] {
        let results = on_ranks_that_may_panic(n, move |group| {
            let mut handler = usual(&group, &memory().1);
            if group.rank().get() == lost {
                let calls = AtomicUsize::new(0);
                handler.set_loss_fn(move |output, target| {
                    assert!(calls.fetch_add(1, Ordering::Relaxed) < 4, "a loss that panics");
                    squared_error(output, target)
                });
            }
            handler.train(3)
        });
        assert!(results[lost as usize].is_none(), "the loss did not panic");
        assert_lost(lost, results);
    }
}

#[test]
fn a_rank_that_leaves_early_ends_the_others() {
    for (n, lost) in [(2, 0), (2, 1), (3, 1)] {
        let results = on_ranks_that_may_panic(n, move |group: ProcessGroup| {
            let mut handler = usual(&group, &memory().1);
            handler.train(1)?;
            if group.rank().get() == lost {
                return Ok(());
            }
            handler.train(1)
        });
        assert_lost(lost, results);
    }
}

#[test]
fn ranks_that_are_set_up_differently_are_told_so_before_training() {
    type Change = fn(&mut NNHandler<Net>);
    let changes: [(&str, Change); 6] = [
        ("optimizer", |h| {
            h.set_optimizer(tch_checkpoint::torch::Sgd { lr: 0.5, ..Default::default() }).unwrap();
        }),
        ("auto-save", |h| {
            h.auto_save(1, "runs", "e{epoch}").unwrap();
        }),
        ("data", |h| h.set_train_loader(data(13), LOADER)),
        ("loader", |h| h.set_train_loader(data(20), Loader { shuffle: false, ..LOADER })),
        ("validation", |h| h.set_val_loader(data(5), LOADER)),
        ("metrics", |h| h.add_metric("m", |_, _| 0.0)),
    ];
    for (what, change) in changes {
        let results = on_ranks(3, move |group| {
            let mut handler = usual(&group, &memory().1);
            if group.rank().get() == 1 {
                change(&mut handler);
            }
            let result = handler.train(1);
            assert_eq!(handler.step(), 0, "{what}");
            result
        });
        let error = one_error(&results);
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{what}: {error}");
        assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(1), "{what}: {error}");
    }
    let results =
        on_ranks(2, |group| usual(&group, &memory().1).train(1 + u64::from(group.rank().get())));
    assert_eq!(one_error(&results).kind(), ErrorKind::Disagreement);
}

#[test]
fn ranks_that_build_different_models_are_told_so() {
    let results = on_ranks(3, |group| {
        let hidden = if group.rank().get() == 2 { 7 } else { 5 };
        let config = NetConfig { hidden, dropout: 0.0 };
        NNHandler::<Net>::builder(config).process_group(&group).build().map(|_| ())
    });
    let error = one_error(&results);
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(2), "{error}");
    assert!(error.to_string().contains("input."), "{error}");
}

#[test]
fn a_rank_that_panics_while_building_is_every_ranks_error() {
    let results = on_ranks(2, |group| {
        // libtorch refuses a negative size by a panic.
        let hidden = if group.rank().get() == 1 { -1 } else { 5 };
        let config = NetConfig { hidden, dropout: 0.0 };
        NNHandler::<Net>::builder(config).process_group(&group).build().map(|_| ())
    });
    assert_eq!(one_error(&results).kind(), ErrorKind::Panic);
}

#[test]
fn what_one_rank_lacks_is_every_ranks_error() {
    let results = on_ranks(2, |group| {
        let mut handler = equip(bare(&group, &memory().1, 0.0));
        if group.rank().get() == 0 {
            handler.set_optimizer(tch_checkpoint::torch::Sgd::default()).unwrap();
        }
        handler.train(1)
    });
    let error = one_error(&results);
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("set_optimizer"), "{error}");
    assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(1), "{error}");
}

/// No number that one rank has keeps it from the sums that the others wait for.
#[test]
fn a_loss_that_is_no_number_on_one_rank_reaches_all_alike() {
    let (_, storage) = memory();
    let seen = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.set_val_loader(data(9), Loader { shuffle: false, ..LOADER });
        let rank = group.rank().get();
        handler.set_loss_fn(move |output, target| {
            let loss = squared_error(output, target);
            if rank == 1 { loss * f64::NAN } else { loss }
        });
        handler.add_metric("one", move |_, _| if rank == 0 { f64::NAN } else { 1.0 });
        handler.train(2).unwrap();
        ["loss", "val_loss", "one"].map(|name| handler.history().series(name).to_vec())
    });
    for series in seen {
        assert!(series.iter().all(|s| s.len() == 2 && s.iter().all(|x| x.is_nan())), "{series:?}");
    }
}

/// A model whose configuration has no order of its own: each rank writes it differently.
struct Unordered;

impl Model for Unordered {
    type Config = HashMap<String, i64>;

    fn new(path: &nn::Path<'_>, config: &Self::Config) -> Self {
        for (name, size) in config {
            let _ = path.zeros(name, &[*size]);
        }
        Self
    }

    fn forward(&self, input: &tch::Tensor, _: bool) -> tch::Tensor {
        input.shallow_clone()
    }
}

#[test]
fn a_configuration_without_order_is_the_same_on_every_rank() {
    let (memory, _) = memory();
    let verdicts = on_ranks(2, move |group| -> Result<()> {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let config: HashMap<String, i64> = (1..30).map(|n| (format!("v{n}"), n)).collect();
        let handler = NNHandler::<Unordered>::builder(config.clone())
            .process_group(&group)
            .device(tch::Device::Cpu)
            .storage(storage.clone())
            .build()?;
        handler.save("runs/a")?;
        let options = InitOptions {
            group: Some(group),
            device: Some(tch::Device::Cpu),
            storage: Some(storage),
            ..InitOptions::default()
        };
        let at = "runs/a";
        NNHandler::<Unordered>::initialize_from_checkpoint(at, Some(config), options).map(drop)
    });
    verdicts.into_iter().for_each(|verdict| verdict.unwrap());
}
