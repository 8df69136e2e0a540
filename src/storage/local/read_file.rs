//! Files of the local file system, being read: through the page cache, out of it only, or past it.

use std::io::IoSliceMut;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::direct::reopened;
use super::{creating, is_unknown_call, uninterrupted};
use crate::error::Result;
use crate::storage::errors::ends_early;
use crate::storage::{DIRECT_ALIGNMENT, ReadFile};

/// One page: the kernel reads ahead as much as was asked for without waiting.
const PROBE_BYTES: usize = 4096;

pub(super) struct LocalReadFile {
    fd: OwnedFd,
    path: PathBuf,
    len: u64,
    /// Whether the file system does not know reads that do not wait.
    always_waits: AtomicBool,
    /// The same file without the page cache, once it is wanted; `None` if that is not to be had.
    direct: OnceLock<Option<OwnedFd>>,
    /// Whether the file system has taken `direct` and then refused to read through it.
    refuses_direct: AtomicBool,
}

impl LocalReadFile {
    pub(super) fn new(fd: OwnedFd, path: PathBuf, len: u64) -> Self {
        Self {
            fd,
            path,
            len,
            always_waits: AtomicBool::new(false),
            direct: OnceLock::new(),
            refuses_direct: AtomicBool::new(false),
        }
    }

    /// Reads what is in the page cache; `None` if the file system cannot tell.
    fn cached_part(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let read = uninterrupted(|| {
            let mut parts = [IoSliceMut::new(&mut *out)];
            rustix::io::preadv2(&self.fd, &mut parts, offset, ReadWriteFlags::NOWAIT)
        });
        match read {
            Err(Errno::AGAIN) => Ok(Some(0)),
            Err(errno) if is_unknown_call(errno) => Ok(None),
            read => read.map(Some).map_err(|errno| self.failed(errno, offset)),
        }
    }

    fn failed(&self, errno: Errno, offset: u64) -> crate::Error {
        creating(errno, "reading", &self.path, &[]).with_offset(offset)
    }

    /// A second descriptor of the same file, whatever has become of its name.
    fn direct(&self) -> Option<&OwnedFd> {
        self.direct.get_or_init(|| reopened(&self.fd, OFlags::RDONLY)?.ok()).as_ref()
    }
}

impl ReadFile for LocalReadFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        let mut at = offset;
        while !rest.is_empty() {
            let count = uninterrupted(|| rustix::io::pread(&self.fd, &mut *rest, at))
                .map_err(|errno| self.failed(errno, at))?;
            if count == 0 {
                return Err(ends_early(&self.path, at, rest.len() as u64));
            }
            rest = rest.get_mut(count..).unwrap_or_default();
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }

    fn read_cached(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut have = 0;
        while have < out.len() && !self.always_waits.load(Ordering::Relaxed) {
            let end = if have == 0 { out.len().min(PROBE_BYTES) } else { out.len() };
            let Some(next) = out.get_mut(have..end) else { break };
            match self.cached_part(offset.saturating_add(have as u64), next)? {
                Some(0) => return Ok(have),
                Some(count) => have += count,
                None => self.always_waits.store(true, Ordering::Relaxed),
            }
        }
        let rest = out.get_mut(have..).unwrap_or_default();
        self.read_at(offset.saturating_add(have as u64), rest)?;
        Ok(out.len())
    }

    fn read_direct(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let is_aligned = offset.is_multiple_of(DIRECT_ALIGNMENT as u64)
            && out.len().is_multiple_of(DIRECT_ALIGNMENT)
            && out.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT);
        if !is_aligned || self.refuses_direct.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(fd) = self.direct() else { return Ok(None) };
        let mut have = 0;
        while have < out.len() {
            let at = offset.saturating_add(have as u64);
            let rest = out.get_mut(have..).unwrap_or_default();
            match uninterrupted(|| rustix::io::pread(fd, &mut *rest, at)) {
                Err(errno) if have == 0 && is_unknown_call(errno) => {
                    self.refuses_direct.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(errno) => return Err(self.failed(errno, at)),
                // Only the end of a file is no multiple, and nothing follows it.
                Ok(count) if !count.is_multiple_of(DIRECT_ALIGNMENT) => {
                    have += count;
                    break;
                }
                Ok(0) => break,
                Ok(count) => have += count,
            }
        }
        Ok(Some(have))
    }
}
