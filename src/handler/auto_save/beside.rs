//! An automatic save that goes on beside training, and what becomes of it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Occasion;
use crate::error::{Error, Result};
use crate::handler::{Model, NNHandler};
use crate::layout::{CheckpointName, SaveId};
use crate::save::{Checkpoint, PendingSave};
use crate::shown;

/// In cells, since a save by hand, which has to wait for it, changes nothing of the handler.
/// Dropping it waits for the save, too.
#[derive(Debug, Default)]
pub(in crate::handler) struct Beside {
    pending: RefCell<Option<PendingSave>>,
    /// Which one was committed, until the auto-saver has taken note of it.
    landed: RefCell<Option<(CheckpointName, SaveId)>>,
    /// Why it failed, until the program has been told.
    failed: RefCell<Option<Error>>,
    /// When the save before it was made, for the auto-saver to return to if it fails.
    clock: Cell<Option<Instant>>,
    /// How long the last one took until it was committed; on the coordinator.
    took: Arc<Mutex<Duration>>,
}

impl Beside {
    /// `clock`: when the save before it was made.
    pub(super) fn begin(&self, pending: PendingSave, clock: Option<Instant>) {
        self.pending.replace(Some(pending));
        self.clock.set(clock);
    }

    pub(super) fn took(&self) -> Arc<Mutex<Duration>> {
        Arc::clone(&self.took)
    }

    /// The save of which the auto-saver's state does not know yet that it is committed.
    pub(in crate::handler) fn landed(&self) -> Option<(CheckpointName, SaveId)> {
        self.landed.borrow().clone()
    }

    /// Waits for the save, and keeps what became of it.
    fn land(&self) -> Option<Checkpoint> {
        let pending = self.pending.take()?;
        tracing::debug!(path = %shown::path(pending.path()), "waiting for a save beside training");
        match pending.wait() {
            Ok(committed) => {
                self.landed.replace(Some((committed.name.clone(), committed.save_id)));
                Some(committed)
            }
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

impl<M: Model> NNHandler<M> {
    /// Waits for the automatic save that goes on beside training, if there is one, and returns it.
    /// [`NNHandler::train`] ends with it.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Durability
    /// On `Ok` all that was saved automatically survives a power cut.
    ///
    /// # Errors
    /// Those of that save, the same on every rank; as [`save`](fn@crate::save::save).
    pub fn wait_for_save(&mut self) -> Result<Option<Checkpoint>> {
        let ended = self.end_save();
        self.take_note_of_save();
        ended
    }

    /// The same, where the auto-saver takes note later.
    pub(in crate::handler) fn end_save(&self) -> Result<Option<Checkpoint>> {
        let committed = self.beside.land();
        self.beside.failed.take().map_or(Ok(committed), Err)
    }

    /// The auto-saver is about to be replaced: what its save came to is noted, and a failure
    /// is told by the next call that can.
    pub(in crate::handler) fn land_save(&mut self) {
        self.beside.land();
        self.take_note_of_save();
    }

    /// What failed does not count: minutes are counted from the one before.
    fn take_note_of_save(&mut self) {
        let (landed, clock) = (self.beside.landed.take(), self.beside.clock.take());
        let Some(saver) = &mut self.auto_saver else { return };
        match landed {
            Some(committed) => {
                saver.remember(committed);
                self.preemption.saved_in(*self.beside.took.lock());
            }
            None => saver.clock = clock.or(saver.clock),
        }
    }

    /// Before anything that is trained changes: a save that overlaps with training has copied it.
    pub(in crate::handler) fn before_update(&self) {
        if let Some(pending) = &*self.beside.pending.borrow() {
            pending.wait_copied();
        }
    }

    /// Whether a save that is due is left out; the same on every rank.
    pub(super) fn is_hindered(&self, occasion: Occasion) -> Result<bool> {
        let pending = self.beside.pending.borrow();
        match (occasion, &self.auto_saver, pending.as_ref()) {
            (Occasion::Due, Some(saver), Some(pending)) => {
                saver.state.policies.in_flight.hinders(&self.group, pending)
            }
            _ => Ok(false),
        }
    }
}
