//! Where `latest` and `best` lead while checkpoints go.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::ProcessGroup;
use tch_checkpoint::autosave::Mode;
use tch_checkpoint::catalog::{Wanted, find};
use tch_checkpoint::checkpointer::{
    At, Checkpointer, CheckpointerConfig, Location, Parts, save_checkpoint_in,
};
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};

use super::toy::{Toy, Weights, at, checkpointer, config, no_metrics, run, steps_of};
use crate::harness::on_ranks;

const EIO: i32 = 5;

/// Every ten steps; what the rules keep is one, and the best by `monitor`.
fn keeping_one(monitor: Option<&str>, directory: &Path) -> CheckpointerConfig {
    CheckpointerConfig {
        save_every_steps: Some(10),
        keep_last: Some(1),
        monitor: monitor.map(str::to_owned),
        ..config(directory)
    }
}

/// The name that a link has, if there is a link; it leads to a checkpoint.
fn led_to(directory: &Path, link: &str) -> Option<String> {
    let link = directory.join("run").join(link);
    let text = std::fs::read_link(&link).ok()?;
    assert!(link.join("manifest.bin").is_file(), "{} leads nowhere", link.display());
    Some(text.to_str().unwrap().to_owned())
}

fn loss_best_at_10(step: u64) -> Vec<(&'static str, f64)> {
    vec![("loss", if step == 10 { 0.5 } else { 1.0 })]
}

/// Whatever is monitored, its best stays, also if no rule counts the best.
#[test]
fn the_best_stays_although_no_rule_counts_the_best() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let left = on_ranks(2, move |group| {
        let ran = run(&group, keeping_one(Some("loss"), &place), 40, loss_best_at_10).unwrap();
        steps_of(&ran.checkpointer)
    });
    assert_eq!(left, [[40, 10], [40, 10]]);
    assert_eq!(led_to(scratch.path(), "best").unwrap(), "checkpoint_step_00000010");
}

/// What was the best stays until there is another best one, and goes then.
#[test]
fn no_link_leads_nowhere_when_another_metric_is_monitored() {
    let solo = ProcessGroup::solo();
    for next in [None, Some("accuracy")] {
        let scratch = tempfile::tempdir().unwrap();
        let begun = keeping_one(Some("loss"), scratch.path());
        drop(run(&solo, begun, 30, loss_best_at_10).unwrap());
        let other = keeping_one(next, scratch.path());
        let ran = run(&solo, other.clone(), 50, no_metrics).unwrap();
        assert_eq!(led_to(scratch.path(), "best").unwrap(), "checkpoint_step_00000010");
        assert_eq!(led_to(scratch.path(), "latest").unwrap(), "checkpoint_step_00000050");
        assert_eq!(steps_of(&ran.checkpointer), [50, 30, 10], "30 was resumed");
        drop(ran);
        let accurate = |_| vec![("accuracy", 0.5)];
        let max =
            CheckpointerConfig { mode: Mode::Max, ..keeping_one(Some("accuracy"), scratch.path()) };
        let ran = run(&solo, max, 80, accurate).unwrap();
        assert_eq!(led_to(scratch.path(), "best").unwrap(), "checkpoint_step_00000060");
        assert_eq!(steps_of(&ran.checkpointer), [80, 60, 50], "50 was resumed");
    }
}

/// One save after another in memory, of which an operation of the last fails.
fn save_at(checkpointer: &mut Checkpointer, step: u64) -> tch_checkpoint::Result<()> {
    // The best is always the one before the last.
    let loss = if step.is_multiple_of(20) { 1.0 } else { 1.0 / step as f64 };
    let mut toy = Toy::new();
    let at = at(step).metric("loss", loss);
    toy.with(|parts| checkpointer.step_callback(&at, parts)).map(drop)
}

#[test]
fn no_link_leads_nowhere_whatever_operation_fails() {
    for persistent in [false, true] {
        for operation in 1.. {
            let memory = MemoryStorage::new();
            let faulty = Arc::new(FaultyStorage::new(Arc::new(memory.clone())));
            let config = keeping_one(Some("loss"), Path::new("dir"));
            let mut checkpointer =
                Checkpointer::with_storage(&ProcessGroup::solo(), faulty.clone(), config).unwrap();
            (10..=40).step_by(10).for_each(|step| save_at(&mut checkpointer, step).unwrap());
            faulty.reset();
            faulty.fail_at(operation, Fault::Error(EIO), persistent);
            let saved = save_at(&mut checkpointer, 50);
            let parent = memory.open_dir(Path::new("dir/run")).unwrap();
            for link in ["latest", "best"] {
                let text = parent.read_link(link).unwrap();
                let wanted = Wanted::parse(Path::new("dir/run").join(&text)).unwrap();
                let log = faulty.log();
                let at = log.get(operation as usize - 1);
                find(&memory, &wanted).unwrap_or_else(|e| panic!("{link}, {at:?}: {e}"));
            }
            if faulty.operations() < operation {
                saved.unwrap();
                assert!(operation > 100, "a save and its pass did {operation} operations");
                break;
            }
        }
    }
}

