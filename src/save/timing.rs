//! The clock that runs along with a save, on each rank.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::flight::Flight;
use crate::catalog::CheckpointPath;
use crate::clock;
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::plan::WriteTimes;
use crate::report::{CommitTimes, RankSave, SaveBytes, SaveReport};
use crate::shown;
use crate::sync::Mutex;
use crate::trace::{Held, Operation, Part, Running, Steps};

pub(crate) struct Timing {
    operation: Operation,
    plan: Duration,
    stage: Mutex<Duration>,
    /// For a save beside training.
    held: Option<Arc<Held>>,
    /// From the vote to the verdict.
    commit: OnceLock<Running>,
    /// The same, and it may keep others from being made.
    flight: Option<Arc<Flight>>,
}

impl Timing {
    /// Begins, with the call.
    pub(crate) fn begin(group: &ProcessGroup, path: &CheckpointPath, step: u64) -> Self {
        let path = path.directory().join(path.name().as_str());
        let operation = Operation::save(group, &shown::path(&path), step);
        let (stage, commit) = (Mutex::default(), OnceLock::new());
        Self { operation, plan: Duration::ZERO, stage, held: None, commit, flight: None }
    }

    /// What this thread logs from now on is said of this save.
    pub(crate) fn enter(&self) -> tracing::span::EnteredSpan {
        self.operation.enter()
    }

    /// Everything until this rank knows what to write.
    pub(crate) fn plan<T>(&mut self, plan: impl FnOnce() -> Result<T>) -> Result<T> {
        let part = self.operation.part(Part::Plan);
        let planned = part.run(plan)?;
        part.end(None);
        self.plan = self.operation.elapsed();
        Ok(planned)
    }

    /// Copying out of the state.
    pub(super) fn stage<T>(&self, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        let part = self.operation.part(Part::Stage);
        let staged = part.run(stage)?;
        *self.stage.lock() += part.end(None);
        Ok(staged)
    }

    /// The call returns now, and the rest goes on beside the caller.
    pub(super) fn go_beside(&mut self) -> (Arc<Held>, Arc<Flight>) {
        let (held, flight) = (Arc::new(self.operation.held()), Arc::new(Flight::begin()));
        self.operation.go_beside();
        self.held = Some(Arc::clone(&held));
        self.flight = Some(Arc::clone(&flight));
        (held, flight)
    }

    /// The caller waits for all of it after all.
    pub(super) fn hold_on(&mut self) {
        self.held = None;
    }

    /// Writing this rank's share; the time that `write` says passed, or else what has.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce() -> Result<T>,
        times: impl FnOnce(&mut T) -> &mut WriteTimes,
    ) -> Result<T> {
        let (part, begun) = (self.operation.part(Part::Write), clock::now());
        let mut written = part.run(write)?;
        let times = times(&mut written);
        if times.total.is_zero() {
            times.total = clock::now().saturating_duration_since(begun);
        }
        part.end_write(*times);
        Ok(written)
    }

    /// What this rank brings to the vote, with which its part "commit" begins.
    pub(crate) fn vote(&self, write: WriteTimes) -> RankSave {
        let held = self.held.as_ref().map(|held| held.so_far());
        self.running();
        RankSave { write, stage: *self.stage.lock(), held }
    }

    /// Coordinator: what follows the votes, also where its own has failed.
    pub(crate) fn publish<T>(&self, publish: impl FnOnce() -> T) -> T {
        self.running().run(publish)
    }

    fn running(&self) -> &Running {
        self.commit.get_or_init(|| self.operation.part(Part::Commit))
    }

    /// The verdict is there: the end of part "commit", if it has begun.
    pub(crate) fn judged<T>(&mut self, verdict: &Result<T>) {
        if let Some(commit) = self.commit.take()
            && verdict.is_ok()
        {
            commit.end(None);
        }
    }

    pub(crate) fn steps(&self) -> Steps<'_> {
        self.operation.steps()
    }

    /// Coordinator, committed: what all of it took.
    pub(crate) fn report(
        &self,
        ranks: &[RankSave],
        bytes: SaveBytes,
        commit: CommitTimes,
    ) -> SaveReport {
        let report = SaveReport::of(ranks, bytes, self.plan, commit, self.operation.elapsed());
        let left_out = self.flight.as_ref().map(|flight| flight.left_out());
        SaveReport { left_out: left_out.unwrap_or_default(), ..report }
    }

    /// Committed.
    pub(crate) fn end(self, report: &SaveReport) {
        self.operation.end(report.tensor_bytes);
    }
}
