//! The advisory lock of the local file system.

use std::fs::{File, TryLockError};
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::file::opening;
use super::{creating, uninterrupted};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Lock;
use crate::storage::errors::no_regular_file;

/// How often the file may be replaced under our hands before we give up.
const ATTEMPT_COUNT_MAX: usize = 16;

struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing alone keeps the lock while a forked child still holds the same open file.
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "unlocking failed; closing the file gives the lock back");
        }
    }
}

/// Locks `name` in `directory`, or says that somebody else holds it.
pub(super) fn try_lock(directory: BorrowedFd<'_>, name: &str, path: &Path) -> Result<Option<Lock>> {
    for _ in 0..ATTEMPT_COUNT_MAX {
        let file = open(directory, name, path)?;
        match lock_now(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(refused(&error, path)),
        }
        let held = Held(file);
        if is_named(&held.0, directory, name).map_err(|e| creating(e, "locking", path, &[]))? {
            return Ok(Some(Lock::new(held)));
        }
    }
    Err(Error::new(ErrorKind::Storage, "the lock file is replaced again and again")
        .with_path(path)
        .with_help("find out who deletes it"))
}

/// Locks the directory itself. Through a descriptor of its own: a lock belongs to the opening, and
/// every holder of `directory` shares that one.
pub(super) fn try_lock_directory(directory: BorrowedFd<'_>, path: &Path) -> Result<Option<Lock>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = uninterrupted(|| rustix::fs::openat(directory, ".", flags, Mode::empty()));
    let file = File::from(opened.map_err(|errno| opening(errno, path))?);
    match lock_now(&file) {
        Ok(()) => Ok(Some(Lock::new(Held(file)))),
        Err(TryLockError::WouldBlock) => Ok(None),
        // NFS locks only what is open for writing, which a directory never is.
        Err(TryLockError::Error(error)) if Errno::from_io_error(&error) == Some(Errno::BADF) => {
            Err(refused(&Errno::OPNOTSUPP.into(), path))
        }
        Err(TryLockError::Error(error)) => Err(refused(&error, path)),
    }
}

/// Without waiting for whoever holds it; a lock manager on another host may be interrupted.
fn lock_now(file: &File) -> Result<(), TryLockError> {
    let locked = uninterrupted(|| match file.try_lock() {
        Err(TryLockError::Error(error)) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        locked => Ok(locked),
    });
    locked.unwrap_or_else(|errno| Err(TryLockError::Error(errno.into())))
}

fn open(directory: BorrowedFd<'_>, name: &str, path: &Path) -> Result<File> {
    // Without NONBLOCK a FIFO of this name would block.
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let opened =
        uninterrupted(|| rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o666)));
    let storage = |error: Error| error.with_kind(ErrorKind::Storage);
    let fd = opened.map_err(|errno| storage(opening(errno, path)))?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| storage(opening(errno, path)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(storage(no_regular_file(path)));
    }
    Ok(File::from(fd))
}

/// Whether `name` still means `file`: a lock on a file that was deleted meanwhile excludes nobody.
fn is_named(file: &File, directory: BorrowedFd<'_>, name: &str) -> Result<bool, Errno> {
    let ours = rustix::fs::fstat(file.as_fd())?;
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok(named.st_ino == ours.st_ino && named.st_dev == ours.st_dev),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

pub(super) fn refused(error: &std::io::Error, path: &Path) -> Error {
    let made = Error::io(error, "locking", path);
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => made
            .with_kind(ErrorKind::Unsupported)
            .with_help("mount the file system with locks (`flock` on Lustre, lockd on NFS)"),
        _ => made.with_kind(ErrorKind::Storage),
    }
}
