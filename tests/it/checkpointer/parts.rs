//! What a checkpoint of a run consists of, and what of it is loaded.

use std::collections::BTreeSet;
use std::path::Path;

use tch_checkpoint::catalog::{self, CheckpointPath, Wanted};
use tch_checkpoint::checkpointer::{
    CheckpointerConfig, Outcome, Parts, Resume, create_checkpointer_from_config, load_checkpoint,
};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::manifest::Manifest;
use tch_checkpoint::plan::OnExisting;
use tch_checkpoint::state::{LoadTargets, PerRank, Shared, StateDict, Stateful, Values};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result, SaveOptions, save};

use super::toy::{Toy, Weights, at, checkpointer, config, steps_of};
use crate::harness::on_ranks;

/// A vector under the name of its part.
struct Net(Vec<u8>);

impl Net {
    fn name(prefix: &str) -> TensorName {
        TensorName::new(format!("{prefix}.weight")).unwrap()
    }

    fn spec(&self) -> TensorSpec {
        TensorSpec::new(Dtype::U8, [self.0.len() as u64]).unwrap()
    }
}

impl Stateful for Net {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        let source = std::sync::Arc::new(self.0.clone());
        state.add(&Component::model(), Self::name(prefix), self.spec(), source)
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        let spec = self.spec();
        targets.add(Self::name(prefix), spec, Box::new(self.0.as_mut_slice()))
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        Ok(())
    }
}

/// Two networks that are trained against one another, and all around them.
#[derive(Debug, PartialEq)]
struct Game {
    nets: [Vec<u8>; 2],
    moments: [u32; 2],
    rate: f64,
    place: u64,
    patience: u8,
}

impl Game {
    fn with<R>(&mut self, with: impl FnOnce(&mut Parts<'_>) -> R) -> R {
        let [mut maker, mut judge] = [0, 1].map(|i| Net(std::mem::take(&mut self.nets[i])));
        let [first, second] = &mut self.moments;
        let (mut first, mut second) = (Shared(first), Shared(second));
        let (mut rate, mut place) = (Shared(&mut self.rate), PerRank(&mut self.place));
        let mut patience = Shared(&mut self.patience);
        let done = with(
            &mut Parts::new()
                .named_model("maker", &mut maker)
                .named_model("judge", &mut judge)
                .named_optimizer("maker", &mut first)
                .named_optimizer("judge", &mut second)
                .named_scheduler("both", &mut rate)
                .dataloader("train", &mut place)
                .callback("early", &mut patience),
        );
        self.nets = [maker.0, judge.0];
        done
    }
}

fn manifest_of(checkpoint: &Path) -> Manifest {
    catalog::find(&LocalStorage::new(), &Wanted::parse(checkpoint).unwrap()).unwrap().manifest
}

#[test]
fn several_models_and_their_optimizers_are_kept_apart_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let right = on_ranks(2, move |group| {
        let rank = u64::from(group.rank().get());
        let trained = || Game {
            nets: [vec![1, 2, 3], vec![9]],
            moments: [5, 6],
            rate: 0.25,
            place: 70 + rank,
            patience: 3,
        };
        let fresh = || Game {
            nets: [vec![0; 3], vec![0]],
            moments: [0; 2],
            rate: 1.0,
            place: 0,
            patience: 0,
        };
        let mut first = checkpointer(&group, config(&place)).unwrap();
        trained().with(|parts| first.save(&at(4), parts)).unwrap();
        let mut game = fresh();
        let mut second = checkpointer(&group, config(&place)).unwrap();
        game.with(|parts| second.resume(parts)).unwrap().unwrap();
        game == trained()
    });
    assert_eq!(right, [true, true]);
    let manifest = manifest_of(&scratch.path().join("run/checkpoint_step_00000004"));
    let tensors: Vec<_> = manifest.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(tensors, ["models.judge.weight", "models.maker.weight"]);
    let names: BTreeSet<_> = manifest.values().iter().map(|(name, _)| name).collect();
    for name in [
        "trainer.step",
        "trainer.epoch",
        "optimizers.maker",
        "optimizers.judge",
        "schedulers.both",
        "dataloaders.train",
        "callbacks.early",
    ] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
}

