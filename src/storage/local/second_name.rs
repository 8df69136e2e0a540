//! A second name for a file (a hard link), in another directory.

use std::path::Path;

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use super::{INTERRUPTIONS_MAX, creating};
use crate::error::{Error, ErrorKind};

/// Makes entry `name` of the first directory, which is `file`, an entry of `to` too.
///
/// # Errors
/// For [`refused`].
pub(super) fn link(
    (from, file): (BorrowedFd<'_>, &OwnedFd),
    to: BorrowedFd<'_>,
    name: &str,
) -> Result<(), Errno> {
    let file = Inode::from(rustix::fs::fstat(file)?);
    let call = || rustix::fs::linkat(from, name, to, name, AtFlags::empty());
    carried_out_once(call, || Inode::of(to, name) == Ok(file))
}

/// What an entry is a name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(dir: BorrowedFd<'_>, name: &str) -> Result<Self, Errno> {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(Self::from)
    }
}

impl From<Stat> for Inode {
    fn from(stat: Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
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
