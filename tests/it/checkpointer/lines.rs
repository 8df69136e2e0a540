//! Runs that go back or begin anew, in a directory with damaged checkpoints.

use std::path::Path;

use tch_checkpoint::ProcessGroup;
use tch_checkpoint::checkpointer::{CheckpointerConfig, Resume};

use super::toy::{Toy, at, checkpointer, config, file_of, no_metrics, run, steps_of};

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

/// Both see an empty directory; neither may take what the other one needs.
#[test]
fn two_jobs_that_begin_at_the_same_time_remove_nothing_of_one_another() {
    let (solo, scratch) = (ProcessGroup::solo(), tempfile::tempdir().unwrap());
    let kept = CheckpointerConfig { keep_last: Some(1), ..every_ten(scratch.path()) };
    let mut jobs = [(); 2].map(|()| checkpointer(&solo, kept.clone()).unwrap());
    for step in [10, 20, 30] {
        for job in &mut jobs {
            let _ = Toy::new().with(|parts| job.step_callback(&at(step), parts)).unwrap();
        }
    }
    assert_eq!(steps_of(&jobs[0]), [30, 30]);
}

#[test]
fn a_checkpoint_copied_from_another_experiment_stays() {
    let (solo, scratch) = (ProcessGroup::solo(), tempfile::tempdir().unwrap());
    let other = CheckpointerConfig { experiment: "other".to_owned(), ..every_ten(scratch.path()) };
    drop(run(&solo, other, 10, no_metrics).unwrap());
    let kept = CheckpointerConfig { keep_last: Some(1), ..every_ten(scratch.path()) };
    drop(run(&solo, kept.clone(), 20, no_metrics).unwrap());
    let place = scratch.path().join("run/theirs");
    std::fs::create_dir(&place).unwrap();
    let from = scratch.path().join("other/checkpoint_step_00000010");
    for file in std::fs::read_dir(from).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), place.join(file.file_name())).unwrap();
    }
    let ran = run(&solo, kept, 30, no_metrics).unwrap();
    assert_eq!(steps_of(&ran.checkpointer), [30, 20, 10], "20 was resumed");
}
