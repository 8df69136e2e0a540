//! Runs that go back or begin anew, in a directory with damaged checkpoints.

use std::path::Path;

use tch_checkpoint::ProcessGroup;
use tch_checkpoint::checkpointer::{CheckpointerConfig, Resume};

use super::toy::{config, file_of, no_metrics, run, steps_of};

fn every_ten(directory: &Path) -> CheckpointerConfig {
    CheckpointerConfig { save_every_steps: Some(10), ..config(directory) }
}

/// Its manifest can be read, so that it is known where it stands.
fn cut_short(directory: &Path, step: u64) {
    let file = file_of(directory, step, "model-");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
}

#[test]
fn what_follows_a_fall_back_counts_as_newer_than_what_was_damaged() {
    let (solo, scratch) = (ProcessGroup::solo(), tempfile::tempdir().unwrap());
    drop(run(&solo, every_ten(scratch.path()), 50, no_metrics).unwrap());
    cut_short(scratch.path(), 50);
    let falling = CheckpointerConfig { resume_fall_back: true, ..every_ten(scratch.path()) };
    assert_eq!(run(&solo, falling, 45, no_metrics).unwrap().first, 40);
    assert_eq!(run(&solo, every_ten(scratch.path()), 47, no_metrics).unwrap().first, 45);
}

/// It may be made whole again: then it is of its own run, and not of the one that began since.
#[test]
fn a_fresh_start_beside_damaged_checkpoints_is_a_line_of_its_own() {
    let (solo, scratch) = (ProcessGroup::solo(), tempfile::tempdir().unwrap());
    drop(run(&solo, every_ten(scratch.path()), 30, no_metrics).unwrap());
    let anew = CheckpointerConfig { resume: Resume::Fresh, ..every_ten(scratch.path()) };
    drop(run(&solo, anew.clone(), 5, no_metrics).unwrap());
    let whole = std::fs::read(file_of(scratch.path(), 5, "model-")).unwrap();
    cut_short(scratch.path(), 5);
    let kept = CheckpointerConfig { keep_last: Some(1), ..anew };
    drop(run(&solo, kept.clone(), 6, no_metrics).unwrap());
    std::fs::write(file_of(scratch.path(), 5, "model-"), whole).unwrap();
    let resumed = CheckpointerConfig { resume: Resume::Latest, ..kept };
    let ran = run(&solo, resumed, 8, no_metrics).unwrap();
    assert_eq!(steps_of(&ran.checkpointer), [8, 6, 5, 30, 20, 10]);
}
