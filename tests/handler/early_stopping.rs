//! `EarlyStopping`: when it stops, what it remembers, and which weights are left.

use std::sync::Arc;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{EarlyStopping, Mode, ModelCheckpoint, NNHandler};
use tch_checkpoint::storage::Storage;

use crate::harness::*;
use crate::models::*;

fn stopping() -> EarlyStopping {
    EarlyStopping::new().monitor("m").patience(2).id("stop")
}

fn watching(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    script: &[f64],
    callback: EarlyStopping,
) -> NNHandler<Net> {
    let mut handler = scripted(usual(group, storage), script);
    handler.add_callback(callback).unwrap();
    handler
}

fn of(handler: &NNHandler<Net>) -> &EarlyStopping {
    handler.callback("stop").unwrap()
}

/// After how many epochs of ten it stops, on `n` ranks.
fn stops(n: u32, script: &'static [f64], callback: fn() -> EarlyStopping) -> u64 {
    let epochs = on_ranks(n, move |group| {
        let (_, storage) = memory();
        let mut handler = watching(&group, &storage, script, callback());
        handler.train(10).unwrap();
        let stopped = of(&handler).stopped_epoch();
        assert_eq!(stopped.is_some(), handler.stop_reason().is_some());
        assert!(stopped.is_none_or(|epoch| epoch == handler.epoch()));
        handler.epoch()
    });
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]));
    epochs[0]
}

const FALLING: &[f64] = &[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0];
const VALLEY: &[f64] = &[3.0, 1.0, 2.0, 1.0, 0.5, 0.5];

#[test]
fn it_stops_after_so_many_epochs_without_improvement() {
    for n in [1, 2] {
        assert_eq!(stops(n, VALLEY, stopping), 4);
        assert_eq!(stops(n, FALLING, stopping), 10);
    }
    assert_eq!(stops(1, FALLING, || stopping().mode(Mode::Max)), 3);
    assert_eq!(stops(1, VALLEY, || stopping().patience(0)), 3);
    assert_eq!(stops(1, VALLEY, || stopping().patience(1)), 3);
    // The change counts from the best value, not from the last one, and must be larger.
    const SLOW: &[f64] = &[4.0, 3.5, 2.75, 2.5, 1.75, 0.0];
    assert_eq!(stops(1, SLOW, || stopping().min_delta(1.0).patience(1)), 2);
    assert_eq!(stops(1, SLOW, || stopping().min_delta(1.0)), 5);
    assert_eq!(stops(1, SLOW, || stopping().min_delta(1.25)), 3);
    // Negative numbers, and the default patience.
    assert_eq!(stops(1, &[-1.0, -2.0, -1.5, -1.75], stopping), 4);
    assert_eq!(stops(1, VALLEY, || stopping().patience(10)), 10);
}

#[test]
fn numbers_that_are_none_do_not_improve_and_absent_ones_do_not_count() {
    assert_eq!(stops(1, &[1.0, f64::NAN, f64::NEG_INFINITY, 0.5], stopping), 3);
    assert_eq!(stops(1, &[f64::NAN, f64::NAN, 0.5], stopping), 2);
    assert_eq!(stops(1, FALLING, || stopping().monitor("epoch")), 10);
    assert_eq!(stops(1, FALLING, || stopping().monitor("val_loss")), 10);
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.set_val_loader(data(9), LOADER);
        handler.validate_every(3);
        // A validation loss that never falls by so much: epochs 3, 6 and 9 count.
        let callback = stopping().monitor("val_loss").min_delta(1e9);
        handler.add_callback(callback).unwrap();
        handler.train(20).unwrap();
        assert_eq!(handler.epoch(), 9);
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            let error = handler.add_callback(stopping().min_delta(bad).id("x")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        let error = handler.add_callback(stopping().monitor("val_los").id("x")).unwrap_err();
        assert!(error.to_string().contains("did you mean `val_loss`"), "{error}");
    });
}

