//! Files in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::disk::Disk;
use super::{full, refused};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::errors::ends_early;
use crate::storage::{Lock, ReadFile, WriteFile};

/// The longest file in bytes, so that a wrong offset cannot eat the memory of the machine.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// What all handles of one file share.
#[derive(Debug)]
pub(super) struct Content {
    bytes: RwLock<Vec<u8>>,
    is_locked: AtomicBool,
    disk: Arc<Disk>,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.disk.give_back(self.len());
    }
}

impl Content {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self { bytes: RwLock::default(), is_locked: AtomicBool::new(false), disk }
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }

    /// False, and nothing changed, if the disk is full.
    pub(super) fn replace(&self, bytes: &[u8]) -> bool {
        let mut held = self.bytes.write();
        let growth = (bytes.len() as u64).saturating_sub(held.len() as u64);
        if !self.disk.take(growth) {
            return false;
        }
        self.disk.give_back((held.len() as u64).saturating_sub(bytes.len() as u64));
        *held = bytes.to_vec();
        true
    }

    /// Flips the bits of `mask` at `offset`; false if there is no such byte.
    pub(super) fn flip(&self, offset: u64, mask: u8) -> bool {
        let mut bytes = self.bytes.write();
        let byte = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at));
        byte.map(|byte| *byte ^= mask).is_some()
    }

    /// The lock, unless another handle holds it.
    pub(super) fn try_lock(self: Arc<Self>) -> Option<Lock> {
        let was_locked = self.is_locked.swap(true, Ordering::AcqRel);
        (!was_locked).then(|| Lock::new(Held(self)))
    }

    fn len(&self) -> u64 {
        self.bytes.read().len() as u64
    }
}

struct Held(Arc<Content>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.is_locked.store(false, Ordering::Release);
    }
}

pub(super) struct MemoryWriteFile {
    pub(super) content: Arc<Content>,
    pub(super) path: PathBuf,
}

impl WriteFile for MemoryWriteFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.reserve(offset.saturating_add(bytes.len() as u64))
            .map_err(|error| error.with_offset(offset))?;
        let too_far = || refused(ErrorKind::Storage, "writing", &self.path).with_offset(offset);
        let start = usize::try_from(offset).map_err(|_| too_far())?;
        let end = start.checked_add(bytes.len()).ok_or_else(too_far)?;
        let mut held = self.content.bytes.write();
        if held.len() < end {
            if !self.content.disk.take((end - held.len()) as u64) {
                return Err(full(&self.path).with_offset(offset));
            }
            held.resize(end, 0);
        }
        held.get_mut(start..end).ok_or_else(too_far)?.copy_from_slice(bytes);
        Ok(())
    }

    fn reserve(&self, len: u64) -> Result<()> {
        if len <= FILE_BYTES_MAX {
            return Ok(());
        }
        let message = format!("a file in memory ends at {FILE_BYTES_MAX} bytes");
        Err(Error::new(ErrorKind::Storage, message)
            .with_path(&self.path)
            .with_help("use the file system for files of this size"))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

pub(super) struct MemoryReadFile {
    content: Arc<Content>,
    path: PathBuf,
    len: u64,
}

impl MemoryReadFile {
    pub(super) fn new(content: Arc<Content>, path: PathBuf) -> Self {
        let len = content.len();
        Self { content, path, len }
    }
}

impl ReadFile for MemoryReadFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let held = self.content.bytes.read();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(out.len());
        if let Some(bytes) = held.get(range) {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        let end = (held.len() as u64).max(offset);
        let missing = offset.saturating_add(out.len() as u64).saturating_sub(end);
        if missing == 0 {
            return Ok(());
        }
        Err(ends_early(&self.path, end, missing))
    }
}
