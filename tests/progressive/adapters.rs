//! Adapters: what they add, what merging does, what is trained.

use tch::{Kind, Tensor, no_grad};
use tch_checkpoint::progressive::{LoraConfig, Rack, RackBuilder, StackPrecision};

use super::models::{
    Bare, CONFIG, Words, alone, bare, copy, distance, fill, names, rows, same_bits, sentence,
    variable, words,
};

const FC: &str = "stacks.0.blocks.0.fc";

fn config() -> LoraConfig {
    LoraConfig { rank: 2, alpha: 5.0, ..LoraConfig::default() }
}

/// A bare rack whose only layer has an adapter that has an effect.
fn adapted(config: &LoraConfig, precision: StackPrecision) -> Rack<Bare> {
    let mut rack = RackBuilder::<Bare>::new(CONFIG).stack(1, Some(precision)).build().unwrap();
    rack.attach_adapters(0, config).unwrap();
    fill(&variable(&rack, &format!("{FC}.lora_B")), 0.3);
    rack
}

#[test]
fn new_adapters_have_no_effect_on_any_bit() {
    let _alone = alone();
    let mut rack = words(2);
    let before = rack.forward(&sentence(), true).unwrap();
    rack.attach_adapters(0, &config()).unwrap();
    rack.attach_adapters(1, &config()).unwrap();
    assert!(same_bits(&rack.forward(&sentence(), true).unwrap(), &before));
    let a = variable(&rack, "stacks.1.blocks.1.out.down.lora_A");
    let b = variable(&rack, "stacks.1.blocks.1.out.down.lora_B");
    assert_eq!((a.size(), b.size()), (vec![2, 12], vec![6, 2]));
    assert_eq!(b.abs().max().double_value(&[]), 0.0);
    // As PEFT draws them: evenly within 1/√in.
    let largest = a.abs().max().double_value(&[]);
    assert!(largest <= 12f64.sqrt().recip() && largest > 0.2, "{largest}");
}

#[test]
fn the_output_is_that_of_the_formula() {
    let _alone = alone();
    let rack = adapted(&config(), StackPrecision::Full);
    let of = |what: &str| variable(&rack, &format!("{FC}.{what}"));
    let input = rows();
    let inner = input.matmul(&of("lora_A").tr()).matmul(&of("lora_B").tr());
    let plain = input.matmul(&of("weight").tr()) + of("bias");
    let expected = &plain + inner * (5.0 / 2.0);
    let output = rack.forward(&input, false).unwrap();
    assert!(distance(&output, &expected) < 1e-6);
    assert!(distance(&output, &plain) > 0.01, "the adapter has no effect");
}

#[test]
fn dropout_is_of_training_alone_and_of_the_adapters_input_alone() {
    let _alone = alone();
    tch::manual_seed(3);
    let rack = adapted(&LoraConfig { dropout: 0.5, ..config() }, StackPrecision::Full);
    let without = adapted(&config(), StackPrecision::Full);
    let quiet = rack.forward(&rows(), false).unwrap();
    assert!(same_bits(&quiet, &without.forward(&rows(), false).unwrap()));
    let [first, second] = [0, 1].map(|_| rack.forward(&rows(), true).unwrap());
    assert!(!same_bits(&first, &second) && !same_bits(&first, &quiet));
    // In the middle of many it is the same.
    let mean = (0..2000).map(|_| rack.forward(&rows(), true).unwrap()).reduce(|a, b| a + b);
    assert!(distance(&(mean.unwrap() / 2000.0), &quiet) < 0.1);
    // Without effect of the adapter nothing is left out.
    drop(no_grad(|| variable(&rack, &format!("{FC}.lora_B")).zero_()));
    assert!(same_bits(
        &rack.forward(&rows(), true).unwrap(),
        &rack.forward(&rows(), false).unwrap()
    ));
}

