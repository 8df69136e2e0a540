//! Resuming is exact: whatever training consists of, wherever it is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};
use tch_checkpoint::autosave::Every;
use tch_checkpoint::handler::{
    EarlyStopping, LearningRateLogger, Loader, ModelCheckpoint, NNHandler, check_resume,
};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::torch::*;
use tch_checkpoint::{Atomicity, Error, ProcessGroup, Result};

use crate::harness::*;
use crate::models::*;
use crate::parts::*;

fn optimizers() -> [OptimizerConfig; 5] {
    [
        Sgd { lr: 0.05, momentum: 0.9, nesterov: true, ..Sgd::default() }.into(),
        Adam { lr: 1e-2, ..Adam::default() }.into(),
        AdamW { lr: 1e-2, amsgrad: true, ..AdamW::default() }.into(),
        RmsProp { lr: 1e-3, ..RmsProp::default() }.into(),
        Sgd { lr: 0.05, ..Sgd::default() }.into(),
    ]
}

fn equip_with_validation(handler: &mut NNHandler<Net>) {
    handler.quiet(true);
    handler.set_loss_fn(squared_error);
    handler.add_metric("error", |o, t| (o - t).abs().mean(Kind::Double).double_value(&[]));
    handler.set_train_loader(data(40), Loader { global_batch_size: Some(7), ..LOADER });
    handler.set_val_loader(data(9), Loader { shuffle: false, ..LOADER });
}

/// Epochs have six batches: with `steps` 3 the cut is inside the first, with 6 between two (with
/// accumulation inside the third, or between).
fn resumes_exactly(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    steps: u64,
    make: impl Fn(&mut NNHandler<Net>) -> Result<()>,
    dropout: f64,
) -> Result<Option<String>> {
    let make = || {
        let mut handler = bare(group, storage, dropout);
        make(&mut handler)?;
        Ok(handler)
    };
    let equip = |handler: &mut NNHandler<Net>| {
        equip_with_validation(handler);
        Ok(())
    };
    let difference = check_resume(steps, "runs/cut", make, equip)?;
    Ok(difference.map(|difference| difference.to_string()))
}

/// Every optimizer with every schedule and every extra, cut inside an epoch and between two.
#[test]
fn every_combination_resumes_bit_for_bit() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    for optimizer in optimizers() {
        for (schedule, set_schedule) in SCHEDULES {
            for (extra, dropout, set_extra) in EXTRAS {
                let make = |handler: &mut NNHandler<Net>| {
                    handler.set_optimizer(optimizer)?;
                    set_schedule(handler)?;
                    set_extra(handler)
                };
                for steps in [3, 6] {
                    let difference = resumes_exactly(&solo, &storage, steps, make, dropout);
                    let what = format!("{optimizer:?}, {schedule}, {extra}, {steps} steps");
                    assert_eq!(difference.unwrap(), None, "{what}");
                }
            }
        }
    }
}

/// The same on two ranks, for what ranks could come apart in.
#[test]
fn two_ranks_resume_bit_for_bit() {
    // What is compared includes the generator, which other tests would move meanwhile.
    let _generator = exclusive();
    for (extra, _, set_extra) in EXTRAS {
        let (_, storage) = memory();
        let found = on_ranks_alone(2, move |group| {
            let make = |handler: &mut NNHandler<Net>| {
                handler.set_optimizer(AdamW { lr: 1e-2, ..AdamW::default() })?;
                SCHEDULES[7].1(handler)?;
                set_extra(handler)
            };
            // Threads share one generator, which each of them seeds; it is compared last.
            let but_random = |found: Option<String>| found.filter(|d| !d.starts_with("`rng.cpu`"));
            let check = |steps| resumes_exactly(&group, &storage, steps, make, 0.0);
            [3, 6].map(|steps| check(steps).map(but_random))
        });
        assert_eq!(found, vec![[Ok(None), Ok(None)]; 2], "{extra}");
    }
}

