//! What is under the name of a file, and removing hidden files that crashed jobs left.

use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::files::bears_our_mark;
use crate::layout::Debris;
use crate::manifest::Manifest;
use crate::shard::read_single;
use crate::storage::{Directory, EntryKind, ReadFile};
use crate::sweep::{Existing, Pace, When, lock_parent, log_failure};

/// What is under `name` now: a file of this library, one that is damaged, or something else.
pub(super) fn existing(parent: &dyn Directory, name: &str) -> Result<Existing> {
    let Some(entry) = parent.list()?.into_iter().find(|entry| entry.name == name) else {
        return Ok(Existing::Absent);
    };
    if entry.kind != EntryKind::File {
        return Ok(Existing::Foreign);
    }
    let file = match parent.open_file(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Existing::Absent),
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(Existing::Foreign),
        opened => opened?,
    };
    let damaged = |file: &Arc<dyn ReadFile>| {
        Ok(if bears_our_mark(file.as_ref())? { Existing::Damaged } else { Existing::Foreign })
    };
    match read_single(file.as_ref()) {
        Ok(single) => match single.embedded.map(|(_, bytes)| Manifest::parse(&bytes)) {
            None => Ok(Existing::Foreign),
            Some(Ok(manifest)) => Ok(Existing::Checkpoint(manifest.save_id())),
            Some(Err(_)) => Ok(Existing::Damaged),
        },
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
            damaged(&file)
        }
        Err(e) => Err(e),
    }
}

/// Removes hidden files whose owner is gone. One that was replaced by a crashed job goes only
/// after a commit: it may be all that is left. Failures are logged.
pub(crate) fn sweep(parent: &dyn Directory, when: When, pace: &Pace) {
    log_failure("sweeping files", || {
        let is_debris = |name: &str| matches!(Debris::parse(name), Some(Debris::Partial { .. }));
        let entries = parent.list()?.into_iter();
        let mut found = entries.filter(|e| e.kind == EntryKind::File && is_debris(&e.name));
        let Some(first) = found.next() else { return Ok(()) };
        let _lock = lock_parent(parent, pace.patience)?;
        for entry in std::iter::once(first).chain(found) {
            pace.progress.add(1);
            log_failure("sweeping", || sweep_file(parent, &entry.name, when));
        }
        Ok(())
    });
}

fn sweep_file(parent: &dyn Directory, entry: &str, when: When) -> Result<()> {
    let Some(Debris::Partial { save_id, .. }) = Debris::parse(entry) else { return Ok(()) };
    let Ok(Some(_owner)) = parent.try_lock(entry) else { return Ok(()) };
    let was_replaced = match existing(parent, entry)? {
        Existing::Checkpoint(found) => found != save_id,
        _ => false,
    };
    if was_replaced && when == When::BeforeSave {
        return Ok(());
    }
    tracing::info!(entry, "removing what an earlier save left");
    parent.remove_file(entry)
}
