//! Initial values: they follow from the seed and the identity alone.

use tch::{Device, Kind, Tensor};
use tch_checkpoint::progressive::{LoraConfig, RackBuilder, StackPrecision};
use tch_checkpoint::torch::cpu_rng_state;

use super::models::{Bare, CONFIG, Words, alone, bare, copy, names, same_bits, variable, words};

fn draw() -> Tensor {
    Tensor::rand([3], (Kind::Float, Device::Cpu))
}

#[test]
fn initial_values_follow_from_seed_and_identity_wherever_a_stack_is_put() {
    let _alone = alone();
    let appended = words(3);
    let mut grown = RackBuilder::<Words>::new(CONFIG).max_stacks(7).build().unwrap();
    let _ = draw();
    grown.append_stack(2, None).unwrap();
    let _ = draw();
    grown.prepend_stack(2, None).unwrap();
    grown.prepend_stack(2, None).unwrap();
    assert_eq!(names(&appended), names(&grown));
    for name in names(&appended) {
        assert!(same_bits(&variable(&appended, &name), &variable(&grown, &name)), "{name}");
    }
}

#[test]
fn another_seed_and_another_identity_are_other_values() {
    let _alone = alone();
    let rack = bare(2);
    let other = RackBuilder::<Bare>::new(CONFIG).seed(77).stack(1, None).build().unwrap();
    let first = variable(&rack, "stacks.0.blocks.0.fc.weight");
    assert!(!same_bits(&first, &variable(&rack, "stacks.1.blocks.0.fc.weight")));
    assert!(!same_bits(&first, &variable(&other, "stacks.0.blocks.0.fc.weight")));
    // Not only the beginning.
    assert!(!same_bits(
        &variable(&rack, "stacks.0.blocks.0.fc.bias"),
        &variable(&other, "stacks.0.blocks.0.fc.bias")
    ));
}

#[test]
fn blocks_of_a_stack_differ() {
    let _alone = alone();
    let rack = words(1);
    let [a, b] = [0, 1].map(|j| variable(&rack, &format!("stacks.0.blocks.{j}.up.weight")));
    assert!(!same_bits(&a, &b));
}

#[test]
fn libtorchs_generator_is_left_as_it_was() {
    let _alone = alone();
    tch::manual_seed(5);
    let before = cpu_rng_state().unwrap();
    let mut rack = words(1);
    rack.append_stack(1, Some(StackPrecision::Bf16)).unwrap();
    rack.attach_adapters(0, &LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
    rack.merge_adapters(0).unwrap();
    assert!(rack.append_stack(0, None).is_err());
    assert_eq!(cpu_rng_state().unwrap(), before);
}

#[test]
fn a_half_built_rack_leaves_the_generator_as_it_was() {
    let _alone = alone();
    let before = cpu_rng_state().unwrap();
    // The second block is refused: its width is that of no layer.
    let config = super::models::Config { width: -1, words: 5 };
    assert!(RackBuilder::<Bare>::new(config).stack(1, None).build().is_err());
    assert_eq!(cpu_rng_state().unwrap(), before);
}

#[test]
fn adapters_begin_with_the_same_bits_on_every_rank() {
    let _alone = alone();
    let adapted = || {
        let _ = draw();
        let mut rack = bare(1);
        rack.attach_adapters(0, &LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
        copy(&variable(&rack, "stacks.0.blocks.0.fc.lora_A"))
    };
    let first = adapted();
    assert!(same_bits(&first, &adapted()));
    assert!(first.abs().max().double_value(&[]) > 0.0);
}

#[test]
fn ranks_that_are_threads_and_build_at_once_build_the_same_bits() {
    let _alone = alone();
    let weights = || -> Vec<f32> {
        let rack = bare(2);
        let both = [0, 1].map(|id| variable(&rack, &format!("stacks.{id}.blocks.0.fc.weight")));
        Vec::try_from(copy(&Tensor::cat(&both, 0)).flatten(0, -1)).unwrap()
    };
    let alone = weights();
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..4).map(|_| scope.spawn(weights)).collect();
            for rank in ranks {
                assert_eq!(rank.join().unwrap(), alone);
            }
        });
    }
}
