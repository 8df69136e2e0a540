//! Saving and resuming inside an epoch.

use tch_checkpoint::autosave::Every;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{Loader, NNHandler};
use tch_checkpoint::storage::Fault;
use tch_checkpoint::torch::{Adam, Sgd};
use tch_checkpoint::{ErrorKind, Result};

use crate::harness::{Stage, exclusive, memory, on_ranks, one_error, visible};
use crate::models::*;

const DROPOUT: f64 = 0.3;

fn adam() -> Adam {
    Adam { lr: 1e-2, ..Adam::default() }
}

fn same_series(a: &NNHandler<Net>, b: &NNHandler<Net>) {
    for name in ["loss", "val_loss"] {
        let bits = |h: &NNHandler<Net>| -> Vec<u64> {
            h.history().series(name).iter().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(a), bits(b), "{name}");
    }
}

/// Epochs have three steps: a run is cut after every one of them.
#[test]
fn a_run_resumed_inside_an_epoch_ends_as_the_uninterrupted_one() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut whole = handler(&solo, &storage, DROPOUT, adam());
    whole.train(3).unwrap();
    for cut in 1..9 {
        let mut first = handler(&solo, &storage, DROPOUT, adam());
        first.train_steps(cut).unwrap();
        assert_eq!(first.samples_in_epoch(), [0, 7, 14][(cut % 3) as usize]);
        let path = format!("runs/cut{cut}");
        first.save(&path).unwrap();
        drop(first);
        tch::manual_seed(77);
        let mut second = loaded(&solo, &storage, &path).unwrap();
        assert_eq!((second.step(), second.epoch()), (cut, cut / 3));
        second.train(3 - cut / 3).unwrap();
        assert_eq!(second.state_hash().unwrap(), whole.state_hash().unwrap(), "cut after {cut}");
        same_series(&second, &whole);
    }
}

/// Each rank has shards, partial sums and running statistics of its own.
#[test]
fn several_ranks_resume_inside_an_epoch() {
    let (_, storage) = memory();
    let hashes = on_ranks(2, move |group| {
        let mut whole = handler(&group, &storage, 0.0, adam());
        whole.train(2).unwrap();
        let mut first = handler(&group, &storage, 0.0, adam());
        first.train_steps(4).unwrap();
        first.save("runs/cut").unwrap();
        let mut second = loaded(&group, &storage, "runs/cut").unwrap();
        second.train(1).unwrap();
        same_series(&second, &whole);
        (second.state_hash().unwrap(), whole.state_hash().unwrap())
    });
    for (resumed, whole) in &hashes {
        assert_eq!(resumed, whole);
        assert_eq!(*resumed, hashes[0].0);
    }
}

#[test]
fn another_world_size_goes_on_with_the_same_samples_and_sums() {
    let (_, storage) = memory();
    let at = storage.clone();
    let whole = on_ranks(2, move |group| {
        let mut first = handler(&group, &at, 0.0, adam());
        first.train_steps(2).unwrap();
        first.save("runs/cut").unwrap();
        first.train(1).unwrap();
        (first.history().series("loss").to_vec(), parameters(&first))
    });
    for ranks in [1, 3] {
        let at = storage.clone();
        let resumed = on_ranks(ranks, move |group| {
            let mut second = loaded(&group, &at, "runs/cut").unwrap();
            assert_eq!(second.samples_in_epoch(), 14);
            second.train(1).unwrap();
            (second.history().series("loss").to_vec(), parameters(&second), second.step())
        });
        for (loss, parameters, step) in resumed {
            assert_eq!(step, 3);
            assert!((loss[0] - whole[0].0[0]).abs() < 1e-6, "{loss:?} {:?}", whole[0].0);
            assert_close(&parameters, &whole[0].1);
        }
    }
}

#[test]
fn the_rest_of_an_epoch_needs_the_data_with_which_it_began() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut first = handler(&solo, &storage, 0.0, adam());
    first.train_steps(2).unwrap();
    first.save("runs/cut").unwrap();
    for (samples, shuffle) in [(21, true), (20, false)] {
        let mut second = loaded(&solo, &storage, "runs/cut").unwrap();
        second.set_train_loader(data(samples), Loader { shuffle, ..LOADER });
        let error = second.train(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("restart_epoch"), "{error}");
        assert_eq!(second.step(), 2);
        second.restart_epoch();
        second.train(1).unwrap();
        assert_eq!((second.epoch(), second.step()), (1, 5));
    }
}

