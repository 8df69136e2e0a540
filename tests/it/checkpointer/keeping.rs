//! What stays, through whole runs.

use tch_checkpoint::ProcessGroup;
use tch_checkpoint::autosave::Mode;
use tch_checkpoint::checkpointer::CheckpointerConfig;

use super::toy::{config, no_metrics, run, steps_of};
use crate::harness::on_ranks;

#[test]
fn the_union_of_all_rules_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let left = on_ranks(2, move |group| {
        let config = CheckpointerConfig {
            save_every_steps: Some(5),
            keep_last: Some(2),
            keep_best: Some(1),
            monitor: Some("accuracy".to_owned()),
            mode: Mode::Max,
            keep_every_steps: Some(20),
            keep_pinned: vec!["*_00000035".to_owned()],
            ..config(&place)
        };
        let best_at_15 = |step: u64| vec![("accuracy", if step == 15 { 0.9 } else { 0.1 })];
        let ran = run(&group, config, 60, best_at_15).unwrap();
        steps_of(&ran.checkpointer)
    });
    assert_eq!(left[0], [60, 55, 40, 35, 20, 15]);
    assert_eq!(left[0], left[1]);
    let best = std::fs::read_link(scratch.path().join("run/best")).unwrap();
    assert_eq!(best.to_str().unwrap(), "checkpoint_step_00000015");
    assert!(scratch.path().join("run/latest/manifest.bin").exists());
}

#[test]
fn files_of_the_user_and_checkpoints_of_others_stay() {
    let scratch = tempfile::tempdir().unwrap();
    let run_dir = scratch.path().join("run");
    std::fs::create_dir_all(run_dir.join("checkpoint_step_00000002")).unwrap();
    std::fs::write(run_dir.join("checkpoint_step_00000002/notes.txt"), "mine").unwrap();
    std::fs::write(run_dir.join("notes.txt"), "mine").unwrap();
    let config = CheckpointerConfig {
        save_every_steps: Some(1),
        keep_last: Some(1),
        ..config(scratch.path())
    };
    let ran = run(&ProcessGroup::solo(), config, 6, no_metrics).unwrap();
    assert_eq!(steps_of(&ran.checkpointer), [6]);
    assert_eq!(std::fs::read(run_dir.join("notes.txt")).unwrap(), b"mine");
    let kept = std::fs::read(run_dir.join("checkpoint_step_00000002/notes.txt")).unwrap();
    assert_eq!(kept, b"mine");
}
