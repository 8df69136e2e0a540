//! Files of the local file system, being written.

use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::direct::{Direct, bytes_in_front};
use super::{creating, failed, is_unknown_call, uninterrupted};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::WriteFile;
use crate::storage::errors::no_regular_file;

/// Less than this in the page cache is left to the fsync at the end.
const WRITE_BACK_BYTES: u64 = 64 << 10;
const REUSE_HELP: &str = "its content is unknown: write a new file, never this one again";

pub(super) struct LocalWriteFile {
    fd: OwnedFd,
    direct: Direct,
    path: PathBuf,
    /// Bytes given to the page cache since it was written back.
    cached: AtomicU64,
    /// Set by the first failed write; from then on there is nothing worth making durable.
    spoiled: AtomicBool,
}

impl LocalWriteFile {
    pub(super) fn new(fd: OwnedFd, path: PathBuf) -> Self {
        let (cached, spoiled) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { fd, direct: Direct::default(), path, cached, spoiled }
    }

    fn write_all(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let step = match self.write_some(rest, at) {
                // A device that takes nothing and says nothing would be asked forever.
                Ok(0) => Err(Errno::IO),
                written => written,
            };
            let count =
                step.map_err(|errno| creating(errno, "writing", &self.path, &[]).with_offset(at))?;
            rest = rest.get(count..).unwrap_or_default();
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }
}

impl LocalWriteFile {
    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_open()
    }

    /// Writes at least one byte: as much as goes the same way.
    fn write_some(&self, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        if let Some(written) = self.direct.write(&self.fd, &self.path, bytes, at) {
            return written;
        }
        let part = bytes.get(..bytes_in_front(bytes, at)).unwrap_or(bytes);
        let written = uninterrupted(|| rustix::io::pwrite(&self.fd, part, at))?;
        self.cached.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }
}

impl WriteFile for LocalWriteFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write_all(offset, bytes).inspect_err(|_| self.spoiled.store(true, Ordering::Release))
    }

    fn reserve(&self, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // The length stays as written, so that a file with its end missing is seen to be short.
        let flags = FallocateFlags::KEEP_SIZE;
        match uninterrupted(|| rustix::fs::fallocate(&self.fd, flags, 0, len)) {
            Err(errno) if !is_unknown_call(errno) => {
                Err(creating(errno, "reserving space", &self.path, &[]))
            }
            _ => Ok(()),
        }
    }

    fn write_back(&self) -> Result<bool> {
        if self.cached.load(Ordering::Relaxed) < WRITE_BACK_BYTES {
            return Ok(false);
        }
        self.cached.store(0, Ordering::Relaxed);
        uninterrupted(|| rustix::fs::fdatasync(&self.fd)).map(|()| true).map_err(|errno| {
            self.spoiled.store(true, Ordering::Release);
            creating(errno, "writing back", &self.path, &[]).with_help(REUSE_HELP)
        })
    }

    fn finish(self: Box<Self>) -> Result<()> {
        if self.spoiled.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Storage, "an earlier write failed")
                .with_path(&self.path)
                .with_help(REUSE_HELP));
        }
        let Self { fd, direct, path, .. } = *self;
        // After an error the kernel may call the lost pages clean: a second fsync would lie. A signal
        // is no error of that kind, and file systems in user space let one interrupt.
        uninterrupted(|| rustix::fs::fsync(&fd))
            .map_err(|errno| creating(errno, "fsyncing", &path, &[]).with_help(REUSE_HELP))?;
        // What it has written is durable, and said so itself: closing has nothing to add.
        drop(direct);
        close(fd).map_err(|errno| creating(errno, "closing", &path, &[]).with_help(REUSE_HELP))
    }
}

/// Closes `fd`, which was fsynced, and says what became of it: network file systems and quotas
/// report here.
#[allow(unsafe_code)]
fn close(fd: OwnedFd) -> Result<(), Errno> {
    // SAFETY: `into_raw_fd` gives up ownership, so nobody else closes or uses this descriptor;
    // it is closed once, also on error.
    match unsafe { rustix::io::try_close(fd.into_raw_fd()) } {
        // Linux has closed it before a signal can interrupt, and nothing was left to be written.
        Err(Errno::INTR) => Ok(()),
        closed => closed,
    }
}

/// The error of opening a file.
pub(super) fn opening(errno: Errno, path: &Path) -> Error {
    match errno {
        // A link; a socket, or a device that nobody answers for.
        Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::ISDIR => no_regular_file(path),
        _ => failed(errno, "opening", path),
    }
}
