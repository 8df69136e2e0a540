//! The command `tch-checkpoint`: looks at checkpoints, verifies them, and tries storage out.
//! Needs neither libtorch nor MPI.
//!
//! A verb is a module with a struct of its arguments and a function `run`, which gives the exit
//! code of its verdict. What goes wrong is a `Stop`.

mod bench;
mod bounded;
mod child;
mod code;
mod diff;
mod directory;
mod doctor;
mod du;
mod export;
mod format;
mod grid;
mod import;
mod inspect;
mod launch;
mod ls;
mod manual;
mod output;
mod progress;
mod prune;
mod repair;
mod report;
mod reshard;
mod sparkline;
mod stress;
mod verify;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::autosave::Mode;
use crate::error::{Error, ErrorKind};
use output::{Output, Stop, complain, verdict};

/// Exit code of a checkpoint that is damaged or not committed.
const DAMAGED: u8 = 3;

/// Exit code of checkpoints that are not the same.
const DIFFERENT: u8 = 4;

/// Looks at checkpoints, verifies them, and tries storage out.
///
/// Exit codes: 0 ok, 1 other, 2 usage, 3 damaged or not committed, 4 different, 5 peer lost or
/// deadline, 6 durability uncertain or outcome unknown, 7 bad input.
#[derive(Parser)]
#[command(name = "tch-checkpoint", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the checkpoints of a directory, newest first: metrics, sizes, ages, states.
    Ls(ls::Ls),
    /// Show what a checkpoint holds: tensors, shapes, files, step, values, sizes.
    Inspect(inspect::Inspect),
    /// Show how one checkpoint differs from another: tensors and how far apart they are, values,
    /// step.
    ///
    /// For each tensor: `relative L2` is the root of the sum of (b - a)² by that of a², `max abs`
    /// the largest |b - a|; both leave out numbers that are NaN or infinite in one of the two.
    /// Exit code 4 if they differ.
    Diff(diff::Diff),
    /// Read every byte of a checkpoint and compare it with what was committed.
    Verify(verify::Verify),
    /// Show what each checkpoint of a directory takes, and what no checkpoint refers to.
    Du(du::Du),
    /// Remove the checkpoints of a directory that no rule keeps, and say why the others stay.
    ///
    /// Only what a policy saved can go: the newest, the pinned, what `latest` or `best` names, what
    /// is damaged or under way, and what is not of this library stay whatever the rules say.
    Prune(prune::Prune),
    /// Print `LATEST <step> <save id>` of the newest checkpoint, or `LATEST none`.
    ///
    /// Goes by manifests and lengths of files; `verify --dir` reads every byte. Nothing is written.
    Latest(directory::Look),
    /// Show what can be saved from a damaged checkpoint, or from a directory of them, and what not.
    ///
    /// Reads every byte and changes nothing, but for what --out and --pointers ask for. What is
    /// damaged is never changed or removed. Exit code 3 if something is lost.
    Repair(repair::Repair),
    /// Write a checkpoint anew, in the files of another number of ranks.
    ///
    /// Every byte is verified as it is read, and the result once more. Loads need none of this: they
    /// read into any number of ranks.
    Reshard(reshard::Reshard),
    /// Look whether what training and checkpoints need is here, and say what to do where it is not.
    ///
    /// libtorch, CUDA, NCCL, MPI, connections, the disk of DIR (written to for a second, nothing is
    /// left behind), clock and limits. Exit code 0 whatever is found.
    Doctor(doctor::Doctor),
    /// Start N processes of a program on this machine, as the ranks of one job.
    ///
    /// Each gets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and a token. SIGTERM, SIGINT
    /// and SIGUSR1 are passed on; no rank outlives the command. Exit code: that of the first rank
    /// that failed, 128 + n if by signal n; 75 if ranks saved and want to be started again.
    Launch(launch::Launch),
    /// Write a report: one HTML file with phases of saves, stalls, metrics, tensors and disk use.
    Report(report::Report),
    /// Show the saves of a running job as they happen.
    Watch(watch::Watch),
    /// Show the model code that was saved with a checkpoint, or one file of it.
    Code(code::Code),
    /// Write a checkpoint for other programs: a directory that Hugging Face tools open, or one
    /// safetensors file.
    Export(export::Export),
    /// Make a checkpoint of a directory of Hugging Face tools, or of one safetensors file.
    Import(import::Import),
    /// Print a script that completes this command in a shell.
    Completions(manual::Completions),
    /// Write the man pages of this command and of its verbs into a directory.
    Man(manual::Man),
    /// Save and load generated content, to try a storage out.
    #[command(subcommand)]
    Stress(stress::Stress),
    /// Measure how fast checkpoints are on a storage, beside what the storage can do at best.
    ///
    /// With --dir alone: a table for a user's question. With a verb: one figure, for programs.
    Bench(bench::Bench),
}

impl Verb {
    fn run(&self, out: &mut Output<'_>) -> Result<u8, Stop> {
        match self {
            Self::Ls(arguments) => ls::run(out, arguments),
            Self::Inspect(arguments) => inspect::run(out, arguments),
            Self::Diff(arguments) => diff::run(out, arguments),
            Self::Verify(arguments) => verify::run(out, arguments),
            Self::Du(arguments) => du::run(out, arguments),
            Self::Prune(arguments) => prune::run(out, arguments),
            Self::Latest(look) => directory::latest(out, look),
            Self::Repair(arguments) => repair::run(out, arguments),
            Self::Reshard(arguments) => reshard::run(out, arguments),
            Self::Doctor(arguments) => doctor::run(out, arguments),
            Self::Launch(arguments) => launch::run(arguments),
            Self::Report(arguments) => report::run(out, arguments),
            Self::Watch(arguments) => watch::run(out, arguments),
            Self::Code(arguments) => code::run(out, arguments),
            Self::Export(arguments) => export::run(out, arguments),
            Self::Import(arguments) => import::run(out, arguments),
            Self::Completions(arguments) => manual::completions(out, arguments),
            Self::Man(arguments) => manual::man(out, arguments),
            Self::Stress(stress) => stress::run(out, stress),
            Self::Bench(bench) => bench::run(out, bench),
        }
    }
}

/// Runs the command with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = Output::new();
    let run = || arguments.verb.run(&mut out);
    let done = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked().into()));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Stop::ClosedPipe) => ExitCode::SUCCESS,
        Err(Stop::Output(error)) => {
            complain(&format_args!("writing to standard output: {error}"));
            ExitCode::FAILURE
        }
        Err(Stop::Error(error)) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Which way a metric is to go.
fn mode(text: &str) -> std::result::Result<Mode, String> {
    match text {
        "min" => Ok(Mode::Min),
        "max" => Ok(Mode::Max),
        _ => Err("`min` or `max`".to_owned()),
    }
}

/// The panic hook has printed what and where.
fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "this is a bug; please report it")
}
