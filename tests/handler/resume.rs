//! A run that was saved and resumed ends as the one that was not interrupted, bit for bit.

use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{LoadOptions, NNHandler};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::torch::{Adam, AdamW, OptimizerConfig, RmsProp, Sgd};

use crate::harness::{captured, exclusive, memory};
use crate::models::*;

const HALF: u64 = 2;
const DROPOUT: f64 = 0.3;

fn optimizers() -> [OptimizerConfig; 4] {
    [
        Sgd { lr: 0.05, momentum: 0.9, ..Sgd::default() }.into(),
        Adam { lr: 1e-2, ..Adam::default() }.into(),
        AdamW { lr: 1e-2, ..AdamW::default() }.into(),
        RmsProp { lr: 1e-3, ..RmsProp::default() }.into(),
    ]
}

fn trained(mut handler: NNHandler<Net>, epochs: u64) -> NNHandler<Net> {
    handler.train(epochs).unwrap();
    handler
}

fn hash(handler: &NNHandler<Net>) -> String {
    handler.state_hash().unwrap()
}

#[test]
fn a_resumed_run_ends_as_the_uninterrupted_one() {
    let _generator = exclusive();
    let solo = ProcessGroup::solo();
    for optimizer in optimizers() {
        let (_, storage) = memory();
        let whole = trained(handler(&solo, &storage, DROPOUT, optimizer), 2 * HALF);
        let first = trained(handler(&solo, &storage, DROPOUT, optimizer), HALF);
        let before = hash(&first);
        first.save("runs/half").unwrap();
        assert_eq!(hash(&first), before, "saving changed the model");
        drop(first);

        tch::manual_seed(77);
        let second = loaded(&solo, &storage, "runs/half").unwrap();
        assert_eq!(hash(&second), before);
        assert_eq!((second.epoch(), second.step()), (HALF, 3 * HALF));
        assert_eq!(second.history().epochs(), 2);
        let second = trained(second, HALF);
        assert_eq!(hash(&second), hash(&whole), "{optimizer:?}");
        assert_eq!((second.epoch(), second.step()), (2 * HALF, 6 * HALF));
        assert_eq!(second.history().series("loss"), whole.history().series("loss"));
        assert_eq!(second.history().series("loss").len(), 4);
    }
}

/// What the test above proves needs optimizer state, random state and counters.
#[test]
fn a_resumed_run_without_any_one_part_of_the_state_ends_elsewhere() {
    let _generator = exclusive();
    let solo = ProcessGroup::solo();
    for optimizer in optimizers() {
        let (_, storage) = memory();
        let whole = trained(handler(&solo, &storage, DROPOUT, optimizer), 2 * HALF);
        trained(handler(&solo, &storage, DROPOUT, optimizer), HALF).save("runs/half").unwrap();

        let without = LoadOptions { skip_optimizer: true, ..options(&solo, &storage) };
        let mut cold = equip(NNHandler::load("runs/half", without).unwrap());
        assert!(cold.optimizer().is_none());
        cold.set_optimizer(optimizer).unwrap();
        assert_ne!(parameters(&trained(cold, HALF)), parameters(&whole), "{optimizer:?}");

        let reseeded = loaded(&solo, &storage, "runs/half").unwrap();
        tch::manual_seed(77);
        assert_ne!(parameters(&trained(reseeded, HALF)), parameters(&whole), "{optimizer:?}");
    }
}

#[test]
fn the_order_of_samples_goes_on_and_does_not_start_again() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let sgd = Sgd { lr: 0.05, ..Sgd::default() };
    let whole = trained(handler(&solo, &storage, 0.0, sgd), 2);
    trained(handler(&solo, &storage, 0.0, sgd), 1).save("runs/e1").unwrap();
    let second = trained(loaded(&solo, &storage, "runs/e1").unwrap(), 1);
    assert_eq!(parameters(&second), parameters(&whole));

    // The same parameters in a handler that believes it is in its first epoch.
    let mut again = handler(&solo, &storage, 0.0, sgd);
    let first = loaded(&solo, &storage, "runs/e1").unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in again.vars().variables() {
            tensor.copy_(&first.vars().variables()[&name]);
        }
    });
    again.train(1).unwrap();
    assert_ne!(parameters(&again), parameters(&whole));
}

/// Learning rates that were changed while training are part of the state.
#[test]
fn the_hash_covers_what_the_next_step_depends_on() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let slow = handler(&solo, &storage, 0.0, Adam { lr: 1e-3, ..Adam::default() });
    let fast = handler(&solo, &storage, 0.0, Adam { lr: 1e-2, ..Adam::default() });
    assert_eq!(parameters(&slow), parameters(&fast));
    assert_ne!(hash(&slow), hash(&fast));
    assert_eq!(hash(&slow), hash(&slow));
}

#[test]
fn a_handler_that_was_never_trained_is_saved_and_loaded() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let fresh = handler(&solo, &storage, DROPOUT, Adam::default());
    fresh.save("runs/fresh").unwrap();
    let again = loaded(&solo, &storage, "runs/fresh").unwrap();
    assert_eq!(hash(&again), hash(&fresh));
    assert_eq!((again.epoch(), again.step(), again.history().epochs()), (0, 0, 0));
    assert_eq!(again.config().hidden, 6);

    bare(&solo, &storage, 0.0).save("runs/bare").unwrap();
    let bare = NNHandler::<Net>::load("runs/bare", options(&solo, &storage)).unwrap();
    assert!(bare.optimizer().is_none());
}

/// Numbers drawn between load and train would make the run go elsewhere without a word.
#[test]
fn random_numbers_drawn_after_a_load_are_told_once() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    handler(&solo, &storage, DROPOUT, Adam::default()).save("runs/fresh").unwrap();
    for (draws, times) in [(true, 1), (false, 0)] {
        let mut again = loaded(&solo, &storage, "runs/fresh").unwrap();
        if draws {
            tch::manual_seed(3);
        }
        let (trained, told) = captured(|| again.train(1).and_then(|()| again.train(1)));
        trained.unwrap();
        assert_eq!(told.matches("between load and train").count(), times, "{told}");
    }
}

/// The state of the GPU's generator is nothing for a CPU, and no reason to refuse the rest.
#[test]
fn a_run_of_a_gpu_goes_on_without_one_and_says_that_it_is_not_exact() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let saved = handler(&solo, &storage, DROPOUT, Adam::default());
    let mut state = saved.state_dict().unwrap();
    saved.save("runs/cpu").unwrap();
    state.rank_values.set("rng.cuda", vec![7; 16]);
    let path = CheckpointPath::parse("runs/cuda").unwrap();
    save(&solo, storage.as_ref(), &path, &state, &SaveOptions::default()).unwrap();
    for (name, times) in [("runs/cuda", 1), ("runs/cpu", 0)] {
        let (again, told) = captured(|| loaded(&solo, &storage, name).unwrap());
        assert_eq!(told.matches("not bit for bit").count(), times, "{name}: {told}");
        assert_eq!(hash(&again), hash(&saved));
        // What is saved now has no state of a GPU any more.
        assert!(again.state_dict().unwrap().rank_values.find("rng.cuda").is_none());
    }
}
