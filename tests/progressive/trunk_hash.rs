//! The hash of a trunk: it changes with all that decides what the trunk gives, and with nothing
//! else.

use tch::{Kind, no_grad};
use tch_checkpoint::ErrorKind;
use tch_checkpoint::progressive::{LoraConfig, Rack, RackBuilder, StackPrecision};

use super::models::{Bare, CONFIG, Config, Words, alone, bare, fill, names, variable, words};

fn config() -> LoraConfig {
    LoraConfig { rank: 2, ..LoraConfig::default() }
}

/// The hash before and after `change`, of the first two stacks.
fn changed(change: impl FnOnce(&mut Rack<Words>)) -> bool {
    let mut rack = words(3);
    rack.attach_adapters(1, &config()).unwrap();
    let before = rack.trunk_hash(2).unwrap();
    change(&mut rack);
    rack.trunk_hash(2).unwrap() != before
}

fn flip(rack: &Rack<Words>, name: &str) {
    let tensor = variable(rack, name);
    let first = no_grad(|| tensor.flatten(0, -1).get(0).view_dtype(Kind::Int));
    let flipped = first.bitwise_xor(1).view_dtype(Kind::Float);
    no_grad(|| tensor.view(-1).get(0).copy_(&flipped));
}

#[test]
fn racks_of_the_same_bits_have_the_same_hash() {
    let _alone = alone();
    for stacks in 0..=3 {
        assert_eq!(words(3).trunk_hash(stacks).unwrap(), words(3).trunk_hash(stacks).unwrap());
    }
    let hashes: std::collections::BTreeSet<_> =
        (0..=3).map(|stacks| words(3).trunk_hash(stacks).unwrap()).collect();
    assert_eq!(hashes.len(), 4);
}

#[test]
fn one_flipped_bit_in_any_variable_below_changes_it_and_above_it_does_not() {
    let _alone = alone();
    let mut rack = words(3);
    rack.attach_adapters(1, &config()).unwrap();
    for name in names(&rack) {
        let is_below = !name.starts_with("stacks.2.");
        assert_eq!(changed(|rack| flip(rack, &name)), is_below, "{name}");
    }
}

#[test]
fn what_is_above_the_trunk_is_not_in_it() {
    let _alone = alone();
    assert!(!changed(|rack| rack.append_stack(1, None).map(|_| ()).unwrap()));
    assert!(!changed(|rack| rack.set_precision(2, StackPrecision::Half).unwrap()));
    assert!(!changed(|rack| rack.attach_adapters(2, &config()).unwrap()));
    assert!(!changed(|rack| rack.set_frozen(0, true).unwrap()));
}

#[test]
fn order_precision_and_adapters_are_in_it() {
    let _alone = alone();
    assert!(changed(|rack| rack.prepend_stack(2, None).map(|_| ()).unwrap()));
    assert!(changed(|rack| rack.set_precision(0, StackPrecision::Bf16).unwrap()));
    assert!(changed(|rack| rack.attach_adapters(0, &config()).unwrap()));
    assert!(changed(|rack| rack.detach_adapters(1).unwrap()));
    assert!(changed(|rack| {
        fill(&variable(rack, "stacks.1.blocks.0.up.lora_B"), 0.3);
        rack.merge_adapters(1).unwrap();
    }));
    let scaled = |alpha: f64| {
        let mut rack = bare(1);
        rack.attach_adapters(0, &LoraConfig { alpha, ..config() }).unwrap();
        rack.trunk_hash(1).unwrap()
    };
    assert_ne!(scaled(1.0), scaled(2.0));
    let ordered = |prepend: bool| {
        let mut rack = RackBuilder::<Bare>::new(CONFIG).stack(1, None).build().unwrap();
        if prepend { rack.prepend_stack(1, None) } else { rack.append_stack(1, None) }.unwrap();
        rack.trunk_hash(2).unwrap()
    };
    assert_ne!(ordered(true), ordered(false));
}

#[test]
fn the_configuration_that_blocks_compute_by_is_in_it() {
    let _alone = alone();
    // It decides nothing of the variables here, and could decide what is computed with them.
    let of = |words: i64| {
        let config = Config { words, ..CONFIG };
        RackBuilder::<Bare>::new(config).stack(1, None).build().unwrap().trunk_hash(1).unwrap()
    };
    assert_eq!(of(5), of(5));
    assert_ne!(of(5), of(6));
}

#[test]
fn a_hash_of_more_stacks_than_there_are_is_an_error() {
    let _alone = alone();
    let error = words(1).trunk_hash(2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn unmerged_adapters_give_the_hash_from_before_they_were_merged() {
    let _alone = alone();
    assert!(!changed(|rack| {
        rack.merge_adapters(1).unwrap();
        rack.unmerge_adapters(1).unwrap();
    }));
}