#[test]
fn a_stopped_epoch_is_the_last_one_and_is_saved() {
    for (interval, expected) in [(-1, vec!["e4"]), (3, vec!["e3", "e4"]), (0, vec![])] {
        let (memory, storage) = memory();
        on_ranks(2, move |group| {
            let mut handler = watching(&group, &storage, VALLEY, stopping());
            handler.auto_save(interval, "runs", "e{epoch}").unwrap();
            handler.train(10).unwrap();
        });
        assert_eq!(entries(&memory, "runs"), expected, "interval {interval}");
    }
}

#[test]
fn a_resumed_run_stops_where_the_uninterrupted_one_does() {
    for (done, world) in [(1, 1), (2, 2), (3, 1)] {
        let (memory, storage) = memory();
        on_ranks(2, move |group| {
            let mut handler = watching(&group, &storage, VALLEY, stopping());
            handler.train(done as u64).unwrap();
            handler.save("runs/half").unwrap();
        });
        let storage: Arc<dyn Storage> = Arc::new(memory);
        on_ranks(world, move |group| {
            let handler = loaded(&group, &storage, "runs/half").unwrap();
            let mut handler = scripted(handler, &VALLEY[done..]);
            handler.add_callback(stopping()).unwrap();
            handler.train(10).unwrap();
            assert_eq!(handler.epoch(), 4, "after {done}");
            assert_eq!((of(&handler).best(), of(&handler).best_epoch()), (Some(1.0), 2));
        });
    }
}

#[test]
fn patience_is_what_the_resuming_program_says() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = watching(&group, &storage, VALLEY, stopping().patience(99));
        handler.train(3).unwrap();
        handler.save("runs/half").unwrap();
        for (patience, stop) in [(1, 4), (3, 5 + 3), (99, 13)] {
            let again = loaded(&group, &storage, "runs/half").unwrap();
            let mut again = scripted(again, &[2.0, 0.5]);
            again.add_callback(stopping().patience(patience)).unwrap();
            assert_eq!(of(&again).waited(), 1);
            again.train(10).unwrap();
            assert_eq!(again.epoch(), stop, "patience {patience}");
        }
        let (again, told) = captured(|| {
            let mut again = scripted(loaded(&group, &storage, "runs/half").unwrap(), &[]);
            again.add_callback(stopping().mode(Mode::Max)).unwrap();
            again
        });
        assert_eq!((of(&again).best(), of(&again).waited()), (None, 0));
        assert!(told.contains("another number"), "{told}");
    });
}

#[test]
fn after_a_stop_training_goes_on_with_new_patience_and_the_old_best() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let script = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5];
        let mut handler = watching(&group, &storage, &script, stopping());
        handler.train(10).unwrap();
        assert_eq!((handler.epoch(), of(&handler).stopped_epoch()), (3, Some(3)));
        handler.save("runs/stopped").unwrap();
        handler.train(10).unwrap();
        assert_eq!((handler.epoch(), of(&handler).best()), (5, Some(1.0)));
        // The same after a load.
        let again = loaded(&group, &storage, "runs/stopped").unwrap();
        let mut again = scripted(again, &[2.0, 0.5, 2.0, 2.0]);
        again.add_callback(stopping()).unwrap();
        assert_eq!(of(&again).stopped_epoch(), Some(3));
        again.train(10).unwrap();
        assert_eq!((again.epoch(), of(&again).best_epoch()), (7, 5));
    });
}

/// Parameters after each epoch of an ordinary run.
fn by_epoch(group: &ProcessGroup, storage: &Arc<dyn Storage>, epochs: u64) -> Vec<Vec<f32>> {
    let mut handler = usual(group, storage);
    (0..epochs)
        .map(|_| {
            handler.train(1).unwrap();
            parameters(&handler)
        })
        .collect()
}

