//! After a commit, on the coordinator: what goes, and where the links point. The same for a loop of
//! one's own and for a handler.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::autosave::{KeepBest, Mode, Retention};
use crate::catalog::{self, pointer};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::layout::{BEST, LATEST, SaveId};
use crate::manifest::CheckpointInfo;
use crate::save::Checkpoint;
use crate::shown;
use crate::storage::{Directory, Storage};
use crate::sweep::{Pace, log_failure};
use crate::tensorboard::EventLog;
use crate::{pointers, retain};

/// Everything that tidying up needs; owned, since it may happen beside training.
pub(crate) struct Tidy {
    pub(crate) group: ProcessGroup,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) directory: PathBuf,
    pub(crate) retention: Retention,
    pub(crate) monitor: Option<(String, Mode)>,
    /// Never removed, whatever the rules say.
    pub(crate) protected: Vec<SaveId>,
    pub(crate) line: u64,
    pub(crate) pointed: Pointed,
    /// Where the coordinator tells what the save took, and of which step it is.
    pub(crate) events: Option<(Arc<EventLog>, u64)>,
}

/// The line for which this run has moved the links by all checkpoints of the directory, if it has
/// and nothing failed: from then on they go by what they name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pointed(Arc<Mutex<Option<u64>>>);

impl Tidy {
    /// A failure is a warning: what is committed stays so, and the next save tries again.
    pub(crate) fn after(&self, committed: &Checkpoint) {
        if self.group.is_coordinator() {
            tracing::info!(path = %shown::path(&committed.path), "saved {}", committed.report);
            if let Some((events, step)) = &self.events {
                events.saved(*step, &committed.report);
            }
            log_failure("tidying up after a save", || self.pass(committed));
        }
    }

    fn pass(&self, committed: &Checkpoint) -> Result<()> {
        let parent = self.storage.open_dir(&self.directory)?;
        let pace = Pace::of(&self.group);
        if !self.retention.has_rules()
            && let Some(few) = self.all_that_matters(parent.as_ref(), committed)?
        {
            return self.point(parent.as_ref(), &few, &pace);
        }
        let protected: Vec<SaveId> =
            std::iter::once(committed.save_id).chain(self.protected.iter().copied()).collect();
        let point = &mut |left: &[CheckpointInfo]| {
            log_failure("moving the links", || self.point(parent.as_ref(), left, &pace));
        };
        let line = Some(self.line);
        retain::keep_of_line(parent.as_ref(), &self.retention, line, &protected, &pace, point)?;
        Ok(())
    }

    /// What was committed and what the links name, where those alone tell where the links are to
    /// go: a directory may hold thousands. `None` if all have to be looked at.
    fn all_that_matters(
        &self,
        parent: &dyn Directory,
        committed: &Checkpoint,
    ) -> Result<Option<Vec<CheckpointInfo>>> {
        if *self.pointed.0.lock() != Some(self.line) {
            return Ok(None);
        }
        let mut names = BTreeSet::from([committed.name.clone()]);
        for link in [LATEST].into_iter().chain(self.monitor.as_ref().map(|_| BEST)) {
            let Some(Ok(name)) = pointer::read(parent, link)? else { return Ok(None) };
            names.insert(name);
        }
        let mut few = Vec::new();
        for name in &names {
            let info = catalog::list_one(parent, name)?;
            let Some(info) = info.filter(|info| self.is_own(info)) else { return Ok(None) };
            few.push(info);
        }
        Ok(Some(few))
    }

    /// `latest` and `best` name what is going to stay, of this run.
    fn point(&self, parent: &dyn Directory, left: &[CheckpointInfo], pace: &Pace) -> Result<()> {
        let own = || left.iter().filter(|info| self.is_own(info));
        let latest = own().max_by(|a, b| a.age_key().cmp(&b.age_key()));
        let best = self.monitor.as_ref();
        let best = best.and_then(|(name, mode)| KeepBest::one(name, *mode).best_of(own()));
        let moved = pointers::update(parent, latest, best, pace);
        *self.pointed.0.lock() = moved.is_ok().then_some(self.line);
        moved
    }

    fn is_own(&self, info: &CheckpointInfo) -> bool {
        info.is_committed() && !info.aside && info.line == self.line
    }
}
