//! A training loop of one's own: handwritten digits (8×8 pixels), any number of ranks, and a
//! `Checkpointer` that decides when to save, what to keep and where to resume.
//!
//! ```sh
//! cargo run --example own_loop -- --steps 200 --every-steps 50 --keep-last 2
//! cargo run --example own_loop -- --steps 400 --every-steps 50 --keep-last 2   # goes on at 200
//! launch/torchrun.sh -n 2 target/debug/examples/own_loop --steps 600 --monitor val_loss --keep-best 1
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Parser, ValueEnum};
use tch_checkpoint::autosave::Mode;
use tch_checkpoint::checkpointer::{AsyncMode, Checkpointer, CheckpointerConfig, Location, Resume};
use tch_checkpoint::{ProcessGroup, Result};

#[path = "training/mod.rs"]
mod training;

use training::{Training, log_to_stderr, say};

/// Trains a small network on handwritten digits, in a loop of its own.
#[derive(Parser)]
struct Flags {
    /// Name of the run; its checkpoints lie in DIR/EXPERIMENT.
    #[arg(long, default_value = "digits")]
    experiment: String,
    /// Where experiments lie.
    #[arg(long, default_value = "checkpoints")]
    dir: PathBuf,
    /// The training step to reach, those of a checkpoint included.
    #[arg(long, default_value_t = 240)]
    steps: u64,
    /// Save every so many steps.
    #[arg(long)]
    every_steps: Option<u64>,
    /// Save every so many minutes.
    #[arg(long)]
    every_minutes: Option<f64>,
    /// Keep the newest so many.
    #[arg(long)]
    keep_last: Option<u64>,
    /// Keep the best so many, by `--monitor`.
    #[arg(long, requires = "monitor")]
    keep_best: Option<u64>,
    /// The metric that tells the best: `val_loss` or `accuracy`.
    #[arg(long)]
    monitor: Option<String>,
    /// Which way it is to go.
    #[arg(long, value_enum, default_value_t = Direction::Min)]
    mode: Direction,
    /// `latest` (or anew, if there is none), `best`, the number of a step, or `fresh`.
    #[arg(long, default_value = "latest")]
    resume: ResumeFrom,
    /// Save beside training.
    #[arg(long)]
    r#async: bool,
    /// Let training go on while the state is still being copied, up to the optimizer's step.
    #[arg(long, requires = "async")]
    overlap: bool,
    /// Seed of initial values, data order and dropout.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print a hash of model, optimizer and counters as the last line.
    #[arg(long)]
    print_state_hash: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Direction {
    Min,
    Max,
}

#[derive(Clone)]
struct ResumeFrom(Resume);

impl FromStr for ResumeFrom {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Ok(Self(match text {
            "latest" => Resume::Latest,
            "best" => Resume::Best,
            "fresh" => Resume::Fresh,
            step => Resume::Step(step.parse().map_err(|_| {
                format!("`{step}` is none of latest, best, fresh and the number of a step")
            })?),
        }))
    }
}

impl Flags {
    fn config(&self) -> CheckpointerConfig {
        CheckpointerConfig {
            experiment: self.experiment.clone(),
            location: Location::Path(self.dir.clone()),
            save_every_steps: self.every_steps,
            save_every_minutes: self.every_minutes,
            keep_last: self.keep_last,
            keep_best: self.keep_best,
            monitor: self.monitor.clone(),
            mode: match self.mode {
                Direction::Min => Mode::Min,
                Direction::Max => Mode::Max,
            },
            save_mode: match (self.r#async, self.overlap) {
                (false, _) => AsyncMode::Disabled,
                (true, false) => AsyncMode::Async,
                (true, true) => AsyncMode::AsyncOverlap,
            },
            resume: self.resume.0.clone(),
            ..CheckpointerConfig::default()
        }
    }
}

fn run(flags: &Flags) -> Result<ExitCode> {
    tch::set_num_threads(1);
    let group = ProcessGroup::from_env()?;
    let mut training = Training::new(&group, flags.seed)?;
    let mut checkpointer = Checkpointer::new(&group, flags.config())?;
    let first = checkpointer.resume(&mut training.parts())?.map_or(0, |from| from.state.step);

    for step in first..flags.steps {
        training.step(step, || checkpointer.before_update())?;
        let at = training.at(step + 1, flags.steps);
        if let Some(why) = checkpointer.step_callback(&at, &mut training.parts())?.stop {
            drop(checkpointer);
            group.finish()?;
            return Ok(why.into());
        }
    }
    let at = training.at(flags.steps.max(first), flags.steps);
    checkpointer.finish(&at, &mut training.parts())?;
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
