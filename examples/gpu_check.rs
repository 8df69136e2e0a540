//! Checks the library on a machine with a GPU: saves, loads, resumes and measures on the device, and
//! says what passed as one line of JSON per check. `launch/gpu-check.sh` runs all of it.
//!
//! ```sh
//! cargo run --example gpu_check -- --device cpu isolation --runs 20
//! ```

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use tch::Device;
use tch_checkpoint::{Error, ErrorKind, Result};

#[path = "gpu_check/devices.rs"]
mod devices;
#[path = "gpu_check/figures.rs"]
mod figures;
#[path = "gpu_check/isolation.rs"]
mod isolation;
#[path = "gpu_check/places.rs"]
mod places;
#[path = "gpu_check/ranks.rs"]
mod ranks;
#[path = "gpu_check/resume.rs"]
mod resume;
#[path = "gpu_check/tensors.rs"]
mod tensors;

/// Checks saving, loading and resuming on a device.
#[derive(Parser)]
struct Flags {
    /// `cpu`, or `cuda:N`. On a CPU all of it runs, and proves nothing about GPUs.
    #[arg(long, default_value = "cuda:0", value_parser = devices::parse)]
    device: Device,
    /// Where checkpoints are saved.
    #[arg(long, default_value = "checkpoints/gpu_check")]
    dir: PathBuf,
    /// Spoil what is checked, to see that the check finds it.
    #[arg(long, global = true)]
    spoil: bool,
    #[command(subcommand)]
    check: Check,
}

#[derive(Subcommand)]
enum Check {
    /// Which libtorch, driver and devices there are.
    Environment,
    /// Asynchronous saves of tensors that change as soon as the call has returned.
    Isolation {
        #[arg(long, default_value_t = 200)]
        runs: u32,
    },
    /// A run that is saved, loaded and continued ends with the bits of one at a stretch.
    Resume {
        #[arg(long, default_value_t = 20)]
        steps: u64,
    },
    /// Saved on the device and loaded on the CPU, and the reverse; all dtypes, strides, devices.
    Places,
    /// The rest of the device's memory is taken: a load is whole, or leaves everything as it is.
    Memory,
    /// Replicas are hashed on the device as on the host.
    Audit,
    /// Two ranks on one device: refused, or with `TCH_CHECKPOINT_SHARE_GPU=1` a step, a save, a load.
    Ranks {
        /// In processes of their own, not as threads of one.
        #[arg(long)]
        processes: bool,
    },
    /// One of them, which the one before starts.
    #[command(hide = true)]
    Rank,
    /// One rank over NCCL: joins, adds up, broadcasts.
    Nccl,
    /// Copies, saves and loads, timed.
    Figures {
        /// MiB of tensors.
        #[arg(long, default_value_t = 4096)]
        mib: u64,
        /// How often each is timed; the median counts.
        #[arg(long, default_value_t = 3)]
        times: usize,
    },
}

impl Check {
    fn name(&self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Isolation { .. } => "isolation",
            Self::Resume { .. } => "resume",
            Self::Places => "places",
            Self::Memory => "memory",
            Self::Audit => "audit",
            Self::Ranks { .. } => "ranks",
            Self::Rank => "rank",
            Self::Nccl => "nccl",
            Self::Figures { .. } => "figures",
        }
    }

    fn run(&self, flags: &Flags) -> Result<Outcome> {
        let Flags { device, dir, spoil, .. } = flags;
        match self {
            Self::Environment => devices::environment(*device),
            Self::Isolation { runs } => isolation::run(*device, *runs, *spoil),
            Self::Resume { steps } => resume::run(*device, dir, *steps, *spoil),
            Self::Places => places::run(*device, dir, *spoil),
            Self::Memory => places::memory(*device, dir),
            Self::Audit => devices::audit(*device, *spoil),
            Self::Ranks { processes } => ranks::run(*device, dir, *processes, *spoil),
            Self::Rank => ranks::one(*device, dir, *spoil),
            Self::Nccl => devices::nccl(*device),
            Self::Figures { mib, times } => figures::run(*device, dir, *mib, *times),
        }
    }
}

/// What came of a check.
enum Outcome {
    Passed(Value),
    Failed(String),
    /// It says nothing here, and why.
    Skipped(String),
}

fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Mismatch, what.into())
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let log =
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_ansi(false);
    log.with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let begun = std::time::Instant::now();
    let outcome = devices::check_there(flags.device).and_then(|()| flags.check.run(&flags));
    let (verdict, detail) = match outcome {
        Ok(Outcome::Passed(figures)) => ("passed", figures),
        Ok(Outcome::Skipped(why)) => ("skipped", json!(why)),
        Ok(Outcome::Failed(what)) => ("failed", json!(what)),
        Err(error) => ("failed", json!(error.to_string())),
    };
    let line = json!({
        "check": flags.check.name(),
        "device": devices::name(flags.device),
        "verdict": verdict,
        "detail": detail,
        "seconds": begun.elapsed().as_secs_f64(),
    });
    // Whoever closed stdout does not want to know.
    let _ = writeln!(std::io::stdout(), "{line}");
    ExitCode::from(if verdict == "failed" { 4 } else { 0 })
}
