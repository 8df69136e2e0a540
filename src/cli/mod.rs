//! The command `tch-checkpoint`: looks at checkpoints, verifies them, and tries storage out.
//! Needs neither libtorch nor MPI.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, ErrorKind, Result, printable};
use crate::shown;

mod bench;
mod code;
mod directory;
mod export;
mod format;
mod import;
mod inspect;
mod progress;
mod stress;
mod verify;

/// Looks at checkpoints, verifies them, and tries storage out.
///
/// Exit codes: 0 ok, 1 other, 2 usage, 3 damaged or not committed, 5 peer lost or deadline,
/// 6 durability uncertain or outcome unknown, 7 bad input.
#[derive(Parser)]
#[command(name = "tch-checkpoint", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show what a checkpoint holds: tensors, shapes, files, step, values, sizes.
    Inspect {
        /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
        path: PathBuf,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of a checkpoint and compare it with what was committed.
    Verify {
        /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
        #[arg(required_unless_present = "dir", conflicts_with = "dir")]
        path: Option<PathBuf>,
        /// Instead of a path: the newest of this directory, and those before it until one is
        /// good; ends with `LATEST <step> <save id>` of that, or `LATEST none`.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// With --dir: all checkpoints, not the newest alone.
        #[arg(long, requires = "dir", conflicts_with = "path")]
        all: bool,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Print `LATEST <step> <save id>` of the newest checkpoint, or `LATEST none`.
    ///
    /// Goes by manifests and lengths of files; `verify --dir` reads every byte. Nothing is written.
    Latest(directory::Look),
    /// Show the model code that was saved with a checkpoint, or one file of it.
    Code {
        /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
        path: PathBuf,
        /// A file to print, by its name in the list.
        file: Option<String>,
    },
    /// Write a checkpoint for other programs: a directory that Hugging Face tools open, or one
    /// safetensors file.
    Export(export::Export),
    /// Make a checkpoint of a directory of Hugging Face tools, or of one safetensors file.
    Import(import::Import),
    /// Save and load generated content, to try a storage out.
    #[command(subcommand)]
    Stress(stress::Stress),
    /// Measure how fast checkpoints are on a storage, beside what the storage can do at best.
    ///
    /// With --dir alone: a table for a user's question. With a verb: one figure, for programs.
    Bench(bench::Bench),
}

/// Runs the command with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = Output(io::stdout().lock());
    let run = || match arguments.verb {
        Verb::Inspect { path, json } => inspect::inspect(&mut out, &path, json),
        Verb::Verify { path: Some(path), json, .. } => verify::verify(&mut out, &path, json),
        Verb::Verify { dir: Some(dir), all, json, .. } => {
            directory::verify(&mut out, &dir, all, json)
        }
        // The parser asks for one of the two.
        Verb::Verify { .. } => {
            Err(Error::new(ErrorKind::InvalidInput, "give a checkpoint, or --dir").into())
        }
        Verb::Latest(look) => directory::latest(&mut out, &look.dir, look.json),
        Verb::Code { path, file } => code::code(&mut out, &path, file.as_deref()),
        Verb::Export(arguments) => export::run(&mut out, &arguments),
        Verb::Import(arguments) => import::run(&mut out, &arguments),
        Verb::Stress(stress) => stress::run(&mut out, &stress),
        Verb::Bench(bench) => bench::run(&mut out, &bench),
    };
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

/// In one piece, as other ranks write to the same place; if nobody reads it, nothing can be done.
fn complain(error: &dyn Display) {
    drop(io::stderr().write_all(format!("tch-checkpoint: {error}\n").as_bytes()));
}

/// The panic hook has printed what and where.
fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "this is a bug; please report it")
}

/// The code of a verdict that stands even if the reader of the text about it has left.
fn verdict(code: u8, said: Result<(), Stop>) -> Result<u8, Stop> {
    match said {
        Ok(()) | Err(Stop::ClosedPipe) => Ok(code),
        Err(stop) => Err(stop),
    }
}

/// Why a verb ended early.
enum Stop {
    Error(Error),
    /// The reader of our output has seen enough (`| head`).
    ClosedPipe,
    /// Our output cannot be written: no word about any checkpoint, so neither is the exit code.
    Output(io::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Standard output without panics.
struct Output<'a>(io::StdoutLock<'a>);

impl Output<'_> {
    fn line(&mut self, text: impl AsRef<str>) -> Result<(), Stop> {
        let text = printable(text.as_ref());
        writeln!(self.0, "{text}").and_then(|()| self.0.flush()).map_err(stop)
    }

    /// One line of JSON, which stays JSON.
    fn json(&mut self, value: &serde_json::Value) -> Result<(), Stop> {
        self.line(shown::json(value))
    }

    /// The text of a file: byte by byte, but for what could drive a terminal on a terminal.
    fn text(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let written = if self.0.is_terminal() {
            self.0.write_all(for_terminal(bytes).as_bytes())
        } else {
            self.0.write_all(bytes)
        };
        written.and_then(|()| self.0.flush()).map_err(stop)
    }

    /// A table with an empty line before it.
    fn table(&mut self, table: &comfy_table::Table) -> Result<(), Stop> {
        self.line("")?;
        table.lines().try_for_each(|line| self.line(line.trim_end()))
    }
}

/// Text without control characters, but for line breaks and tabs.
fn for_terminal(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split('\t').map(|part| printable(&part.replace("\r\n", "\n")));
    lines.collect::<Vec<_>>().join("\t")
}

fn stop(error: io::Error) -> Stop {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Stop::ClosedPipe;
    }
    Stop::Output(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cannot_drive_a_terminal() {
        let shown = for_terminal(b"fn a() {\r\n\t\"\x1b[2J\"\x07 \xff\n}");
        assert_eq!(shown, "fn a() {\n\t\"\\u{1b}[2J\"\\u{7} \u{fffd}\n}");
    }
}
