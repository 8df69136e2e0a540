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
    /// An address is refused whatever the storage: paths are cut by the rules of a file system, by
    /// which `s3://run` is `run` in the directory `s3:`, and a password with a slash is cut in two,
    /// neither of which looks like part of a secret. A storage of one's own that has addresses gets
    /// them by [`CheckpointPath::new`] and [`Wanted::new`](super::Wanted::new), which cut nothing.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Wanted, Which, find};
    use crate::group::ProcessGroup;
    use crate::save::{SaveOptions, save};
    use crate::state::StateDict;
    use crate::storage::{LocalStorage, MemoryStorage, Storage};

    /// The local storage sees of a path what is left when the name is cut off: too late.
    #[test]
    fn an_address_is_refused_before_it_is_cut() {
        for address in ["s3://run", "s3://bucket/run", "s3://user:pa/ss@bucket"] {
            let refused = [
                CheckpointPath::parse(address).map(drop).unwrap_err(),
                Wanted::parse(address).map(drop).unwrap_err(),
                Wanted::parse(format!("{address}/latest")).map(drop).unwrap_err(),
                LocalStorage::new().open_dir(Path::new(address)).map(drop).unwrap_err(),
            ];
            for error in refused {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert!(error.help().is_some_and(|help| help.starts_with("mount")), "{error}");
                assert!(!error.to_string().contains("pa/"), "{error}");
            }
        }
        let cut = Path::new("s3://run").parent();
        assert!(cut.is_some_and(|cut| crate::storage::check_is_path(cut).is_ok()));
    }

    #[test]
    fn a_storage_of_ones_own_may_have_addresses() {
        let (group, storage) = (ProcessGroup::solo(), MemoryStorage::new());
        let name = CheckpointName::new("a").unwrap();
        let path = CheckpointPath::new("s3://bucket/runs", name.clone());
        let saved = save(&group, &storage, &path, &StateDict::new(), &SaveOptions::default());
        let saved = saved.unwrap();
        for which in [Which::Named(name), Which::Latest] {
            let found = find(&storage, &Wanted::new("s3://bucket/runs", which)).unwrap();
            assert_eq!(found.manifest.save_id(), saved.save_id);
        }
    }
}
