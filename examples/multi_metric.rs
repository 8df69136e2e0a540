//! Saves when several metrics improve together: a rule that no field of a configuration says, so
//! the loop has a callback of its own that asks for saves. The best few by one metric are kept.
//!
//! ```sh
//! cargo run --example multi_metric -- --steps 600 --keep-best 3
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tch_checkpoint::autosave::Mode;
use tch_checkpoint::checkpointer::{At, Checkpointer, CheckpointerConfig};
use tch_checkpoint::state::Shared;
use tch_checkpoint::{ProcessGroup, Result};

#[path = "training/mod.rs"]
mod training;

use training::{Training, log_to_stderr, say};

/// Trains a small network on handwritten digits, and saves when loss and accuracy improve together.
#[derive(Parser)]
struct Flags {
    /// Name of the run; its checkpoints lie in DIR/EXPERIMENT.
    #[arg(long, default_value = "multi-metric")]
    experiment: String,
    /// Where experiments lie.
    #[arg(long, default_value = "checkpoints")]
    dir: PathBuf,
    /// The training step to reach, those of a checkpoint included.
    #[arg(long, default_value_t = 600)]
    steps: u64,
    /// Keep so many, those of the lowest `val_loss`.
    #[arg(long, default_value_t = 3)]
    keep_best: u64,
    /// Seed of initial values, data order and dropout.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The metrics of the last save that this callback asked for. It is a part of each checkpoint, so
/// that a resumed run does not begin with a save of its first, poor values.
#[derive(Default, Serialize, Deserialize)]
struct BothImprove {
    reached: Option<Reached>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Reached {
    val_loss: f64,
    accuracy: f64,
}

impl BothImprove {
    /// Whether to save here. It follows from numbers that are equal on all ranks, so ranks need not
    /// ask one another.
    fn says_so(&mut self, at: &At) -> bool {
        let metric = |name| at.metrics().get(name).copied();
        let (Some(val_loss), Some(accuracy)) = (metric("val_loss"), metric("accuracy")) else {
            return false;
        };
        let better = |than: Reached| val_loss < than.val_loss && accuracy > than.accuracy;
        let improved = self.reached.is_none_or(better);
        if improved {
            self.reached = Some(Reached { val_loss, accuracy });
        }
        improved
    }
}

fn show(group: &ProcessGroup, checkpointer: &Checkpointer) -> Result<()> {
    say(group, format_args!("{:26} {:>6} {:>9} {:>9}", "kept", "step", "val_loss", "accuracy"));
    for info in checkpointer.find_checkpoints()? {
        let metric = |name| info.metrics.get(name).copied().unwrap_or(f64::NAN);
        let (loss, accuracy) = (metric("val_loss"), metric("accuracy"));
        say(group, format_args!("{:26} {:>6} {loss:>9.5} {accuracy:>9.5}", info.name, info.step));
    }
    Ok(())
}

fn run(flags: &Flags) -> Result<ExitCode> {
    tch::set_num_threads(1);
    let group = ProcessGroup::from_env()?;
    let mut training = Training::new(&group, flags.seed)?;
    let mut both = BothImprove::default();
    let config = CheckpointerConfig::new(&flags.experiment).in_directory(&flags.dir).keep_best(
        flags.keep_best,
        "val_loss",
        Mode::Min,
    );
    let mut checkpointer = Checkpointer::new(&group, config)?;
    let mut callback = Shared(&mut both);
    let resumed =
        checkpointer.resume(&mut training.parts().callback("both_improve", &mut callback))?;
    let first = resumed.map_or(0, |resumed| resumed.state.step);

    for step in first..flags.steps {
        training.step(step, || checkpointer.before_update())?;
        let at = training.at(step + 1, flags.steps);
        let improved = callback.0.says_so(&at);
        let mut parts = training.parts().callback("both_improve", &mut callback);
        // Signals and the job's end are its to know; nothing else is due by a rule.
        if let Some(why) = checkpointer.step_callback(&at, &mut parts)?.stop {
            drop(checkpointer);
            group.finish()?;
            return Ok(why.into());
        }
        if improved {
            checkpointer.save(&at, &mut parts)?;
        }
    }
    let at = training.at(flags.steps.max(first), flags.steps);
    checkpointer.finish(&at, &mut training.parts().callback("both_improve", &mut callback))?;
    show(&group, &checkpointer)?;
    drop(checkpointer);
    group.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    log_to_stderr();
    ProcessGroup::run_main(|| run(&flags))
}
