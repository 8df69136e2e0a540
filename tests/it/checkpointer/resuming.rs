//! Where a run goes on, and what it says of what it did.

use std::path::Path;

use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig, Resume, load_checkpoint};
use tch_checkpoint::{ErrorKind, ProcessGroup};

use super::toy::{Toy, at, checkpointer, config, damage, file_of, no_metrics, run, steps_of};
use crate::harness::{logged, on_ranks};

pub fn every(steps: u64, directory: &Path) -> CheckpointerConfig {
    CheckpointerConfig { save_every_steps: Some(steps), ..config(directory) }
}

#[test]
fn a_resumed_run_ends_as_one_that_was_not_interrupted() {
    for ranks in 1..=3 {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().to_path_buf();
        let ends = on_ranks(ranks, move |group| {
            let rank = group.rank().get();
            let interrupted = run(&group, every(5, &place), 13, no_metrics).unwrap();
            drop(interrupted);
            let ran = run(&group, every(5, &place), 21, no_metrics).unwrap();
            (ran.first, ran.toy == Toy::after(21, rank), ran.saved)
        });
        for (first, equal, saved) in ends {
            assert_eq!(first, 13);
            assert!(equal);
            // Never at the step that was just resumed.
            assert_eq!(saved.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [15, 20, 21]);
        }
    }
}

