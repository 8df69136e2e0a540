//! After a commit, on the coordinator: what goes, and where the links point.

use std::path::PathBuf;
use std::sync::Arc;

use super::Checkpointer;
use crate::autosave::{KeepBest, Mode, Retention};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::manifest::CheckpointInfo;
use crate::save::Checkpoint;
use crate::storage::{Directory, Storage};
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
    line: u64,
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
            line: self.lineage.line,
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
        let point = &mut |left: &[CheckpointInfo]| {
            log_failure("moving the links", || self.point(parent.as_ref(), left, &pace));
        };
        let line = Some(self.line);
        retain::keep_of_line(parent.as_ref(), &self.retention, line, &protected, &pace, point)?;
        Ok(())
    }

    /// `latest` and `best` name what is going to stay, of this run.
    fn point(&self, parent: &dyn Directory, left: &[CheckpointInfo], pace: &Pace) -> Result<()> {
        let is_own =
            |info: &&CheckpointInfo| info.is_committed() && !info.aside && info.line == self.line;
        let own = || left.iter().filter(is_own);
        let latest = own().max_by(|a, b| a.age_key().cmp(&b.age_key()));
        let best = self.monitor.as_ref();
        let best = best.and_then(|(name, mode)| KeepBest::one(name, *mode).best_of(own()));
        pointers::update(parent, latest, best, pace)
    }
}
