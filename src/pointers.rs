//! `latest` and `best`: links that people and tools can follow, and the same as small JSON.

use std::collections::BTreeSet;

use crate::catalog::pointer::{Pointer, parse, read_file, read_json, read_link};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, BEST, CheckpointName, Debris, LATEST, SaveId};
use crate::manifest::CheckpointInfo;
use crate::storage::{Directory, EntryKind, Rename};
use crate::sweep::{Pace, lock_parent, log_failure};

/// Moves the pointers of an open directory to committed checkpoints, on the coordinator, after a
/// commit. A pointer without a checkpoint is left as it is, but removed if what it names is gone.
/// What is right already is not written again.
///
/// Readers see the old pointer or the new one, whatever fails. Only links, and files that hold the
/// JSON of a pointer, are replaced or removed; anything else under one of the names is the user's.
/// Where there are no links, there is JSON alone.
///
/// # Durability
/// What was moved outlives a power cut once this returns.
///
/// # Errors
/// One error of all that failed; the other pointers were moved nevertheless.
/// [`ErrorKind::AlreadyExists`] for something of the user's, which stays;
/// [`ErrorKind::Deadline`] if another job holds the lock; [`ErrorKind::InvalidInput`] for a
/// checkpoint that is not committed; [`ErrorKind::Storage`].
pub(crate) fn update(
    parent: &dyn Directory,
    latest: Option<&CheckpointInfo>,
    best: Option<&CheckpointInfo>,
    pace: &Pace,
) -> Result<()> {
    let _lock = lock_parent(parent, pace.patience)?;
    let (mut failures, mut has_changed) = (Vec::new(), false);
    for (pointer, info) in [(LATEST, latest), (BEST, best)] {
        let done = match info {
            Some(info) => point(parent, pointer, info),
            None => unpoint(parent, pointer),
        };
        for one in done {
            match one {
                Ok(changed) => has_changed |= changed,
                Err(error) => failures.push(error),
            }
        }
        pace.progress.add(1);
    }
    if has_changed {
        failures.extend(parent.sync().err());
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::from_failures(failures)) }
}

/// What the pointers of an open directory name, by their links and by their files.
///
/// # Errors
/// [`ErrorKind::Storage`].
pub(crate) fn named(parent: &dyn Directory) -> Result<BTreeSet<CheckpointName>> {
    let mut named = BTreeSet::new();
    for pointer in [LATEST, BEST] {
        named.extend(read_link(parent, pointer)?.and_then(|named| named.ok()));
        named.extend(read_json(parent, pointer)?);
    }
    Ok(named)
}

/// Whether link and file were changed.
fn point(parent: &dyn Directory, pointer: &str, info: &CheckpointInfo) -> Vec<Result<bool>> {
    match Pointer::to(info).and_then(|to| Ok((to.encode()?, to))) {
        Ok((json, to)) => vec![
            point_link(parent, pointer, to.name.as_str()),
            point_file(parent, &layout::pointer_json(pointer), &json),
        ],
        Err(error) => vec![Err(error)],
    }
}

fn point_link(parent: &dyn Directory, pointer: &str, name: &str) -> Result<bool> {
    match parent.read_link(pointer) {
        Ok(text) if text == name => return Ok(false),
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mode = how_to_take(parent, pointer)?;
    let make = |temporary: &str| parent.create_link(temporary, name);
    match replace(parent, pointer, mode, &make) {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(false),
        done => done.map(|()| true),
    }
}

fn point_file(parent: &dyn Directory, name: &str, json: &[u8]) -> Result<bool> {
    if read_file(parent, name)?.is_some_and(|bytes| bytes == json) {
        return Ok(false);
    }
    let mode = how_to_take(parent, name)?;
    let make = |temporary: &str| {
        let file = parent.create_file(temporary)?;
        file.write_at(0, json)?;
        file.finish()
    };
    replace(parent, name, mode, &make).map(|()| true)
}

/// How a rename may take this name.
fn how_to_take(parent: &dyn Directory, name: &str) -> Result<Rename> {
    let Some(entry) = parent.list()?.into_iter().find(|entry| entry.name == name) else {
        return Ok(Rename::NoReplace);
    };
    let is_ours = match entry.kind {
        EntryKind::Link => true,
        EntryKind::File => read_file(parent, name)?.is_some_and(|bytes| parse(&bytes).is_some()),
        EntryKind::Directory | EntryKind::Other => false,
    };
    if is_ours {
        return Ok(Rename::Replace);
    }
    Err(Error::new(ErrorKind::AlreadyExists, "the name is taken by something that is no pointer")
        .with_path(parent.path().join(name))
        .with_help("it was left alone; move it away to have a pointer here"))
}

/// Makes something under a hidden name and renames it to its own.
fn replace(
    parent: &dyn Directory,
    name: &str,
    mode: Rename,
    make: &dyn Fn(&str) -> Result<()>,
) -> Result<()> {
    let temporary = layout::pointer_temporary(&SaveId::random()?);
    make(&temporary).and_then(|()| parent.rename(&temporary, name, mode)).inspect_err(|_| {
        log_failure("removing a pointer that was not moved", || {
            match parent.remove_file(&temporary) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        });
    })
}

/// Removes link and file if what they name is gone; a link that leads elsewhere stays.
fn unpoint(parent: &dyn Directory, pointer: &str) -> Vec<Result<bool>> {
    let remove = |named: Option<CheckpointName>, entry: &str| match named {
        Some(name) if is_gone(parent, &name)? => parent.remove_file(entry).map(|()| true),
        _ => Ok(false),
    };
    let link = read_link(parent, pointer)
        .and_then(|named| remove(named.and_then(|named| named.ok()), pointer));
    let file =
        read_json(parent, pointer).and_then(|named| remove(named, &layout::pointer_json(pointer)));
    vec![link, file]
}

/// Whether nothing has this name, and no interrupted replacement is about to.
fn is_gone(parent: &dyn Directory, name: &CheckpointName) -> Result<bool> {
    let is_it = |entry: &str| match Debris::parse(entry) {
        Some(Debris::Old { name: old, .. }) => old == *name,
        _ => entry == name.as_str(),
    };
    Ok(!parent.list()?.iter().any(|entry| is_it(&entry.name)))
}

#[cfg(test)]
mod tests;
