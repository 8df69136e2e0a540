//! Runs that are not as usual: ranks that differ, short numbers, merged adapters, ties.

use tch::{Tensor, no_grad};
use tch_checkpoint::progressive::{
    Architecture, Layer, Layers, LinearConfig, LoraConfig, Rack, RackBuilder, StackPrecision,
    TrunkStrategy, list_checkpoints,
};
use tch_checkpoint::{Error, ErrorKind, Result};

use crate::letters::{Letters, Rows, alone, bits, config, loss, on_ranks, rack, trainer};

fn adapters() -> LoraConfig {
    LoraConfig { rank: 2, ..LoraConfig::default() }
}

#[test]
fn ranks_with_racks_that_differ_are_told_so_before_anything_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let mut rack = rack();
        rack.append_stack(1, None).unwrap();
        // The same names and sizes, in another order.
        let second = group.rank().get() == 1;
        if second { rack.prepend_stack(1, None) } else { rack.append_stack(1, None) }.unwrap();
        let before = bits(&rack);
        let mut trainer = trainer(&group, config(&root, 0));
        let error = trainer.train_rack(&mut rack, &Rows, &loss, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert_eq!(error.rank().map(|rank| rank.get()), Some(1), "{error}");
        assert_eq!(trainer.get_training_info().step, 0);
        assert!(before.iter().all(|(name, bytes)| bits(&rack)[name] == *bytes));
    });
}

#[test]
fn ranks_with_other_targets_or_other_adapters_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let number = group.rank().get() as usize;
        let mut trainer = trainer(&group, config(&root, 0));
        let mut rack = rack();
        let error = trainer.train_rack(&mut rack, &Rows, &loss, 1 + number).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        trainer.train_rack(&mut rack, &Rows, &loss, 1).unwrap();
        let adapters = LoraConfig { rank: 1 + number, ..LoraConfig::default() };
        let error = trainer.train_adapters(&mut rack, &Rows, &loss, &adapters, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    });
}

/// With moments of 16 bits the squares of small gradients would be 0, and so would what is added to
/// divide by.
#[test]
fn stacks_of_every_precision_learn_with_the_default_optimizer() {
    for precision in [StackPrecision::Half, StackPrecision::Bf16, StackPrecision::Full] {
        alone(move |group| {
            let dir = tempfile::tempdir().unwrap();
            let mut settings = config(dir.path(), 0);
            settings.steps_per_stack = 40;
            settings.new_stack_precision = Some(precision);
            settings.blocks_per_stack = 2;
            tch::manual_seed(1);
            let mut rack = rack();
            let mut trainer = trainer(&group, settings);
            trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
            for (name, tensor) in rack.store().variables() {
                assert_eq!(tensor.isfinite().all().int64_value(&[]), 1, "{precision:?} {name}");
            }
            for stage in &trainer.get_training_info().history {
                let (first, last) = (stage.first_loss.unwrap(), stage.final_loss.unwrap());
                assert!(last < first && last.is_finite(), "{precision:?} {stage:?}");
            }
        });
    }
}

#[test]
fn adapters_below_a_frozen_trunk_stay_as_they_are_while_the_next_stack_is_trained() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = rack();
        let mut first = trainer(&group, config(dir.path(), 0));
        first.train_rack(&mut whole, &Rows, &loss, 1).unwrap();
        first.train_adapters(&mut whole, &Rows, &loss, &adapters(), 3).unwrap();
        let input = Tensor::from_slice(&[1i64, 5, 9]);
        let of_adapters = |rack: &Rack<Letters>| {
            let mut all = bits(rack);
            all.retain(|name, _| name.contains(".lora_"));
            all
        };
        let (before, trunk) = (of_adapters(&whole), whole.forward_trunk(1, &input, false).unwrap());
        first.train_rack(&mut whole, &Rows, &loss, 2).unwrap();
        assert!(of_adapters(&whole) == before, "they were trained");
        let after = whole.forward_trunk(1, &input, false).unwrap();
        let far = (after - trunk).abs().max().double_value(&[]);
        assert!(far < 1e-5, "their effect is gone: {far}");

        // And a run that is resumed has the same optimizer.
        let mut resumed = rack();
        let mut second = trainer(&group, config(dir.path(), 0));
        second.resume(&mut resumed).unwrap().unwrap();
        assert!(bits(&resumed) == bits(&whole) && resumed.info() == whole.info());
        tch::manual_seed(4);
        first.train_rack(&mut whole, &Rows, &loss, 3).unwrap();
        tch::manual_seed(4);
        second.train_rack(&mut resumed, &Rows, &loss, 3).unwrap();
        assert!(bits(&resumed) == bits(&whole));
    });
}

/// Which variables an optimizer has follows from what was trained, not from what is frozen now.
#[test]
fn a_run_can_be_resumed_after_its_rack_was_frozen_by_hand() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = config(dir.path(), 1);
        settings.steps_per_stack = 2;
        let mut whole = rack();
        let mut first = trainer(&group, settings.clone());
        first.train_rack(&mut whole, &Rows, &loss, 1).unwrap();
        whole.set_frozen(0, true).unwrap();
        settings.steps_per_stack = 3;
        let mut longer = trainer(&group, settings.clone());
        let mut resumed = rack();
        longer.resume(&mut resumed).unwrap().unwrap();
        resumed.set_frozen(0, true).unwrap();
        longer.train_rack(&mut resumed, &Rows, &loss, 1).unwrap();
        let mut again = rack();
        let mut third = trainer(&group, settings);
        third.resume(&mut again).unwrap().unwrap();
        assert!(bits(&again) == bits(&resumed) && again.info() == resumed.info());
    });
}

