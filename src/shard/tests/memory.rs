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

struct Reading(Vec<u8>);

impl ReadFile for Reading {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let begin = usize::try_from(offset).unwrap();
        let part = self.0.get(begin..begin + out.len());
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
        let bytes = self.0.lock().files.get(name).cloned();
        bytes
            .map(|b| Arc::new(Reading(b)) as Arc<dyn ReadFile>)
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