#[test]
fn latest_best_step_and_path_are_found_and_fresh_begins_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let config =
        CheckpointerConfig { monitor: Some("val_loss".to_owned()), ..every(10, scratch.path()) };
    // Best at step 20; NaN and infinities never are.
    let losses = |step: u64| match step {
        10 => vec![("val_loss", 1e-9)],
        20 => vec![("val_loss", -1e-9)],
        30 => vec![("val_loss", f64::NAN)],
        40 => vec![("val_loss", f64::NEG_INFINITY)],
        _ => vec![],
    };
    let solo = ProcessGroup::solo();
    let ran = run(&solo, config.clone(), 40, losses).unwrap();
    let path = scratch.path().join("run/checkpoint_step_00000030");
    drop(ran);
    let elsewhere = tempfile::tempdir().unwrap();
    for (resume, step) in [
        (Resume::Latest, Some(40)),
        (Resume::Best, Some(20)),
        (Resume::Step(10), Some(10)),
        (Resume::Path(path), Some(30)),
        (Resume::Fresh, None),
    ] {
        let mut checkpointer =
            checkpointer(&solo, CheckpointerConfig { resume: resume.clone(), ..config.clone() })
                .unwrap();
        let mut toy = Toy::new();
        let resumed = toy.with(|parts| checkpointer.resume(parts)).unwrap();
        assert_eq!(resumed.as_ref().map(|resumed| resumed.state.step), step, "{resume:?}");
        assert_eq!(toy, Toy::after(step.unwrap_or(0), 0), "{resume:?}");
        assert_eq!(checkpointer.state().step, step.unwrap_or(0));
        let abandoned = resumed.map_or(0, |resumed| resumed.abandoned.len() as u64);
        assert_eq!(abandoned, step.map_or(0, |step| (40 - step) / 10), "{resume:?}");
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_missing_step_is_an_error_that_lists_what_there_is() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let errors = on_ranks(2, move |group| {
        drop(run(&group, every(10, &place), 20, no_metrics).unwrap());
        let resume = CheckpointerConfig { resume: Resume::Step(15), ..every(10, &place) };
        run(&group, resume, 30, no_metrics).err().unwrap()
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        for part in ["step 15", "step 20", "step 10", "checkpoint_step_00000020"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn an_empty_directory_is_a_fresh_start_only_if_any_will_do() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let strict = CheckpointerConfig { resume_if_any: false, ..every(10, scratch.path()) };
    let error = run(&solo, strict, 10, no_metrics).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let missing_step = CheckpointerConfig { resume: Resume::Step(3), ..every(10, scratch.path()) };
    assert_eq!(run(&solo, missing_step, 10, no_metrics).err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(run(&solo, every(10, scratch.path()), 10, no_metrics).unwrap().first, 0);
}

#[test]
fn no_finite_metric_is_an_error_that_says_which_there_are() {
    let scratch = tempfile::tempdir().unwrap();
    let config = CheckpointerConfig {
        monitor: Some("val_loss".to_owned()),
        resume: Resume::Best,
        ..every(10, scratch.path())
    };
    let solo = ProcessGroup::solo();
    let measured = |_| vec![("val_loss", f64::NAN), ("accuracy", 0.5)];
    // Nothing there: begins anew.
    drop(run(&solo, config.clone(), 10, measured).unwrap());
    let error = run(&solo, config, 20, measured).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.contains("`val_loss`") && text.contains("accuracy, val_loss"), "{text}");
}

#[test]
fn a_damaged_newest_one_is_an_error_unless_falling_back_was_asked_for() {
    for (what, prefix) in [("content", "model-"), ("manifest", "manifest"), ("length", "model-")] {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().to_path_buf();
        let results = on_ranks(2, move |group| {
            drop(run(&group, every(10, &place), 30, no_metrics).unwrap());
            let spoil = || {
                let file = file_of(&place, 30, prefix);
                match what {
                    "length" => {
                        let bytes = std::fs::read(&file).unwrap();
                        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
                    }
                    _ => damage(&file),
                }
                Ok(())
            };
            group.on_coordinator("spoil", spoil).unwrap();
            let refused = run(&group, every(10, &place), 40, no_metrics).err().unwrap();
            let falling = CheckpointerConfig { resume_fall_back: true, ..every(10, &place) };
            let mut checkpointer = checkpointer(&group, falling).unwrap();
            let mut toy = Toy::new();
            let resumed = toy.with(|parts| checkpointer.resume(parts)).unwrap().unwrap();
            let right = toy == Toy::after(20, group.rank().get());
            (refused, resumed.state.step, right, resumed.passed_over)
        });
        for (refused, step, right, passed_over) in results {
            assert_eq!(refused.kind(), ErrorKind::Corrupt, "{what}: {refused}");
            assert_eq!(step, 20, "{what}");
            assert!(right, "{what}");
            assert_eq!(passed_over, ["checkpoint_step_00000030"], "{what}");
        }
    }
}

#[test]
fn a_damaged_step_is_damaged_also_where_the_latest_would_fall_back() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let falling = CheckpointerConfig { resume_fall_back: true, ..every(10, scratch.path()) };
    drop(run(&solo, falling.clone(), 20, no_metrics).unwrap());
    damage(&file_of(scratch.path(), 10, "model-"));
    let mut checkpointer = checkpointer(&solo, falling).unwrap();
    let mut toy = Toy::new();
    let refused = toy.with(|parts| checkpointer.load(&Resume::Step(10), parts));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(toy, Toy::new());
}

#[test]
fn nothing_is_loaded_in_the_name_of_a_fresh_start() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let ends = on_ranks(2, move |group| {
        let mut ran = run(&group, every(10, &place), 10, no_metrics).unwrap();
        let mut toy = Toy::new();
        let refused = toy.with(|parts| ran.checkpointer.load(&Resume::Fresh, parts));
        (refused.unwrap_err().kind(), toy == Toy::new())
    });
    assert_eq!(ends, [(ErrorKind::InvalidInput, true); 2]);
}

#[test]
fn has_checkpoint_looks_at_manifest_and_lengths() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let has = |which: &Resume| {
        checkpointer(&solo, every(10, scratch.path())).unwrap().has_checkpoint(which).unwrap()
    };
    assert!(!has(&Resume::Latest) && !has(&Resume::Step(10)));
    drop(run(&solo, every(10, scratch.path()), 10, no_metrics).unwrap());
    let path = Resume::Path(scratch.path().join("run/checkpoint_step_00000010"));
    assert!(has(&Resume::Latest) && has(&Resume::Step(10)) && has(&path));
    assert!(!has(&Resume::Step(11)) && !has(&Resume::Fresh));
    let file = file_of(scratch.path(), 10, "model-");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!([Resume::Latest, Resume::Step(10), path].map(|which| has(&which)), [false; 3]);
}