#[test]
fn best_weights_are_restored_on_every_rank_before_the_automatic_save() {
    for n in [1, 2] {
        let (_, storage) = memory();
        on_ranks(n, move |group| {
            let usual_run = by_epoch(&group, &storage, 4);
            let callback = stopping().restore_best_weights(true);
            let mut handler = watching(&group, &storage, VALLEY, callback);
            handler.auto_save(-1, "runs", "last").unwrap();
            let every = ModelCheckpoint::new("every", "e{epoch}").save_best_only(false);
            handler.add_callback(every).unwrap();
            handler.train(10).unwrap();
            assert_eq!(handler.epoch(), 4);
            assert_eq!(parameters(&handler), usual_run[1], "epoch 2 was the best");
            let last = loaded(&group, &storage, "runs/last").unwrap();
            assert_eq!(parameters(&last), usual_run[1]);
            // What a callback saved of this epoch is this epoch's.
            let fourth = loaded(&group, &storage, "every/e4").unwrap();
            assert_eq!(parameters(&fourth), usual_run[3]);
            handler.train(1).unwrap();
        });
    }
}

#[test]
fn best_weights_survive_a_resume_on_another_world_size() {
    let (memory, storage) = memory();
    on_ranks(2, move |group| {
        let callback = stopping().restore_best_weights(true);
        let mut handler = watching(&group, &storage, VALLEY, callback);
        handler.train(2).unwrap();
        handler.save("runs/e2").unwrap();
        handler.train(1).unwrap();
        handler.save("runs/half").unwrap();
    });
    for n in [1, 2, 3] {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        on_ranks(n, move |group| {
            let best = parameters(&loaded(&group, &storage, "runs/e2").unwrap());
            let handler = loaded(&group, &storage, "runs/half").unwrap();
            let mut handler = scripted(handler, &VALLEY[3..]);
            handler.add_callback(stopping().restore_best_weights(true)).unwrap();
            assert_ne!(parameters(&handler), best);
            handler.train(10).unwrap();
            assert_eq!(handler.epoch(), 4);
            assert_eq!(parameters(&handler), best);
            // Without the setting they are not kept.
            let handler = loaded(&group, &storage, "runs/half").unwrap();
            let mut handler = scripted(handler, &VALLEY[3..]);
            handler.add_callback(stopping()).unwrap();
            handler.train(10).unwrap();
            assert_eq!(handler.epoch(), 4);
            assert_ne!(parameters(&handler), best);
        });
    }
}

#[test]
fn a_stop_without_best_weights_is_a_stop_with_a_warning() {
    let (_, storage) = memory();
    on_ranks(2, move |group| {
        let callback = stopping().restore_best_weights(true);
        let script = [f64::NAN, f64::NAN];
        let mut handler = watching(&group, &storage, &script, callback);
        let (trained, told) = captured(|| handler.train(5));
        trained.unwrap();
        assert_eq!((handler.epoch(), of(&handler).best()), (2, None));
        assert_eq!(told.contains("without best weights"), group.is_coordinator(), "{told}");
        handler.train(1).unwrap();
    });
}

/// The coordinator alone keeps the best weights; they say nothing about how training goes on.
#[test]
fn kept_weights_are_no_part_of_the_hash_by_which_ranks_and_runs_are_compared() {
    let (_, storage) = memory();
    let hashes = on_ranks(2, move |group| {
        let callback = stopping().restore_best_weights(true);
        let mut handler = watching(&group, &storage, VALLEY, callback);
        let mut without = usual(&group, &storage);
        for handler in [&mut handler, &mut without] {
            handler.train(2).unwrap();
        }
        [handler.state_hash().unwrap(), without.state_hash().unwrap()]
    });
    assert!(hashes.concat().iter().all(|hash| *hash == hashes[0][0]), "{hashes:#?}");
}

/// The last epoch for two reasons is saved once.
#[test]
fn a_stop_in_the_planned_last_epoch_is_saved_once() {
    let (memory, storage) = memory();
    on_ranks(2, move |group| {
        let mut handler = watching(&group, &storage, VALLEY, stopping());
        handler.auto_save(-1, "runs", "e{epoch}").unwrap();
        handler.train(4).unwrap();
        assert_eq!((handler.epoch(), handler.stop_reason().is_some()), (4, true));
    });
    assert_eq!(entries(&memory, "runs"), ["e4"]);
}
