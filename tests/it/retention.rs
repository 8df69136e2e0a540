//! Retention passes over real checkpoints: what goes, in which order, and what stands in the way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tch_checkpoint::autosave::Retention;
use tch_checkpoint::layout::{self, CheckpointName, SaveId};
use tch_checkpoint::manifest::{AUTOMATIC, METRICS};
use tch_checkpoint::retain::{keep, pin, unpin};
use tch_checkpoint::save::{Checkpoint, SaveOptions, save};
use tch_checkpoint::storage::{Directory, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::sweep::{self, Pace};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind, OnExisting, ProcessGroup, Result};

use crate::harness::*;
use crate::hooked::{Hooked, unsupported};

/// One checkpoint to be saved into `runs`.
#[derive(Debug, Clone)]
pub struct Save {
    pub name: String,
    pub step: u64,
    pub loss: Option<f64>,
    pub automatic: bool,
}

impl Save {
    /// `s<step>`, saved by a policy.
    pub fn at(step: u64) -> Self {
        Self { name: format!("s{step}"), step, loss: None, automatic: true }
    }

    pub fn save_in(&self, storage: &dyn Storage) -> Result<Checkpoint> {
        let group = ProcessGroup::solo();
        let tensors = [TestTensor::new("w", Dtype::F32, &[5], None)];
        let mut state = state(&tensors, &group, self.step);
        if let Some(loss) = self.loss {
            state.values.set(format!("{METRICS}loss"), loss);
        }
        if self.automatic {
            state.values.set(AUTOMATIC, true);
        }
        let options = SaveOptions {
            step: self.step,
            on_existing: OnExisting::Replace,
            ..SaveOptions::default()
        };
        save(&group, storage, &path(&format!("runs/{}", self.name)), &state, &options)
    }
}

/// Steps 1 to `n`, saved by a policy; their save ids.
pub fn steps(storage: &dyn Storage, n: u64) -> Vec<SaveId> {
    (1..=n).map(|step| Save::at(step).save_in(storage).unwrap().save_id).collect()
}

pub fn last(n: u64) -> Retention {
    Retention { last: Some(n.try_into().unwrap()), ..Retention::default() }
}

pub fn runs(storage: &dyn Storage) -> Arc<dyn Directory> {
    storage.open_dir(Path::new("runs")).unwrap()
}

/// One pass over `runs`; the names of what it says is left, sorted.
pub fn pass(storage: &dyn Storage, rules: &Retention, protected: &[SaveId]) -> Result<Vec<String>> {
    pass_in(runs(storage).as_ref(), rules, protected)
}

/// As [`pass`], in an open directory.
pub fn pass_in(
    parent: &dyn Directory,
    rules: &Retention,
    protected: &[SaveId],
) -> Result<Vec<String>> {
    let left = keep(parent, rules, protected, &pace())?;
    let mut names: Vec<_> = left.into_iter().map(|info| info.name).collect();
    names.sort();
    Ok(names)
}

fn name(text: &str) -> CheckpointName {
    CheckpointName::new(text).unwrap()
}

fn touch(storage: &dyn Storage, directory: &str, file: &str) {
    let dir = storage.create_dir_all(Path::new(directory)).unwrap();
    dir.create_file(file).unwrap().finish().unwrap();
}

#[test]
fn a_pass_removes_what_no_rule_keeps_and_says_what_is_left() {
    let storage = MemoryStorage::new();
    let ids = steps(&storage, 6);
    let by_hand = Save { automatic: false, ..Save::at(0) };
    by_hand.save_in(&storage).unwrap();
    assert_eq!(pass(&storage, &last(2), &ids[..1]).unwrap(), ["s0", "s1", "s5", "s6"]);
    assert_eq!(entries(&storage, "runs"), ["s0", "s1", "s5", "s6"]);
    assert_eq!(pass(&storage, &last(2), &[]).unwrap(), ["s0", "s5", "s6"]);
    for kept in ["runs/s0", "runs/s5", "runs/s6"] {
        assert_good(&storage, kept);
    }
}

