//! A loop made to be preempted: told to end by SIGUSR1, SIGTERM or the end of its time coming
//! near, it saves, ends with exit code 75, and goes on from there when it is started again.
//!
//! ```sh
//! sbatch launch/slurm.sbatch target/release/examples/preempt --dir /shared/runs --steps 100000
//! ```
//!
//! `launch/slurm.sbatch` asks Slurm for SIGUSR1 before the end and requeues the job at 75. Without
//! Slurm, with steps that take 20 ms each:
//!
//! ```sh
//! cargo build --example preempt
//! launch/torchrun.sh -n 2 target/debug/examples/preempt --step-ms 20 --steps 1000 &
//! sleep 5; kill -USR1 $!; wait $!; echo $?     # such as `saved at step 190: SIGUSR1`, and 75
//! launch/torchrun.sh -n 2 target/debug/examples/preempt --step-ms 20 --steps 300
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig};
use tch_checkpoint::{ProcessGroup, Result};

#[path = "training/mod.rs"]
mod training;

use training::{Training, log_to_stderr, say};

/// Trains a small network on handwritten digits, however often it is told to end.
#[derive(Parser)]
struct Flags {
    /// Name of the run; its checkpoints lie in DIR/EXPERIMENT.
    #[arg(long, default_value = "preempt")]
    experiment: String,
    /// Where experiments lie; on a cluster a directory that all machines share.
    #[arg(long, default_value = "checkpoints")]
    dir: PathBuf,
    /// The training step to reach, those of a checkpoint included.
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Let each step take so many milliseconds more, to have time to try signals.
    #[arg(long, default_value_t = 0)]
    step_ms: u64,
    /// Save, and end, so many seconds before the job's time does (SLURM_JOB_END_TIME, or
    /// TCH_CHECKPOINT_END_TIME, in seconds since 1970).
    #[arg(long, default_value_t = 120.0)]
    margin_seconds: f64,
    /// Seed of initial values, data order and dropout.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print a hash of model, optimizer and counters as the last line.
    #[arg(long)]
    print_state_hash: bool,
}

fn run(flags: &Flags) -> Result<ExitCode> {
    tch::set_num_threads(1);
    let group = ProcessGroup::from_env()?;
    let mut training = Training::new(&group, flags.seed)?;
    // SIGUSR1 and SIGTERM are watched unless a configuration says not to. Every ten minutes it
    // saves for the case that nobody tells it to end.
    let config = CheckpointerConfig::new(&flags.experiment)
        .in_directory(&flags.dir)
        .before_time_limit(flags.margin_seconds)
        .every_minutes(10.0)
        .keep_last(2);
    let mut checkpointer = Checkpointer::new(&group, config)?;
    let resumed = checkpointer.resume(&mut training.parts())?;
    let first = resumed.map_or(0, |resumed| resumed.state.step);
    say(&group, format_args!("begins at step {first}"));

    for step in first..flags.steps {
        training.step(step, || checkpointer.before_update())?;
        std::thread::sleep(Duration::from_millis(flags.step_ms));
        let at = training.at(step + 1, flags.steps);
        let stepped = checkpointer.step_callback(&at, &mut training.parts())?;
        // On every rank after the same step.
        if let Some(why) = stepped.stop {
            say(&group, format_args!("saved at step {}: {why}", step + 1));
            drop(checkpointer);
            group.finish()?;
            return Ok(why.into());
        }
    }
    let at = training.at(flags.steps.max(first), flags.steps);
    checkpointer.finish(&at, &mut training.parts())?;
    say(&group, format_args!("reached step {}", at.counters().step));
    if flags.print_state_hash {
        say(&group, format_args!("state {}", training.hash(at.counters().step)?));
    }
    drop(checkpointer);
    group.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    log_to_stderr();
    ProcessGroup::run_main(|| run(&flags))
}
