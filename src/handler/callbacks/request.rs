//! What a callback can ask for.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalog::CheckpointPath;
use crate::layout::{CheckpointName, SaveId};
use crate::plan::OnExisting;

/// A save that a callback asks for. The same on every rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveRequest {
    directory: PathBuf,
    name: CheckpointName,
    weights_only: bool,
    on_existing: OnExisting,
    supersedes: Vec<(CheckpointName, SaveId)>,
}

impl SaveRequest {
    /// Everything that training needs, as checkpoint `path`; if the name is taken, `-v1`, `-v2`, …
    /// is appended.
    #[must_use]
    pub fn new(path: &CheckpointPath) -> Self {
        Self {
            directory: path.directory().to_path_buf(),
            name: path.name().clone(),
            weights_only: false,
            on_existing: OnExisting::Number,
            supersedes: Vec::new(),
        }
    }

    /// Only the model: its variables and its configuration. Such a checkpoint cannot be resumed;
    /// keep it in another directory than those that are, for it would count as the latest there.
    #[must_use]
    pub fn weights_only(mut self, weights_only: bool) -> Self {
        self.weights_only = weights_only;
        self
    }

    /// What to do if the name is taken. Default: number the new one.
    #[must_use]
    pub fn on_existing(mut self, on_existing: OnExisting) -> Self {
        self.on_existing = on_existing;
        self
    }

    /// Checkpoints of the same directory that this one takes the place of: after the commit each is
    /// removed if it is still that save, and one that has the name asked for is replaced by it.
    #[must_use]
    pub fn supersede(mut self, earlier: Vec<(CheckpointName, SaveId)>) -> Self {
        self.supersedes = earlier;
        self
    }

    /// The directory of checkpoints.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name asked for.
    #[must_use]
    pub fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// Whether only the model is saved.
    #[must_use]
    pub fn is_weights_only(&self) -> bool {
        self.weights_only
    }

    pub(super) fn path(&self) -> CheckpointPath {
        CheckpointPath::new(&self.directory, self.name.clone())
    }

    pub(super) fn existing(&self) -> OnExisting {
        self.on_existing
    }

    pub(super) fn superseded(&self) -> &[(CheckpointName, SaveId)] {
        &self.supersedes
    }
}

/// All that one callback asked for at one moment, as far as ranks exchange it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Requests {
    /// Why training is to stop.
    pub(super) stop: Option<String>,
    pub(super) saves: Vec<SaveRequest>,
    /// Whether it has given weights to be put into the model; they themselves stay on the rank.
    pub(super) weights: bool,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.stop.is_none() && self.saves.is_empty() && !self.weights
    }

    /// Whether another rank asks for the same. The words of a reason may differ, and weights are
    /// the coordinator's anyway.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.stop.is_some() == other.stop.is_some() && self.saves == other.saves
    }
}
