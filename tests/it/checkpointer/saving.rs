//! When it saves, and what is in it.

use std::time::Duration;

use tch_checkpoint::checkpointer::{
    At, CheckpointerConfig, Location, Outcome, Parts, Reason, Resume, save_checkpoint_in,
};
use tch_checkpoint::state::{LoadTargets, StateDict, Stateful, Values};
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Result};

use super::toy::{Toy, Weights, at, checkpointer, config, no_metrics, run, steps_of};
use crate::harness::on_ranks;

#[test]
fn steps_epochs_and_the_end_are_saved_and_no_step_twice() {
    let scratch = tempfile::tempdir().unwrap();
    let config = CheckpointerConfig {
        save_every_steps: Some(6),
        save_every_epochs: Some(2),
        ..config(scratch.path())
    };
    let ran = run(&ProcessGroup::solo(), config, 13, no_metrics).unwrap();
    let steps: Vec<_> = ran.saved.iter().map(|(step, _)| *step).collect();
    // Step 8 ends the second epoch; step 12 is due as a step.
    assert_eq!(steps, [6, 8, 12, 13]);
    assert_eq!(ran.saved[1].1, Reason::Epochs);
    assert_eq!(ran.saved[2].1, Reason::Steps);
    assert_eq!(ran.saved[3].1, Reason::End);
    assert_eq!(steps_of(&ran.checkpointer), [13, 12, 8, 6]);
    assert!(scratch.path().join("run/checkpoint_step_00000013/manifest.bin").exists());
}

#[test]
fn the_end_is_not_saved_twice_nor_against_the_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let tens = CheckpointerConfig { save_every_steps: Some(10), ..config(scratch.path()) };
    let ran = run(&ProcessGroup::solo(), tens.clone(), 20, no_metrics).unwrap();
    assert_eq!(ran.saved, [(10, Reason::Steps), (20, Reason::Steps)]);
    let not_at_end = CheckpointerConfig { save_at_end: false, ..tens };
    let ran = run(&ProcessGroup::solo(), not_at_end, 25, no_metrics).unwrap();
    assert!(ran.saved.is_empty());
    assert_eq!(steps_of(&ran.checkpointer), [20, 10]);
}

#[test]
fn a_disabled_checkpointer_does_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let off =
        CheckpointerConfig { enabled: false, save_every_steps: Some(1), ..config(scratch.path()) };
    let mut ran = run(&ProcessGroup::solo(), off, 3, no_metrics).unwrap();
    assert!(ran.saved.is_empty());
    let by_name = ran.toy.with(|parts| ran.checkpointer.save_as("mine", &at(3), parts));
    assert_eq!(by_name.unwrap(), Outcome::Disabled);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn minutes_are_those_of_the_coordinator_and_count_from_the_last_save() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let saved = on_ranks(2, move |group| {
        let config = CheckpointerConfig {
            save_every_minutes: Some(0.05 / 60.0),
            save_at_end: false,
            ..config(&place)
        };
        let mut checkpointer = checkpointer(&group, config).unwrap();
        let mut toy = Toy::new();
        let mut saved = Vec::new();
        for step in 1..=40 {
            // The others' clocks do not matter.
            if group.is_coordinator() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let stepped = toy.with(|parts| checkpointer.step_callback(&at(step), parts)).unwrap();
            saved.extend(stepped.save.map(|(reason, _)| (step, reason)));
        }
        saved
    });
    assert_eq!(saved[0], saved[1]);
    assert!(!saved[0].is_empty() && saved[0].len() < 20, "{saved:?}");
    assert!(saved[0].iter().all(|(_, reason)| *reason == Reason::Minutes));
}

#[test]
fn a_predicate_or_a_metric_that_improves_saves_too() {
    let scratch = tempfile::tempdir().unwrap();
    let mut checkpointer = checkpointer(&ProcessGroup::solo(), config(scratch.path())).unwrap();
    checkpointer.save_when(|at| at.counters().step == 3);
    let mut toy = Toy::new();
    for step in 1..=4 {
        let stepped = toy.with(|parts| checkpointer.step_callback(&at(step), parts)).unwrap();
        assert_eq!(
            stepped.save.map(|(reason, _)| reason),
            (step == 3).then_some(Reason::Predicate)
        );
    }

    let best = CheckpointerConfig {
        experiment: "best".to_owned(),
        save_on_best: true,
        monitor: Some("val_loss".to_owned()),
        save_at_end: false,
        ..config(scratch.path())
    };
    let losses = [f64::NAN, 0.5, 0.5, 0.7, f64::NEG_INFINITY, 0.4, -0.1, 0.0];
    let measured = move |step: u64| vec![("val_loss", losses[step as usize - 1])];
    let ran = run(&ProcessGroup::solo(), best, 8, measured).unwrap();
    assert_eq!(ran.saved, [2, 6, 7].map(|step| (step, Reason::Best)));
    assert_eq!(ran.checkpointer.state().best, Some(-0.1));
    assert_eq!(ran.checkpointer.state().best_step, 7);
}

#[test]
fn another_callback_may_decide_when_several_metrics_improve() {
    let scratch = tempfile::tempdir().unwrap();
    let mut checkpointer = checkpointer(&ProcessGroup::solo(), config(scratch.path())).unwrap();
    let mut toy = Toy::new();
    let mut best = (f64::MAX, f64::MIN);
    let measured = [(0.9, 0.1), (0.8, 0.05), (0.7, 0.4), (0.6, 0.5)];
    for (step, (loss, accuracy)) in (1..).zip(measured) {
        toy.step(step, 0);
        if loss < best.0 && accuracy > best.1 {
            best = (loss, accuracy);
            let at = at(step).metric("loss", loss).metric("accuracy", accuracy);
            let saved = toy.with(|parts| checkpointer.save(&at, parts)).unwrap();
            assert!(matches!(saved, Outcome::Saved(_)));
            let again = toy.with(|parts| checkpointer.save(&at, parts)).unwrap();
            assert_eq!(again, Outcome::SavedBefore);
        }
    }
    assert_eq!(steps_of(&checkpointer), [4, 3, 1]);
    let found = checkpointer.find_checkpoints().unwrap();
    assert_eq!(found[1].metrics["accuracy"], 0.4);
}

