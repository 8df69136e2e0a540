//! Real jobs that are told to end, by a signal or by their time: all ranks save after the same
//! step and end with 75, and the next run ends as one that was never told.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]

mod in_process;
#[path = "../jobs/mod.rs"]
mod jobs;
#[cfg(feature = "sabotage")]
mod phases;
#[cfg(feature = "sabotage")]
#[allow(clippy::print_stderr, clippy::cast_possible_truncation, reason = "figures")]
#[path = "../tier/mod.rs"]
mod tier;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

#[cfg(feature = "mpi")]
use self::jobs::MPIRUN;
use self::jobs::{Ended, Job, Launcher, Place, Program, TORCHRUN};

/// Steps of an epoch of the example.
const EPOCH: u64 = 24;
/// Far more than any test waits for.
const LONG: &[&str] = &["--total-epochs", "100000"];
const REQUEUE: i32 = 75;
const DIGITS: Program = Program {
    example: "digits",
    flags: &["--auto-save-steps", "7", "--name", "s{step}"],
    directory: "--save-dir",
    experiment: "",
    prefix: "s",
};

/// The step after which the job said that it saved, for this reason.
fn saved_at(ended: &Ended, reason: &str) -> Option<u64> {
    let said = ended.output.lines().find(|line| line.contains("saved; training ends"))?;
    let field = |name: &str| said.split(name).nth(1).map(str::trim);
    assert!(field(" reason=").is_some_and(|text| text.starts_with(reason)), "{said}");
    field(" step=")?.split_whitespace().next()?.parse().ok()
}

/// Runs to this many epochs, from `resume`; the hash of the state at the end.
fn state_after(place: &Place, launcher: Launcher, epochs: u64, resume: &str) -> String {
    let epochs = epochs.to_string();
    let flags = ["--total-epochs", &epochs, "--resume", resume, "--print-state-hash"];
    place.start(launcher, &flags, &[]).end().state()
}

fn tell(launcher: Launcher, how: impl FnOnce(&Job<'_>)) -> (Place, Ended) {
    let place = Place::of(&DIGITS);
    let mut job = place.start(launcher, LONG, &[]);
    // In the middle of the first epoch.
    job.wait_for_step(7);
    how(&job);
    let ended = job.end();
    (place, ended)
}

/// The job has saved for this reason and wants to be started again; the step.
fn assert_saved(place: &Place, ended: &Ended, reason: &str) -> u64 {
    let step = saved_at(ended, reason).unwrap_or_else(|| panic!("not saved: {}", ended.output));
    assert_eq!(place.saved().last(), Some(&step), "{}", ended.output);
    step
}

/// From the checkpoint of `step`, the newest, training goes on as if nothing had happened.
fn assert_resumes_exactly(place: &Place, launcher: Launcher, step: u64) {
    let epochs = step / EPOCH + 1;
    let resumed = state_after(place, launcher, epochs, "latest");
    let whole = state_after(&Place::of(&DIGITS), launcher, epochs, "none");
    assert_eq!(resumed, whole, "resumed after step {step}");
}

fn the_launcher_is_told(launcher: Launcher, signal: Signal, reason: &str) {
    let (place, ended) = tell(launcher, |job| job.signal(signal));
    assert_eq!(ended.status.code(), Some(REQUEUE), "{}", ended.output);
    let step = assert_saved(&place, &ended, reason);
    assert_resumes_exactly(&place, launcher, step);
}

fn one_rank_is_told(launcher: Launcher) {
    for rank in [0, 1] {
        let (place, ended) = tell(launcher, |job| assert!(job.signal_rank(rank, Signal::USR1)));
        assert_eq!(ended.status.code(), Some(REQUEUE), "rank {rank}: {}", ended.output);
        assert_saved(&place, &ended, "SIGUSR1");
    }
}

#[test]
fn torchrun_sigusr1_saves_and_the_resumed_run_is_exact() {
    the_launcher_is_told(TORCHRUN, Signal::USR1, "SIGUSR1");
}

#[test]
fn torchrun_sigterm_saves_and_the_resumed_run_is_exact() {
    the_launcher_is_told(TORCHRUN, Signal::TERM, "SIGTERM");
}

#[test]
fn torchrun_one_rank_is_told_and_all_save() {
    one_rank_is_told(TORCHRUN);
}

/// A signal that comes twice at once, as from a process group and a launcher, is one.
#[test]
fn torchrun_an_echo_of_the_signal_does_no_harm() {
    let (place, ended) = tell(TORCHRUN, |job| {
        for signal in [Signal::USR1, Signal::TERM, Signal::USR1] {
            job.signal_rank(0, signal);
            job.signal_rank(1, signal);
        }
    });
    assert_eq!(ended.status.code(), Some(REQUEUE), "{}", ended.output);
    assert_saved(&place, &ended, "SIG");
}

/// Rank 1 is stopped, so rank 0 never comes to its save: it can be ended all the same.
#[test]
fn torchrun_a_second_signal_ends_at_once() {
    for (signal, code) in [(Signal::USR1, 128 + 10), (Signal::TERM, 128 + 15)] {
        let (place, ended) = tell(TORCHRUN, |job| {
            assert!(job.signal_rank(1, Signal::STOP));
            job.signal_rank_to_death(0, signal);
            assert!(job.signal_rank(1, Signal::KILL));
        });
        assert_eq!(ended.status.code(), Some(code), "{}", ended.output);
        assert!(place.saved().contains(&7));
    }
}

fn end_in(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now + Duration::from_secs(seconds)).as_secs().to_string()
}

