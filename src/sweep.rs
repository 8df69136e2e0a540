//! What is under a name, and how checkpoints and debris are removed.
//!
//! Removing goes out of sight first, durably, and unlinks then: freed blocks may be reused before
//! an unlink is durable, and a power cut could bring a name back with other bytes behind it. Under
//! the lock of the directory there are only renames; unlinking may take long, and comes after.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::catalog;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{ProcessGroup, Progress};
use crate::layout::{self, CheckpointName, Debris, SaveId};
use crate::sabotage::{self, Defect};
use crate::storage::{DirEntry, Directory, EntryKind, Lock, Rename};

/// How often something that another process holds is tried again.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How deep directories are removed: those of this library have a few levels, and each level takes
/// a descriptor and a frame of the stack.
const DEPTH_MAX: usize = 64;

/// How long the coordinator waits for other jobs and hosts, and how it shows peers that it works.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Longest wait for a lock, or for a file of another host to become visible.
    pub patience: Duration,
    /// Counts what was done.
    pub progress: Progress,
}

impl Pace {
    /// Well under the deadline after which the ranks of `group` would give this one up, and at
    /// most ten seconds.
    #[must_use]
    pub fn of(group: &ProcessGroup) -> Self {
        let patience = (group.deadlines().progress / 4).min(Duration::from_secs(10));
        Self { patience, progress: group.progress() }
    }
}

/// What is under the name of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Absent,
    Checkpoint(SaveId),
    /// A checkpoint of ours whose manifest does not parse; it may be replaced, not read.
    Damaged,
    /// Something of the user's: never touched.
    Foreign,
}

/// What is under `name` now.
pub(crate) fn existing(parent: &dyn Directory, name: &str) -> Result<Existing> {
    let Some(entry) = parent.list()?.into_iter().find(|entry| entry.name == name) else {
        return Ok(Existing::Absent);
    };
    if entry.kind != EntryKind::Directory {
        return Ok(Existing::Foreign);
    }
    let dir = match parent.open_dir(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Existing::Absent),
        opened => opened?,
    };
    match catalog::read_manifest(dir.as_ref()) {
        Ok(manifest) => Ok(Existing::Checkpoint(manifest.save_id())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Existing::Foreign),
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
            // Another program may call a file of its own `manifest.bin`.
            let ours = catalog::holds_our_files(dir.as_ref())?;
            Ok(if ours { Existing::Damaged } else { Existing::Foreign })
        }
        Err(e) => Err(e),
    }
}

