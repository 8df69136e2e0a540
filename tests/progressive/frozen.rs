//! What is frozen gets no gradients and no state of an optimizer.

use tch::Kind;
use tch_checkpoint::ErrorKind;
use tch_checkpoint::progressive::{Architecture, LoraConfig, Rack, RackBuilder};
use tch_checkpoint::state::{StateDict, Stateful};
use tch_checkpoint::torch::{Adam, Optimizer};

use super::models::{
    CONFIG, Words, alone, bare, copy, fill, names, same_bits, sentence, variable, words,
};
use super::ties::Counting;

/// Names of the parameters that an optimizer over the rack has state of.
fn optimized<A: Architecture>(rack: &Rack<A>) -> Vec<String> {
    let optimizer = Optimizer::for_unfrozen(Adam::default(), rack.store()).unwrap();
    let mut state = StateDict::new();
    optimizer.save_state("o", &mut state).unwrap();
    let stored = state.tensors().filter_map(|(name, _)| {
        Some(name.as_str().strip_prefix("o.")?.strip_suffix(".exp_avg")?.to_owned())
    });
    stored.collect()
}

fn with_gradients(rack: &Rack<Words>) -> Vec<String> {
    rack.forward(&sentence(), true).unwrap().square().sum(Kind::Float).backward();
    let mut names = names(rack);
    names.retain(|name| variable(rack, name).grad().defined());
    names
}

fn of(names: &[String], prefix: &str) -> usize {
    names.iter().filter(|name| name.starts_with(prefix)).count()
}

#[test]
fn a_frozen_trunk_gets_no_gradients_and_no_state() {
    let _alone = alone();
    let mut rack = words(3);
    let newest = rack.stacks()[2].id();
    rack.freeze_trunk(newest).unwrap();
    rack.set_ends_frozen(true, true).unwrap();
    for found in [optimized(&rack), with_gradients(&rack)] {
        assert_eq!((of(&found, "stacks.0."), of(&found, "stacks.1.")), (0, 0), "{found:?}");
        assert_eq!(of(&found, "stacks.2."), 10, "{found:?}");
        assert_eq!(of(&found, "embeddings."), 0, "{found:?}");
    }
    let flags: Vec<_> = rack.stacks().iter().map(|stack| stack.is_frozen()).collect();
    assert_eq!(flags, [true, true, false]);
    assert_eq!(rack.info().stack_info[0].trainable_parameters, 0);
}

#[test]
fn the_newest_stack_stays_the_newest_when_it_is_the_first() {
    let _alone = alone();
    let mut rack = words(1);
    let newest = rack.prepend_stack(2, None).unwrap();
    rack.freeze_trunk(newest).unwrap();
    let found = with_gradients(&rack);
    assert_eq!((of(&found, "stacks.0."), of(&found, "stacks.1.")), (0, 10), "{found:?}");
    assert_eq!(of(&found, "embeddings."), 1, "{found:?}");
}

#[test]
fn what_is_frozen_is_trained_again_when_thawed() {
    let _alone = alone();
    let mut rack = words(1);
    let all = optimized(&rack);
    rack.set_frozen(0, true).unwrap();
    assert_eq!(of(&optimized(&rack), "stacks."), 0);
    rack.set_frozen(0, false).unwrap();
    assert_eq!(optimized(&rack), all);
    assert_eq!(with_gradients(&rack).len(), names(&rack).len());
}

#[test]
fn a_step_leaves_every_bit_of_the_frozen_as_it_was_and_changes_the_rest() {
    let _alone = alone();
    let mut rack = words(2);
    let newest = rack.stacks()[1].id();
    rack.freeze_trunk(newest).unwrap();
    rack.set_ends_frozen(true, true).unwrap();
    let before: Vec<_> =
        names(&rack).into_iter().map(|n| (copy(&variable(&rack, &n)), n)).collect();
    let mut optimizer = Optimizer::new(Adam::default(), rack.store()).unwrap();
    rack.forward(&sentence(), true).unwrap().square().sum(Kind::Float).backward();
    optimizer.step().unwrap();
    for (bits, name) in before {
        let same = same_bits(&bits, &variable(&rack, &name));
        assert_eq!(same, !name.starts_with("stacks.1."), "{name}");
    }
}