/// The trunk is changed between two calls within one stage.
#[test]
fn a_trunk_that_was_changed_within_a_stage_is_what_the_next_step_sees() {
    let ends = [0, 1].map(|mebibytes| {
        alone(move |group| {
            let dir = tempfile::tempdir().unwrap();
            let mut settings = config(dir.path(), 1);
            settings.activation_cache_mib = mebibytes;
            settings.checkpoint.keep_last = Some(100);
            tch::manual_seed(5);
            let mut rack = rack();
            let mut trainer = trainer(&group, settings);
            trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
            let saved = list_checkpoints(dir.path().join("letters")).unwrap();
            let within = saved.iter().find(|checkpoint| checkpoint.step == 11).unwrap();
            trainer.restore_from_checkpoint(&within.path, &mut rack).unwrap();
            assert_eq!(trainer.activation_cache().is_empty(), mebibytes == 0);
            let weight = rack.store().variables()["stacks.0.blocks.0.up.weight"].shallow_clone();
            no_grad(|| drop(weight.shallow_clone().f_mul_scalar_(0.5)));
            trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
            assert_eq!(trainer.get_training_info().step, 12);
            bits(&rack)
        })
    });
    assert!(ends[0] == ends[1]);
}

#[test]
fn an_architecture_that_fails_or_panics_on_one_rank_is_every_ranks_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        for what in ["fails", "panics"] {
            // Rank 0 builds what it is asked for.
            let own = if group.rank().get() == 1 { what } else { "" };
            let builder = RackBuilder::<Failing>::new(own.to_owned());
            let mut rack = builder.build().unwrap();
            let mut trainer = trainer(&group, config(&root, 0));
            let error = trainer.train_rack(&mut rack, &Rows, &loss, 1).unwrap_err();
            assert_eq!(error.rank().map(|rank| rank.get()), Some(1), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    });
}

/// What its configuration says happens where a block is made.
struct Failing;

impl Architecture for Failing {
    type Config = String;

    fn block(layers: &Layers<'_>, config: &String) -> Result<Box<dyn Layer>> {
        match config.as_str() {
            "fails" => Err(Error::new(ErrorKind::InvalidInput, "this block fails")),
            "panics" => panic!("this block panics"),
            _ => Ok(Box::new(layers.linear("fc", 4, 4, LinearConfig::default())?)),
        }
    }
}

#[test]
fn adapters_that_fit_some_stacks_only_are_attached_to_none() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack =
            RackBuilder::<Growing>::new(()).stack(1, None).stack(1, None).build().unwrap();
        let before = rack.info();
        let targets = vec!["fc".to_owned()];
        let config = LoraConfig { rank: 3, targets, ..LoraConfig::default() };
        let mut trainer = trainer(&group, crate::letters::config(dir.path(), 0));
        let error = trainer.train_adapters(&mut rack, &Rows, &loss, &config, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(rack.info(), before);
        assert!(rack.store().variables().keys().all(|name| !name.contains("lora")));
    });
}

/// Stack 0 is wide, stack 1 is narrow.
struct Growing;

impl Architecture for Growing {
    type Config = ();

    fn block(layers: &Layers<'_>, (): &()) -> Result<Box<dyn Layer>> {
        let is_first =
            layers.linear("probe", 1, 1, LinearConfig::default())?.name().contains("s.0.b");
        let width = if is_first { 4 } else { 2 };
        let config = LinearConfig { bias: false };
        Ok(Box::new(layers.linear("fc", width, width, config)?))
    }
}

#[test]
fn adapters_that_were_detached_are_followed_by_new_ones() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = rack();
        let mut first = trainer(&group, config(dir.path(), 0));
        first.train_rack(&mut whole, &Rows, &loss, 2).unwrap();
        first.train_adapters(&mut whole, &Rows, &loss, &adapters(), 3).unwrap();
        for index in 0..2 {
            whole.merge_adapters(index).unwrap();
            whole.detach_adapters(index).unwrap();
        }
        first.train_adapters(&mut whole, &Rows, &loss, &adapters(), 3).unwrap();
        assert_eq!(first.get_training_info().step, 18);
        assert!(whole.stacks().iter().all(|stack| stack.adapters().is_some()));
        let mut resumed = rack();
        trainer(&group, config(dir.path(), 0)).resume(&mut resumed).unwrap().unwrap();
        assert!(bits(&resumed) == bits(&whole));
    });
}

/// The strategy that trains adapters has to have some that are trained.
#[test]
fn adapters_that_are_merged_are_not_taken_for_trained_ones() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack = rack();
        rack.append_stack(1, None).unwrap();
        rack.attach_adapters(0, &adapters()).unwrap();
        rack.merge_adapters(0).unwrap();
        let before = rack.info();
        let mut trainer = trainer(&group, config(dir.path(), 0));
        let error = trainer.train_adapters(&mut rack, &Rows, &loss, &adapters(), 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("merged"), "{error}");
        assert_eq!(rack.info(), before);
        let mut settings = config(dir.path(), 0);
        settings.trunk = TrunkStrategy::Adapters(adapters());
        let mut trainer = crate::letters::trainer(&group, settings);
        let error = trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(rack.info(), before);
    });
}
