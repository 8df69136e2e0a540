//! What lies in a directory of checkpoints at a time, looked at again and again: a manifest is read
//! once, and then only its last bytes, which are a hash of it.

use std::collections::BTreeMap;

use crate::catalog::{is_lost_found, list_one};
use crate::error::{ErrorKind, Result};
use crate::layout::{self, CheckpointName, Debris, SaveId};
use crate::manifest::{CheckpointInfo, HEAD_BYTES};
use crate::storage::{Directory, EntryKind};

/// Of a manifest: the hash at its end.
const STAMP_BYTES: usize = 32;

type Stamp = [u8; STAMP_BYTES];

/// What lies there.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// By name.
    pub(super) checkpoints: BTreeMap<String, Checkpoint>,
    /// Saves under way, and what those left that ended without a commit.
    pub(super) attempts: BTreeMap<SaveId, Attempt>,
}

/// A checkpoint, and which manifest said so.
#[derive(Debug, Clone)]
pub(super) struct Checkpoint {
    stamp: Option<Stamp>,
    pub(super) info: CheckpointInfo,
}

/// A save that is not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) name: String,
    /// Of its files so far.
    pub(super) bytes: u64,
}

impl Seen {
    /// What is there now; `self` is what was there before.
    pub(super) fn again(&self, parent: &dyn Directory) -> Result<Self> {
        let mut now = Self::default();
        for entry in parent.list()?.into_iter().filter(|e| e.kind == EntryKind::Directory) {
            if let Some(Debris::Partial { name, save_id }) = Debris::parse(&entry.name) {
                let bytes = bytes_of(parent, &entry.name)?;
                let attempt = bytes.map(|bytes| Attempt { name: name.to_string(), bytes });
                now.attempts.extend(attempt.map(|attempt| (save_id, attempt)));
            } else if let Ok(name) = CheckpointName::new(&entry.name)
                && let Some(checkpoint) = self.checkpoint(parent, &name)?
            {
                now.checkpoints.insert(entry.name, checkpoint);
            }
        }
        Ok(now)
    }

    fn checkpoint(
        &self,
        parent: &dyn Directory,
        name: &CheckpointName,
    ) -> Result<Option<Checkpoint>> {
        let stamp = stamp_of(parent, name.as_str())?;
        let known = self.checkpoints.get(name.as_str());
        if let Some(known) = known.filter(|known| stamp.is_some() && known.stamp == stamp) {
            return Ok(Some(known.clone()));
        }
        if stamp.is_none() {
            return Ok(None);
        }
        Ok(list_one(parent, name)?.map(|info| Checkpoint { stamp, info }))
    }

    /// That can be loaded, oldest first.
    pub(super) fn committed(&self) -> Vec<&CheckpointInfo> {
        let infos = self.checkpoints.values().map(|checkpoint| &checkpoint.info);
        let mut committed: Vec<_> = infos.filter(|info| info.is_committed()).collect();
        committed.sort_by_key(|info| (info.created_unix_ms, info.age_key()));
        committed
    }

    pub(super) fn holds(&self, save_id: SaveId) -> bool {
        self.checkpoints.values().any(|checkpoint| checkpoint.info.save_id == Some(save_id))
    }
}

/// `None` without a manifest, or if what there is can be none.
fn stamp_of(parent: &dyn Directory, entry: &str) -> Result<Option<Stamp>> {
    let read = || {
        let file = parent.open_dir(entry)?.open_file(layout::MANIFEST)?;
        let mut stamp = [0; STAMP_BYTES];
        let Some(at) = file.len().checked_sub((STAMP_BYTES + HEAD_BYTES) as u64) else {
            // Too short for a manifest: damage, which is looked at.
            return Ok(Some(stamp));
        };
        file.read_at(at + HEAD_BYTES as u64, &mut stamp)?;
        Ok(Some(stamp))
    };
    read().or_else(|e| (absent(&e) || is_lost_found(entry, &e)).then_some(None).ok_or(e))
}

/// Bytes of the files of an attempt; `None` if it is gone, or has its manifest: then it is about to
/// be committed, or is what was replaced.
fn bytes_of(parent: &dyn Directory, entry: &str) -> Result<Option<u64>> {
    let sum = || {
        let dir = parent.open_dir(entry)?;
        let mut sum = 0u64;
        for file in dir.list()?.iter().filter(|file| file.kind == EntryKind::File) {
            if file.name == layout::MANIFEST {
                return Ok(None);
            }
            match dir.open_file(&file.name) {
                Ok(file) => sum = sum.saturating_add(file.len()),
                Err(e) if absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(sum))
    };
    sum().or_else(|e| absent(&e).then_some(None).ok_or(e))
}

/// Whether this is no word about the storage: what was listed may be gone, or be no file.
fn absent(error: &crate::error::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt)
}
