//! After a commit, on the coordinator: what goes, and where the links point.

use std::path::PathBuf;
use std::sync::Arc;

use super::Checkpointer;
use crate::autosave::{Mode, Retention};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::save::Checkpoint;
use crate::storage::Storage;
use crate::sweep::{Pace, log_failure};
use crate::{pointers, retain};

/// Everything that tidying up needs; owned, since it may happen beside training.
pub(super) struct Tidy {
    group: ProcessGroup,
    storage: Arc<dyn Storage>,
    directory: PathBuf,
    retention: Retention,
    monitor: Option<(String, Mode)>,
    resumed: Option<SaveId>,
}

impl Checkpointer {
    pub(super) fn tidy(&self) -> Tidy {
        Tidy {
            group: self.group.clone(),
            storage: self.storage.clone(),
            directory: self.directory.clone(),
            retention: self.retention.clone(),
            monitor: self.config.monitor.clone().map(|name| (name, self.config.mode)),
            resumed: self.resumed,
        }
    }
}

impl Tidy {
    /// A failure is a warning: what is committed stays so, and the next save tries again.
    pub(super) fn after(&self, committed: &Checkpoint) {
        if self.group.is_coordinator() {
            log_failure("tidying up after a save", || self.pass(committed));
        }
    }

    fn pass(&self, committed: &Checkpoint) -> Result<()> {
        let parent = self.storage.open_dir(&self.directory)?;
        let protected: Vec<SaveId> =
            std::iter::once(committed.save_id).chain(self.resumed).collect();
        let pace = Pace::of(&self.group);
        let left = retain::keep(parent.as_ref(), &self.retention, &protected, &pace)?;
        let committed = || left.iter().filter(|info| info.is_committed());
        let latest = committed().max_by(|a, b| a.age_key().cmp(&b.age_key()));
        let best = self
            .monitor
            .as_ref()
            .and_then(|(name, mode)| crate::autosave::best_of(committed(), name, *mode));
        pointers::update(parent.as_ref(), latest, best, &pace)
    }
}