#[test]
fn automatic_saves_by_steps_count_over_resumes() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut first = handler(&solo, &storage, 0.0, adam());
    first
        .auto_save(Every::steps(2).unwrap(), "auto", "e{epoch}_s{step}_{val_loss:.1f}")
        .unwrap()
        .save_on_last_epoch(false);
    first.train(1).unwrap();
    assert_eq!(visible(&*storage, "auto"), ["e1_s2_nan"]);
    let mut second = loaded(&solo, &storage, "auto/e1_s2_nan").unwrap();
    second.train(1).unwrap();
    assert_eq!(second.step(), 3);
    second.train_steps(5).unwrap();
    let names = visible(&*storage, "auto");
    assert_eq!(names, ["e1_s2_nan", "e2_s4_nan", "e2_s6_nan", "e3_s8_nan"]);

    second.auto_saver().unwrap().save_on_last_epoch(true).overwrite(true);
    second.train_steps(2).unwrap();
    let names = visible(&*storage, "auto");
    assert_eq!(names.last().map(String::as_str), Some("e4_s10_nan"), "the end is saved too");
    assert!(!names.contains(&"e3_s8_nan".to_owned()), "overwriting left the predecessor");
}

/// The clock of the coordinator decides, also where another rank's says something else.
#[test]
fn automatic_saves_by_minutes_are_decided_on_one_rank() {
    let (_, storage) = memory();
    let saved = on_ranks(2, move |group| {
        let mut handler = handler(&group, &storage, 0.0, adam());
        let tiny = Every::minutes(1e-3 / 60.0).unwrap();
        handler.auto_save(tiny, "auto", "s{step}").unwrap();
        let slow = data(20);
        handler.set_train_loader(Slow(slow, group.rank().get() != 0), LOADER);
        handler.train(1).unwrap();
        visible(&*storage, "auto")
    });
    assert!(!saved[0].is_empty() && saved[0] == saved[1], "{saved:?}");
}

/// Data that takes its time on some rank.
struct Slow(tch_checkpoint::handler::TensorDataset, bool);

impl tch_checkpoint::handler::Dataset for Slow {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, indices: &[i64], device: tch::Device) -> (tch::Tensor, tch::Tensor) {
        if self.1 {
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        self.0.batch(indices, device)
    }
}

#[test]
fn steps_of_several_batches_equal_steps_of_large_ones() {
    let (_, storage) = memory();
    on_ranks(2, move |group| {
        let sgd = Sgd { lr: 0.05, ..Sgd::default() };
        let loader = |size| Loader { global_batch_size: Some(size), ..LOADER };
        let mut large = handler(&group, &storage, 0.0, sgd);
        large.set_train_loader(data(20), loader(12));
        let mut small = handler(&group, &storage, 0.0, sgd);
        small.set_train_loader(data(20), loader(4));
        small.accumulate(3);
        large.train(2).unwrap();
        small.train_steps(1).unwrap();
        small.save("runs/small").unwrap();
        small.train_steps(3).unwrap();
        assert_eq!((small.step(), small.epoch()), (4, 2));
        assert_close(&parameters(&small), &parameters(&large));

        let mut again = loaded(&group, &storage, "runs/small").unwrap();
        again.set_train_loader(data(20), loader(4));
        again.train_steps(3).unwrap();
        assert_eq!(again.state_hash().unwrap(), small.state_hash().unwrap(), "not stored");
    });
}

#[test]
fn ranks_that_accumulate_differently_are_told_so() {
    let (_, storage) = memory();
    let results: Vec<Result<()>> = on_ranks(2, move |group| {
        let mut handler = handler(&group, &storage, 0.0, adam());
        handler.accumulate(1 + group.rank().index());
        handler.train(1)
    });
    assert_eq!(one_error(&results).kind(), ErrorKind::Disagreement);
}

