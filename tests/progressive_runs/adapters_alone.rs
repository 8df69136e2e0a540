//! Adapters without their base, through files of PEFT.

use tch_checkpoint::ErrorKind;
use tch_checkpoint::progressive::{LoraConfig, PeftOptions, Rack, StackPrecision};

use crate::letters::{Letters, bits, on_ranks, rack};

/// Three stacks, adapters with values of their own on two of them.
fn adapted(targets: &str) -> Rack<Letters> {
    let mut rack = rack();
    for _ in 0..3 {
        rack.append_stack(2, None).unwrap();
    }
    let config = LoraConfig { rank: 3, targets: vec![targets.to_owned()], ..LoraConfig::default() };
    for (index, scale) in [(0, 0.5), (2, -0.25)] {
        rack.attach_adapters(index, &config).unwrap();
        for (name, variable) in rack.store().variables() {
            if name.starts_with(&format!("stacks.{index}.")) && name.ends_with("lora_B") {
                tch::no_grad(|| drop(variable.shallow_clone().fill_(scale)));
            }
        }
    }
    rack
}

fn plain() -> Rack<Letters> {
    let mut rack = rack();
    for _ in 0..3 {
        rack.append_stack(2, None).unwrap();
    }
    rack
}

#[test]
fn adapters_come_back_onto_the_same_base() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        for targets in ["*", "up"] {
            let (saved, at) = (adapted(targets), root.join(targets.replace('*', "all")));
            saved.save_adapters(&group, &at, &PeftOptions::default()).unwrap();
            let mut other = plain();
            assert_eq!(other.load_adapters(&group, &at).unwrap(), [0, 2]);
            assert!(bits(&other) == bits(&saved), "{targets}");
            // Again, over others: attached with another rank, and merged.
            let mut third = plain();
            third.attach_adapters(0, &LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
            third.merge_adapters(0).unwrap();
            third.load_adapters(&group, &at).unwrap();
            assert!(bits(&third) == bits(&saved), "{targets}");
            // And over equal ones with other values.
            other.attach_adapters(1, &LoraConfig::default()).unwrap();
            let second = bits(&other);
            other.load_adapters(&group, &at).unwrap();
            assert!(bits(&other) == second, "those of another stack stay");
        }
    });
}

#[test]
fn adapters_without_their_base_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let at = root.join("adapters");
        adapted("*").save_adapters(&group, &at, &PeftOptions::default()).unwrap();
        let mut fewer = rack();
        fewer.append_stack(2, None).unwrap();
        let mut lower = plain();
        lower.set_precision(2, StackPrecision::Bf16).unwrap();
        for (mut rack, words) in
            [(fewer, "stacks.2.blocks.0.up"), (lower, "is Float, the stack BFloat16")]
        {
            let before = bits(&rack);
            let error = rack.load_adapters(&group, &at).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(bits(&rack) == before);
            assert!(rack.stacks().iter().all(|stack| stack.adapters().is_none()));
        }
        let none = plain().save_adapters(&group, root.join("none"), &PeftOptions::default());
        assert_eq!(none.unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}