#[test]
fn names_on_one_side_only_are_errors_unless_lenient_and_then_told() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let mut first = checkpointer(&solo, config(scratch.path())).unwrap();
    let (mut old, mut gone) = (Net(vec![7]), Net(vec![8]));
    let mut parts = Parts::new().named_model("old", &mut old).named_model("gone", &mut gone);
    first.save(&at(1), &mut parts).unwrap();

    let (mut old, mut new) = (Net(vec![0]), Net(vec![1]));
    let mut parts = Parts::new().named_model("old", &mut old).named_model("new", &mut new);
    let mut strict = checkpointer(&solo, config(scratch.path())).unwrap();
    let error = strict.resume(&mut parts).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    for name in ["models.new.weight", "models.gone.weight"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    let lenient = CheckpointerConfig { resume_strict: false, ..config(scratch.path()) };
    let mut lenient = checkpointer(&solo, lenient).unwrap();
    let report = lenient.resume(&mut parts).unwrap().unwrap().report;
    let texts = |names: &[TensorName]| -> Vec<String> {
        names.iter().map(|name| name.as_str().to_owned()).collect()
    };
    assert_eq!(texts(&report.missing), ["models.new.weight"]);
    assert_eq!(texts(&report.unexpected), ["models.gone.weight"]);
    drop(parts);
    assert_eq!((old.0, new.0), (vec![7], vec![1]));
}

#[test]
fn what_another_program_saved_takes_defaults_for_what_it_does_not_hold() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let mut toy = Toy::after(3, 0);
    let mut state = StateDict::new();
    Weights(&mut toy.weights).save_state("", &mut state).unwrap();
    let path =
        CheckpointPath::new(scratch.path().join("run"), CheckpointName::new("by hand").unwrap());
    let options = SaveOptions { step: 3, epoch: 1, ..SaveOptions::default() };
    save(&solo, &LocalStorage::new(), &path, &state, &options).unwrap();

    let mut weights = vec![0; toy.weights.len()];
    let mut model = Weights(&mut weights);
    let loaded = load_checkpoint(&solo, path.full(), &mut Parts::new().model(&mut model)).unwrap();
    assert_eq!(weights, toy.weights);
    let state = loaded.state;
    assert_eq!((state.step, state.epoch, state.best, state.best_step), (3, 1, None, 0));
    assert!(state.train_losses.is_empty() && state.metrics.is_empty());
    assert_eq!(state.experiment, "");
}

#[test]
fn a_name_that_is_taken_is_numbered_replaced_or_refused_as_the_configuration_says() {
    for on_existing in [OnExisting::Number, OnExisting::Replace, OnExisting::Refuse] {
        let scratch = tempfile::tempdir().unwrap();
        let config =
            CheckpointerConfig { on_existing, resume: Resume::Fresh, ..config(scratch.path()) };
        let save = || {
            let mut one = checkpointer(&ProcessGroup::solo(), config.clone()).unwrap();
            let saved = Toy::new().with(|parts| one.save(&at(5), parts));
            (saved.map(|outcome| matches!(outcome, Outcome::Saved(_))), steps_of(&one))
        };
        assert_eq!(save().0, Ok(true));
        let (again, steps) = save();
        match on_existing {
            OnExisting::Number => assert_eq!((again, steps), (Ok(true), vec![5, 5])),
            OnExisting::Replace => assert_eq!((again, steps), (Ok(true), vec![5])),
            _ => {
                assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
                assert_eq!(steps, [5]);
            }
        }
    }
}

#[test]
fn a_configuration_that_is_off_makes_no_checkpointer() {
    let scratch = tempfile::tempdir().unwrap();
    let made = |enabled| {
        let config = CheckpointerConfig { enabled, ..config(scratch.path()) };
        create_checkpointer_from_config(&ProcessGroup::solo(), &config).unwrap()
    };
    assert!(made(false).is_none());
    assert!(!scratch.path().join("run").exists());
    let directory = made(true).unwrap().directory().to_path_buf();
    assert_eq!(directory, scratch.path().join("run"));
    assert!(directory.is_dir());
}