/// Samples, steps and schedule go on as they were; numbers are equal up to the order of sums.
#[test]
fn another_world_size_goes_on_with_the_same_course() {
    type Course = (Vec<f64>, Vec<f64>, Vec<f32>, u64, u64);
    fn course(handler: &NNHandler<Net>) -> Course {
        let ema = handler.ema().unwrap();
        let averages = ema
            .averages()
            .flat_map(|(_, tensor)| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap());
        let series = |name| handler.history().series(name).to_vec();
        let done = handler.scheduler().unwrap().steps_done();
        (series("loss"), series("lr"), averages.collect(), handler.step(), done)
    }
    let (_, storage) = memory();
    let at = storage.clone();
    let whole = on_ranks(2, move |group| {
        let mut handler = bare(&group, &at, 0.0);
        handler.set_optimizer(AdamW { lr: 1e-2, ..AdamW::default() }).unwrap();
        (SCHEDULES[7].1)(&mut handler).unwrap();
        handler.set_ema(ema()).unwrap();
        handler.accumulate(2);
        equip_with_validation(&mut handler);
        handler.train_steps(4).unwrap();
        handler.save("runs/cut").unwrap();
        handler.train(2).unwrap();
        course(&handler)
    });
    for ranks in [1, 3] {
        let at = storage.clone();
        let resumed = on_ranks(ranks, move |group| {
            let mut handler = NNHandler::<Net>::load("runs/cut", options(&group, &at)).unwrap();
            equip_with_validation(&mut handler);
            handler.train(2).unwrap();
            course(&handler)
        });
        for (loss, lr, averages, step, done) in resumed {
            assert_eq!((&lr, step, done), (&whole[0].1, whole[0].3, whole[0].4));
            assert_close(&averages, &whole[0].2);
            assert_eq!(loss.len(), whole[0].0.len());
            for (a, b) in loss.iter().zip(&whole[0].0) {
                assert!((a - b).abs() < 1e-5, "{loss:?} {:?}", whole[0].0);
            }
        }
    }
}

/// Which checkpoints they saved is no part of the comparison: every save has an id of its own.
#[test]
fn a_run_that_saves_by_itself_and_through_callbacks_is_compared_too() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    for overwrite in [false, true] {
        let make = || {
            let mut handler = bare(&solo, &storage, 0.3);
            handler.set_optimizer(Adam { lr: 1e-2, ..Adam::default() })?;
            handler.auto_save(1, "auto", "e{epoch}")?.overwrite(overwrite);
            Ok(handler)
        };
        let forgets = std::cell::Cell::new(0);
        let check = |id_of_third: &str| {
            forgets.set(0);
            let equip = |handler: &mut NNHandler<Net>| {
                equip_with_validation(handler);
                forgets.set(forgets.get() + 1);
                let id = if forgets.get() == 3 { id_of_third } else { "best" };
                let best = ModelCheckpoint::new("best", "top").overwrite(overwrite);
                handler.add_callback(best.id(id))?;
                let stop = EarlyStopping::new().patience(99).restore_best_weights(true);
                handler.add_callback(stop)?;
                handler.add_callback(LearningRateLogger::by_step())
            };
            check_resume(7, "cut/cut", make, equip).unwrap()
        };
        assert_eq!(check("best"), None);
        // Not so what is the best: a state that was not taken up is found.
        assert!(check("other").unwrap().name.starts_with("callbacks"));
    }
}

/// Else the resumed run would go on where the other one has ended.
#[test]
fn a_run_that_a_callback_ends_is_compared_where_it_ended() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let make = || {
        let mut handler = bare(&solo, &storage, 0.3);
        handler.set_optimizer(Adam { lr: 1e-2, ..Adam::default() })?;
        Ok(handler)
    };
    let equip = |handler: &mut NNHandler<Net>| {
        equip_with_validation(handler);
        // After two epochs, which are twelve steps.
        handler.add_callback(EarlyStopping::new().min_delta(1e9).patience(1))
    };
    for steps in [7, 13] {
        assert_eq!(check_resume(steps, "runs/cut", make, equip).unwrap(), None, "{steps}");
    }
}

/// What the tests above prove is not empty: something forgotten is found, and named.
#[test]
fn a_part_that_no_checkpoint_holds_is_named() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    // Without dropout nothing but the generator itself tells.
    for (dropout, name) in [(0.3, "input.bias"), (0.0, "rng.cpu")] {
        let drawn = AtomicU64::new(0);
        let make = || {
            let mut handler = bare(&solo, &storage, dropout);
            handler.set_optimizer(Adam { lr: 1e-2, ..Adam::default() })?;
            Ok(handler)
        };
        let equip = |handler: &mut NNHandler<Net>| {
            equip_with_validation(handler);
            // The third is the resumed one.
            if drawn.fetch_add(1, Ordering::Relaxed) == 2 {
                let _other = Tensor::rand([1], (Kind::Float, tch::Device::Cpu));
            }
            Ok(())
        };
        let difference = check_resume(3, "runs/cut", make, equip).unwrap().unwrap();
        assert_eq!(difference.name, name);
        assert!(Error::from(difference).to_string().contains("uninterrupted"));
    }
}

