//! Going through many orders in which threads could run.

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

#[path = "../../tests/tier/mod.rs"]
#[allow(unreachable_pub, reason = "of test binaries")]
pub(crate) mod tier;

/// For what a save calls, in a build without optimisation.
const STACK_BYTES: usize = 1 << 20;
/// Beyond it threads go round in circles.
const STEPS_MAX: usize = 100_000;
/// How often one thread is made to wait for all others, in half of the schedules.
const DEPTH: usize = 3;

/// Runs `body` in so many orders, the same ones each time: half of them by chance at every step,
/// half with few changes of thread at places taken by chance, by which rare orders are found.
///
/// # Panics
/// As soon as `body` panics, or all its threads wait.
pub(crate) fn explore(schedules: usize, seed: u64, body: impl Fn() + Copy + Send + Sync + 'static) {
    let half = schedules / 2;
    run(RandomScheduler::new_from_seed(seed, schedules - half), body);
    run(PctScheduler::new_from_seed(seed, DEPTH, half), body);
}

fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(body);
}
