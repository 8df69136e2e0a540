//! `bench`: how fast checkpoints are saved and loaded, with the raw limit of the storage measured
//! beside them in the same run. Works on host memory.

mod content;
mod disk;
mod held;
pub(super) mod interrupt;
mod load;
mod load_raw;
mod measure;
mod memory;
mod plan;
mod raw;
mod report;
mod save;
mod spec;
mod table;
mod trainer;
mod workloads;

use clap::{Args, Subcommand};

use super::{Output, Stop, complain};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Bench {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    table: table::Table,
}

#[derive(Subcommand)]
enum Verb {
    /// Print a workload as a spec: names, shapes and dtypes of tensors, and the seed of their bytes.
    Workload {
        /// W1 (GPT-2 124M with Adam), W2 (20,000 tensors of 4 KiB), W3 (4 of 512 MiB), W4 (a block
        /// of a Llama, bf16 with fp32 masters), or small-N (N tensors of 4 KiB).
        name: String,
    },
    /// Save a workload as checkpoint DIR, which stays for `bench load`.
    Save(save::Save),
    /// Load checkpoint DIR into memory that is there already, and compare every byte.
    Load(load::Load),
    /// Plan a save and a load for many simulated ranks; touches no storage.
    Plan(plan::Plan),
}

pub(super) fn run(out: &mut Output<'_>, bench: &Bench) -> Result<u8, Stop> {
    match measured(out, bench) {
        Err(Stop::Error(_)) if interrupt::is_noted() => {
            complain(&"interrupted; nothing is left but what was there, or the checkpoint");
            Ok(interrupt::EXIT_CODE)
        }
        done => done,
    }
}

fn measured(out: &mut Output<'_>, bench: &Bench) -> Result<u8, Stop> {
    match &bench.verb {
        Some(Verb::Workload { name }) => {
            out.line(workloads::spec(name)?.to_json()?)?;
            Ok(0)
        }
        Some(Verb::Save(arguments)) => save::run(out, arguments),
        Some(Verb::Load(arguments)) => load::run(out, arguments),
        Some(Verb::Plan(arguments)) => plan::run(out, arguments),
        None => table::run(out, &bench.table),
    }
}
