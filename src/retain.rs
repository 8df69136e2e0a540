//! Carrying out what [`Retention`] decides, after a commit; and pins, which stand above it.
//!
//! Nothing is remembered between passes: what is on disk decides, so that a pass that was cut short
//! is finished by the next one, of whatever process.

mod prune;

use std::collections::BTreeSet;

use crate::autosave::Retention;
use crate::catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName, SaveId};
use crate::manifest::CheckpointInfo;
use crate::pointers;
use crate::rank::Rank;
use crate::sabotage;
use crate::storage::Directory;
use crate::sweep::{self, Existing, Pace, When};

pub use prune::{Considered, prune};

/// One pass over an open directory, on the coordinator, after a commit: what the rules do not keep
/// is removed, one checkpoint after the other, and what is left is returned, in no particular
/// order. `protected` stays: the save just committed, and the one that this run began with.
///
/// A checkpoint that cannot be removed is a warning and stays; so is one in which a file lies that
/// does not belong to it, as somebody may want that file. One that was pinned, or replaced, since
/// it was listed stays as well, and so does what `latest` or `best` names: no link is made to lead
/// nowhere. If another job holds the lock of the directory, the pass ends early.
///
/// # Durability
/// Everything that the decision counts on is durable before anything goes, and what goes is out of
/// sight durably before the first of its files is unlinked.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] from [`Retention::check`]; any of listing the directory and of its
/// fsync, with nothing removed, or, once something could not be removed, of listing it again.
pub fn keep(
    parent: &dyn Directory,
    retention: &Retention,
    protected: &[SaveId],
    pace: &Pace,
) -> Result<Vec<CheckpointInfo>> {
    keep_of_line(parent, retention, None, protected, pace, &mut |_| ())
}

/// As [`keep`], of what one fresh start led to ([`CheckpointInfo::line`]) if `line` is given: what
/// is of another line neither fills a count nor goes. `point` is called when everything that is to
/// stay is durable, with that, and before the first removal: links move first, so that they never
/// lead nowhere.
pub(crate) fn keep_of_line(
    parent: &dyn Directory,
    retention: &Retention,
    line: Option<u64>,
    protected: &[SaveId],
    pace: &Pace,
    point: &mut dyn FnMut(&[CheckpointInfo]),
) -> Result<Vec<CheckpointInfo>> {
    sweep::caught(|| {
        retention.check()?;
        sweep::sweep(parent, When::BeforeSave, pace);
        let found = list(parent, pace)?;
        let goes = retention.decide_in_line(&found, line, protected).remove;
        if goes.is_empty() {
            point(&found);
            return Ok(found);
        }
        // Another job may have renamed a moment ago what the decision counts on.
        parent.sync()?;
        carry_out(parent, found, goes, pace, point)
    })
}

/// Moves the links, then removes what `goes` of `found`, but not what a link still names: that one
/// could not be moved, or had nowhere to go.
fn carry_out(
    parent: &dyn Directory,
    found: Vec<CheckpointInfo>,
    mut goes: Vec<(CheckpointName, SaveId)>,
    pace: &Pace,
    point: &mut dyn FnMut(&[CheckpointInfo]),
) -> Result<Vec<CheckpointInfo>> {
    let names: BTreeSet<&str> = goes.iter().map(|(name, _)| name.as_str()).collect();
    let (mut left, going): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|info| !is_gone(info, &names));
    point(&left);
    let pointed = pointers::named(parent)?;
    goes.retain(|(name, _)| !pointed.contains(name));
    left.extend(going.into_iter().filter(|info| pointed.iter().any(|n| n.as_str() == info.name)));
    if remove_all(parent, &goes, pace) { Ok(left) } else { list(parent, pace) }
}

/// An attempt under the name of a checkpoint that is gone is listed, and is still there.
fn is_gone(info: &CheckpointInfo, gone: &BTreeSet<&str>) -> bool {
    info.is_committed() && gone.contains(info.name.as_str())
}

fn list(parent: &dyn Directory, pace: &Pace) -> Result<Vec<CheckpointInfo>> {
    catalog::list(parent, &mut || pace.progress.add(1))
}

/// Removes one after the other; whether all of them are known to be gone.
fn remove_all(parent: &dyn Directory, goes: &[(CheckpointName, SaveId)], pace: &Pace) -> bool {
    let mut all_gone = true;
    for (name, save_id) in goes {
        let may = || refuse_wanted(parent, name);
        let removed = sweep::caught(|| sweep::remove_if(parent, name, save_id, pace, &may));
        sabotage::pass(Rank::COORDINATOR, "retain", "removed");
        match removed {
            Ok(()) => tracing::info!(%name, %save_id, "removed: no rule keeps it"),
            Err(error) => {
                tracing::warn!(%name, %error, "not removed, although no rule keeps it");
                all_gone = false;
                if error.kind() == ErrorKind::Deadline {
                    break;
                }
            }
        }
    }
    all_gone
}

/// What can have changed since the listing, or is too costly to look at there.
fn refuse_wanted(parent: &dyn Directory, name: &CheckpointName) -> Result<()> {
    let refuse = |message: String| Err(Error::new(ErrorKind::AlreadyExists, message));
    if is_pinned(parent, name)? {
        return refuse("it has been pinned meanwhile".to_owned());
    }
    let dir = parent.open_dir(name.as_str())?;
    let manifest = catalog::read_manifest(dir.as_ref())?;
    match catalog::foreign_files(dir.as_ref(), &manifest)?.first() {
        None => Ok(()),
        Some(file) => refuse(format!("`{file}` lies in it and is no part of it")).map_err(|e| {
            e.with_path(dir.path()).with_help("move that file, or pin the checkpoint")
        }),
    }
}

fn is_pinned(parent: &dyn Directory, name: &CheckpointName) -> Result<bool> {
    match parent.open_file(&layout::pin_file(name)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        // No regular file, but something.
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(true),
        opened => opened.map(|_| true),
    }
}

/// Pins a checkpoint: until [`unpin`] no policy removes what is under this name, also if it is
/// replaced. A pin is the file [`layout::pin_file`] beside it, and `touch` makes one too. No rank
/// needs the others for it.
///
/// # Durability
/// Once this returns, the pin survives a power cut.
///
/// # Errors
/// [`ErrorKind::NotFound`] if nothing is under the name; [`ErrorKind::Deadline`] if another job
/// holds the lock of the directory; [`ErrorKind::Storage`].
pub fn pin(parent: &dyn Directory, name: &CheckpointName, pace: &Pace) -> Result<()> {
    // A removal looks for a pin under the same lock.
    let _lock = sweep::lock_parent(parent, pace.patience)?;
    if sweep::existing(parent, name.as_str())? == Existing::Absent {
        let missing = Error::new(ErrorKind::NotFound, "no checkpoint here to be pinned");
        return Err(missing.with_path(parent.path().join(name.as_str())));
    }
    match parent.create_file(&layout::pin_file(name)) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        created => created?.finish()?,
    }
    parent.sync()
}

/// Takes the pin away, if there is one. A checkpoint that was saved as pinned stays pinned.
///
/// # Durability
/// Once this returns, the pin does not come back.
///
/// # Errors
/// [`ErrorKind::Storage`].
pub fn unpin(parent: &dyn Directory, name: &CheckpointName) -> Result<()> {
    match parent.remove_file(&layout::pin_file(name)) {
        // Whoever removed it may have died before its fsync.
        Err(e) if e.kind() == ErrorKind::NotFound => parent.sync(),
        removed => removed.and_then(|()| parent.sync()),
    }
}