/// A batch that could not be trained counts when it is trained, and not before.
#[test]
fn a_step_that_failed_is_made_again_as_if_nothing_had_been() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut whole = handler(&solo, &storage, 0.0, adam());
    whole.set_train_loader(data(40), LOADER);
    whole.accumulate(2);
    whole.train(1).unwrap();
    let mut failing = handler(&solo, &storage, 0.0, adam());
    failing.accumulate(2);
    let calls = std::cell::Cell::new(0);
    failing.set_loss_fn(move |output, target| {
        calls.set(calls.get() + 1);
        // The second batch of the second step: no number, so no loss.
        if calls.get() == 4 { output - target } else { squared_error(output, target) }
    });
    failing.set_train_loader(data(40), LOADER);
    assert_eq!(failing.train(1).unwrap_err().kind(), ErrorKind::Device);
    assert_eq!((failing.step(), failing.samples_in_epoch()), (1, 14));
    failing.train(1).unwrap();
    same_series(&failing, &whole);
}

/// Minutes count from the last save, not from the last call.
#[test]
fn short_calls_do_not_put_off_a_save_by_minutes() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut handler = handler(&solo, &storage, 0.0, adam());
    let interval = Every::minutes(0.1 / 60.0).unwrap();
    handler.auto_save(interval, "auto", "s{step}").unwrap().save_on_last_epoch(false);
    handler.train_steps(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    handler.train_steps(1).unwrap();
    assert!(visible(&*storage, "auto").contains(&"s2".to_owned()));
}

#[test]
fn a_position_beyond_the_data_is_refused() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut first = handler(&solo, &storage, 0.0, adam());
    first.train_steps(2).unwrap();
    let mut state = first.state_dict().unwrap();
    state.values.set("trainer.samples", 21i64);
    let path = tch_checkpoint::CheckpointPath::parse("runs/odd").unwrap();
    let saving = tch_checkpoint::save::SaveOptions::default();
    tch_checkpoint::save::save(&solo, &*storage, &path, &state, &saving).unwrap();
    let error = loaded(&solo, &storage, "runs/odd").err().expect("an error");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("trainer.samples"), "{error}");
}

/// The step was made, only not saved: the same call again goes on after it.
#[test]
fn a_save_that_fails_inside_an_epoch_does_not_change_the_run() {
    let _generator = exclusive();
    let (solo, stage) = (ProcessGroup::solo(), Stage::new(0));
    let storage = stage.storage(&solo);
    let mut whole = handler(&solo, &memory().1, DROPOUT, adam());
    whole.train(2).unwrap();
    let mut failing = handler(&solo, &storage, DROPOUT, adam());
    failing.auto_save(Every::steps(2).unwrap(), "auto", "s{step}").unwrap();
    failing.train_steps(1).unwrap();
    stage.faulty.fail_at(stage.faulty.operations() + 4, Fault::Error(28), true);
    assert_eq!(failing.train_steps(5).unwrap_err().kind(), ErrorKind::Storage);
    stage.faulty.reset();
    assert_eq!((failing.step(), failing.samples_in_epoch()), (2, 14));
    failing.train_steps(4).unwrap();
    assert_eq!(failing.state_hash().unwrap(), whole.state_hash().unwrap());
    same_series(&failing, &whole);
}

/// An epoch whose first step failed is not under way yet.
#[test]
fn other_data_may_follow_a_first_step_that_failed() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut handler = handler(&solo, &storage, 0.0, adam());
    handler.set_loss_fn(|output, target| output - target);
    assert_eq!(handler.train(1).unwrap_err().kind(), ErrorKind::Device);
    handler.set_loss_fn(squared_error);
    handler.set_train_loader(data(21), LOADER);
    handler.train(1).unwrap();
}

/// Its name may say how far the epoch under way has come.
#[test]
fn names_inside_an_epoch_have_its_numbers_so_far() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut handler = handler(&solo, &storage, 0.0, adam());
    handler.add_metric("half", |_, _| 0.5);
    let template = "e{epoch}_s{step}_{half:.1f}_{lr:.2f}_{val_half:.1f}";
    handler.auto_save(Every::steps(2).unwrap(), "auto", template).unwrap();
    handler.train_steps(2).unwrap();
    assert_eq!(visible(&*storage, "auto"), ["e1_s2_0.5_0.01_nan"]);
    // The time of the epoch goes on being counted, too.
    let before = loaded(&solo, &storage, "auto/e1_s2_0.5_0.01_nan").unwrap();
    let state = before.state_dict().unwrap();
    assert!(state.rank_values.float("epoch.seconds").unwrap() > 0.0);
}
