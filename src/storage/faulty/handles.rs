//! The handles of a [`FaultyStorage`](super::FaultyStorage): ask first, then do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Faults;
use crate::error::Result;
use crate::storage::{DirEntry, Directory, Lock, ReadFile, Rename, Space, WriteFile};

#[derive(Debug)]
pub(super) struct FaultyDir {
    inner: Arc<dyn Directory>,
    faults: Arc<Faults>,
}

impl FaultyDir {
    pub(super) fn wrap(inner: Arc<dyn Directory>, faults: &Arc<Faults>) -> Arc<dyn Directory> {
        Arc::new(Self { inner, faults: faults.clone() })
    }

    fn check(&self, operation: &str, name: &str) -> Result<PathBuf> {
        let path = self.inner.path().join(name);
        self.faults.check(operation, &path)?;
        Ok(path)
    }
}

impl Directory for FaultyDir {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        self.check("create_dir", name)?;
        Ok(Self::wrap(self.inner.create_dir(name)?, &self.faults))
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        self.check("open_dir", name)?;
        Ok(Self::wrap(self.inner.open_dir(name)?, &self.faults))
    }

    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let path = self.check("create_file", name)?;
        let inner = self.inner.create_file(name)?;
        Ok(Box::new(FaultyWriteFile { inner, path, faults: self.faults.clone() }))
    }

    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let path = self.check("open_for_writing", name)?;
        let inner = self.inner.open_for_writing(name)?;
        Ok(Box::new(FaultyWriteFile { inner, path, faults: self.faults.clone() }))
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let path = self.check("open_file", name)?;
        let inner = self.inner.open_file(name)?;
        Ok(Arc::new(FaultyReadFile { inner, path, faults: self.faults.clone() }))
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        self.faults.check("list", self.path())?;
        self.inner.list()
    }

    fn sync(&self) -> Result<()> {
        self.faults.check("sync", self.path())?;
        self.inner.sync()
    }

    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        self.check("rename", &format!("{from} -> {to}"))?;
        self.inner.rename(from, to, mode)
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        self.check("remove_file", name)?;
        self.inner.remove_file(name)
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        self.check("remove_dir", name)?;
        self.inner.remove_dir(name)
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        self.check("try_lock", name)?;
        self.inner.try_lock(name)
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        self.faults.check("try_lock_self", self.path())?;
        self.inner.try_lock_self()
    }

    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        self.check("create_link", name)?;
        self.inner.create_link(name, target)
    }

    fn read_link(&self, name: &str) -> Result<String> {
        self.check("read_link", name)?;
        self.inner.read_link(name)
    }

    // Not counted: nothing that is written depends on whether it fails.
    fn space(&self) -> Result<Option<Space>> {
        self.inner.space()
    }
}

struct FaultyWriteFile {
    inner: Box<dyn WriteFile>,
    path: PathBuf,
    faults: Arc<Faults>,
}

impl WriteFile for FaultyWriteFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (first_half, _) = bytes.split_at(bytes.len() / 2);
        // The operation fails either way; what the half did is for the disk to know.
        let tear = || drop(self.inner.write_at(offset, first_half));
        self.faults
            .check_write("write_at", &self.path, tear)
            .map_err(|error| error.with_offset(offset))?;
        self.inner.write_at(offset, bytes)
    }

    fn reserve(&self, len: u64) -> Result<()> {
        self.faults.check("reserve", &self.path)?;
        self.inner.reserve(len)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.faults.check("finish", &self.path)?;
        self.inner.finish()
    }
}

struct FaultyReadFile {
    inner: Arc<dyn ReadFile>,
    path: PathBuf,
    faults: Arc<Faults>,
}

impl ReadFile for FaultyReadFile {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.faults.check("read_at", &self.path).map_err(|error| error.with_offset(offset))?;
        self.inner.read_at(offset, out)
    }
}
