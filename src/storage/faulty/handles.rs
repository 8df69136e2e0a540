//! The handles of a [`FaultyStorage`](super::FaultyStorage): ask first, then do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Faults;
use crate::error::{Error, Result};
use crate::storage::{DirEntry, Directory, FileFacts, Lock, ReadFile, Rename, Space, WriteFile};

#[derive(Debug)]
pub(super) struct FaultyDir {
    inner: Arc<dyn Directory>,
    faults: Arc<Faults>,
}

impl FaultyDir {
    pub(super) fn wrap(inner: Arc<dyn Directory>, faults: &Arc<Faults>) -> Arc<dyn Directory> {
        Arc::new(Self { inner, faults: faults.clone() })
    }

    /// An operation on the entry `name`.
    fn run<T>(&self, operation: &str, name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.faults.run(operation, &self.inner.path().join(name), body)
    }

    fn writing(&self, name: &str, inner: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
        let path = self.inner.path().join(name);
        Box::new(FaultyWriteFile { inner, path, faults: self.faults.clone() })
    }
}

impl Directory for FaultyDir {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let made = self.run("create_dir", name, || self.inner.create_dir(name));
        made.map(|dir| Self::wrap(dir, &self.faults))
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let opened = self.run("open_dir", name, || self.inner.open_dir(name));
        opened.map(|dir| Self::wrap(dir, &self.faults))
    }

    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let made = self.run("create_file", name, || self.inner.create_file(name));
        made.map(|file| self.writing(name, file))
    }

    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let opened = self.run("open_for_writing", name, || self.inner.open_for_writing(name));
        opened.map(|file| self.writing(name, file))
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let inner = self.run("open_file", name, || self.inner.open_file(name))?;
        let path = self.inner.path().join(name);
        Ok(Arc::new(FaultyReadFile { inner, path, faults: self.faults.clone() }))
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        self.faults.run("list", self.path(), || self.inner.list())
    }

    fn sync(&self) -> Result<()> {
        self.faults.run("sync", self.path(), || self.inner.sync())
    }

    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        self.run("rename", &format!("{from} -> {to}"), || self.inner.rename(from, to, mode))
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        self.run("remove_file", name, || self.inner.remove_file(name))
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        self.run("remove_dir", name, || self.inner.remove_dir(name))
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        self.run("try_lock", name, || self.inner.try_lock(name))
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        self.faults.run("try_lock_self", self.path(), || self.inner.try_lock_self())
    }

    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        self.run("create_link", name, || self.inner.create_link(name, target))
    }

    fn read_link(&self, name: &str) -> Result<String> {
        self.run("read_link", name, || self.inner.read_link(name))
    }

    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        let entry = format!("{from}/{name} -> {to}");
        self.run("link_file", &entry, || self.inner.link_file(from, to, name))
    }

    // Neither is counted: nothing that is written depends on whether it fails.
    fn space(&self) -> Result<Option<Space>> {
        self.inner.space()
    }

    fn file_facts(&self, name: &str) -> Result<Option<FileFacts>> {
        self.inner.file_facts(name)
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
        let write = || self.inner.write_at(offset, bytes);
        let done = self.faults.run_write("write_at", &self.path, tear, write);
        done.map_err(|error| placed(error, offset))
    }

    fn reserve(&self, len: u64) -> Result<()> {
        self.faults.run("reserve", &self.path, || self.inner.reserve(len))
    }

    fn write_back(&self) -> Result<bool> {
        self.faults.write_back(&self.path, || self.inner.write_back())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { inner, path, faults } = *self;
        faults.run("finish", &path, || inner.finish())
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
        let read = || self.inner.read_at(offset, out);
        let done = self.faults.run("read_at", &self.path, read);
        done.map_err(|error| placed(error, offset))
    }

    // Not what is cached: the number of operations would depend on it. So every read is a
    // `read_at`, as `read_cached` and `read_direct` are by default.
}

/// An injected error is at the offset of the operation; others know theirs.
fn placed(error: Error, offset: u64) -> Error {
    if error.offset().is_some() { error } else { error.with_offset(offset) }
}