#[test]
fn should_save_answers_what_the_callback_would_do() {
    let scratch = tempfile::tempdir().unwrap();
    let config = CheckpointerConfig { save_every_steps: Some(2), ..config(scratch.path()) };
    let mut checkpointer = checkpointer(&ProcessGroup::solo(), config).unwrap();
    let due: Vec<_> =
        (1..=5).filter(|s| checkpointer.should_save(&at(*s)).unwrap().is_some()).collect();
    assert_eq!(due, [2, 4]);
}

#[test]
fn a_metric_is_the_mean_of_the_ranks_that_have_it() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let metrics = on_ranks(3, move |group| {
        let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
        let rank = f64::from(group.rank().get());
        let mut at = at(1).metric("loss", rank);
        if group.is_coordinator() {
            at = at.metric("val_loss", 0.25);
        }
        Toy::new().with(|parts| checkpointer.save(&at, parts)).unwrap();
        checkpointer.find_checkpoints().unwrap()[0].metrics.clone()
    });
    for of_rank in metrics {
        assert_eq!(of_rank["loss"], 1.0);
        assert_eq!(of_rank["val_loss"], 0.25);
    }
}

#[test]
fn a_metric_of_an_earlier_step_names_no_later_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let config = CheckpointerConfig {
        name: "step={step:06d}__metric={metric:.6f}".to_owned(),
        monitor: Some("loss".to_owned()),
        ..config(scratch.path())
    };
    let mut checkpointer = checkpointer(&ProcessGroup::solo(), config).unwrap();
    let mut toy = Toy::new();
    toy.with(|parts| checkpointer.save(&at(1).metric("loss", -0.25), parts)).unwrap();
    toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap();
    let names: Vec<_> =
        checkpointer.find_checkpoints().unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["step=000002__metric=nan", "step=000001__metric=-0.250000"]);
}

#[test]
fn a_name_of_its_own_is_refused_if_taken_and_never_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let config = CheckpointerConfig {
        save_every_steps: Some(1),
        keep_last: Some(1),
        ..config(scratch.path())
    };
    let mut checkpointer = checkpointer(&ProcessGroup::solo(), config).unwrap();
    let mut toy = Toy::new();
    toy.with(|parts| checkpointer.save_as("before surgery", &at(1), parts)).unwrap();
    let taken = toy.with(|parts| checkpointer.save_as("before surgery", &at(1), parts));
    assert_eq!(taken.unwrap_err().kind(), ErrorKind::AlreadyExists);
    for step in 2..=5 {
        let _ = toy.with(|parts| checkpointer.step_callback(&at(step), parts)).unwrap();
    }
    assert_eq!(steps_of(&checkpointer), [5, 1]);
}

#[test]
fn one_line_touches_nothing_else_of_the_experiment() {
    let scratch = tempfile::tempdir().unwrap();
    let config = CheckpointerConfig {
        save_every_steps: Some(10),
        keep_last: Some(2),
        ..config(scratch.path())
    };
    let ran = run(&ProcessGroup::solo(), config.clone(), 40, no_metrics).unwrap();
    let link = || std::fs::read_link(scratch.path().join("run/latest")).unwrap();
    let before = link();
    let mut toy = Toy::new();
    for step in [5, 5, 900] {
        let place = Location::Path(scratch.path().to_path_buf());
        let mut weights = Weights(&mut toy.weights);
        let mut parts = Parts::new().model(&mut weights);
        save_checkpoint_in(&ProcessGroup::solo(), place, "run", &At::step(step), &mut parts)
            .unwrap();
    }
    assert_eq!(steps_of(&ran.checkpointer), [40, 30, 900, 5, 5]);
    assert_eq!(link(), before);
    // Nor does the run touch what one line saved.
    let ran = run(
        &ProcessGroup::solo(),
        CheckpointerConfig { resume: Resume::Step(40), ..config },
        70,
        no_metrics,
    )
    .unwrap();
    let mut left = steps_of(&ran.checkpointer);
    left.sort_unstable();
    assert_eq!(left, [5, 5, 40, 60, 70, 900]);
}

/// Fails on one rank.
struct Sparse(bool);

impl Stateful for Sparse {
    fn save_state(&self, _prefix: &str, _state: &mut StateDict) -> Result<()> {
        match self.0 {
            true => Err(Error::new(ErrorKind::Unsupported, "a sparse tensor")),
            false => Ok(()),
        }
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, _targets: &mut LoadTargets<'a>) -> Result<()> {
        Ok(())
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_rank_without_a_state_is_every_ranks_error_and_training_can_go_on() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let errors = on_ranks(3, move |group| {
        let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
        let mut sparse = Sparse(group.rank().get() == 1);
        let failed =
            checkpointer.save(&at(1), &mut Parts::new().with("sparse", &mut sparse)).unwrap_err();
        let saved = Toy::new().with(|parts| checkpointer.save(&at(1), parts)).unwrap();
        assert!(matches!(saved, Outcome::Saved(_)));
        failed
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("rank 1"), "{error}");
    }
}
