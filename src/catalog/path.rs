//! Where a checkpoint is.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::layout::CheckpointName;
use crate::storage::check_is_path;

/// Where a checkpoint is: a directory that holds checkpoints, and a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPath {
    directory: PathBuf,
    name: CheckpointName,
}

impl CheckpointPath {
    /// Splits `runs/e5` into the directory `runs` and the name `e5`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the last component is missing or can be no checkpoint's
    /// name (`..`, a leading dot, over 200 bytes), or if it is an address (`s3://…`).
    pub fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        check_is_path(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "the path does not end in a checkpoint's name")
                .with_path(path)
        })?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let name = CheckpointName::new(name).map_err(|e| e.with_path(path))?;
        Ok(Self { directory, name })
    }

    /// A name in a directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, name: CheckpointName) -> Self {
        Self { directory: directory.into(), name }
    }

    /// The directory that holds checkpoints.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// Both, joined.
    #[must_use]
    pub fn full(&self) -> PathBuf {
        self.directory.join(self.name.as_str())
    }
}

impl From<CheckpointPath> for (PathBuf, CheckpointName) {
    fn from(path: CheckpointPath) -> Self {
        (path.directory, path.name)
    }
}
