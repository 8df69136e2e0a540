//! Damaged checkpoints: refused, or passed over on request, and never in the way for ever.

use tch_checkpoint::checkpointer::{CheckpointerConfig, Resume};
use tch_checkpoint::{ErrorKind, ProcessGroup};

use super::resuming::every;
use super::toy::{Toy, checkpointer, damage, file_of, no_metrics, run};
use crate::harness::logged;

/// What was passed over once does not stand in the way of a later resume.
#[test]
fn what_follows_a_fall_back_counts_as_newer_than_the_damaged_one() {
    for (what, prefix) in [("content", "model-"), ("manifest", "manifest"), ("length", "model-")] {
        let scratch = tempfile::tempdir().unwrap();
        let solo = ProcessGroup::solo();
        drop(run(&solo, every(10, scratch.path()), 30, no_metrics).unwrap());
        let file = file_of(scratch.path(), 30, prefix);
        match what {
            "length" => std::fs::write(&file, b"short").unwrap(),
            _ => damage(&file),
        }
        let falling = CheckpointerConfig { resume_fall_back: true, ..every(10, scratch.path()) };
        assert_eq!(run(&solo, falling, 25, no_metrics).unwrap().first, 20, "{what}");
        let ran = run(&solo, every(10, scratch.path()), 27, no_metrics).unwrap();
        assert_eq!(ran.first, 25, "{what}");
        assert_eq!(ran.toy, Toy::after(27, 0), "{what}");
    }
}

#[test]
fn a_best_that_is_damaged_is_an_error_unless_falling_back_was_asked_for() {
    for (what, prefix) in [("content", "model-"), ("manifest", "manifest"), ("length", "model-")] {
        let scratch = tempfile::tempdir().unwrap();
        let solo = ProcessGroup::solo();
        let config = CheckpointerConfig {
            monitor: Some("loss".to_owned()),
            resume: Resume::Best,
            ..every(10, scratch.path())
        };
        let losses = |step: u64| vec![("loss", if step == 20 { 0.25 } else { 0.5 })];
        drop(run(&solo, config.clone(), 30, losses).unwrap());
        let file = file_of(scratch.path(), 20, prefix);
        match what {
            "length" => std::fs::write(&file, b"short").unwrap(),
            _ => damage(&file),
        }
        let refused = run(&solo, config.clone(), 40, losses).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{what}: {refused}");
        let config = CheckpointerConfig { resume_fall_back: true, ..config };
        let mut checkpointer = checkpointer(&solo, config).unwrap();
        let resumed = Toy::new().with(|parts| checkpointer.resume(parts)).unwrap().unwrap();
        // Of equals the older.
        assert_eq!(resumed.state.step, 10, "{what}");
        assert_eq!(resumed.passed_over, ["checkpoint_step_00000020"], "{what}");
    }
}

#[test]
fn a_step_or_path_never_becomes_another_one() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let config = CheckpointerConfig { resume_fall_back: true, ..every(10, scratch.path()) };
    let mut ran = run(&solo, config, 30, no_metrics).unwrap();
    damage(&file_of(scratch.path(), 20, "model-"));
    let path = scratch.path().join("run/checkpoint_step_00000020");
    for which in [Resume::Step(20), Resume::Path(path)] {
        let error = ran.toy.with(|parts| ran.checkpointer.load(&which, parts)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{which:?}: {error}");
        assert_eq!(ran.toy, Toy::after(30, 0));
    }
}

/// Its manifest and lengths are right, so that it counts as any other: it is for somebody to look
/// at all the same.
#[test]
fn what_a_run_found_damaged_while_loading_is_not_removed_by_it() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let kept = CheckpointerConfig { keep_last: Some(2), ..every(10, scratch.path()) };
    drop(run(&solo, kept.clone(), 30, no_metrics).unwrap());
    damage(&file_of(scratch.path(), 30, "model-"));
    let refused = run(&solo, kept.clone(), 40, no_metrics).err().unwrap();
    assert!(refused.to_string().contains("`resume_fall_back` takes the one before"), "{refused}");
    let falling = CheckpointerConfig { resume_fall_back: true, ..kept };
    let ran = run(&solo, falling, 60, no_metrics).unwrap();
    assert_eq!(ran.first, 20);
    let steps = ran.checkpointer.find_checkpoints().unwrap().into_iter().map(|info| info.step);
    assert_eq!(steps.collect::<Vec<_>>(), [60, 50, 30, 20]);
}

#[test]
fn a_monitor_that_nobody_measures_is_told_once() {
    let scratch = tempfile::tempdir().unwrap();
    let config =
        CheckpointerConfig { monitor: Some("val_los".to_owned()), ..every(10, scratch.path()) };
    let said = logged(tracing::Level::WARN, || {
        let measured = |_| vec![("val_loss", 0.5)];
        drop(run(&ProcessGroup::solo(), config, 30, measured).unwrap());
    });
    assert_eq!(said.matches("not among those measured").count(), 1, "{said}");
    assert!(said.contains("val_los") && said.contains("val_loss"), "{said}");
}

#[test]
fn a_directory_of_checkpoints_is_told_from_one_that_holds_none() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    drop(run(&solo, every(10, scratch.path()), 10, no_metrics).unwrap());
    let path = Resume::Path(scratch.path().join("run"));
    let config = CheckpointerConfig { resume: path, ..every(10, scratch.path()) };
    let text = run(&solo, config, 20, no_metrics).err().unwrap().to_string();
    assert!(text.contains("a directory of checkpoints, not one"), "{text}");
    assert!(
        text.contains("run/checkpoint_step_00000010`") && text.contains("run/latest`"),
        "{text}"
    );
}