/// Also a file that somebody has put into a checkpoint: the whole of it stays then.
#[test]
fn what_is_somebodys_is_not_touched() {
    let storage = MemoryStorage::new();
    steps(&storage, 4);
    let partial = layout::partial_dir(&name("s1"), &SaveId::from_bytes([7; 16]));
    let live = storage.create_dir_all(&Path::new("runs").join(&partial)).unwrap();
    let _owner = live.try_lock_self().unwrap();
    for (directory, file) in [
        ("runs", "notes.txt"),
        ("runs", ".trash-of-mine"),
        ("runs/s0", "manifest.bin"),
        ("runs/plots", "loss.png"),
        ("runs/s2", "why-this-one.txt"),
    ] {
        touch(&storage, directory, file);
    }
    let before = entries(&storage, "runs");
    pass(&storage, &last(1), &[]).unwrap();
    let gone = |name: &String| !["s1", "s3"].contains(&name.as_str());
    let expected: Vec<_> = before.into_iter().filter(gone).collect();
    assert_eq!(entries(&storage, "runs"), expected);
    assert_eq!(entries(&storage, "runs/s2").len(), 5, "its own four files, and the note");
}

/// One of which a file is lost, cut short or grown is not one of the newest two, and is left for
/// somebody to look at.
#[test]
fn a_damaged_checkpoint_neither_counts_nor_goes() {
    type Damage = fn(&mut Vec<u8>) -> bool;
    let lost: Damage = |_| false;
    let cut: Damage = |bytes| bytes.pop().is_some();
    let grown: Damage = |bytes| {
        bytes.push(0);
        true
    };
    for (file, damage) in [("model-", lost), ("model-", cut), ("sums-", grown), ("manifest", cut)] {
        let storage = MemoryStorage::new();
        steps(&storage, 5);
        for step in [1, 5] {
            let place = format!("runs/s{step}");
            let dir = storage.open_dir(Path::new(&place)).unwrap();
            let found = dir.list().unwrap().into_iter().find(|e| e.name.starts_with(file)).unwrap();
            let mut bytes = storage.read(&Path::new(&place).join(&found.name)).unwrap();
            dir.remove_file(&found.name).unwrap();
            if damage(&mut bytes) {
                let written = dir.create_file(&found.name).unwrap();
                written.write_at(0, &bytes).unwrap();
                written.finish().unwrap();
            }
        }
        pass(&storage, &last(2), &[]).unwrap();
        assert_eq!(entries(&storage, "runs"), ["s1", "s3", "s4", "s5"], "{file}");
    }
}

/// However much there is, each checkpoint is looked at once; what goes is looked at twice more
/// under the lock.
#[test]
fn a_pass_looks_at_each_checkpoint_once() {
    let memory = MemoryStorage::new();
    steps(&memory, 50);
    let operations = |retention: &Retention| {
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        let parent = runs(&faulty);
        faulty.reset();
        pass_in(parent.as_ref(), retention, &[]).unwrap();
        let log = faulty.log();
        let count = |start: &str, end: &str| {
            log.iter().filter(|line| line.starts_with(start) && line.ends_with(end)).count()
        };
        (count("open_file", "manifest.bin"), count("list runs", "runs"))
    };
    assert_eq!(operations(&last(50)), (50, 2), "the sweep, and the listing");
    assert_eq!(operations(&last(49)), (52, 3));
    assert_eq!(operations(&last(49)), (49, 2));
}

/// What the decision counts on is durable first; each one is out of sight, durably, before its
/// files go; and one has gone before the next begins.
#[test]
fn a_pass_is_durable_step_by_step() {
    let memory = MemoryStorage::new();
    steps(&memory, 3);
    let faulty = FaultyStorage::new(Arc::new(memory));
    pass(&faulty, &last(1), &[]).unwrap();
    let changes = |line: &String| {
        let what = line.split(' ').next().unwrap();
        ["sync", "rename", "remove_file", "remove_dir"].contains(&what).then(|| what.to_owned())
    };
    let mut changes: Vec<_> = faulty.log().iter().filter_map(changes).collect();
    changes.dedup();
    let each = ["rename", "sync", "remove_file", "remove_dir"];
    assert_eq!(changes, [["sync"].as_slice(), &each, &each].concat());
    let renamed: Vec<_> = faulty.log().into_iter().filter(|l| l.starts_with("rename")).collect();
    assert!(renamed[0].starts_with("rename runs/s1 -> .trash-"), "oldest first: {renamed:?}");
}

