//! What follows the commit of an automatic save, on the coordinator: links, and what goes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::AutoSaver;
use crate::group::ProcessGroup;
use crate::handler::{Model, NNHandler};
use crate::layout::{CheckpointName, SaveId};
use crate::save::Checkpoint;
use crate::storage::Storage;
use crate::sweep::{self, Pace};
use crate::tidy::Tidy;

/// Owned, since it may happen beside training.
pub(super) struct After {
    tidy: Tidy,
    /// What overwriting removes.
    replaced: Vec<(CheckpointName, SaveId)>,
    began: Instant,
    took: Arc<Mutex<Duration>>,
}

impl After {
    /// Links move first, so that they never lead nowhere. What is committed stays so: a failure is
    /// logged, never fatal.
    pub(super) fn run(&self, committed: &Checkpoint) {
        let Tidy { group, storage, directory, .. } = &self.tidy;
        *self.took.lock() = self.began.elapsed();
        self.tidy.after(committed);
        remove_own(group, storage.as_ref(), directory, &self.replaced, &committed.name);
    }
}

impl<M: Model> NNHandler<M> {
    /// Everything that follows a save of `saver` which begins now.
    pub(super) fn after_save(&self, saver: &AutoSaver) -> After {
        let state = &saver.state;
        let tidy = Tidy {
            group: self.group.clone(),
            storage: self.storage.clone(),
            directory: state.directory.clone(),
            retention: state.policies.retention.clone(),
            monitor: state.policies.monitor(),
            protected: self.line.resumed(&state.directory).into_iter().collect(),
            line: self.line.of(&state.directory).unwrap_or_default().line,
            pointed: self.line.pointed(),
            events: self.callbacks.event_log().map(|events| (events, self.step)),
        };
        let replaced = if state.overwrite { state.previous.clone() } else { Vec::new() };
        After { tidy, replaced, began: Instant::now(), took: self.beside.took() }
    }
}

/// Coordinator: removes those of `previous`, but never `keep`, that still are the saves meant.
pub(in crate::handler) fn remove_own(
    group: &ProcessGroup,
    storage: &dyn Storage,
    directory: &Path,
    previous: &[(CheckpointName, SaveId)],
    keep: &CheckpointName,
) {
    if previous.is_empty() || !group.is_coordinator() {
        return;
    }
    let pace = Pace::of(group);
    let opened = storage.open_dir(directory);
    for (name, save_id) in previous.iter().filter(|(name, _)| name != keep) {
        let removed = opened
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|dir| sweep::remove(dir.as_ref(), name, save_id, &pace));
        if let Err(error) = removed {
            tracing::warn!(%error, %name, "a previous checkpoint stays");
        }
    }
}