#[test]
fn what_follows_an_older_checkpoint_counts_as_newer_than_what_was_left_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let kept = CheckpointerConfig { keep_last: Some(3), ..every(10, scratch.path()) };
    drop(run(&solo, kept.clone(), 40, no_metrics).unwrap());
    let back = CheckpointerConfig { resume: Resume::Step(20), ..kept.clone() };
    let ran = run(&solo, back, 30, no_metrics).unwrap();
    // Step 30 of the new branch, then 40 and 30 of the old one; 20 was resumed.
    assert_eq!(steps_of(&ran.checkpointer), [30, 40, 30, 20]);
    drop(ran);
    let ran = run(&solo, kept, 35, no_metrics).unwrap();
    assert_eq!(ran.first, 30);
    let latest = std::fs::read_link(scratch.path().join("run/latest")).unwrap();
    assert_eq!(latest.to_str().unwrap(), "checkpoint_step_00000035");
    assert_eq!(ran.toy, Toy::after(35, 0));
}

#[test]
fn a_fresh_start_beside_older_checkpoints_removes_none_of_them() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let kept = CheckpointerConfig { keep_last: Some(2), ..every(10, scratch.path()) };
    drop(run(&solo, kept.clone(), 100, no_metrics).unwrap());
    let anew = CheckpointerConfig { resume: Resume::Fresh, ..kept.clone() };
    let ran = run(&solo, anew, 40, no_metrics).unwrap();
    assert_eq!(ran.first, 0);
    assert_eq!(steps_of(&ran.checkpointer), [40, 30, 100, 90]);
    drop(ran);
    assert_eq!(run(&solo, kept, 50, no_metrics).unwrap().first, 40);
}

#[test]
fn a_place_in_the_data_returns_to_its_rank_and_can_be_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let places = place.clone();
    let saved = on_ranks(2, move |group| {
        run(&group, every(10, &places), 10, no_metrics).unwrap().toy.place
    });
    assert_eq!(saved, [10, 20]);
    let more = place.clone();
    let errors =
        on_ranks(3, move |group| run(&group, every(10, &more), 20, no_metrics).err().unwrap());
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        let text = error.to_string();
        assert!(text.contains("dataloaders.train") && text.contains("rank 2"), "{text}");
    }
    let places = on_ranks(3, move |group| {
        let without = CheckpointerConfig { resume_data: false, ..every(10, &place) };
        let mut checkpointer = checkpointer(&group, without).unwrap();
        let mut toy = Toy { place: 77, ..Toy::new() };
        toy.with(|parts| checkpointer.resume(parts)).unwrap().unwrap();
        assert_eq!(toy.weights, Toy::after(10, 0).weights);
        toy.place
    });
    assert_eq!(places, [77; 3]);
}

#[test]
fn losses_metrics_and_the_best_survive() {
    let scratch = tempfile::tempdir().unwrap();
    let config =
        CheckpointerConfig { monitor: Some("val_loss".to_owned()), ..every(10, scratch.path()) };
    let solo = ProcessGroup::solo();
    let mut first = checkpointer(&solo, config.clone()).unwrap();
    first.update_state(Some(2.0), Some(1.5), &[("accuracy", 0.25)]);
    first.update_state(Some(1.0), Some(f64::NAN), &[]);
    let _ = Toy::new().with(|parts| first.step_callback(&at(7), parts)).unwrap();
    first.update_state(None, Some(0.5), &[("odd/name of\u{1f980}", f64::INFINITY)]);
    let at_ten = at(10).metric("val_loss", 0.75);
    Toy::new().with(|parts| first.save(&at_ten, parts)).unwrap();
    drop(first);
    let mut second = checkpointer(&solo, config).unwrap();
    Toy::new().with(|parts| second.resume(parts)).unwrap().unwrap();
    let state = second.state();
    assert_eq!(state.train_losses, [2.0, 1.0]);
    assert!(state.val_losses[0] == 1.5 && state.val_losses[1].is_nan());
    // Measured after step 7, saved with the loss of step 10.
    assert_eq!((state.best, state.best_step), (Some(0.5), 7));
    assert_eq!(state.best_saved, Some(0.75));
    let metrics: Vec<_> = state.metrics.iter().map(|(name, v)| (name.as_str(), *v)).collect();
    let odd = ("odd/name of\u{1f980}", f64::INFINITY);
    assert_eq!(metrics, [("accuracy", 0.25), odd, ("train_loss", 1.0), ("val_loss", 0.75)]);
    let listed = second.find_checkpoints().unwrap();
    assert_eq!(listed[0].metrics, [("val_loss".to_owned(), 0.75)].into(), "those of its step");
    assert_eq!((state.step, state.epoch), (10, 2));
    assert_eq!(state.experiment, "run");
    assert!(state.saved_unix_ms.is_some());
}

