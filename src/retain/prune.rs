//! Retention on demand, by a person and not by a run.

use std::collections::BTreeSet;

use super::refuse_wanted;
use crate::autosave::{Reason, Retention};
use crate::catalog::{self, Order};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::CheckpointName;
use crate::manifest::CheckpointInfo;
use crate::pointers;
use crate::storage::{Directory, EntryKind};
use crate::sweep::{self, Pace};
use crate::usage::{Names, Taken};

/// A checkpoint, and what became of it.
#[derive(Debug, Clone)]
pub struct Considered {
    /// The checkpoint, as it was found.
    pub info: CheckpointInfo,
    /// Why it stays; without a reason it goes.
    pub reasons: BTreeSet<Reason>,
    /// Why it is still there although it was to go; it may have been pinned since.
    pub not_removed: Option<Error>,
    /// What became free on the device with it (with `dry_run` would become), in bytes; it and those
    /// before it being gone. Files that have further names (hard links) stay, and so count with the
    /// last checkpoint that has one. As far as the storage tells; else by the lengths of files.
    pub freed: u64,
}

impl Considered {
    /// Whether the rules let it go.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Removes from an open directory of checkpoints what the rules do not keep, oldest first, and says
/// of each checkpoint, newest first, why it stays, or that it goes. With `dry_run` nothing is
/// changed.
///
/// What stays whatever the rules say is what [`Retention`] excepts, and what `latest` or `best`
/// name. Only checkpoints that a policy saved can go; what is not of this library is not touched,
/// and neither is what crashed jobs left: the next save sweeps that. A running job is not disturbed:
/// each removal takes the lock of the directory for a moment, and looks again whether the checkpoint
/// is still the one that was found, and neither pinned nor linked.
///
/// Not collective: one process does it.
///
/// # Durability
/// As [`keep`](super::keep).
///
/// # Errors
/// [`ErrorKind::InvalidInput`] from [`Retention::check`]; [`ErrorKind::Storage`] from listing or
/// syncing the directory, with nothing removed. What cannot be removed has its own error.
pub fn prune(
    parent: &dyn Directory,
    retention: &Retention,
    pace: &Pace,
    dry_run: bool,
) -> Result<Vec<Considered>> {
    retention.check()?;
    let mut found = catalog::list(parent, &mut || pace.progress.add(1))?;
    found.sort_by(|a, b| Order::Latest.compare(a, b));
    let linked = pointers::named(parent)?;
    let reasons = retention.reasons(&found, &[]);
    let consider = |(info, mut reasons): (CheckpointInfo, BTreeSet<Reason>)| {
        if info.is_committed() && linked.iter().any(|name| name.as_str() == info.name) {
            reasons.insert(Reason::Linked);
        }
        Considered { info, reasons, not_removed: None, freed: 0 }
    };
    let mut all: Vec<Considered> = found.into_iter().zip(reasons).map(consider).collect();
    if !dry_run && all.iter().any(Considered::goes) {
        // Another job may have renamed a moment ago what the decision counts on.
        parent.sync()?;
    }
    go_through(parent, &mut all, pace, dry_run);
    Ok(all)
}

fn go_through(parent: &dyn Directory, all: &mut [Considered], pace: &Pace, dry_run: bool) {
    let (mut held, mut names) = (None, Names::default());
    for one in all.iter_mut().rev().filter(|one| one.goes()) {
        // Each is measured when those before it are gone, or counted as gone.
        let taken = taken(parent, &one.info.name);
        if !dry_run {
            // Whoever holds the lock holds it for the others too.
            let removed = held.clone().map_or_else(|| remove(parent, &one.info, pace), Err);
            one.not_removed = removed.err();
            held = one.not_removed.clone().filter(|error| error.kind() == ErrorKind::Deadline);
            names = Names::default();
        }
        if one.not_removed.is_none() {
            one.freed = names.remove(&taken);
        }
    }
}

/// What a checkpoint takes; nothing where that cannot be told, which keeps it from no removal.
fn taken(parent: &dyn Directory, name: &str) -> Taken {
    Taken::of(parent, name, EntryKind::Directory).unwrap_or_else(|error| {
        tracing::debug!(name, %error, "what it takes is not known");
        Taken::default()
    })
}

fn remove(parent: &dyn Directory, info: &CheckpointInfo, pace: &Pace) -> Result<()> {
    let name = CheckpointName::new(&info.name)?;
    let save_id = info
        .save_id
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("`{name}` is not committed")))?;
    let may = || {
        refuse_wanted(parent, &name)?;
        if pointers::named(parent)?.contains(&name) {
            let message = "a link names it meanwhile";
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        Ok(())
    };
    sweep::caught(|| sweep::remove_if(parent, &name, &save_id, pace, &may))
}
