//! The clock that runs along with a load, on each rank.

use std::time::Duration;

use super::Session;
use crate::error::Result;
use crate::report::{LoadTimes, RankLoad};
use crate::trace::{Operation, Part};

pub(super) struct Clock<'a> {
    operation: &'a Operation,
    /// How often the load has begun again.
    pub(super) restarts: u32,
    own: RankLoad,
}

impl<'a> Clock<'a> {
    pub(super) fn of(operation: &'a Operation) -> Self {
        Self { operation, restarts: 0, own: RankLoad::default() }
    }

    pub(super) fn manifest<T>(&mut self, find: impl FnOnce() -> Result<T>) -> Result<T> {
        self.own = RankLoad::default();
        let found;
        (found, self.own.manifest) = self.time(Part::Manifest, find, || None)?;
        Ok(found)
    }

    pub(super) fn plan(&mut self, plan: impl FnOnce() -> Result<Session>) -> Result<Session> {
        let planned;
        (planned, self.own.plan) = self.time(Part::Plan, plan, || None)?;
        Ok(planned)
    }

    /// What `session` reads.
    pub(super) fn read<T>(
        &mut self,
        session: &Session,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (done, bytes);
        (done, self.own.read) =
            self.time(Part::Read, read, || Some(session.reader.bytes_read()))?;
        bytes = (session.plan.bytes_wanted(), session.reader.bytes_read());
        (self.own.bytes_wanted, self.own.bytes_read) = bytes;
        Ok(done)
    }

    /// The last part; what this rank brings to the vote on it.
    pub(super) fn place(&mut self, place: impl FnOnce() -> Result<()>) -> Result<RankLoad> {
        let bytes = self.own.bytes_wanted;
        ((), self.own.place) = self.time(Part::Place, place, || Some(bytes))?;
        Ok(self.own)
    }

    /// Coordinator: what all of it took.
    pub(super) fn verdict(&self) -> impl FnOnce(Vec<RankLoad>) -> Result<LoadTimes> + use<'a> {
        let (operation, restarts) = (self.operation, self.restarts);
        move |ranks| Ok(LoadTimes::of(&ranks, restarts, operation.elapsed()))
    }

    fn time<T>(
        &self,
        part: Part,
        work: impl FnOnce() -> Result<T>,
        bytes: impl FnOnce() -> Option<u64>,
    ) -> Result<(T, Duration)> {
        let running = self.operation.part(part);
        let done = running.run(work)?;
        Ok((done, running.end(bytes())))
    }
}
