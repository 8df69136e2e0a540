//! What a directory holds.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::autosave::Mode;
use crate::error::Result;
use crate::manifest::CheckpointInfo;
use crate::storage::{Directory, Storage};

/// In which order checkpoints are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Order {
    /// Newest first: highest step, then epoch, then time of saving.
    #[default]
    Latest,
    /// Best first by a metric; those without a finite value last, newest first.
    Best {
        /// Which number.
        monitor: String,
        /// Which way it is to go.
        mode: Mode,
    },
}

/// Everything of ours that an open directory holds, in no particular order: committed, partial and
/// damaged. `looked` is called after each.
pub(crate) fn list(
    parent: &dyn Directory,
    looked: &mut dyn FnMut(),
) -> Result<Vec<CheckpointInfo>> {
    let _ = (parent, looked);
    Ok(Vec::new())
}

/// Lists the checkpoints of `directory`.
pub fn find_checkpoints(
    storage: &dyn Storage,
    directory: &Path,
    order: &Order,
) -> Result<Vec<CheckpointInfo>> {
    let _ = (storage, directory, order);
    Ok(Vec::new())
}
