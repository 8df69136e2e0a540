//! A second name for a file (a hard link), in another directory.

use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::{INTERRUPTIONS_MAX, creating};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::errors::no_regular_file;

/// A directory that is open, and where it is.
pub(super) type Place<'a> = (BorrowedFd<'a>, &'a Path);

/// Makes the regular file `name` of `from` an entry of `to` too.
///
/// # Errors
/// As [`Directory::link_file`](crate::storage::Directory::link_file).
pub(super) fn link(from: Place<'_>, to: Place<'_>, name: &str) -> Result<()> {
    let source = from.1.join(name);
    let file = Inode::of(from.0, name)
        .map_err(|errno| creating(errno, "looking at", &source, &[ErrorKind::NotFound]))?;
    if !file.is_regular {
        return Err(no_regular_file(&source));
    }
    let call = || rustix::fs::linkat(from.0, name, to.0, name, AtFlags::empty());
    let is_linked = || Inode::of(to.0, name) == Ok(file);
    carried_out_once(call, is_linked).map_err(|errno| refused(errno, &to.1.join(name)))
}

/// What an entry is a name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
    is_regular: bool,
}

impl Inode {
    fn of(dir: BorrowedFd<'_>, name: &str) -> Result<Self, Errno> {
        let stat = rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Self { device: stat.st_dev, number: stat.st_ino, is_regular })
    }
}

/// Makes the call again that a signal has interrupted. The signal may have interrupted the answer
/// alone, and the name that is then taken is its own: `is_done` tells.
pub(super) fn carried_out_once(
    mut call: impl FnMut() -> Result<(), Errno>,
    is_done: impl Fn() -> bool,
) -> Result<(), Errno> {
    let mut was_interrupted = false;
    for _ in 0..INTERRUPTIONS_MAX {
        match call() {
            Err(Errno::INTR) => was_interrupted = true,
            Err(Errno::EXIST) if was_interrupted && is_done() => return Ok(()),
            done => return done,
        }
    }
    Err(Errno::INTR)
}

/// The error of a file that cannot have another name: on a file system without, of too many, or of
/// somebody else (`fs.protected_hardlinks`).
pub(super) fn refused(errno: Errno, path: &Path) -> Error {
    let kinds = [ErrorKind::AlreadyExists, ErrorKind::NotFound];
    let error = creating(errno, "giving the file a second name", path, &kinds);
    match errno {
        Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::MLINK | Errno::XDEV => error
            .with_kind(ErrorKind::Unsupported)
            .with_help("this file can have one name only: it has to be copied"),
        _ => error,
    }
}