#[test]
fn merged_adapters_give_the_same_function_and_unmerging_gives_every_bit_back() {
    let _alone = alone();
    for (precision, bound) in
        [(StackPrecision::Full, 1e-5), (StackPrecision::Half, 0.02), (StackPrecision::Bf16, 0.1)]
    {
        let mut rack = adapted(&config(), precision);
        let weight = variable(&rack, &format!("{FC}.weight"));
        let (before, output) = (copy(&weight), rack.forward(&rows(), false).unwrap());
        rack.merge_adapters(0).unwrap();
        assert!(!same_bits(&weight, &before), "{precision:?}");
        let merged = rack.forward(&rows(), false).unwrap();
        assert!(distance(&merged, &output) < bound, "{precision:?}");
        assert!(rack.info().stack_info[0].adapters.as_ref().unwrap().merged);
        rack.unmerge_adapters(0).unwrap();
        assert!(same_bits(&weight, &before), "{precision:?}");
        assert!(same_bits(&rack.forward(&rows(), false).unwrap(), &output), "{precision:?}");
        assert!(!rack.info().stack_info[0].adapters.as_ref().unwrap().merged);
    }
}

#[test]
fn merging_twice_adds_once_and_unmerging_twice_takes_out_once() {
    let _alone = alone();
    let mut rack = adapted(&config(), StackPrecision::Half);
    let weight = variable(&rack, &format!("{FC}.weight"));
    let before = copy(&weight);
    rack.merge_adapters(0).unwrap();
    let once = copy(&weight);
    rack.merge_adapters(0).unwrap();
    assert!(same_bits(&weight, &once));
    rack.unmerge_adapters(0).unwrap();
    rack.unmerge_adapters(0).unwrap();
    assert!(same_bits(&weight, &before));
}

#[test]
fn adapters_of_a_frozen_stack_alone_get_gradients_and_are_as_computed_by_hand() {
    let _alone = alone();
    let mut rack = adapted(&config(), StackPrecision::Full);
    rack.set_frozen(0, true).unwrap();
    let of = |rack: &Rack<Bare>, what: &str| variable(rack, &format!("{FC}.{what}"));
    rack.forward(&rows(), true).unwrap().sum(Kind::Float).backward();
    assert!(!of(&rack, "weight").grad().defined() && !of(&rack, "bias").grad().defined());
    // d(sum)/dB = s · 1 (x Aᵀ summed over rows); d(sum)/dA = s · (Bᵀ 1) ⊗ (x summed over rows).
    let summed = rows().sum_dim_intlist(0i64, true, Kind::Float);
    let by_b = summed.matmul(&of(&rack, "lora_A").tr()).expand([CONFIG.width, 2], false) * 2.5;
    let ones = Tensor::ones([1, CONFIG.width], (Kind::Float, tch::Device::Cpu));
    let by_a = ones.matmul(&of(&rack, "lora_B")).tr().matmul(&summed) * 2.5;
    assert!(distance(&of(&rack, "lora_B").grad(), &by_b) < 1e-5);
    assert!(distance(&of(&rack, "lora_A").grad(), &by_a) < 1e-5);
}

#[test]
fn adapters_that_are_merged_are_not_trained_and_neither_is_what_they_are_merged_into() {
    let _alone = alone();
    for frozen in [true, false] {
        let mut rack = adapted(&config(), StackPrecision::Full);
        let weight = variable(&rack, &format!("{FC}.weight"));
        let before = copy(&weight);
        rack.set_frozen(0, frozen).unwrap();
        rack.merge_adapters(0).unwrap();
        rack.set_frozen(0, frozen).unwrap();
        let input = rows().set_requires_grad(true);
        rack.forward(&input, true).unwrap().sum(Kind::Float).backward();
        for what in ["weight", "lora_A", "lora_B"] {
            // What is trained in it would be lost when it is unmerged.
            assert!(!variable(&rack, &format!("{FC}.{what}")).grad().defined(), "{what}");
        }
        rack.unmerge_adapters(0).unwrap();
        assert!(same_bits(&weight, &before));
        assert_eq!(weight.requires_grad(), !frozen);
        assert!(variable(&rack, &format!("{FC}.lora_A")).requires_grad());
    }
}

