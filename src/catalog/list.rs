//! What a directory holds.

use std::collections::BTreeSet;
use std::path::Path;

use super::order::Order;
use super::{candidates, holds_our_files, is_lost_found, open_entry, open_parent};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::{self, CheckpointName, Debris};
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::storage::{Directory, EntryKind, Storage};

/// How often a checkpoint is looked at again because it was replaced during the look.
const LOOKS_MAX: usize = 3;
/// The longest list that one rank tells the others, as an estimate of its bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Lists the checkpoints of `directory`, those under way and damaged ones included.
///
/// Committed ones have a manifest that parses and data and sums files of the lengths that it
/// states; no content is read. An interrupted replacement is looked through as
/// [`find`](super::find) does. A checkpoint is pinned by a value in its manifest or by a file
/// `.<name>.pin` beside it. Checkpoints that are files (see [`single`](crate::single)) are found by
/// their names alone and are not listed, and neither is anything that is not of this library.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such directory; [`ErrorKind::Storage`] if the storage
/// fails: what it hides might be the newest. Damage is no error.
pub fn find_checkpoints(
    storage: &dyn Storage,
    directory: &Path,
    order: &Order,
) -> Result<Vec<CheckpointInfo>> {
    find_counting(storage, directory, order, &mut || {})
}

/// As [`find_checkpoints`]: the coordinator looks, with its arguments, and tells the others.
///
/// # Collective
/// Every rank of the group calls it, and gets the same list or the same error.
///
/// # Errors
/// As [`find_checkpoints`]; [`ErrorKind::InvalidInput`] if the list is too long to be told (over
/// 64 MiB); else as [`ProcessGroup::phase`].
pub fn find_checkpoints_on(
    group: &ProcessGroup,
    storage: &dyn Storage,
    directory: &Path,
    order: &Order,
) -> Result<Vec<CheckpointInfo>> {
    group.on_coordinator("list", || {
        let progress = group.progress();
        let listed = find_counting(storage, directory, order, &mut || progress.add(1))?;
        check_tellable(&listed, ANSWER_BYTES_MAX).map_err(|e| e.with_path(directory))?;
        Ok(listed)
    })
}

fn find_counting(
    storage: &dyn Storage,
    directory: &Path,
    order: &Order,
    looked: &mut dyn FnMut(),
) -> Result<Vec<CheckpointInfo>> {
    let mut listed = list(open_parent(storage, directory)?.as_ref(), looked)?;
    listed.sort_by(|a, b| order.compare(a, b));
    Ok(listed)
}

fn check_tellable(listed: &[CheckpointInfo], bytes_max: usize) -> Result<()> {
    let bytes = |info: &CheckpointInfo| {
        let metrics: usize = info.metrics.keys().map(|name| name.len() + 16).sum();
        128 + info.name.len() + info.fault.as_ref().map_or(0, String::len) + metrics
    };
    let total = listed.iter().map(bytes).fold(0usize, usize::saturating_add);
    if total <= bytes_max {
        return Ok(());
    }
    let message = format!("the list of {} checkpoints is too long for other ranks", listed.len());
    Err(Error::new(ErrorKind::InvalidInput, message)
        .with_help("list them on one rank with `find_checkpoints`"))
}

/// Everything of ours that an open directory holds, in no particular order: committed, partial and
/// damaged. `looked` is called after each.
pub(crate) fn list(
    parent: &dyn Directory,
    looked: &mut dyn FnMut(),
) -> Result<Vec<CheckpointInfo>> {
    let entries = parent.list()?;
    let of_kind = |kind| entries.iter().filter(move |entry| entry.kind == kind);
    let files: BTreeSet<&str> = of_kind(EntryKind::File).map(|file| file.name.as_str()).collect();
    let mut listed = Vec::new();
    for (name, entry) in candidates(&entries) {
        if let Some(mut info) = look(parent, &name, entry)? {
            info.pinned |= files.contains(layout::pin_file(&name).as_str());
            listed.push(info);
        }
        looked();
    }
    for entry in of_kind(EntryKind::Directory) {
        if let Some(Debris::Partial { name, save_id }) = Debris::parse(&entry.name) {
            let unknown = CheckpointInfo::unknown(name.as_str(), CheckpointState::Partial);
            listed.push(CheckpointInfo { save_id: Some(save_id), ..unknown });
        }
    }
    Ok(listed)
}

/// One checkpoint as [`list`] shows it, but for a pin beside it; `None` if nothing of ours has this
/// name.
pub(crate) fn list_one(
    parent: &dyn Directory,
    name: &CheckpointName,
) -> Result<Option<CheckpointInfo>> {
    look(parent, name, name.as_str())
}

/// What lies under `entry`; `None` if that is nothing of ours, or gone.
fn look(
    parent: &dyn Directory,
    name: &CheckpointName,
    entry: &str,
) -> Result<Option<CheckpointInfo>> {
    let mut seen: Option<CheckpointInfo> = None;
    for _ in 0..LOOKS_MAX {
        let found = match open_entry(parent, name, entry) {
            Err(e) if e.kind() == ErrorKind::NotFound || is_lost_found(entry, &e) => {
                return Ok(None);
            }
            Err(e) if e.kind() == ErrorKind::Corrupt && !is_ours(parent, entry)? => {
                return Ok(None);
            }
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
                let unknown = CheckpointInfo::unknown(name.as_str(), CheckpointState::Damaged);
                return Ok(Some(damaged(unknown, &e)));
            }
            opened => opened?,
        };
        let info = CheckpointInfo::of(name.as_str(), &found.manifest);
        let Some(fault) = found.fault_of_files()? else { return Ok(Some(info)) };
        // Files may be gone because another save has taken the name; the same save twice is damage.
        let is_same = seen.as_ref().is_some_and(|seen| seen.save_id == info.save_id);
        seen = Some(damaged(info, &fault));
        if is_same {
            break;
        }
    }
    Ok(seen)
}

fn damaged(info: CheckpointInfo, fault: &Error) -> CheckpointInfo {
    CheckpointInfo { state: CheckpointState::Damaged, fault: Some(fault.to_string()), ..info }
}

/// Another program may call a file of its own `manifest.bin`.
fn is_ours(parent: &dyn Directory, entry: &str) -> Result<bool> {
    match parent.open_dir(entry) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        opened => holds_our_files(opened?.as_ref()),
    }
}

#[cfg(test)]
mod tests;
