//! The file system of this machine (or one mounted on it), through calls relative to an open
//! directory.

mod dir;
mod direct;
mod file;
mod lock;
mod quota;
mod read_file;
mod second_name;
mod space;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Directory, Storage, check_is_path};
use dir::LocalDir;

/// How often one system call is made again.
const INTERRUPTIONS_MAX: usize = 100;

/// The file system. Relative paths start at the working directory; files and directories are
/// created with the modes that the umask leaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalStorage;

impl LocalStorage {
    /// The file system.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl Storage for LocalStorage {
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        check_is_path(path)?;
        let opened = open_dir_fd(CWD, path);
        let fd = opened.map_err(|errno| no_directory(errno, path))?;
        Ok(Arc::new(LocalDir::new(fd, path.to_owned())))
    }

    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        check_is_path(path)?;
        let fd = create_all(path)?;
        Ok(Arc::new(LocalDir::new(fd, path.to_owned())))
    }
}

/// Opens a directory that a user named: links on the way are followed.
fn open_dir_fd(base: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    uninterrupted(|| rustix::fs::openat(base, path, flags, Mode::empty()))
}

fn create_all(path: &Path) -> Result<OwnedFd> {
    let refused = |errno| creating(errno, "creating the directory", path, &[]);
    match open_dir_fd(CWD, path) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(refused(errno)),
        Ok(fd) => {
            make_name_durable(&fd).map_err(|errno| not_synced(errno, path))?;
            return Ok(fd);
        }
    }
    let Some(parent) = path.parent() else { return Err(refused(Errno::NOENT)) };
    let parent_fd = create_all(parent)?;
    let Some(name) = path.file_name() else {
        // `missing/..`: what was missing exists now.
        return open_dir_fd(CWD, path).map_err(refused);
    };
    let mode = Mode::from_raw_mode(0o777);
    match uninterrupted(|| rustix::fs::mkdirat(&parent_fd, name, mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(refused(errno)),
    }
    // Also when another rank was faster: it may die before it gets to its fsync.
    uninterrupted(|| rustix::fs::fsync(&parent_fd)).map_err(|errno| not_synced(errno, parent))?;
    open_dir_fd(parent_fd.as_fd(), Path::new(name)).map_err(refused)
}

/// Fsyncs the directory above `dir`, as far as it may be opened and is of the same file system:
/// whoever made `dir` may have been killed in front of its own fsync, or that has failed, and what
/// is saved in `dir` would go with its name.
fn make_name_durable(dir: &OwnedFd) -> Result<(), Errno> {
    let parent = match open_dir_fd(dir.as_fd(), Path::new("..")) {
        Err(Errno::ACCESS | Errno::PERM) => return Ok(()),
        opened => opened?,
    };
    if rustix::fs::fstat(&parent)?.st_dev != rustix::fs::fstat(dir)?.st_dev {
        return Ok(());
    }
    uninterrupted(|| rustix::fs::fsync(&parent))
}

/// Makes a system call again that a signal has interrupted, but not for ever: what is interrupted
/// so often in a row is out of order.
fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..INTERRUPTIONS_MAX {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    call()
}

/// The error of opening a directory that is not there, or is none.
fn no_directory(errno: Errno, path: &Path) -> Error {
    let error = failed(errno, "opening the directory", path);
    match errno {
        // What opening a link without following it gives.
        Errno::NOTDIR | Errno::LOOP => error.with_kind(ErrorKind::NotFound),
        _ => error,
    }
}

/// The error of an fsync of a directory.
fn not_synced(errno: Errno, path: &Path) -> Error {
    let error = creating(errno, "fsyncing the directory", path, &[]);
    if !is_unknown_call(errno) {
        return error;
    }
    error.with_help("this file system cannot make renames durable: choose another one")
}

/// The error of an operation whose contract knows, besides `Storage`, only `kinds`.
fn creating(errno: Errno, doing: &str, path: &Path, kinds: &[ErrorKind]) -> Error {
    let error = failed(errno, doing, path);
    if kinds.contains(&error.kind()) { error } else { error.with_kind(ErrorKind::Storage) }
}

/// A failed system call, with what to do about it where the number tells.
fn failed(errno: Errno, doing: &str, path: &Path) -> Error {
    let error = Error::io(&io::Error::from(errno), doing, path);
    let help = match errno {
        Errno::NOSPC => "free space or inodes on this file system",
        Errno::DQUOT => "free space within the quota, or raise it",
        Errno::FBIG => "raise the limit on file sizes (ulimit -f)",
        Errno::ROFS => "mount the file system writable, or choose another directory",
        Errno::ACCESS | Errno::PERM => "check the owner and the permissions",
        Errno::MFILE | Errno::NFILE => "raise the limit on open files (ulimit -n)",
        Errno::IO => "look at the system log: the device or its connection failed",
        Errno::STALE | Errno::NOTCONN => "check the mount of this network file system",
        _ => return error,
    };
    error.with_help(help)
}

pub(super) use space::of_path as space_of_path;

/// What a system call says where the file system (or the kernel) does not know it.
fn is_unknown_call(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}
