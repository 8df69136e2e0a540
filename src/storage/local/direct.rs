//! Direct I/O: large writes go past the page cache, which would copy them once more and compete
//! with training for memory and for the disk.
//!
//! A write goes direct where its address, offset and length are multiples of [`DIRECT_ALIGNMENT`]; what is
//! left of it in front and behind goes through the page cache, on pages that no direct write
//! touches. It needs a file system that is known to do this well ([`is_known`]): local ones, and
//! layers over them. tmpfs has no other place than the page cache, and network file systems (NFS,
//! SMB, 9p, FUSE, Lustre, …) have rules of their own for it: they are written, and read, as ever.
//! Whether the one at hand takes it is found out by trying: where opening is refused, or a write
//! gives EINVAL (larger sectors, layers that lie), files of that device are written through the
//! cache for the rest of the process.
//!
//! An fsync of either descriptor covers both ways: it is the inode that is fsynced, with its dirty
//! pages and its metadata, and the device is told to flush even if neither is left to be written.
//! Errors of direct writes come from the write itself.

use std::path::Path;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::uninterrupted;
use crate::shown;
use crate::storage::DIRECT_ALIGNMENT;

/// A file is opened for direct I/O by its first aligned write of at least so many bytes: less is
/// no faster than through the cache.
const BEGIN_BYTES: usize = 1 << 20;
/// An open one takes aligned writes of at least so many.
const GO_ON_BYTES: usize = 64 << 10;

/// Devices that have refused.
static REFUSED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// The second descriptor of a file, for direct writes, once one is worth it.
#[derive(Default)]
pub(super) struct Direct {
    fd: OnceLock<Option<OwnedFd>>,
}

impl Direct {
    /// Writes the aligned begin of `bytes`, or some of it, directly; `None` where the page cache
    /// has to take it.
    pub(super) fn write(
        &self,
        file: &OwnedFd,
        path: &Path,
        bytes: &[u8],
        offset: u64,
    ) -> Option<Result<usize, Errno>> {
        let part = bytes.get(..aligned_bytes(bytes, offset))?;
        let least = if self.fd.get().is_some() { GO_ON_BYTES } else { BEGIN_BYTES };
        if part.len() < least {
            return None;
        }
        let fd = self.fd.get_or_init(|| open(file, path)).as_ref()?;
        if is_refused(file) {
            return None;
        }
        match uninterrupted(|| rustix::io::pwrite(fd, part, offset)) {
            Err(Errno::INVAL) => {
                refuse(file, path);
                None
            }
            written => Some(written),
        }
    }

    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.fd.get().is_some_and(Option::is_some)
    }
}

/// How many bytes from the begin of `bytes` can be written directly at `offset`.
fn aligned_bytes(bytes: &[u8], offset: u64) -> usize {
    let is_aligned = bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT)
        && offset.is_multiple_of(DIRECT_ALIGNMENT as u64);
    if is_aligned { bytes.len() - bytes.len() % DIRECT_ALIGNMENT } else { 0 }
}

/// How many bytes have to be written before the rest can be written directly; all of them where
/// that is not worth it.
pub(super) fn bytes_in_front(bytes: &[u8], offset: u64) -> usize {
    let to_boundary =
        (DIRECT_ALIGNMENT as u64 - offset % DIRECT_ALIGNMENT as u64) % DIRECT_ALIGNMENT as u64;
    let front = usize::try_from(to_boundary).unwrap_or_default();
    let rest = bytes.get(front..).unwrap_or_default();
    let is_worth_it = front > 0 && aligned_bytes(rest, offset + front as u64) >= BEGIN_BYTES;
    if is_worth_it { front } else { bytes.len() }
}

fn open(file: &OwnedFd, path: &Path) -> Option<OwnedFd> {
    if is_refused(file) {
        return None;
    }
    match reopened(file, OFlags::WRONLY)? {
        Ok(fd) => Some(fd),
        Err(errno) => {
            tracing::debug!(path = %shown::path(path), %errno, "no direct I/O");
            if errno == Errno::INVAL {
                refuse(file, path);
            }
            None
        }
    }
}

/// The same file, whatever has happened to its name, once more and past the page cache; `None`
/// where the file system is not known to do that well.
pub(super) fn reopened(file: &OwnedFd, access: OFlags) -> Option<Result<OwnedFd, Errno>> {
    rustix::fs::fstatfs(file).ok().filter(|fs| is_known(fs.f_type as u64))?;
    let own = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = access | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOCTTY;
    Some(uninterrupted(|| rustix::fs::open(&own, flags, Mode::empty())))
}

/// Whether a file system of that type (see statfs(2)) is known to do direct I/O well.
pub(super) fn is_known(file_system: u64) -> bool {
    const EXT: u64 = 0xEF53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683E;
    const F2FS: u64 = 0xF2F5_2010;
    const BCACHEFS: u64 = 0xCA45_1A4E;
    const ZFS: u64 = 0x2FC1_2FC1;
    const OVERLAY: u64 = 0x794C_7630;
    matches!(file_system & 0xFFFF_FFFF, EXT | XFS | BTRFS | F2FS | BCACHEFS | ZFS | OVERLAY)
}

fn device(file: &OwnedFd) -> Option<u64> {
    rustix::fs::fstat(file).ok().map(|stat| stat.st_dev)
}

fn is_refused(file: &OwnedFd) -> bool {
    let refused = REFUSED.lock();
    !refused.is_empty() && device(file).is_none_or(|device| refused.contains(&device))
}

fn refuse(file: &OwnedFd, path: &Path) {
    tracing::debug!(path = %shown::path(path), "the file system refuses direct I/O");
    REFUSED.lock().extend(device(file));
}
