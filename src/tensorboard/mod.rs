//! Event files: scalars over steps, of checkpoints and of training, as TensorBoard opens them.
//!
//! Nothing here is collective, and nothing fails: what cannot be written is warned of once, and
//! training goes on. Only the coordinator has a log.

mod event;
mod file;
mod record;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock;
use crate::report::{LoadTimes, SaveReport};
use crate::shown;
use event::{Scalar, scalars};
use record::framed;

/// The event files of a run in one directory. A process that goes on from a checkpoint begins a
/// file of its own; TensorBoard puts them together.
#[derive(Debug)]
pub(crate) struct EventLog {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where training begins or goes on: what an earlier process wrote of that step and later
    /// ones did not happen.
    first: u64,
    /// The latest step that was written.
    last: u64,
    file: Open,
}

#[derive(Debug)]
enum Open {
    NotYet,
    At(File),
    /// It is not tried again.
    Failed,
}

impl EventLog {
    /// Nothing is made before there is something to write.
    pub(crate) fn new(directory: &Path) -> Self {
        let state = State { first: 0, last: 0, file: Open::NotYet };
        Self { directory: directory.to_path_buf(), state: Mutex::new(state) }
    }

    /// Training goes on with that step. If something of it is written already, a file begins that
    /// takes it back.
    pub(crate) fn go_on_with(&self, step: u64) {
        let mut state = self.state.lock();
        let takes_back = matches!(state.file, Open::At(_)) && state.last >= step;
        if takes_back {
            state.file = Open::NotYet;
        }
        if matches!(state.file, Open::NotYet) {
            (state.first, state.last) = (step, 0);
        }
    }

    /// Writes numbers of one step, each under its name, in one write.
    pub(crate) fn scalars<'a>(&self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) {
        let values: Vec<Scalar<'a>> =
            values.into_iter().map(|(tag, value)| Scalar { tag, value }).collect();
        // A simulated job has no place outside its simulation.
        if values.is_empty() || clock::is_simulated() {
            return;
        }
        let mut state = self.state.lock();
        let record = framed(&scalars(clock::unix_time(), step, &values));
        if let Err(error) = self.append(&mut state, &record) {
            state.file = Open::Failed;
            let directory = shown::path(&self.directory);
            tracing::warn!(%error, %directory, "no more events for TensorBoard are written");
        }
        state.last = state.last.max(step);
    }

    /// What a save took.
    pub(crate) fn saved(&self, step: u64, report: &SaveReport) {
        let commit = &report.commit;
        let commit = commit.checks + commit.seal + commit.publish + commit.rename;
        let times = [
            ("checkpoint/seconds", report.total),
            ("checkpoint/stall_seconds", report.stall),
            ("checkpoint/plan_seconds", report.plan),
            ("checkpoint/stage_seconds", report.stage),
            ("checkpoint/write_seconds", report.write.total),
            ("checkpoint/commit_seconds", commit),
        ];
        let bytes = [("checkpoint/bytes", bytes(report.tensor_bytes))];
        let rate = report.bandwidth().map(|rate| ("checkpoint/bytes_per_second", rate));
        self.scalars(step, bytes.into_iter().chain(rate).chain(times.map(seconds)));
    }

    /// What the load took from which training goes on.
    pub(crate) fn loaded(&self, step: u64, times: &LoadTimes) {
        let all = [
            ("checkpoint/load_bytes", bytes(times.bytes_wanted)),
            seconds(("checkpoint/load_seconds", times.total)),
        ];
        self.scalars(step, all);
    }

    fn append(&self, state: &mut State, record: &[u8]) -> Result<()> {
        if matches!(state.file, Open::NotYet) {
            state.file = Open::At(file::begin(&self.directory, state.first)?);
        }
        match &mut state.file {
            // One write, so that whatever ends the process, records are whole.
            Open::At(file) => file.write_all(record),
            Open::NotYet | Open::Failed => Ok(()),
        }
    }
}

fn seconds((tag, time): (&str, Duration)) -> (&str, f64) {
    (tag, time.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "TensorBoard has seven digits")]
fn bytes(count: u64) -> f64 {
    count as f64
}
