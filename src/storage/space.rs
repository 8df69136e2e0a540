//! What a storage has left.

use std::path::Path;

use super::local::space_of_path;

use crate::shown;

/// What can still be written into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Space {
    /// Bytes that the storage still takes from this process, quotas apart.
    pub available_bytes: u64,
    /// Bytes that the tightest known quota leaves; `None` without one, or where it cannot be asked
    /// for. Quotas of whole directories (projects) count as `available_bytes` already: ext4 and
    /// XFS report them there.
    pub quota_bytes: Option<u64>,
    /// Files and directories that can still be made, quotas included; `None` where they are not
    /// counted.
    pub available_files: Option<u64>,
}

impl Space {
    /// So many bytes, and nothing known about anything else.
    #[must_use]
    pub fn of_bytes(available_bytes: u64) -> Self {
        Self { available_bytes, quota_bytes: None, available_files: None }
    }

    /// Bytes that can be written: what is left, within the quota.
    #[must_use]
    pub fn usable_bytes(&self) -> u64 {
        self.quota_bytes.map_or(self.available_bytes, |quota| quota.min(self.available_bytes))
    }
}

/// Bytes that can still be written to the file system on which `path` lies, or would lie: what is
/// missing of it counts for its nearest existing ancestor. `None` where that is not known, and
/// after a failure, which is logged at level `debug`. Any rank may ask; no other is involved.
#[must_use]
pub fn free_space(path: &Path) -> Option<u64> {
    match space_of_path(path) {
        Ok(space) => space.map(|space| space.usable_bytes()),
        Err(error) => {
            tracing::debug!(path = %shown::path(path), %error, "free space is not known");
            None
        }
    }
}
