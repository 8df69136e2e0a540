//! A directory of files that do not come from a checkpoint, shown like any export.

use std::path::{Path, PathBuf};

use super::draft::Draft;
pub(crate) use super::taken::hash_text;
use crate::catalog::CheckpointPath;
use crate::error::Result;
use crate::storage::{Storage, WriteFile};
use crate::sweep::Pace;

/// A file that is to be written.
pub(crate) struct NewFile<'f> {
    pub(crate) name: &'f str,
    pub(crate) len: u64,
    /// Writes all of it.
    pub(crate) fill: &'f dyn Fn(&dyn WriteFile) -> Result<()>,
}

/// Writes a directory of these files, which appears whole. Not collective: one process writes.
///
/// # Errors
/// [`AlreadyExists`](crate::ErrorKind::AlreadyExists), [`Storage`](crate::ErrorKind::Storage), that
/// of a `fill`: nothing is visible then. With
/// [`DurabilityUncertain`](crate::ErrorKind::DurabilityUncertain) it is.
pub(crate) fn write_directory(
    storage: &dyn Storage,
    out: &Path,
    files: &[NewFile<'_>],
    overwrite: bool,
    pace: &Pace,
) -> Result<PathBuf> {
    let path = CheckpointPath::parse(out)?;
    let mut draft = Draft::begin(storage, &path, true, overwrite, pace)?;
    draft.check_space(files.iter().map(|file| file.len))?;
    for file in files {
        let made = draft.create(Some(file.name))?;
        made.reserve(file.len)?;
        (file.fill)(made.as_ref())?;
        made.finish()?;
    }
    draft.publish()?;
    Ok(path.full())
}
