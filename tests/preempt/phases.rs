//! Told in the middle of every part of a step and of a save, by the launcher or at one rank: all
//! save and end with 75, or, where there is no time for that, what was there before is whole.

use rustix::process::Signal;

#[cfg(feature = "mpi")]
use crate::jobs::MPIRUN;
use crate::jobs::{Ended, Launcher, Place, TORCHRUN};
use crate::{DIGITS, LONG, REQUEUE, saved_at, tier};

/// Visits of a place by a rank: in forward pass, backward pass and update of the tenth step (of the
/// first epoch, in which each step is one batch), and in the parts of the second save, after step
/// 14. A save of rank 0 writes three files, one of rank 1 two.
const PLACES: [(&str, u32, u32); 12] = [
    ("train.step", 1, 10),
    ("train.backward", 0, 10),
    ("train.update", 1, 10),
    ("plan.enter", 0, 2),
    ("plan.voted", 1, 2),
    ("plan.decided", 0, 2),
    ("write.part", 0, 5),
    ("write.part", 1, 3),
    ("commit.enter", 1, 2),
    ("commit.voted", 0, 2),
    ("commit.decided", 0, 2),
    ("commit.voted", 1, 2),
];
/// By whom: the rank itself, or who started it.
const SENDERS: [&str; 2] = ["", "launcher-"];

/// The job is told there, and what becomes of it.
fn tell(launcher: Launcher, signal: Signal, case: usize) -> (Place, Ended, String) {
    let (place, rank, visit) = PLACES[case % PLACES.len()];
    let sender = SENDERS[(case / PLACES.len() + case) % SENDERS.len()];
    let name = if signal == Signal::USR1 { "usr1" } else { "term" };
    let sabotage = format!("{sender}{name}@{place}@{rank}@{visit}");
    let runs = Place::of(&DIGITS);
    let ended = runs.start(launcher, LONG, &[("TCH_CHECKPOINT_SABOTAGE", &sabotage)]).end();
    let what = format!("{sabotage}: {}", ended.output);
    (runs, ended, what)
}

/// Those of this tier, of so many: a few that are far from each other.
fn cases(first: usize, short: u64, full: u64) -> impl Iterator<Item = usize> {
    (0..tier::count(short, full)).zip(0..).map(move |(_, case): (_, usize)| first + case * 7)
}

fn all_save(launcher: Launcher, signal: Signal, cases: impl Iterator<Item = usize>) {
    let mut count = 0;
    for case in cases {
        let (place, ended, what) = tell(launcher, signal, case);
        assert_eq!(ended.status.code(), Some(REQUEUE), "{what}");
        let step = saved_at(&ended, "SIG").unwrap_or_else(|| panic!("not saved: {what}"));
        assert_eq!(place.saved().last(), Some(&step), "{what}");
        assert_eq!(place.debris(), [""; 0], "{what}");
        count += 1;
    }
    let launcher = launcher.script.unwrap_or_default();
    tier::figure(&format!("saved and 75, told by {signal:?} under {launcher}"), count);
}

#[test]
fn torchrun_sigusr1_in_each_phase_saves() {
    all_save(TORCHRUN, Signal::USR1, cases(6, 1, 25));
}

#[test]
fn torchrun_sigterm_in_each_phase_saves() {
    all_save(TORCHRUN, Signal::TERM, cases(1, 1, 25));
}

#[cfg(feature = "mpi")]
#[test]
fn mpirun_sigusr1_in_each_phase_saves() {
    all_save(MPIRUN, Signal::USR1, cases(9, 1, 25));
}

/// To Open MPI's launcher there is little time; to one rank alone it is as any other signal.
#[cfg(feature = "mpi")]
#[test]
fn mpirun_sigterm_in_each_phase_saves_or_leaves_what_was_there() {
    let (mut saved, mut older) = (0, 0);
    for case in cases(10, 1, 25) {
        let (place, ended, what) = tell(MPIRUN, Signal::TERM, case);
        assert!(!ended.status.success(), "{what}");
        // Every one of these is whole.
        let there = place.saved();
        assert!(there.contains(&7), "{there:?}: {what}");
        match saved_at(&ended, "SIGTERM") {
            Some(step) => {
                assert_eq!(there.last(), Some(&step), "{what}");
                saved += 1;
            }
            None => older += 1,
        }
    }
    tier::figure("told by SIGTERM under mpirun: saved", saved);
    tier::figure("told by SIGTERM under mpirun: ended before it had saved", older);
}
