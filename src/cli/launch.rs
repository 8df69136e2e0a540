//! `launch`: the ranks of one job as processes of this machine, started again when one fails.

mod ranks;
mod signals;
mod supervise;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::bounded::{DEADLINE, within};
use super::output::{Stop, complain};
use crate::catalog::{Found, Wanted, find};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::shown::{self, line};
use crate::storage::LocalStorage;
use ranks::Program;
use signals::Signals;
use supervise::Job;

/// How long a reader who does not read is waited for.
const READER: Duration = Duration::from_millis(250);
/// Most ranks of one machine.
const RANKS_MAX: i64 = 4096;
/// The wait between SIGTERM and SIGKILL, in seconds, and the longest one.
const GRACE_S: u64 = 10;
const GRACE_S_MAX: u64 = 86_400;
/// What a program ends with that has saved and wants to be started again, by whom it was started.
const WANTS_REQUEUE: u8 = 75;
/// What is neither an end of ranks nor wrong usage.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// Ports that are tried, all below the range from which systems take ports for outgoing
/// connections.
const PORTS: (u16, u16) = (20_000, 12_000);
const PORTS_TRIED: usize = 100;
/// Where programs are looked for if the variable `PATH` is not set.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

#[derive(Args)]
pub(super) struct Launch {
    /// How many processes.
    #[arg(short = 'n', long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=RANKS_MAX))]
    ranks: u32,
    /// How often all ranks are started again after one has failed. A program that resumes goes on
    /// from its latest good checkpoint; TORCHELASTIC_RESTART_COUNT says how often it was started.
    #[arg(long, value_name = "K", default_value_t = 0)]
    max_restarts: u32,
    /// Where the program saves: of a restart is told from which checkpoint it can go on.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Port of rank 0; default: a free one, another one for each start.
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    master_port: Option<u16>,
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(long, value_name = "SECONDS", env = "TCH_CHECKPOINT_GRACE", default_value_t = GRACE_S)]
    #[arg(value_parser = grace)]
    grace: u64,
    /// The program and its arguments. Start it itself: a shell around it would get the signals.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    program: Vec<OsString>,
}

/// An empty variable is as none, as that of the token is.
fn grace(text: &str) -> std::result::Result<u64, String> {
    if text.is_empty() {
        return Ok(GRACE_S);
    }
    let seconds = text.parse().ok().filter(|seconds| *seconds <= GRACE_S_MAX);
    seconds.ok_or_else(|| format!("whole seconds, at most {GRACE_S_MAX}"))
}

/// Says something of the job, unless nobody reads it: ranks wait for their signals.
fn say(text: &str) {
    let stderr = std::io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let most = Timespec::try_from(READER).ok();
    while poll(&mut fds, most.as_ref()) == Err(Errno::INTR) {}
    if fds.iter().any(|fd| fd.revents().is_empty()) {
        return;
    }
    complain(&format_args!("launch: {text}"));
}

/// What fails here is no word about any checkpoint, and so neither is the exit code.
pub(super) fn run(arguments: &Launch) -> Result<u8, Stop> {
    Ok(job(arguments).unwrap_or_else(|error| {
        say(&error.to_string());
        FAILED
    }))
}

fn job(arguments: &Launch) -> Result<u8> {
    let Some((name, rest)) = arguments.program.split_first() else { return Ok(USAGE) };
    let Some(path) = executable(Path::new(name)) else {
        say(&format!("no program {}", line(&name.to_string_lossy())));
        return Ok(USAGE);
    };
    let token = std::env::var("TCH_CHECKPOINT_TOKEN").ok().filter(|token| !token.is_empty());
    let program = Program {
        path,
        arguments: rest.to_vec(),
        ranks: arguments.ranks,
        max_restarts: arguments.max_restarts,
        token: token.map_or_else(|| SaveId::random().map(|id| id.to_string()), Ok)?,
    };
    let mut signals = Signals::install()?;
    let grace = Duration::from_secs(arguments.grace);
    for restart in 0..=arguments.max_restarts {
        let port = arguments.master_port.map_or_else(free_port, Ok)?;
        let job = Job::start(&program, restart, port, grace)?;
        let ended = job.supervise(&mut signals)?;
        let is_done = ended.code == 0 || ended.code == WANTS_REQUEUE;
        if is_done || !ended.can_restart || restart == arguments.max_restarts {
            return Ok(ended.code);
        }
        let (next, all) = (restart + 1, arguments.max_restarts);
        say(&format!("restart {next} of {all}{}", goes_on_from(arguments.dir.as_deref())));
    }
    Ok(0)
}

/// From what a program can go on, as far as manifests tell.
fn goes_on_from(dir: Option<&Path>) -> String {
    let Some(dir) = dir else { return String::new() };
    let wanted = Wanted::latest(dir);
    // Ranks have deadlines of their own for a storage that hangs.
    match within(DEADLINE, move || find(&LocalStorage::new(), &wanted)) {
        None => format!("; {} does not answer", shown::path(dir)),
        Some(found) => goes_on_from_found(found, dir),
    }
}

fn goes_on_from_found(found: Result<Found>, dir: &Path) -> String {
    match found {
        Ok(found) => {
            let step = found.manifest.step();
            format!(", from {} (step {step})", shown::path(&found.path()))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            format!(", from the beginning: no checkpoint in {}", shown::path(dir))
        }
        Err(e) => format!("; {e}"),
    }
}

/// As a shell looks for it.
fn executable(name: &Path) -> Option<PathBuf> {
    let can_run = |path: &PathBuf| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.components().count() > 1 || name.to_string_lossy().contains('/') {
        return Some(name.to_path_buf()).filter(can_run);
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    std::env::split_paths(&search).map(|dir| dir.join(name)).find(can_run)
}

fn random(bytes: &mut [u8]) -> Result<()> {
    clock::fill_random(bytes)
        .map_err(|e| Error::new(ErrorKind::Storage, format!("no random bytes: {e}")))
}

/// A port that nobody has on this machine.
fn free_port() -> Result<u16> {
    let (first, count) = PORTS;
    for _ in 0..PORTS_TRIED {
        let mut bytes = [0; 2];
        random(&mut bytes)?;
        let port = first + u16::from_le_bytes(bytes) % count;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new(ErrorKind::Storage, "found no free port").with_help("give --master-port"))
}