/// What one line saved is no part of the run, so no link leads to it.
#[test]
fn what_was_saved_beside_the_run_is_never_its_best() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let mut checkpointer = checkpointer(&solo, keeping_one(Some("loss"), scratch.path())).unwrap();
    let mut toy = Toy::new();
    let place = Location::Path(scratch.path().to_path_buf());
    let mut weights = Weights(&mut toy.weights);
    let beside = At::step(7).metric("loss", 0.1);
    save_checkpoint_in(&solo, place, "run", &beside, &mut Parts::new().model(&mut weights))
        .unwrap();
    save_at(&mut checkpointer, 10).unwrap();
    assert_eq!(led_to(scratch.path(), "best").unwrap(), "checkpoint_step_00000010");
    assert_eq!(steps_of(&checkpointer), [10, 7]);
}

/// Without rules nothing goes, and a directory of thousands is not read after each save.
#[test]
fn without_rules_a_save_reads_as_much_however_many_there_are() {
    let memory = MemoryStorage::new();
    let faulty = Arc::new(FaultyStorage::new(Arc::new(memory.clone())));
    let config =
        CheckpointerConfig { keep_last: None, ..keeping_one(Some("loss"), Path::new("dir")) };
    let make = || Checkpointer::with_storage(&ProcessGroup::solo(), faulty.clone(), config.clone());
    let parent = || memory.open_dir(Path::new("dir/run")).unwrap();
    let leads = |step: u64| format!("checkpoint_step_{step:08}");
    let mut reads = Vec::new();
    let mut first = make().unwrap();
    for step in (10..=300).step_by(10) {
        faulty.reset();
        save_at(&mut first, step).unwrap();
        let is_read =
            |line: &&String| line.starts_with("open_file") && line.ends_with("manifest.bin");
        reads.push(faulty.log().iter().filter(is_read).count());
        assert_eq!(parent().read_link("latest").unwrap(), leads(step));
        let best = if step.is_multiple_of(20) { step - 10 } else { step };
        assert_eq!(parent().read_link("best").unwrap(), leads(best));
    }
    assert_eq!(reads[3..7], reads[23..27], "{reads:?}");
    // What is not as it was left is looked for among all.
    for gone in ["latest", "best"] {
        parent().remove_file(gone).unwrap();
    }
    parent().rename(&leads(290), "elsewhere", tch_checkpoint::storage::Rename::NoReplace).unwrap();
    save_at(&mut first, 320).unwrap();
    assert_eq!(parent().read_link("best").unwrap(), "elsewhere");
    let max = CheckpointerConfig { mode: Mode::Max, ..config.clone() };
    let mut second =
        Checkpointer::with_storage(&ProcessGroup::solo(), faulty.clone(), max).unwrap();
    Toy::new().with(|parts| second.resume(parts)).unwrap().unwrap();
    save_at(&mut second, 330).unwrap();
    assert_eq!(
        parent().read_link("best").unwrap(),
        leads(20),
        "the highest, and the first of them"
    );
}

/// Each save says that it could not be done, and everything else goes on.
#[test]
fn what_the_user_calls_latest_or_best_stays_and_rules_go_on() {
    let (solo, scratch) = (ProcessGroup::solo(), tempfile::tempdir().unwrap());
    let mine = scratch.path().join("run/latest/mine.txt");
    std::fs::create_dir_all(mine.parent().unwrap()).unwrap();
    let list = scratch.path().join("run/best.json");
    for file in [&mine, &list] {
        std::fs::write(file, "[1]").unwrap();
    }
    let ran = run(&solo, keeping_one(Some("loss"), scratch.path()), 40, loss_best_at_10).unwrap();
    assert_eq!(steps_of(&ran.checkpointer), [40, 10]);
    assert_eq!(led_to(scratch.path(), "best").unwrap(), "checkpoint_step_00000010");
    let json = std::fs::read_to_string(scratch.path().join("run/latest.json")).unwrap();
    assert!(json.contains("checkpoint_step_00000040"), "{json}");
    assert!([mine, list].iter().all(|file| std::fs::read(file).unwrap() == b"[1]"));
}