#[test]
fn nothing_goes_if_what_stays_cannot_be_made_durable() {
    let memory = MemoryStorage::new();
    steps(&memory, 3);
    let hooked = Hooked::new(&memory, |call| match call.operation {
        "sync" => Err(Error::new(ErrorKind::Storage, "no")),
        _ => Ok(()),
    });
    assert_eq!(pass(&hooked, &last(1), &[]).unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(entries(&memory, "runs"), ["s1", "s2", "s3"]);
}

#[test]
fn one_that_cannot_be_removed_stays_and_the_others_go() {
    let memory = MemoryStorage::new();
    steps(&memory, 5);
    let hooked = Hooked::new(&memory, |call| match call.operation {
        "open_file" if call.path == Path::new("runs/.s2.pin") => {
            Err(Error::new(ErrorKind::Storage, "no"))
        }
        "open_file" if call.path == Path::new("runs/.s3.pin") => panic!("in the storage"),
        _ => Ok(()),
    });
    assert_eq!(pass(&hooked, &last(1), &[]).unwrap(), ["s2", "s3", "s5"]);
    assert_eq!(pass(&memory, &last(1), &[]).unwrap(), ["s5"]);
}

#[test]
fn a_glob_that_cannot_be_read_is_an_error_and_nothing_goes() {
    let storage = MemoryStorage::new();
    steps(&storage, 3);
    let rules = Retention { pinned: vec!["s[".to_owned()], ..last(1) };
    assert_eq!(pass(&storage, &rules, &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(entries(&storage, "runs").len(), 3);
}

#[test]
fn pins_hold_until_they_are_taken_away() {
    let storage = MemoryStorage::new();
    steps(&storage, 4);
    let parent = runs(&storage);
    for _ in 0..2 {
        pin(parent.as_ref(), &name("s1"), &pace()).unwrap();
    }
    touch(&storage, "runs", ".s2.pin");
    assert_eq!(pass(&storage, &last(1), &[]).unwrap(), ["s1", "s2", "s4"]);
    // Also for another save under the name.
    Save::at(1).save_in(&storage).unwrap();
    for _ in 0..2 {
        unpin(parent.as_ref(), &name("s2")).unwrap();
    }
    assert_eq!(pass(&storage, &last(1), &[]).unwrap(), ["s1", "s4"]);
    assert_eq!(entries(&storage, "runs"), [".s1.pin", "s1", "s4"]);
    let error = pin(parent.as_ref(), &name("s3"), &pace()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(entries(&storage, "runs"), [".s1.pin", "s1", "s4"]);
}

#[test]
fn a_pin_is_durable() {
    let memory = MemoryStorage::new();
    steps(&memory, 1);
    let faulty = FaultyStorage::new(Arc::new(memory));
    let parent = runs(&faulty);
    pin(parent.as_ref(), &name("s1"), &pace()).unwrap();
    unpin(parent.as_ref(), &name("s1")).unwrap();
    let log = faulty.log();
    let after = |start: &str| {
        let at = log.iter().position(|line| line == start).unwrap();
        log[at + 1].as_str()
    };
    assert_eq!(after("create_file runs/.s1.pin"), "finish runs/.s1.pin");
    assert_eq!(after("finish runs/.s1.pin"), "sync runs");
    assert_eq!(after("remove_file runs/.s1.pin"), "sync runs");
}

/// Runs `meanwhile` when the pass is about to look at `s1` for the last time before it goes.
fn during_a_pass(
    memory: &MemoryStorage,
    rules: &Retention,
    meanwhile: impl Fn() + Send + Sync + 'static,
) -> Vec<String> {
    let (listed, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let hooked = Hooked::new(memory, move |call| {
        let listed = match call.operation {
            "sync" => listed.fetch_add(1, Ordering::Relaxed) + 1,
            _ => listed.load(Ordering::Relaxed),
        };
        if listed > 0 && call.operation == "try_lock" && !done.swap(true, Ordering::Relaxed) {
            meanwhile();
        }
        Ok(())
    });
    pass(&hooked, rules, &[]).unwrap()
}

#[test]
fn a_checkpoint_that_is_replaced_meanwhile_stays() {
    let memory = MemoryStorage::new();
    steps(&memory, 4);
    let other = memory.clone();
    let replace = move || drop(Save::at(1).save_in(&other).unwrap());
    assert_eq!(during_a_pass(&memory, &last(2), replace), ["s1", "s3", "s4"]);
    assert_good(&memory, "runs/s1");
}

#[test]
fn a_checkpoint_that_is_pinned_meanwhile_stays() {
    let pins: [fn(&MemoryStorage); 2] = [
        |storage| touch(storage, "runs", ".s1.pin"),
        |storage| drop(storage.create_dir_all(Path::new("runs/.s1.pin")).unwrap()),
    ];
    for pin in pins {
        let memory = MemoryStorage::new();
        steps(&memory, 4);
        let other = memory.clone();
        let pinned = move || pin(&other);
        assert_eq!(during_a_pass(&memory, &last(2), pinned), ["s1", "s3", "s4"]);
    }
}

/// Two jobs with different rules in one directory: each removes what the other has listed, and
/// saves besides.
#[test]
fn passes_of_two_jobs_leave_the_newest_and_no_error() {
    let memory = MemoryStorage::new();
    steps(&memory, 4);
    let other = memory.clone();
    let second_job = move || {
        Save::at(5).save_in(&other).unwrap();
        assert_eq!(pass(&other, &last(1), &[]).unwrap(), ["s5"]);
    };
    // `s3` and `s4`, which the first job wants to keep, went by the rules of the second.
    assert_eq!(during_a_pass(&memory, &last(2), second_job), ["s3", "s4"]);
    assert_eq!(entries(&memory, "runs"), ["s5"]);
    assert_good(&memory, "runs/s5");
}

/// Another job finishes in its sweep what this one has put into the trash.
#[test]
fn trash_that_another_job_unlinks_is_no_error() {
    let memory = MemoryStorage::new();
    let ids = steps(&memory, 2);
    let other = memory.clone();
    let unlinked = AtomicBool::new(false);
    let hooked = Hooked::new(&memory, move |call| {
        if call.operation == "remove_file" && !unlinked.swap(true, Ordering::Relaxed) {
            Save::at(3).save_in(&other).unwrap();
        }
        Ok(())
    });
    sweep::remove(runs(&hooked).as_ref(), &name("s1"), &ids[0], &pace()).unwrap();
    assert_eq!(entries(&memory, "runs"), ["s2", "s3"]);
}

/// A job that holds the lock ends the pass, instead of being waited for again and again.
#[test]
fn a_held_lock_is_waited_for_once() {
    let memory = MemoryStorage::new();
    steps(&memory, 5);
    let parent = runs(&memory);
    let _held = parent.try_lock(layout::LOCK).unwrap().unwrap();
    let impatient = Pace { patience: Duration::ZERO, ..pace() };
    let faulty = FaultyStorage::new(Arc::new(memory.clone()));
    let left = keep(runs(&faulty).as_ref(), &last(1), &[], &impatient).unwrap();
    assert_eq!(left.len(), 5);
    assert_eq!(entries(&memory, "runs").len(), 5);
    let tried = faulty.log().iter().filter(|line| line.starts_with("try_lock ")).count();
    assert_eq!(tried, 1, "four were to go");
}

#[test]
fn a_pass_works_where_locks_do_not() {
    let memory = MemoryStorage::new();
    steps(&memory, 4);
    let hooked = Hooked::new(&memory, |call| match call.operation {
        "try_lock" | "try_lock_self" => Err(unsupported()),
        _ => Ok(()),
    });
    assert_eq!(pass(&hooked, &last(1), &[]).unwrap(), ["s4"]);
    assert_eq!(entries(&memory, "runs"), ["s4"]);
}