#[test]
fn a_gradient_from_before_the_freeze_moves_nothing() {
    let _alone = alone();
    let mut rack = words(2);
    rack.forward(&sentence(), true).unwrap().square().sum(Kind::Float).backward();
    let mut optimizer = Optimizer::new(Adam::default(), rack.store()).unwrap();
    rack.set_frozen(0, true).unwrap();
    let weight = variable(&rack, "stacks.0.blocks.0.up.weight");
    let before = copy(&weight);
    optimizer.step().unwrap();
    assert!(same_bits(&weight, &before));
}

#[test]
fn adapters_of_a_frozen_stack_are_trained_and_alone_have_state() {
    let _alone = alone();
    let mut rack = words(1);
    rack.set_frozen(0, true).unwrap();
    let config = LoraConfig { rank: 2, ..LoraConfig::default() };
    rack.attach_adapters(0, &config).unwrap();
    for name in names(&rack).iter().filter(|name| name.ends_with("lora_B")) {
        fill(&variable(&rack, name), 0.1);
    }
    for found in [optimized(&rack), with_gradients(&rack)] {
        let stacks = of(&found, "stacks.");
        assert_eq!(stacks, 8, "{found:?}");
        let adapters = found.iter().filter(|name| name.contains(".lora_")).count();
        assert_eq!(adapters, stacks, "{found:?}");
    }
    rack.set_frozen(0, false).unwrap();
    rack.set_frozen(0, true).unwrap();
    assert_eq!(of(&optimized(&rack), "stacks."), 8);
    assert!(rack.stack(0).unwrap().is_frozen());
}

#[test]
fn embeddings_that_are_tied_to_a_trained_head_are_trained_and_no_trunk_stays_the_same() {
    let _alone = alone();
    let mut rack = words(3);
    assert_eq!(rack.frozen_prefix(), 0);
    rack.freeze_trunk(rack.stacks()[2].id()).unwrap();
    assert!(variable(&rack, "embeddings.weight").requires_grad());
    assert_eq!(rack.frozen_prefix(), 0);
    rack.set_ends_frozen(false, true).unwrap();
    assert!(variable(&rack, "head.weight").requires_grad());
    assert_eq!(rack.frozen_prefix(), 0);
    rack.set_ends_frozen(true, true).unwrap();
    assert!(!variable(&rack, "head.weight").requires_grad());
    assert_eq!(rack.frozen_prefix(), 2);
}

#[test]
fn a_trunk_stays_the_same_up_to_the_first_stack_that_learns_or_whose_adapters_do() {
    let _alone = alone();
    let mut rack = bare(4);
    assert_eq!(rack.frozen_prefix(), 0);
    rack.freeze_trunk(rack.stacks()[3].id()).unwrap();
    assert_eq!(rack.frozen_prefix(), 3);
    rack.attach_adapters(1, &LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
    assert_eq!(rack.frozen_prefix(), 1);
    rack.merge_adapters(1).unwrap();
    assert_eq!(rack.frozen_prefix(), 3);
    rack.set_frozen(0, false).unwrap();
    assert_eq!(rack.frozen_prefix(), 0);
}

#[test]
fn freezing_a_trunk_under_a_stack_that_is_not_there_changes_nothing() {
    let _alone = alone();
    let (mut rack, mut other) = (bare(2), bare(3));
    let foreign = other.append_stack(1, None).unwrap();
    let info = rack.info();
    let error = rack.freeze_trunk(foreign).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(rack.info(), info);
}

#[test]
fn buffers_are_never_trained_whatever_is_thawed() {
    let _alone = alone();
    let mut rack = RackBuilder::<Counting>::new(CONFIG).stack(1, None).build().unwrap();
    for frozen in [false, true, false] {
        rack.set_frozen(0, frozen).unwrap();
        assert!(!variable(&rack, "stacks.0.blocks.0.mean").requires_grad());
        assert!(!variable(&rack, "stacks.0.blocks.0.count").requires_grad());
        assert_eq!(variable(&rack, "stacks.0.blocks.0.fc.weight").requires_grad(), !frozen);
    }
    // 6·6 + 6 are trained, and 6 + 1 are not.
    let info = &rack.info().stack_info[0];
    assert_eq!((info.total_parameters, info.trainable_parameters), (49, 42));
    assert_eq!(optimized(&rack), ["stacks.0.blocks.0.fc.bias", "stacks.0.blocks.0.fc.weight"]);
}
