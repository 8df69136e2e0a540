//! A directory in memory whose n-th operation fails or panics.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{DirEntry, Directory, Lock, ReadFile, Rename, WriteFile};

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Operations so far: creations, reservations, writes, finishes, syncs.
    pub(super) operations: Vec<String>,
    /// The operation (counted from 0) that fails.
    pub(super) fail_at: Option<usize>,
    /// Whether it panics instead.
    pub(super) panics: bool,
    /// Files on which an operation has failed.
    pub(super) failed: Vec<String>,
    /// How files are read that are opened from now on.
    pub(super) cache: Cache,
    /// Reads past the cache so far.
    pub(super) direct_reads: usize,
}

/// A page cache in front of the files.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cache {
    /// Every so many pages one is not there; 0: all are.
    pub(super) one_missing_in: u64,
    /// Whether files can be read past it.
    pub(super) knows_direct: bool,
    /// The first byte that the device cannot read.
    pub(super) bad_from: Option<u64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct MemoryDir(pub(super) Arc<Mutex<Disk>>);

impl MemoryDir {
    fn step(&self, operation: &str, name: &str) -> Result<()> {
        let mut disk = self.0.lock();
        assert!(!disk.failed.iter().any(|f| f == name), "{operation} on the failed file {name}");
        let number = disk.operations.len();
        disk.operations.push(format!("{operation} {name}"));
        if disk.fail_at == Some(number) {
            disk.failed.push(name.to_owned());
            assert!(!disk.panics, "told to panic");
            return Err(Error::new(ErrorKind::Storage, format!("{operation}: no space left")));
        }
        Ok(())
    }
}

struct Writing {
    dir: MemoryDir,
    name: String,
}

impl WriteFile for Writing {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        // Data files are written so that direct I/O could take every write as it is.
        let aligned = (bytes.as_ptr().addr() as u64 | offset).is_multiple_of(4096);
        assert!(aligned || self.name == "sums.bin", "unaligned write to {}", self.name);
        self.dir.step("write", &self.name)?;
        let mut disk = self.dir.0.lock();
        let file = disk.files.get_mut(&self.name).unwrap();
        let begin = usize::try_from(offset).unwrap();
        file.resize(file.len().max(begin + bytes.len()), 0);
        file[begin..begin + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn reserve(&self, _len: u64) -> Result<()> {
        self.dir.step("reserve", &self.name)
    }
    fn finish(self: Box<Self>) -> Result<()> {
        self.dir.step("finish", &self.name)
    }
}

struct Reading {
    bytes: Vec<u8>,
    cache: Cache,
    dir: MemoryDir,
}

const PAGE: usize = 4096;

impl ReadFile for Reading {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_cached(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let pages = offset / PAGE as u64..(offset + out.len() as u64).div_ceil(PAGE as u64);
        let every = self.cache.one_missing_in;
        let missing = pages.into_iter().find(|page| every > 0 && page % every == every - 1);
        let have = missing.map_or(out.len(), |page| {
            usize::try_from((page * PAGE as u64).saturating_sub(offset)).unwrap().min(out.len())
        });
        self.read_at(offset, &mut out[..have])?;
        Ok(have)
    }
    fn read_direct(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        if !self.cache.knows_direct {
            return Ok(None);
        }
        let places = [offset, out.as_ptr().addr() as u64, out.len() as u64];
        assert!(places.iter().all(|p| p.is_multiple_of(PAGE as u64)), "not aligned: {places:?}");
        self.dir.0.lock().direct_reads += 1;
        if let Some(bad) = self.cache.bad_from.filter(|bad| *bad < offset + out.len() as u64) {
            return Err(Error::new(ErrorKind::Storage, "bad sector").with_offset(bad.max(offset)));
        }
        let begin = usize::try_from(offset).unwrap();
        let len = out.len().min(self.bytes.len().saturating_sub(begin));
        out[..len].copy_from_slice(&self.bytes[begin..begin + len]);
        Ok(Some(len))
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let begin = usize::try_from(offset).unwrap();
        let part = self.bytes.get(begin..begin + out.len());
        out.copy_from_slice(part.ok_or_else(|| Error::new(ErrorKind::Corrupt, "ends before"))?);
        Ok(())
    }
}

impl Directory for MemoryDir {
    fn path(&self) -> &Path {
        Path::new("/memory")
    }
    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        self.step("create", name)?;
        let mut disk = self.0.lock();
        if disk.files.insert(name.to_owned(), Vec::new()).is_some() {
            return Err(Error::new(ErrorKind::AlreadyExists, "creating: it exists"));
        }
        Ok(Box::new(Writing { dir: self.clone(), name: name.to_owned() }))
    }
    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let (bytes, cache) = {
            let disk = self.0.lock();
            (disk.files.get(name).cloned(), disk.cache)
        };
        let reading = |bytes| Reading { bytes, cache, dir: self.clone() };
        bytes
            .map(|b| Arc::new(reading(b)) as Arc<dyn ReadFile>)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "opening: no such file"))
    }
    fn sync(&self) -> Result<()> {
        self.step("sync", ".")
    }
    fn create_dir(&self, _: &str) -> Result<Arc<dyn Directory>> {
        unreachable!()
    }
    fn open_dir(&self, _: &str) -> Result<Arc<dyn Directory>> {
        unreachable!()
    }
    fn list(&self) -> Result<Vec<DirEntry>> {
        unreachable!()
    }
    fn rename(&self, _: &str, _: &str, _: Rename) -> Result<()> {
        unreachable!()
    }
    fn remove_file(&self, _: &str) -> Result<()> {
        unreachable!()
    }
    fn remove_dir(&self, _: &str) -> Result<()> {
        unreachable!()
    }
    fn try_lock(&self, _: &str) -> Result<Option<Lock>> {
        unreachable!()
    }
    fn try_lock_self(&self) -> Result<Option<Lock>> {
        unreachable!("the shard layer takes no locks")
    }

    fn create_link(&self, _: &str, _: &str) -> Result<()> {
        unreachable!()
    }
    fn read_link(&self, _: &str) -> Result<String> {
        unreachable!()
    }
}