/// A live handler that has gone on, and was set otherwise, becomes what it was.
#[test]
fn a_restored_handler_goes_on_as_the_saved_one_did() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let make = |lr: f64, decay: f64| {
        let mut handler = bare(&solo, &storage, 0.3);
        handler.set_optimizer(AdamW { lr, ..AdamW::default() }).unwrap();
        (SCHEDULES[7].1)(&mut handler).unwrap();
        handler.set_grad_scaler(small_scaler()).unwrap();
        handler.set_ema(EmaConfig { decay, warm_up: false }).unwrap();
        handler.accumulate(if decay < 0.5 { 2 } else { 1 });
        equip_with_validation(&mut handler);
        handler
    };
    let mut first = make(1e-2, 0.4);
    first.train_steps(4).unwrap();
    first.save("runs/cut").unwrap();
    first.train_steps(4).unwrap();
    let mut other = make(1e-3, 0.9);
    other.train_steps(7).unwrap();
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        other.restore("runs/cut", atomicity).unwrap();
        assert_eq!(other.step(), 4);
        other.train_steps(4).unwrap();
        assert_eq!(other.state_hash().unwrap(), first.state_hash().unwrap(), "{atomicity:?}");
    }
}

/// A run that saves by itself is as exact: names and ids of its checkpoints are not compared.
#[test]
fn saving_automatically_makes_no_difference() {
    let _generator = exclusive();
    let (solo, (memory, storage)) = (ProcessGroup::solo(), memory());
    let make = |handler: &mut NNHandler<Net>| {
        handler.auto_save(1, "auto", "e{epoch}")?.overwrite(true);
        handler.set_optimizer(Adam { lr: 1e-2, ..Adam::default() })
    };
    for steps in [3, 6] {
        assert_eq!(resumes_exactly(&solo, &storage, steps, make, 0.3), Ok(None), "{steps} steps");
    }
    assert!(entries(&memory, "auto").is_empty(), "a check leaves its own checkpoint only");
}

/// From whichever automatic checkpoint a run goes on, it comes to the same end: with validation
/// every few epochs, batches left out, and batches larger than the data.
#[test]
fn every_automatic_checkpoint_leads_to_the_same_end() {
    let _generator = exclusive();
    let solo = ProcessGroup::solo();
    for (size, drop_last) in [(7, true), (7, false), (100, false)] {
        let (memory, storage) = memory();
        let equip = |handler: &mut NNHandler<Net>| {
            equip_with_validation(handler);
            handler.validate_every(2);
            let loader = Loader { global_batch_size: Some(size), drop_last, ..LOADER };
            handler.set_train_loader(data(40), loader);
        };
        let mut whole = bare(&solo, &storage, 0.3);
        whole.set_optimizer(AdamW { lr: 1e-2, ..AdamW::default() }).unwrap();
        (SCHEDULES[8].1)(&mut whole).unwrap();
        whole.set_ema(ema()).unwrap();
        equip(&mut whole);
        whole.auto_save(Every::steps(1).unwrap(), "auto", "s{step}").unwrap();
        whole.train(4).unwrap();
        let all = visible(&memory, "auto");
        assert_eq!(all.len() as u64, whole.step());
        for name in all {
            let path = format!("auto/{name}");
            let mut again = NNHandler::<Net>::load(path, options(&solo, &storage)).unwrap();
            equip(&mut again);
            again.disable_auto_save();
            again.train(4 - again.epoch()).unwrap();
            let what = format!("from {name}, batches of {size}, drop_last {drop_last}");
            assert_eq!(again.state_hash().unwrap(), whole.state_hash().unwrap(), "{what}");
            for series in ["loss", "val_loss", "lr"] {
                let bits = |handler: &NNHandler<Net>| -> Vec<u64> {
                    handler.history().series(series).iter().map(|x| x.to_bits()).collect()
                };
                assert_eq!(bits(&again), bits(&whole), "{series} {what}");
            }
        }
    }
}
