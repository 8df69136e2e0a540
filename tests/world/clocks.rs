//! Clocks that differ by weeks, and jump in the middle of a save. What is newest is told by steps,
//! and who is silent by a clock that nobody sets.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::job::{HANG, Job, Plan, Random, now, plainly, within};
use crate::looks::{debris, newest, owner, steps};
use crate::tier::{self, Need};

const DEADLINE_MS: u64 = 1500;
const DAYS: u64 = 30;
const DAY_S: i64 = 24 * 60 * 60;

/// The library that lies about the time of day.
fn library() -> PathBuf {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = libraries.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    found.find(|path| path.exists()).expect("libfaketime: launch/setup.sh --tests")
}

/// About the time of day alone: nobody sets the clock that counts since the machine started.
fn lie_with<'c>(library: &Path, command: &'c mut Command) -> &'c mut Command {
    command.env("LD_PRELOAD", library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// Where a rank reads how far its clock is off.
struct Clock(PathBuf);

impl Clock {
    fn off_by_days(place: &Path, rank: u32, random: &mut Random) -> Self {
        let clock = Self(place.join(format!("clock-{rank}")));
        clock.jump(random);
        clock
    }

    /// To any time between 30 days ago and in 30 days.
    fn jump(&self, random: &mut Random) {
        let off = random.below(2 * DAYS * DAY_S as u64) as i64 - DAYS as i64 * DAY_S;
        let beside = self.0.with_extension("new");
        std::fs::write(&beside, format!("{off:+}")).unwrap();
        std::fs::rename(beside, &self.0).unwrap();
    }
}

/// Saves with clocks that are off and jump; then one rank stops, and the other gives it up in time.
fn run_once(random: &mut Random, library: &Path) -> u64 {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("runs");
    let clocks: Vec<_> =
        (0..2).map(|rank| Clock::off_by_days(place.path(), rank, random)).collect();
    let plan = Plan { deadline_ms: DEADLINE_MS, keep: Some(3), ..Plan::of(&dir) };
    let job = Job::start(&plan, random, |rank, arguments| {
        let mut command = plainly(arguments);
        let file = &clocks[rank as usize].0;
        lie_with(library, &mut command).env("FAKETIME_TIMESTAMP_FILE", file);
        command.env("FAKETIME_NO_CACHE", "1");
        command
    });
    for commits in 1..4 {
        job.wait_for_commits(commits);
        clocks.iter().for_each(|clock| clock.jump(random));
        std::thread::sleep(Duration::from_millis(random.below(10)));
    }
    job.signal_rank(1, Signal::STOP);
    let stopped_at = now();
    clocks.iter().for_each(|clock| clock.jump(random));
    let knows = || job.notes().failed(0).is_some();
    assert!(within(HANG, knows), "no deadline: {}", job.said());
    let notes = job.notes();
    let (kind, text) = notes.failed(0).unwrap();
    assert!(kind == "Deadline" && text.contains("rank 1"), "{}", job.said());
    let took = notes.find(0, "FAILED").unwrap().at - stopped_at;
    // Not at once either, as if the jump had been a long silence.
    assert!(took + 500 > DEADLINE_MS, "after {took} ms: {}", job.said());
    job.signal_rank(1, Signal::CONT);
    let said = job.said();
    let committed = job.end().committed(0);
    check_order(&dir, &committed, &said);
    took
}

/// The newest by step is the newest, and retention has kept the last three by step.
fn check_order(dir: &Path, committed: &[(u64, String)], said: &str) {
    let kept = committed.iter().skip(committed.len().saturating_sub(3));
    let kept: Vec<u64> = kept.map(|(step, _)| *step).collect();
    let there = steps(dir);
    // The last pass may have been cut short.
    assert!(there.ends_with(&kept) && there.len() <= kept.len() + 1, "{there:?}, {kept:?}: {said}");
    assert_eq!(newest(dir), kept.last().copied(), "{said}");
    there.iter().for_each(|step| drop(owner(dir, *step)));
    assert!(debris(dir).len() <= 1, "{:?}", debris(dir));
}

/// The time of day that the checkpoint of a step says it was saved at.
fn saved_at(dir: &Path, step: u64) -> u64 {
    use tch_checkpoint::catalog::{Wanted, find};
    use tch_checkpoint::storage::LocalStorage;
    let wanted = Wanted::parse(dir.join(crate::program::name_of(step))).unwrap();
    find(&LocalStorage::new(), &wanted).unwrap().manifest.created_unix_ms()
}

#[test]
fn clocks_that_are_weeks_off_and_jump_change_neither_order_nor_deadlines() {
    if !tier::has(&[Need::Program("faketime")]) {
        return;
    }
    let (mut random, library) = (Random::seeded(), library());
    let count = tier::count(1, 50);
    let worst = (0..count).map(|_| run_once(&mut random, &library)).max().unwrap();
    tier::figure("jobs with clocks that are off", count);
    tier::figure(&format!("ms to give up a stopped rank, deadline {DEADLINE_MS}"), worst);
}

#[test]
fn a_step_saved_weeks_before_the_one_before_it_is_newer() {
    if !tier::has(&[Need::Program("faketime")]) {
        return;
    }
    let (mut random, library) = (Random::seeded(), library());
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("runs");
    for (step, days) in [(1, "+30d"), (2, "-30d")] {
        let plan = Plan { first: step, last: step, keep: Some(2), ..Plan::of(&dir) };
        let job = Job::start(&plan, &mut random, |_, arguments| {
            let mut command = plainly(arguments);
            lie_with(&library, &mut command).env("FAKETIME", days);
            command
        });
        assert_eq!(job.end().committed(0).len(), 1);
    }
    // The lie has been believed, or this shows nothing.
    let weeks = Duration::from_secs(59 * DAY_S as u64).as_millis() as u64;
    assert!(saved_at(&dir, 1) > saved_at(&dir, 2) + weeks);
    assert_eq!(newest(&dir), Some(2));
}