fn before_its_time_ends(launcher: Launcher) {
    let place = Place::of(&DIGITS);
    let flags = [LONG, &["--time-margin", "3598"]].concat();
    let ended = place.start(launcher, &flags, &[("SLURM_JOB_END_TIME", &end_in(3600))]).end();
    assert_eq!(ended.status.code(), Some(REQUEUE), "{}", ended.output);
    let step = assert_saved(&place, &ended, "the job's time ends soon");
    assert_resumes_exactly(&place, launcher, step);
}

#[test]
fn torchrun_saves_before_the_jobs_time_ends() {
    before_its_time_ends(TORCHRUN);
}

#[test]
fn an_end_that_is_no_time_is_refused_before_training() {
    let place = Place::of(&DIGITS);
    let flags = [LONG, &["--time-margin", "1"]].concat();
    let ended = place.start(TORCHRUN, &flags, &[("TCH_CHECKPOINT_END_TIME", "soon")]).end();
    assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
    assert!(ended.output.contains("TCH_CHECKPOINT_END_TIME=soon is no time"), "{}", ended.output);
}

#[cfg(feature = "mpi")]
mod mpirun {
    use super::*;

    #[test]
    fn sigusr1_saves_and_the_resumed_run_is_exact() {
        the_launcher_is_told(MPIRUN, Signal::USR1, "SIGUSR1");
    }

    #[test]
    fn one_rank_is_told_and_all_save() {
        one_rank_is_told(MPIRUN);
    }

    #[test]
    fn saves_before_the_jobs_time_ends() {
        before_its_time_ends(MPIRUN);
    }

    /// Open MPI leaves a second before it kills: whether the save fits or not, what is visible is
    /// whole, and the run goes on from it.
    #[test]
    fn sigterm_leaves_whole_checkpoints() {
        let (place, ended) = tell(MPIRUN, |job| job.signal(Signal::TERM));
        assert!(!ended.status.success(), "{}", ended.output);
        let saved = place.saved();
        let newest = *saved.last().unwrap();
        assert!(newest >= 7, "{saved:?}");
        if let Some(step) = saved_at(&ended, "SIGTERM") {
            assert_eq!(step, newest, "what is said to be saved is there");
        }
        assert_resumes_exactly(&place, MPIRUN, newest);
    }

    #[test]
    fn sigterm_with_time_to_save_is_committed() {
        let place = Place::of(&DIGITS);
        let time = ("OMPI_MCA_odls_base_sigkill_timeout", "5");
        let mut job = place.start(MPIRUN, LONG, &[time]);
        job.wait_for_step(7);
        job.signal(Signal::TERM);
        let ended = job.end();
        assert!(!ended.status.success(), "{}", ended.output);
        assert_saved(&place, &ended, "SIGTERM");
    }
}