/// The lock of the directory of checkpoints, or `None` where locks do not work.
pub(crate) fn lock_parent(parent: &dyn Directory, patience: Duration) -> Result<Option<Lock>> {
    let until = clock::now() + patience;
    loop {
        match parent.try_lock(layout::LOCK) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) if clock::now() < until => clock::sleep(RETRY_INTERVAL),
            Ok(None) => {
                return Err(Error::new(ErrorKind::Deadline, "another job holds the lock")
                    .with_path(parent.path().join(layout::LOCK))
                    .with_help(
                        "if that job should be over, a process of it is left that is stopped or \
                         hangs: find it (`fuser` with this path names it on its host) and end it",
                    ));
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Removes a checkpoint if it is still the one meant.
///
/// # Durability
/// Once this returns, no power cut brings it back.
///
/// # Errors
/// [`ErrorKind::Superseded`] if another save has replaced it; [`ErrorKind::Deadline`] if another
/// job holds the lock; [`ErrorKind::Storage`].
pub fn remove(
    parent: &dyn Directory,
    name: &CheckpointName,
    save_id: &SaveId,
    pace: &Pace,
) -> Result<()> {
    remove_if(parent, name, save_id, pace, &|| Ok(()))
}

/// As [`remove`]; `may` is asked under the lock of the directory, and its error stops it.
pub(crate) fn remove_if(
    parent: &dyn Directory,
    name: &CheckpointName,
    save_id: &SaveId,
    pace: &Pace,
    may: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let lock = lock_parent(parent, pace.patience)?;
    let trash = match existing(parent, name.as_str())? {
        // Whoever removed it may have died before its fsync.
        Existing::Absent => return parent.sync(),
        Existing::Checkpoint(found) if found == *save_id => {
            may()?;
            to_trash(parent, name.as_str())?
        }
        _ => {
            return Err(Error::new(ErrorKind::Superseded, "another save is under this name now")
                .with_path(parent.path().join(name.as_str())));
        }
    };
    drop(lock);
    // Where it is gone since the look, likewise.
    trash.map_or_else(|| parent.sync(), |trash| remove_tree(parent, &trash, pace))
}

/// Renames an entry to trash, makes that durable, then unlinks it. A missing entry is fine.
pub(crate) fn discard(parent: &dyn Directory, name: &str, pace: &Pace) -> Result<()> {
    to_trash(parent, name)?.map_or(Ok(()), |trash| remove_tree(parent, &trash, pace))
}

/// Puts an entry out of sight, durably; its new name, or `None` if there is no such entry.
fn to_trash(parent: &dyn Directory, name: &str) -> Result<Option<String>> {
    if sabotage::is_on(Defect::CarelessDeletion) {
        return Ok(Some(name.to_owned()));
    }
    let trash = layout::trash_dir(&SaveId::random()?);
    match parent.rename(name, &trash, Rename::NoReplace) {
        // A network file system that lost the answer asks again, and finds it done.
        Err(e) if e.kind() == ErrorKind::NotFound => match parent.open_dir(&trash) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => drop(opened?),
        },
        renamed => renamed?,
    }
    parent.sync()?;
    Ok(Some(trash))
}

/// Removes a directory and everything in it, following no link. Another job may be at it too, so
/// what is gone already is fine.
fn remove_tree(parent: &dyn Directory, name: &str, pace: &Pace) -> Result<()> {
    remove_levels(parent, name, pace, DEPTH_MAX)
}

fn remove_levels(parent: &dyn Directory, name: &str, pace: &Pace, levels: usize) -> Result<()> {
    if levels == 0 {
        let message = format!("directories in directories, more than {DEPTH_MAX} levels deep");
        return Err(Error::new(ErrorKind::Storage, message)
            .with_path(parent.path())
            .with_help("this is no checkpoint: find out who put it there, and remove it by hand"));
    }
    let Some(dir) = unless_gone(parent.open_dir(name))? else { return Ok(()) };
    for entry in dir.list()? {
        match entry.kind {
            EntryKind::Directory => {
                remove_levels(dir.as_ref(), &entry.name, pace, levels - 1)?;
            }
            _ => drop(unless_gone(dir.remove_file(&entry.name))?),
        }
        pace.progress.add(1);
    }
    drop(dir);
    unless_gone(parent.remove_dir(name)).map(drop)
}

fn unless_gone<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

/// How much of the debris may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Nothing that was ever a checkpoint: it may be all that is left if this save fails.
    BeforeSave,
    /// Everything: a newer checkpoint of the directory is durable.
    AfterCommit,
}

/// Finishes what crashed jobs left: interrupted deletions and replacements, abandoned attempts.
/// An attempt whose owner still lives (its lock is held, or locks do not work) is left alone.
/// Failures are logged: a sweep never fails a save.
pub(crate) fn sweep(parent: &dyn Directory, when: When, pace: &Pace) {
    let mut trash = Vec::new();
    log_failure("looking for debris", || {
        let debris: Vec<_> = parent
            .list()?
            .into_iter()
            .filter_map(|entry| debris_of(&entry).map(|debris| (entry.name, debris)))
            .collect();
        if debris.is_empty() {
            return Ok(());
        }
        let _lock = lock_parent(parent, pace.patience)?;
        for (entry, debris) in debris {
            pace.progress.add(1);
            log_failure("sweeping", || {
                trash.extend(put_away(parent, &entry, &debris, when)?);
                Ok(())
            });
        }
        Ok(())
    });
    for entry in trash {
        log_failure("unlinking", || remove_tree(parent, &entry, pace));
    }
}

