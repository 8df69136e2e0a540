//! Finding and reading checkpoints: one directory handle, one manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName, Debris};
use crate::manifest::Manifest;
use crate::storage::{Directory, EntryKind, Storage};

/// The name that stands for the newest checkpoint of a directory.
pub const LATEST: &str = "latest";

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
    /// name (`..`, a leading dot, over 200 bytes).
    pub fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
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

/// A checkpoint found on disk: its directory handle and its parsed manifest.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub name: CheckpointName,
    /// The entry of the directory under which it lies; differs from the name only while a
    /// replacement was interrupted.
    pub entry: String,
    /// The handle through which its files are to be read.
    pub dir: Arc<dyn Directory>,
    /// What it consists of.
    pub manifest: Manifest,
}

/// Opens a checkpoint. The name `latest`, where no checkpoint is called that, stands for the
/// newest one; an interrupted replacement is looked through.
///
/// # Errors
/// [`ErrorKind::NotFound`], listing what there is; [`ErrorKind::Corrupt`] or
/// [`ErrorKind::Incompatible`] from the manifest; [`ErrorKind::Storage`].
pub fn find(storage: &dyn Storage, path: &CheckpointPath) -> Result<Found> {
    let parent = storage.open_dir(path.directory()).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "no directory of checkpoints here")
            .with_path(path.directory())
            .with_help("check the path; nothing was changed"),
        _ => e,
    })?;
    match open_entry(parent.as_ref(), path.name(), path.name().as_str()) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        found => return found,
    }
    for entry in parent.list()? {
        if let Some(Debris::Old { name, .. }) = Debris::parse(&entry.name)
            && name == *path.name()
        {
            return open_entry(parent.as_ref(), &name, &entry.name);
        }
    }
    if path.name().as_str() == LATEST {
        let newest = list(parent.as_ref())?.into_iter().max_by_key(|found| {
            let m = &found.manifest;
            (m.step(), m.epoch(), m.created_unix_ms(), found.name.clone())
        });
        return newest.ok_or_else(|| not_a_checkpoint(parent.as_ref(), path));
    }
    Err(not_a_checkpoint(parent.as_ref(), path))
}

/// Every checkpoint of a directory, in no particular order. What is none, or is damaged, is
/// passed over with a log line.
///
/// # Errors
/// [`ErrorKind::Storage`] if the directory cannot be listed.
pub fn list(parent: &dyn Directory) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in parent.list()?.into_iter().filter(|e| e.kind == EntryKind::Directory) {
        let Ok(name) = CheckpointName::new(&entry.name) else { continue };
        match open_entry(parent, &name, &entry.name) {
            Ok(found) => all.push(found),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "passed over"),
        }
    }
    Ok(all)
}

/// Reads and parses `manifest.bin` of an open checkpoint.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Corrupt`],
/// [`ErrorKind::Incompatible`], [`ErrorKind::Storage`].
pub fn read_manifest(dir: &dyn Directory) -> Result<Manifest> {
    let path = dir.path().join(layout::MANIFEST);
    Manifest::parse(&read_manifest_bytes(dir)?).map_err(|e| e.with_path(path))
}

fn read_manifest_bytes(dir: &dyn Directory) -> Result<Vec<u8>> {
    let path = dir.path().join(layout::MANIFEST);
    let file = dir.open_file(layout::MANIFEST)?;
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX);
    if len > crate::codec::ENCODED_BYTES_MAX {
        let message = format!("the manifest claims {len} bytes");
        return Err(Error::new(ErrorKind::Corrupt, message).with_path(path));
    }
    let mut bytes = zeroed(len).map_err(|e| e.with_path(&path))?;
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// A zeroed buffer, or an error where memory is short.
pub(crate) fn zeroed(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| {
        Error::new(ErrorKind::Storage, format!("no memory for a buffer of {len} bytes"))
    })?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn open_entry(parent: &dyn Directory, name: &CheckpointName, entry: &str) -> Result<Found> {
    let dir = parent.open_dir(entry)?;
    let manifest = read_manifest(dir.as_ref())?;
    Ok(Found { name: name.clone(), entry: entry.to_owned(), dir, manifest })
}

fn not_a_checkpoint(parent: &dyn Directory, path: &CheckpointPath) -> Error {
    let mut names: Vec<String> =
        list(parent).unwrap_or_default().iter().map(|f| f.name.to_string()).collect();
    names.sort();
    let more = names.len().saturating_sub(10);
    names.truncate(10);
    let have = match (names.is_empty(), more) {
        (true, _) => "the directory holds no checkpoint".to_owned(),
        (_, 0) => format!("the directory holds: {}", names.join(", ")),
        _ => format!("the directory holds: {} and {more} more", names.join(", ")),
    };
    Error::new(ErrorKind::NotFound, "no checkpoint here").with_path(path.full()).with_help(have)
}
