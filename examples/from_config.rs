//! A loop whose `Checkpointer` is described by a file, TOML or YAML, and overridden by variables of
//! the environment.
//!
//! ```sh
//! cargo run --example from_config -- --config examples/checkpoint.toml
//! export TCH_CHECKPOINT_CONFIG_KEEP_LAST=5 TCH_CHECKPOINT_CONFIG_RESUME=fresh
//! cargo run --example from_config -- --config examples/checkpoint.yaml
//! TCH_CHECKPOINT_CONFIG_ENABLED=no cargo run --example from_config -- --config examples/checkpoint.yaml
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tch_checkpoint::checkpointer::{CheckpointerConfig, create_checkpointer_from_config};
use tch_checkpoint::{ProcessGroup, Result};

#[path = "training/mod.rs"]
mod training;

use training::{Training, log_to_stderr, say};

/// Trains a small network on handwritten digits; a file says when to save and what to keep.
#[derive(Parser)]
struct Flags {
    /// The file: `.toml`, `.yaml`, `.yml` or `.json`.
    #[arg(long)]
    config: PathBuf,
    /// The training step to reach, those of a checkpoint included.
    #[arg(long, default_value_t = 240)]
    steps: u64,
    /// Seed of initial values, data order and dropout.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn run(flags: &Flags) -> Result<ExitCode> {
    tch::set_num_threads(1);
    let group = ProcessGroup::from_env()?;
    let config = CheckpointerConfig::from_file(&flags.config)?.with_environment()?;
    let mut training = Training::new(&group, flags.seed)?;
    // Nothing, if the file says `enabled = false`.
    let mut checkpointer = create_checkpointer_from_config(&group, &config)?;
    let mut first = 0;
    if let Some(checkpointer) = &mut checkpointer {
        let resumed = checkpointer.resume(&mut training.parts())?;
        first = resumed.map_or(0, |resumed| resumed.state.step);
    }

    for step in first..flags.steps {
        training.step(step, || checkpointer.iter().for_each(|it| it.before_update()))?;
        let Some(checkpointer) = &mut checkpointer else { continue };
        let at = training.at(step + 1, flags.steps);
        if let Some(why) = checkpointer.step_callback(&at, &mut training.parts())?.stop {
            group.finish()?;
            return Ok(why.into());
        }
    }

    if let Some(checkpointer) = &mut checkpointer {
        let at = training.at(flags.steps.max(first), flags.steps);
        checkpointer.finish(&at, &mut training.parts())?;
        for info in checkpointer.find_checkpoints()? {
            say(&group, format_args!("{}", checkpointer.directory().join(info.name).display()));
        }
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
