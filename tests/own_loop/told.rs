//! Jobs that are told to end while they save beside training.

use rustix::process::Signal;

#[cfg(feature = "mpi")]
use crate::jobs::MPIRUN;
use crate::jobs::{Ended, Launcher, Place, TORCHRUN};
use crate::{HASH, OWN_LOOP, undisturbed};

const REQUEUE: i32 = 75;
const SAVING: &[&str] = &["--async", "--every-steps", "7", "--keep-last", "3"];

/// The step after which the job saved for this reason, which is its newest checkpoint.
fn saved_because(place: &Place, ended: &Ended, reason: &str) -> u64 {
    assert_eq!(ended.status.code(), Some(REQUEUE), "{}", ended.output);
    let told = format!("saving reason=Preempted({reason}) step=");
    let step = ended.output.split(&told).nth(1).and_then(|rest| rest.split_whitespace().next());
    let step = step.unwrap_or_else(|| panic!("no {told} in {}", ended.output)).parse().unwrap();
    assert_eq!(place.saved().last(), Some(&step), "{}", ended.output);
    assert_eq!(place.debris(), [""; 0], "{}", ended.output);
    step
}

fn assert_resumes_exactly(place: &Place, launcher: Launcher, step: u64) {
    let steps = (step + 10).to_string();
    let flags = [&["--steps", &steps, HASH], SAVING].concat();
    let state = place.start(launcher, &flags, &[]).end().state();
    assert_eq!(state, undisturbed(launcher, 2, step + 10), "resumed after step {step}");
}

fn told(launcher: Launcher, signal: Signal) {
    let place = Place::of(&OWN_LOOP);
    let flags = [&["--steps", "1000000"], SAVING].concat();
    let mut job = place.start(launcher, &flags, &[("RUST_LOG", "info")]);
    job.wait_for_step(14);
    job.signal(signal);
    let step = saved_because(&place, &job.end(), &format!("Signal({})", signal.as_raw()));
    assert_resumes_exactly(&place, launcher, step);
}

#[test]
fn torchrun_sigusr1_while_saving_beside_training() {
    told(TORCHRUN, Signal::USR1);
}

#[test]
fn torchrun_sigterm_while_saving_beside_training() {
    told(TORCHRUN, Signal::TERM);
}

#[cfg(feature = "mpi")]
#[test]
fn mpirun_sigusr1_while_saving_beside_training() {
    told(MPIRUN, Signal::USR1);
}

/// In the middle of a pass of retention, which is gone through with.
#[test]
fn torchrun_sigusr1_while_checkpoints_are_removed() {
    let place = Place::of(&OWN_LOOP);
    let flags = ["--steps", "1000000", "--every-steps", "7", "--keep-last", "1"];
    let sabotage = ("TCH_CHECKPOINT_SABOTAGE", "launcher-usr1@retain.removed@0@2");
    let ended = place.start(TORCHRUN, &flags, &[("RUST_LOG", "info"), sabotage]).end();
    let step = saved_because(&place, &ended, "Signal(10)");
    assert_eq!(place.saved(), [step]);
    assert_resumes_exactly(&place, TORCHRUN, step);
}

/// The end is nearer than the margin, two minutes, so the first step is the last.
fn before_the_time_ends(launcher: Launcher) {
    let place = Place::of(&OWN_LOOP);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let end = (now.as_secs() + 100).to_string();
    let flags = [&["--steps", "1000000"], SAVING].concat();
    let variables = [("RUST_LOG", "info"), ("SLURM_JOB_END_TIME", end.as_str())];
    let ended = place.start(launcher, &flags, &variables).end();
    let step = saved_because(&place, &ended, "TimeLimit");
    assert_resumes_exactly(&place, launcher, step);
}

#[test]
fn torchrun_saves_before_the_time_ends() {
    before_the_time_ends(TORCHRUN);
}

#[cfg(feature = "mpi")]
#[test]
fn mpirun_saves_before_the_time_ends() {
    before_the_time_ends(MPIRUN);
}