/// What an entry is, if its kind and its name say that it was left behind.
fn debris_of(entry: &DirEntry) -> Option<Debris> {
    let debris = Debris::parse(&entry.name)?;
    let fits = match debris {
        Debris::Pointer { .. } => matches!(entry.kind, EntryKind::File | EntryKind::Link),
        _ => entry.kind == EntryKind::Directory,
    };
    fits.then_some(debris)
}

/// Settles one piece of debris by renames; the entry that is now to be unlinked, if any.
fn put_away(
    parent: &dyn Directory,
    entry: &str,
    debris: &Debris,
    when: When,
) -> Result<Option<String>> {
    match debris {
        Debris::Trash { .. } => {
            // Whoever renamed it may have died before its fsync.
            parent.sync()?;
            Ok(Some(entry.to_owned()))
        }
        Debris::Old { name, .. } if existing(parent, name.as_str())? == Existing::Absent => {
            restore(parent, entry, name)?;
            Ok(None)
        }
        Debris::Old { .. } if when == When::BeforeSave => Ok(None),
        Debris::Old { .. } => to_trash(parent, entry),
        Debris::Partial { save_id, .. } => put_away_attempt(parent, entry, *save_id, when),
        // Whoever makes one holds the lock until it has its name.
        Debris::Pointer { .. } => parent.remove_file(entry).map(|()| None),
    }
}

fn put_away_attempt(
    parent: &dyn Directory,
    entry: &str,
    save_id: SaveId,
    when: When,
) -> Result<Option<String>> {
    let dir = match parent.open_dir(entry) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let Ok(Some(_owner)) = dir.try_lock_self() else { return Ok(None) };
    if when == When::BeforeSave && holds_another_save(dir.as_ref(), save_id) {
        return Ok(None);
    }
    tracing::info!(entry, "removing what an earlier save left");
    to_trash(parent, entry)
}

/// Whether the directory of attempt `save_id` holds a checkpoint that was exchanged out instead.
pub(crate) fn holds_another_save(dir: &dyn Directory, save_id: SaveId) -> bool {
    match catalog::read_manifest(dir) {
        Ok(manifest) => manifest.save_id() != save_id,
        Err(e) => match e.kind() {
            // An attempt that never came so far.
            ErrorKind::NotFound => false,
            // One that a full disk ended at its manifest must give its space back, or there never
            // is enough for the next.
            ErrorKind::Corrupt => !catalog::holds_files_of(dir, save_id).unwrap_or(false),
            // Unreadable: better kept.
            _ => true,
        },
    }
}

/// Gives the name back to the checkpoint of an interrupted replacement, if the name is free.
pub(crate) fn restore_interrupted(parent: &dyn Directory, name: &CheckpointName) -> Result<()> {
    let entries = parent.list()?;
    if entries.iter().any(|entry| entry.name == name.as_str()) {
        return Ok(());
    }
    for entry in entries.iter().filter(|e| e.kind == EntryKind::Directory) {
        match Debris::parse(&entry.name) {
            Some(Debris::Old { name: old, .. }) if old == *name => {
                return restore(parent, &entry.name, name);
            }
            _ => {}
        }
    }
    Ok(())
}

fn restore(parent: &dyn Directory, entry: &str, name: &CheckpointName) -> Result<()> {
    parent.rename(entry, name.as_str(), Rename::NoReplace)?;
    parent.sync()
}

/// Tidying up may fail, even panic, but never changes the outcome of a save.
pub(crate) fn log_failure(doing: &str, tidy: impl FnOnce() -> Result<()>) {
    if let Err(error) = caught(tidy) {
        tracing::warn!(%error, doing, "left for a later save to finish");
    }
}

/// What `body` gives; its panic is an error.
pub(crate) fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Err(Error::new(ErrorKind::Panic, "the storage panicked"));
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(panicked)
}
