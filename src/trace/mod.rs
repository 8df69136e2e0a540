//! Saves and loads as others see them: spans of `tracing`, and events of a trace file.
//!
//! Nothing here is collective, and nothing fails: who cannot watch is warned, the save goes on.

mod file;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::span::EnteredSpan;
use tracing::{Span, debug_span, field, info_span};

use crate::clock;
use crate::group::ProcessGroup;
use crate::rank::Rank;
use crate::report::WriteTimes;
use crate::report::chrome::{Event, Row};
use crate::shown;
use file::TraceFiles;

/// A phase of a save or a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Plan,
    Stage,
    Write,
    Commit,
    Manifest,
    Read,
    Place,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Stage => "stage",
            Self::Write => "write",
            Self::Commit => "commit",
            Self::Manifest => "manifest",
            Self::Read => "read",
            Self::Place => "place",
        }
    }

    fn span(self, parent: &Span) -> Span {
        macro_rules! span {
            ($name:literal) => {
                debug_span!(parent: parent, $name, bytes = field::Empty)
            };
        }
        match self {
            Self::Plan => span!("plan"),
            Self::Stage => span!("stage"),
            Self::Write => span!("write"),
            Self::Commit => span!("commit"),
            Self::Manifest => span!("manifest"),
            Self::Read => span!("read"),
            Self::Place => span!("place"),
        }
    }
}

/// Where events of one save or load go, if anywhere.
#[derive(Clone)]
struct Marks {
    trace: Option<&'static TraceFiles>,
    of: &'static str,
    rank: Rank,
    path: Arc<str>,
    step: Option<u64>,
}

impl Marks {
    fn of(of: &'static str, rank: Rank, path: &dyn Display, step: Option<u64>) -> Self {
        // A simulated job has no place outside its simulation.
        let trace = if clock::is_simulated() { None } else { file::of_process() };
        let path = trace.map(|_| path.to_string()).unwrap_or_default();
        Self { trace, of, rank, path: path.into(), step }
    }

    fn event(&self, name: &str, row: Row, begun: Instant, time: Duration, done: &Done) {
        let Some(trace) = self.trace else { return };
        trace.write(&Event {
            name,
            of: self.of,
            rank: self.rank,
            row,
            begin: trace.since_1970(begun),
            time,
            path: &self.path,
            step: self.step,
            bytes: done.bytes,
            write: done.write,
            failed: !done.is_good,
        });
    }
}

/// How something ended.
#[derive(Default)]
struct Done {
    is_good: bool,
    bytes: Option<u64>,
    write: Option<WriteTimes>,
}

impl Done {
    fn well(bytes: Option<u64>) -> Self {
        Self { is_good: true, bytes, write: None }
    }
}

/// A save or a load that is going on, on this rank. Dropped before its end, it has failed.
pub(crate) struct Operation {
    marks: Marks,
    row: Row,
    span: Span,
    begun: Instant,
    done: Done,
}

impl Operation {
    pub(crate) fn save(group: &ProcessGroup, path: &dyn Display, step: u64) -> Self {
        let (rank, world_size) = (group.rank(), group.world_size().get());
        let span = info_span!(
            "save", %path, step, world_size, rank = rank.get(),
            bytes = field::Empty
        );
        Self::begin(Marks::of("save", rank, path, Some(step)), span)
    }

    pub(crate) fn load(group: &ProcessGroup, wanted: &dyn Display) -> Self {
        let (rank, world_size) = (group.rank(), group.world_size().get());
        let span = info_span!(
            "load",
            path = %shown::line(&wanted.to_string()),
            world_size,
            rank = rank.get(),
            bytes = field::Empty
        );
        Self::begin(Marks::of("load", rank, wanted, None), span)
    }

    fn begin(marks: Marks, span: Span) -> Self {
        Self { marks, row: Row::Caller, span, begun: clock::now(), done: Done::default() }
    }

    /// Makes what this thread logs a part of it.
    pub(crate) fn enter(&self) -> EnteredSpan {
        self.span.clone().entered()
    }

    /// From now on it is shown in that row, and so are parts that begin later.
    pub(crate) fn go_beside(&mut self) {
        self.row = Row::Beside;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        since(self.begun)
    }

    /// What its caller is held up for is counted there, from the beginning until now.
    pub(crate) fn held(&self) -> Held {
        let held = Held { marks: self.marks.clone(), time: Mutex::default() };
        held.add("held", self.begun);
        held
    }

    /// Begins a part.
    pub(crate) fn part(&self, part: Part) -> Running {
        Running {
            marks: self.marks.clone(),
            row: self.row,
            part,
            span: part.span(&self.span),
            begun: clock::now(),
            done: Done::default(),
        }
    }

    /// Begins a row of steps, each of which begins where the one before it ends.
    pub(crate) fn steps(&self) -> Steps<'_> {
        Steps { operation: self, begun: clock::now() }
    }

    /// Ends it, well.
    pub(crate) fn end(mut self, bytes: u64) {
        self.span.record("bytes", bytes);
        self.done = Done::well(Some(bytes));
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.marks.event(self.marks.of, self.row, self.begun, self.elapsed(), &self.done);
    }
}

/// A part that is going on. Dropped before its end, it has failed.
pub(crate) struct Running {
    marks: Marks,
    row: Row,
    part: Part,
    span: Span,
    begun: Instant,
    done: Done,
}

impl Running {
    /// Runs `work` inside of it.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        self.span.in_scope(work)
    }

    /// Ends it, well; how long it took.
    pub(crate) fn end(mut self, bytes: Option<u64>) -> Duration {
        if let Some(bytes) = bytes {
            self.span.record("bytes", bytes);
        }
        self.done = Done::well(bytes);
        since(self.begun)
    }

    /// Ends the writing of a share, well.
    pub(crate) fn end_write(mut self, write: WriteTimes) {
        self.span.record("bytes", write.bytes);
        self.done = Done { write: Some(write), ..Done::well(Some(write.bytes)) };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Self { marks, row, part, begun, done, .. } = self;
        marks.event(part.name(), *row, *begun, since(*begun), done);
    }
}

/// Steps one after the other.
pub(crate) struct Steps<'a> {
    operation: &'a Operation,
    begun: Instant,
}

impl Steps<'_> {
    /// Ends a step now; how long it took.
    pub(crate) fn end(&mut self, name: &str) -> Duration {
        self.end_at(name, clock::now())
    }

    pub(crate) fn end_at(&mut self, name: &str, end: Instant) -> Duration {
        let (begun, time) = (self.begun, end.saturating_duration_since(self.begun));
        let Operation { marks, row, .. } = self.operation;
        marks.event(name, *row, begun, time, &Done::well(None));
        self.begun = begun + time;
        time
    }
}

/// For how long the caller of a save beside training has been held up so far.
pub(crate) struct Held {
    marks: Marks,
    time: Mutex<Duration>,
}

impl Held {
    /// It was held up from `begun` until now, for that.
    pub(crate) fn add(&self, what: &str, begun: Instant) {
        let time = since(begun);
        *self.time.lock() += time;
        self.marks.event(what, Row::Caller, begun, time, &Done::well(None));
    }

    pub(crate) fn so_far(&self) -> Duration {
        *self.time.lock()
    }
}

fn since(begun: Instant) -> Duration {
    clock::now().saturating_duration_since(begun)
}
