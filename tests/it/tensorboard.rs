//! Event files of a `Checkpointer`, read by TensorBoard itself where a Python has it.

use std::path::{Path, PathBuf};

use tch_checkpoint::ProcessGroup;
use tch_checkpoint::checkpointer::{AsyncMode, CheckpointerConfig, Resume};
use tracing::Level;

use crate::checkpointer::toy::{Ran, config, run};
use crate::harness::*;
use crate::tier;

const PRINT: &str = r#"
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
for tag in sorted(events.Tags()["scalars"]):
    print(tag, [(event.step, event.value) for event in events.Scalars(tag)], sep=": ")
"#;

fn with_events(directory: &Path, save_mode: AsyncMode, resume: Resume) -> CheckpointerConfig {
    CheckpointerConfig {
        save_every_steps: Some(2),
        save_mode,
        resume,
        tensorboard: Some(directory.join("logs")),
        ..config(&directory.join("runs"))
    }
}

fn event_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("logs/run")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Eight steps on two ranks, whose losses differ, so that their mean is told.
fn train(directory: &Path, save_mode: AsyncMode, resume: Resume, loss: f64) {
    let directory = directory.to_path_buf();
    on_ranks(2, move |group| {
        let config = with_events(&directory, save_mode, resume.clone());
        let own = loss + f64::from(group.rank().get()) - 0.5;
        let Ran { checkpointer, .. } =
            run(&group, config, 8, |step| vec![("val/loss", own + step as f64)]).unwrap();
        checkpointer.log_scalars(3, &[("train/loss", loss), ("lr", 0.125)]);
    });
}

#[test]
fn tensorboard_sees_one_course_also_of_a_run_that_went_back() {
    let dir = tempfile::tempdir().unwrap();
    train(dir.path(), AsyncMode::Disabled, Resume::Latest, 10.0);
    assert_eq!(event_files(dir.path()).len(), 1, "one rank writes");
    train(dir.path(), AsyncMode::Async, Resume::Step(4), 20.0);
    assert_eq!(event_files(dir.path()).len(), 2);
    let Some(mut python) = tier::python("tensorboard.backend.event_processing.event_accumulator")
    else {
        return;
    };
    let ran = python.args(["-c", PRINT]).arg(dir.path().join("logs/run")).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let told = String::from_utf8(ran.stdout).unwrap();
    let line = |tag: &str| told.lines().find_map(|line| line.strip_prefix(&format!("{tag}: ")));
    assert_eq!(line("val/loss"), Some("[(2, 12.0), (4, 14.0), (6, 26.0), (8, 28.0)]"), "{told}");
    assert_eq!(line("epoch"), Some("[(2, 0.0), (4, 1.0), (6, 1.0), (8, 2.0)]"), "{told}");
    assert_eq!(line("train/loss"), Some("[(3, 10.0), (3, 20.0)]"), "{told}");
    let bytes = "[(2, 1000.0), (4, 1000.0), (6, 1000.0), (8, 1000.0)]";
    assert_eq!(line("checkpoint/bytes"), Some(bytes), "{told}");
    assert_eq!(line("checkpoint/load_bytes"), Some("[(4, 2000.0)]"), "{told}");
    for tag in ["seconds", "stall_seconds", "write_seconds", "commit_seconds"] {
        assert!(line(&format!("checkpoint/{tag}")).is_some(), "{told}");
    }
}

#[test]
fn a_log_that_cannot_be_written_is_warned_of_once_and_training_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("logs"), "no directory").unwrap();
    let log = logged(Level::WARN, || {
        let config = with_events(dir.path(), AsyncMode::Disabled, Resume::Latest);
        let ran = run(&ProcessGroup::solo(), config, 8, |_| vec![("val/loss", 1.0)]).unwrap();
        assert_eq!(ran.checkpointer.find_checkpoints().unwrap().len(), 4);
    });
    assert_eq!(log.matches("no more events for TensorBoard").count(), 1, "{log}");
    assert_eq!(std::fs::read_to_string(dir.path().join("logs")).unwrap(), "no directory");
}

#[test]
fn without_the_setting_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        CheckpointerConfig { save_every_steps: Some(2), ..config(&dir.path().join("runs")) };
    let ran = run(&ProcessGroup::solo(), config, 4, |_| vec![]).unwrap();
    ran.checkpointer.log_scalars(1, &[("lr", 1.0)]);
    let names: Vec<_> = std::fs::read_dir(dir.path().join("runs/run")).unwrap().collect();
    let is_event = |name: &std::fs::DirEntry| name.file_name().to_string_lossy().contains("events");
    assert!(!names.into_iter().any(|entry| is_event(&entry.unwrap())));
}
