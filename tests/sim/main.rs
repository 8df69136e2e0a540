//! Whole jobs on a simulated machine: real code of the crate, on a clock, a network and a disk that
//! do what a seed says.
//!
//! A seed is a history. A job of 1 to 8 ranks saves 1 to 4 times (new names or replaced ones, with
//! or without retention and links) until something happens to it; perhaps a second job comes, loads
//! and saves, and something happens to that; then one to which nothing happens, which must load,
//! save and leave nothing behind. After each of them the whole disk is looked at (`oracle`).
//!
//! - Ranks are coroutines on one thread (`machine`). Save, vote, transport above the links, commit,
//!   sweep, retention, links and load are what runs everywhere. Which rank goes on, and what
//!   arrives, is drawn at each operation on the storage, each message and each wait.
//! - Ranks are killed, one or all, stopped for a while or for ever, and cut off. Messages of one
//!   link keep their order, as over TCP, and are late by anything up to twice the deadline; those of
//!   a dead rank may be lost. Time passes only in the simulation.
//! - The storage (`disk`) fails with EIO or ENOSPC, once or from then on, with or without having done
//!   what it was told, or panics. A failed fsync loses what it had to write. The power goes: of
//!   everything that was not fsynced any subset survives, files in sectors of 512 bytes and with any
//!   length in between, names in whole steps; blocks of a file whose name was not durably gone may
//!   hold another's bytes. An fsync of a file makes its content durable and not its name.
//! - Not here: sockets and joining, saves beside training, checkpoints that are files, network file
//!   systems that show each host something else, damage on the disk, libtorch. The thread behind the
//!   pipeline of a rank's writes runs after what feeds it, not beside it.
//!
//! `TCH_CHECKPOINT_SIM_SEED=N` runs that seed alone and shows all that happens;
//! `TCH_CHECKPOINT_SIM_COUNT=N` runs so many seeds instead of those of the tier.
#![allow(unreachable_pub, clippy::print_stderr, reason = "helpers of tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod campaign;
mod content;
mod disk;
mod history;
mod machine;
mod oracle;
mod rng;
#[cfg(feature = "sabotage")]
mod sabotages;
mod scale;
#[path = "../tier/mod.rs"]
mod tier;

use campaign::{found_by, run_all, seed_of_environment, show};
use disk::Lie;

/// Schedules of the short tier: an unoptimised build is eight times slower.
const SHORT: u64 = if cfg!(debug_assertions) { 4_000 } else { 100_000 };
/// Schedules of the long tier.
const FULL: u64 = 1_000_000;

/// Jobs are killed, stopped, cut off and failed by their storage, and the power goes; whatever
/// happens, what was acknowledged is there afterwards, whole, nothing that is visible is anything
/// else, ranks agree, every wait ends, and the next job saves and leaves nothing behind.
#[test]
fn no_schedule_loses_what_was_committed() {
    match seed_of_environment() {
        Some(seed) => show(seed),
        None => run_all(tier::count(SHORT, FULL)),
    }
}

/// Or nobody could look into what a seed has found.
#[test]
fn a_seed_does_the_same_again() {
    for seed in [3, 17, 101, 4_242, 99_991] {
        let first = history::run(seed, Lie::None, false).hash;
        let same = |_| std::thread::spawn(move || history::run(seed, Lie::None, false).hash);
        let again: Vec<u64> = (0..10).map(same).map(|run| run.join().unwrap()).collect();
        assert_eq!(again, [first; 10], "seed {seed}");
    }
}

/// A job that is killed right after it has made the directory leaves a name that is not durable;
/// the next one must not build on it. The same in front of every other early operation.
#[test]
fn what_a_killed_job_made_is_no_sand_to_build_on() {
    for (seed, early) in (0..25).flat_map(|seed| (1..=12).map(move |early| (seed, early))) {
        let kept = history::saved_after_a_kill(seed, early);
        assert_eq!(kept, Ok(()), "killed in front of operation {early}, seed {seed}");
    }
}

/// The same schedules on a disk that acknowledges what it has not done: a simulator that finds
/// nothing wrong there would find nothing anywhere.
#[test]
fn a_disk_that_lies_is_found_out() {
    for lie in [Lie::Files, Lie::Directories] {
        let found = found_by(lie, 500);
        tier::figure(&format!("schedules until a disk is found out ({lie:?})"), found);
    }
}