#[test]
fn detached_adapters_leave_no_names_and_the_stack_as_it_was() {
    let _alone = alone();
    let mut rack = bare(1);
    let (before, output) = (names(&rack), rack.forward(&rows(), false).unwrap());
    let trainable = rack.store().trainable_variables().len();
    rack.attach_adapters(0, &config()).unwrap();
    fill(&variable(&rack, &format!("{FC}.lora_B")), 0.3);
    assert!(distance(&rack.forward(&rows(), false).unwrap(), &output) > 0.01);
    rack.detach_adapters(0).unwrap();
    assert_eq!(names(&rack), before);
    assert_eq!(rack.store().trainable_variables().len(), trainable);
    assert!(same_bits(&rack.forward(&rows(), false).unwrap(), &output));
    assert!(rack.info().stack_info[0].adapters.is_none());
    rack.attach_adapters(0, &config()).unwrap();
}

#[test]
fn merged_adapters_that_are_detached_stay_in_the_weights_which_can_be_trained_again() {
    let _alone = alone();
    let mut rack = adapted(&config(), StackPrecision::Full);
    let output = rack.forward(&rows(), false).unwrap();
    rack.merge_adapters(0).unwrap();
    rack.detach_adapters(0).unwrap();
    assert!(distance(&rack.forward(&rows(), false).unwrap(), &output) < 1e-5);
    assert_eq!(names(&rack), [format!("{FC}.bias"), format!("{FC}.weight")]);
    assert!(variable(&rack, &format!("{FC}.weight")).requires_grad());
}

#[test]
fn targets_choose_linear_layers_by_their_names_within_a_block() {
    let _alone = alone();
    let mut rack = words(2);
    let targets = vec!["*down".to_owned()];
    rack.attach_adapters(1, &LoraConfig { targets, ..config() }).unwrap();
    let adapters: Vec<_> = names(&rack).into_iter().filter(|n| n.contains(".lora_")).collect();
    assert_eq!(
        adapters,
        [
            "stacks.1.blocks.0.out.down.lora_A",
            "stacks.1.blocks.0.out.down.lora_B",
            "stacks.1.blocks.1.out.down.lora_A",
            "stacks.1.blocks.1.out.down.lora_B",
        ]
    );
    let described = rack.info().stack_info[1].adapters.clone().unwrap();
    assert_eq!(described.parameters, 2 * (2 * 12 + 2 * 6));
    assert!(rack.info().stack_info[0].adapters.is_none());
}

#[test]
fn adapters_do_not_count_as_parameters_of_the_stack() {
    let _alone = alone();
    let mut rack = words(1);
    let before = rack.info().stack_info[0].clone();
    rack.attach_adapters(0, &config()).unwrap();
    let after = rack.info().stack_info[0].clone();
    assert_eq!(after.total_parameters, before.total_parameters);
    assert_eq!(after.trainable_parameters, before.trainable_parameters);
    assert_eq!(after.adapters.unwrap().config, config());
}

#[test]
fn adapters_survive_stacks_that_are_put_before_theirs() {
    let _alone = alone();
    let mut rack = RackBuilder::<Words>::new(CONFIG).stack(1, None).build().unwrap();
    rack.attach_adapters(0, &config()).unwrap();
    let b = variable(&rack, "stacks.0.blocks.0.up.lora_B");
    fill(&b, 0.3);
    rack.prepend_stack(1, None).unwrap();
    assert!(rack.stack(0).unwrap().adapters().is_none());
    assert_eq!(rack.stack(1).unwrap().adapters(), Some(&config()));
    let with = rack.forward(&sentence(), false).unwrap();
    rack.merge_adapters(1).unwrap();
    assert!(distance(&rack.forward(&sentence(), false).unwrap(), &with) < 1e-5);
    rack.detach_adapters(1).unwrap();
    assert!(rack.stacks().iter().all(|stack| stack.adapters().is_none()));
}
