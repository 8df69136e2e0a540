//! Saving beside training.

use std::sync::Arc;

use super::{Checkpoint, SaveOptions, save};
use crate::catalog::CheckpointPath;
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::state::StateDict;
use crate::storage::Storage;

/// What the coordinator does after the commit, before the save counts as done: retention.
pub type AfterCommit = Box<dyn FnOnce(&Checkpoint) + Send>;

/// A save that goes on beside training. Dropping it waits for it.
#[must_use]
pub struct PendingSave(Option<Result<Checkpoint>>);

impl PendingSave {
    /// Whether waiting would end at once.
    #[must_use]
    pub fn is_done(&self) -> bool {
        true
    }

    /// Waits for the verdict, which is the same on every rank.
    ///
    /// # Errors
    /// As [`save`](fn@crate::save::save).
    pub fn wait(mut self) -> Result<Checkpoint> {
        self.0.take().unwrap_or_else(|| unreachable!("taken once"))
    }
}

/// Starts to save `state` as checkpoint `path`, and returns once `state` may change.
///
/// # Errors
/// As [`save`](fn@crate::save::save), up to phase "plan".
pub fn save_async(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    after: AfterCommit,
) -> Result<PendingSave> {
    let done = save(group, storage.as_ref(), path, state, options);
    if let Ok(committed) = &done {
        after(committed);
    }
    Ok(PendingSave(Some(done)))
}
