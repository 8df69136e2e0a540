//! The directory that is measured: where raw files go, what is cleaned, and what is forgotten.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Advice;

use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::rank::Rank;
use crate::storage::Storage;
use crate::sweep::{Existing, Pace, existing, remove};

/// Stored with every checkpoint of `bench save`: by it that may be replaced.
pub(super) const MARK: &str = "bench.workload";

/// The directory in which the checkpoint lies.
///
/// # Errors
/// [`ErrorKind::NotFound`] or [`ErrorKind::InvalidInput`] if it is none.
pub(super) fn check_parent(path: &CheckpointPath) -> Result<()> {
    check_directory(path.directory()).map_err(|e| {
        e.with_help("the checkpoint is DIR itself; the directory in which it lies must be there")
    })
}

/// # Errors
/// [`ErrorKind::NotFound`] or [`ErrorKind::InvalidInput`] if it is no directory.
pub(super) fn check_directory(path: &Path) -> Result<()> {
    let found = fs::metadata(path).map_err(|e| Error::io(&e, "looking for the directory", path))?;
    if found.is_dir() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, "not a directory").with_path(path))
}

/// Takes away the checkpoint of an earlier round or run, and waits until the disk is quiet.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] for what `bench save` has not made; [`ErrorKind::Storage`].
pub(super) fn clean(
    storage: &dyn Storage,
    path: &CheckpointPath,
    group: &ProcessGroup,
) -> Result<()> {
    let parent = storage.open_dir(path.directory())?;
    match existing(parent.as_ref(), path.name().as_str())? {
        Existing::Absent => {}
        Existing::Checkpoint(save_id) => {
            let dir = parent.open_dir(path.name().as_str())?;
            let manifest = crate::catalog::read_manifest(dir.as_ref())?;
            if manifest.values().find(MARK).is_none() {
                return Err(taken(path, "a checkpoint that `bench save` has not made"));
            }
            remove(parent.as_ref(), path.name(), &save_id, &Pace::of(group))?;
        }
        Existing::Damaged => return Err(taken(path, "a damaged checkpoint")),
        // Refused unless it is an empty directory, of which nothing is lost.
        Existing::Foreign => {
            fs::remove_dir(path.full()).map_err(|_| taken(path, "something else"))?;
        }
    }
    settle(path.directory())
}

fn taken(path: &CheckpointPath, what: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("the name is taken by {what}"))
        .with_path(path.full())
        .with_help("nothing was written; choose another name, or remove it")
}

/// Waits until everything that was written to the file system of `directory` is on disk.
///
/// # Errors
/// [`ErrorKind::Storage`].
pub(super) fn settle(directory: &Path) -> Result<()> {
    let sync = || -> io::Result<()> { Ok(rustix::fs::syncfs(File::open(directory)?)?) };
    sync().map_err(|e| Error::io(&e, "syncing", directory))
}

/// The raw file of a rank: beside the checkpoint, so that it is on the same file system. One name
/// for each, so that the next run takes away what an interrupted one has left.
pub(super) fn raw_file(path: &CheckpointPath, rank: Rank) -> PathBuf {
    path.directory().join(format!(".{}.bench-raw-{rank}", path.name()))
}

/// Has the kernel forget what it has read or written of the files of a checkpoint.
///
/// # Errors
/// [`ErrorKind::Storage`].
pub(super) fn forget(path: &Path) -> Result<()> {
    let failed = |e| Error::io(&e, "dropping the cache of", path);
    if !path.is_dir() {
        return forget_file(path).map_err(failed);
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_type().map_err(failed)? {
            kind if kind.is_dir() => forget(&entry.path())?,
            kind if kind.is_file() => forget_file(&entry.path()).map_err(failed)?,
            _ => {}
        }
    }
    Ok(())
}

/// Pages that are still to be written stay, hence the sync before.
fn forget_file(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    rustix::fs::fdatasync(&file)?;
    Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?)
}
