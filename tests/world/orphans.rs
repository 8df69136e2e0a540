//! Launchers that are killed in the middle of a save, and ranks that outlive them: they are stopped,
//! a new job goes on in the same directory, and when they are let go on they can change nothing.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::job::{HANG, Job, Notes, Plan, Random, plainly, program, within};
use crate::looks::{debris, owner, steps};
use crate::tier::{self, Need};

/// So many does the new job save.
const STEPS: u64 = 5;
/// Starts what follows once for each rank, and waits.
const SHELL: &str = "for rank in 0 1 2; do RANK=$rank LOCAL_RANK=$rank \"$@\" & done; wait";
/// What an orphan may hear of a name that the new job has taken, or of a lock that it could not
/// get in time.
const REFUSALS: [&str; 3] = ["AlreadyExists", "Superseded", "Deadline"];

#[derive(Clone, Copy, Debug)]
enum Launcher {
    Shell,
    Mpirun,
}

impl Launcher {
    fn command(self) -> Command {
        let mut command = match self {
            Self::Shell => Command::new("sh"),
            Self::Mpirun => Command::new("mpirun"),
        };
        match self {
            Self::Shell => command.args(["-c", SHELL, "sh"]),
            // The ranks meet over TCP: this is about their launcher.
            Self::Mpirun => command
                .args(["-n", "3", "sh", "-c"])
                .arg("RANK=$OMPI_COMM_WORLD_RANK exec \"$@\"")
                .arg("sh")
                .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
                .env("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        };
        command.args(program());
        command
    }
}

fn started(plan: &Plan, random: &mut Random) -> Job {
    Job::start(plan, random, |_, arguments: Vec<OsString>| plainly(arguments))
}

/// The new job, from the step after the newest; `old` goes on in the middle of it. If one of the
/// old ranks holds the lock of the directory while it is stopped, the new job says so, and is
/// started again once they are ended. Whether that was so.
fn go_on(plan: &Plan, random: &mut Random, old: &Job) -> (Notes, bool) {
    let next = |plan: &Plan| {
        let first = steps(&plan.dir).last().map_or(1, |step| step + 1);
        Plan { first, last: first + STEPS - 1, ..plan.clone() }
    };
    let job = started(&next(plan), random);
    let is_over = || job.notes().find(0, "ENDED").is_some();
    assert!(within(HANG, || job.notes().committed(0).len() >= 2 || is_over()), "{}", job.said());
    if let Some((kind, text)) = job.notes().failed(0) {
        assert!(kind == "Deadline" && text.contains("holds the lock"), "{}", job.said());
        job.end();
        old.signal_all(Signal::KILL);
        return (started(&next(plan), random).end(), true);
    }
    old.signal_all(Signal::CONT);
    (job.end(), false)
}

/// Whether an orphan was in the middle of a save, and whether it held the lock meanwhile.
fn kill_once(launcher: Launcher, random: &mut Random) -> (bool, bool) {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("runs");
    let plan = Plan { ranks: 3, bytes: 300_000, deadline_ms: 4000, ..Plan::of(&dir) };
    let mut old = Job::launch(&plan, random, launcher.command());
    old.wait_for_commits(1);
    std::thread::sleep(Duration::from_millis(random.below(40)));
    old.kill_launcher();
    // Before a rank can hear of it.
    old.signal_all(Signal::STOP);
    let is_saving = old.notes().0[0].last().is_some_and(|note| note.word == "BEGIN");
    let before = old.notes().committed(0);

    let (new, held) = go_on(&Plan { tag: 2, ranks: 2, ..plan }, random, &old);
    let acked = new.committed(0);
    assert_eq!(acked.len() as u64, STEPS, "{launcher:?}: {new:?} {}", old.said());
    // The orphans end by themselves, at a name that is taken, or with their launcher's daemon.
    let gone = within(HANG, || old.pids().is_empty());
    let (said, failed) = (old.said(), old.notes().failed(0));
    assert!(gone, "the orphans go on: {said}");
    assert!(failed.is_none_or(|(kind, _)| REFUSALS.contains(&kind.as_str())), "{said}");
    check(&dir, &before, &acked, &said);
    (is_saving, held)
}

/// What the new job was told is committed is there, and its own; so is what the old one was.
fn check(dir: &Path, before: &[(u64, String)], acked: &[(u64, String)], said: &str) {
    for (step, id) in acked {
        assert_eq!(owner(dir, *step), (id.clone(), 2), "{said}");
    }
    for (step, id) in before {
        assert_eq!(owner(dir, *step), (id.clone(), 1), "{said}");
    }
    steps(dir).into_iter().for_each(|step| drop(owner(dir, step)));
    assert!(debris(dir).len() <= 1, "{:?}: {said}", debris(dir));
}

fn kills(launcher: Launcher, count: u64) {
    let mut random = Random::seeded();
    let (mut saving, mut held) = (0, 0);
    for _ in 0..count {
        let (was_saving, held_lock) = kill_once(launcher, &mut random);
        saving += u64::from(was_saving);
        held += u64::from(held_lock);
    }
    let figure = format!("{count}, {saving} in a save, {held} with the lock");
    tier::figure(&format!("orphans of {launcher:?}"), figure);
}

#[test]
fn orphans_of_a_killed_launcher_change_nothing_of_the_job_after_them() {
    kills(Launcher::Shell, tier::count(2, 20));
}

#[test]
fn orphans_of_a_killed_mpirun_change_nothing_of_the_job_after_them() {
    if tier::has(&[Need::Program("mpirun")]) {
        kills(Launcher::Mpirun, tier::count(1, 20));
    }
}
