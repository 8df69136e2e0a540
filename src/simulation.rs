//! For our own tests: the crate inside a simulated machine. No part of the interface; may change
//! at any time.
//!
//! A simulator installs a [`World`] on its thread, which is time and chance from then on, makes the
//! ranks of a job with [`Node::job`], and runs each of them as it likes: on one thread, one at a
//! time, switching when they wait or touch the storage.

use std::path::PathBuf;
use std::sync::Arc;

use crate::autosave::{Mode, Retention};
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::save::Checkpoint;
use crate::storage::Storage;
use crate::tidy::{Pointed, Tidy};

pub use crate::clock::{Installed, World, install};
pub use crate::group::simulated::{Network, Node, Parcel, swap_depth};

/// What follows a commit: links and retention, as a loop's [`Checkpointer`] and a handler do it.
///
/// [`Checkpointer`]: crate::checkpointer::Checkpointer
#[derive(Debug, Clone)]
pub struct AfterCommit {
    /// Where the checkpoints are.
    pub directory: PathBuf,
    /// What stays.
    pub retention: Retention,
    /// By which number `best` goes.
    pub monitor: Option<(String, Mode)>,
    /// Never removed.
    pub protected: Vec<SaveId>,
    pointed: Pointed,
}

impl AfterCommit {
    /// Links and these rules for `directory`.
    #[must_use]
    pub fn new(directory: PathBuf, retention: Retention, monitor: Option<(String, Mode)>) -> Self {
        let (protected, pointed) = (Vec::new(), Pointed::default());
        Self { directory, retention, monitor, protected, pointed }
    }

    /// Tidies up after `committed`; does nothing on other ranks than the coordinator.
    pub fn run(&self, group: &ProcessGroup, storage: &Arc<dyn Storage>, committed: &Checkpoint) {
        let tidy = Tidy {
            group: group.clone(),
            storage: Arc::clone(storage),
            directory: self.directory.clone(),
            retention: self.retention.clone(),
            monitor: self.monitor.clone(),
            protected: self.protected.clone(),
            line: 0,
            pointed: self.pointed.clone(),
            events: None,
        };
        tidy.after(committed);
    }
}
