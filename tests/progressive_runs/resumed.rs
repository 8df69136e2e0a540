//! A run that was interrupted, within a stack or between two, ends as one that was not.

use tch_checkpoint::checkpointer::Resume;
use tch_checkpoint::progressive::{LoraConfig, Stage, TrunkStrategy, list_checkpoints};

use crate::letters::{Rows, alone, bits, config, loss, on_ranks, rack, trainer};

/// Trains three stacks in one go, and again by resuming at every step of the first run.
#[test]
fn a_run_resumed_at_any_step_ends_with_the_same_bits() {
    for trunk in [
        TrunkStrategy::Frozen,
        TrunkStrategy::Adapters(LoraConfig { rank: 2, dropout: 0.1, ..LoraConfig::default() }),
        TrunkStrategy::Trained,
    ] {
        alone(move |group| {
            let dir = tempfile::tempdir().unwrap();
            let settings = |save_interval| {
                let mut settings = config(dir.path(), save_interval);
                settings.trunk = trunk.clone();
                settings
            };
            tch::manual_seed(7);
            let mut whole = rack();
            let mut first = trainer(&group, settings(1));
            first.train_rack(&mut whole, &Rows, &loss, 3).unwrap();
            let info = first.get_training_info().clone();
            assert_eq!((info.step, info.stack_idx, info.history.len()), (18, 2, 3));
            let saved = list_checkpoints(first.directory()).unwrap();
            assert_eq!(saved.len(), 18, "every step, and none twice");
            for checkpoint in saved {
                let mut settings = settings(0);
                settings.checkpoint.resume = Resume::Path(checkpoint.path.clone());
                settings.checkpoint.enabled = true;
                settings.checkpoint.save_at_end = false;
                settings.checkpoint.experiment = "again".to_owned();
                tch::manual_seed(99);
                let mut resumed = rack();
                let mut second = trainer(&group, settings);
                let step = second.resume(&mut resumed).unwrap().unwrap().state.step;
                assert_eq!(second.get_training_info().step, step);
                second.train_rack(&mut resumed, &Rows, &loss, 3).unwrap();
                assert_eq!(second.get_training_info(), &info, "from step {step}");
                assert!(bits(&resumed) == bits(&whole), "from step {step}, {trunk:?}");
                assert_eq!(resumed.info(), whole.info());
            }
        });
    }
}

#[test]
fn several_ranks_end_alike_and_another_number_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let at = root.clone();
    let ends = on_ranks(3, move |group| {
        let mut rack = rack();
        let mut trainer = trainer(&group, config(&at, 4));
        trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
        (bits(&rack), trainer.get_training_info().clone())
    });
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "replicas and losses");
    let meant = ends[0].clone();
    on_ranks(2, move |group| {
        let mut rack = rack();
        let mut trainer = trainer(&group, config(&root, 4));
        let resumed = trainer.resume(&mut rack).unwrap().unwrap();
        assert_eq!(resumed.state.step, 12);
        assert!(bits(&rack) == meant.0);
        trainer.train_rack(&mut rack, &Rows, &loss, 3).unwrap();
        assert_eq!((trainer.get_training_info().step, rack.stacks().len()), (18, 3));
    });
}

#[test]
fn what_is_trained_already_is_not_trained_again() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack = rack();
        let mut trainer = trainer(&group, config(dir.path(), 0));
        trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
        let before = bits(&rack);
        trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
        assert!(bits(&rack) == before);
        trainer.train_rack(&mut rack, &Rows, &loss, 1).unwrap();
        assert!(bits(&rack) == before, "a rack is not cut down");
    });
}

/// Each new stack has its turn, the ones below stay as they were, bit for bit.
#[test]
fn a_frozen_trunk_stays_as_it_was() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack = rack();
        let mut trainer = trainer(&group, config(dir.path(), 0));
        trainer.train_rack(&mut rack, &Rows, &loss, 1).unwrap();
        let before = bits(&rack);
        trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
        let after = bits(&rack);
        for (name, bytes) in &before {
            let is_head = name.starts_with("head.");
            assert_eq!(after[name] == *bytes, !is_head, "{name}");
        }
        let info = trainer.get_training_info();
        let [first, second] = &info.history[..] else { panic!("{info:?}") };
        assert!(first.final_loss < first.first_loss && second.final_loss < first.final_loss);
        assert_eq!(info.stage, Stage::Stack(rack.stacks()[1].id()));
    });
}

#[test]
fn prepended_stacks_keep_who_they_are_through_a_checkpoint() {
    use tch_checkpoint::progressive::{BuildingMode, RackBuilder};
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let empty = || {
            let builder = RackBuilder::new(crate::letters::Config { width: 16 });
            builder.seed(3).mode(BuildingMode::Prepend).build().unwrap()
        };
        let (mut whole, mut resumed) = (empty(), empty());
        let mut first = trainer(&group, config(dir.path(), 0));
        first.train_rack(&mut whole, &Rows, &loss, 3).unwrap();
        let ids: Vec<u32> = whole.stacks().iter().map(|stack| stack.id().get()).collect();
        assert_eq!(ids, [2, 1, 0]);
        let mut second = trainer(&group, config(dir.path(), 0));
        second.resume(&mut resumed).unwrap().unwrap();
        assert_eq!(resumed.info(), whole.info());
        assert!(bits(&resumed) == bits(&whole));
    });
}