#[test]
fn one_line_loads_any_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    drop(run(&solo, every(10, scratch.path()), 20, no_metrics).unwrap());
    let mut toy = Toy::new();
    let path = scratch.path().join("run/latest");
    let loaded = toy.with(|parts| load_checkpoint(&solo, path, parts)).unwrap();
    assert_eq!(loaded.state.step, 20);
    assert_eq!(toy, Toy::after(20, 0));
}

/// A rank that means a path that can be none brings that to the vote.
#[test]
fn a_path_that_is_none_on_one_rank_is_every_ranks_error() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let errors = on_ranks(2, move |group| {
        drop(run(&group, every(10, &place), 10, no_metrics).unwrap());
        let good = place.join("run/checkpoint_step_00000010");
        let mut checkpointer = checkpointer(&group, every(10, &place)).unwrap();
        let mut errors = Vec::new();
        for bad in ["", "/", "elsewhere"] {
            let path = if group.rank().get() == 1 { bad.into() } else { good.clone() };
            let mut toy = Toy::new();
            let which = Resume::Path(path.clone());
            errors.push(toy.with(|parts| checkpointer.load(&which, parts)).unwrap_err());
            errors.push(checkpointer.has_checkpoint(&which).unwrap_err());
            errors.push(toy.with(|parts| load_checkpoint(&group, &path, parts)).unwrap_err());
        }
        toy_of(&mut checkpointer, &Resume::Path(good));
        errors
    });
    for error in errors.iter().flatten() {
        assert!(error.to_string().contains("rank 1"), "{error}");
    }
}

fn toy_of(checkpointer: &mut Checkpointer, which: &Resume) -> Toy {
    let mut toy = Toy::new();
    toy.with(|parts| checkpointer.load(which, parts)).unwrap();
    toy
}

#[test]
fn a_disabled_checkpointer_loads_by_path() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    drop(run(&solo, every(10, scratch.path()), 10, no_metrics).unwrap());
    let off = CheckpointerConfig {
        enabled: false,
        experiment: "other".to_owned(),
        ..every(10, scratch.path())
    };
    let mut checkpointer = checkpointer(&solo, off).unwrap();
    assert!(!checkpointer.has_checkpoint(&Resume::Latest).unwrap());
    let path = scratch.path().join("run/checkpoint_step_00000010");
    assert_eq!(toy_of(&mut checkpointer, &Resume::Path(path)), Toy::after(10, 0));
}

/// The same save under two names: neither is newer than the other, and no branch begins.
#[test]
fn a_copy_beside_it_is_no_newer_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    drop(run(&solo, every(10, scratch.path()), 10, no_metrics).unwrap());
    let original = scratch.path().join("run/checkpoint_step_00000010");
    let copy = scratch.path().join("run/copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(&original).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    for name in [original, copy] {
        let mut checkpointer = checkpointer(&solo, every(10, scratch.path())).unwrap();
        let mut toy = Toy::new();
        let resumed = toy.with(|parts| checkpointer.load(&Resume::Path(name), parts)).unwrap();
        assert!(resumed.abandoned.is_empty(), "{resumed:?}");
    }
}

#[test]
fn a_run_says_what_it_goes_on_from_and_when_it_saves() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let said = |steps| {
        let config = every(10, scratch.path());
        logged(tracing::Level::INFO, || drop(run(&solo, config, steps, no_metrics).unwrap()))
    };
    let first = said(10);
    assert!(first.contains("training begins anew"), "{first}");
    assert!(first.contains("saving") && first.contains("step=10"), "{first}");
    let second = said(20);
    assert!(second.contains("resumed") && second.contains("checkpoint_step_00000010"), "{second}");
}
