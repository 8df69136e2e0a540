//! The trace file of each rank of this process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::clock;
use crate::rank::Rank;
use crate::report::chrome::{BEGIN, Event, begin, file_of};
use crate::shown;

/// Names the file.
const VARIABLE: &str = "TCH_CHECKPOINT_TRACE";

/// The files that the environment asks for; `None` if it asks for none.
pub(super) fn of_process() -> Option<&'static TraceFiles> {
    static FILES: OnceLock<Option<TraceFiles>> = OnceLock::new();
    let asked = || std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
    FILES.get_or_init(|| asked().map(|name| TraceFiles::new(PathBuf::from(name)))).as_ref()
}

/// Traces of the ranks that are threads of this process; mostly one.
pub(super) struct TraceFiles {
    pattern: PathBuf,
    /// `None` for a rank whose file could not be written: it is not tried again.
    open: Mutex<BTreeMap<Rank, Option<File>>>,
    /// The same moment by both clocks: traces of several processes are laid side by side.
    start: (Instant, Duration),
}

impl TraceFiles {
    pub(super) fn new(pattern: PathBuf) -> Self {
        Self { pattern, open: Mutex::default(), start: (clock::now(), clock::unix_time()) }
    }

    pub(super) fn since_1970(&self, time: Instant) -> Duration {
        let (instant, unix) = self.start;
        match time.checked_duration_since(instant) {
            Some(after) => unix + after,
            None => unix.saturating_sub(instant.saturating_duration_since(time)),
        }
    }

    /// Appends an event, in one write, so that whenever the process ends the file can be read.
    pub(super) fn write(&self, event: &Event<'_>) {
        let mut open = self.open.lock();
        let path = || file_of(&self.pattern, event.rank);
        let file = open
            .entry(event.rank)
            .or_insert_with(|| warned(open_trace(&path(), event.rank), &path()));
        let written = file.as_mut().map(|file| file.write_all(event.appended().as_bytes()));
        if let Some(Err(error)) = written {
            *file = warned(Err(error), &path());
        }
    }
}

fn warned(opened: Result<File>, path: &Path) -> Option<File> {
    let warn = |error: &Error| {
        tracing::warn!(%error, path = %shown::path(path), "{VARIABLE}: no trace is written");
    };
    opened.inspect_err(warn).ok()
}

/// Begins a trace, or goes on with that of an earlier process of the job. What is no trace stays as
/// it is; a pipe, whose reader could hold up a save, is none.
fn open_trace(path: &Path, rank: Rank) -> Result<File> {
    // A link under a name that others can guess would lead elsewhere; a pipe would wait.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).custom_flags(flags);
    let mut file = options.open(path)?;
    let refused = |why| Err(Error::new(ErrorKind::AlreadyExists, why));
    if !file.metadata()?.is_file() {
        return refused("it is no regular file");
    }
    let mut first = [0; 1];
    match file.read(&mut first)? {
        0 => file.write_all(begin(rank).as_bytes())?,
        _ if BEGIN.as_bytes().starts_with(&first) => {}
        _ => return refused("the file is there, and no trace"),
    }
    Ok(file)
}
