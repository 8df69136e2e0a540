//! A directory without links, in which somebody else is at work too.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{DirEntry, Directory, Lock, ReadFile, Rename, WriteFile};

#[derive(Debug)]
pub(super) struct Odd {
    pub(super) inner: Arc<dyn Directory>,
    /// What somebody else makes just before each rename.
    pub(super) file_before_rename: Option<&'static str>,
}

impl Directory for Odd {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        self.inner.create_dir(name)
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        self.inner.open_dir(name)
    }
    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        self.inner.create_file(name)
    }
    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        self.inner.open_file(name)
    }
    fn list(&self) -> Result<Vec<DirEntry>> {
        self.inner.list()
    }
    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        if let Some(name) = self.file_before_rename {
            self.inner.create_file(name).and_then(WriteFile::finish)?;
        }
        self.inner.rename(from, to, mode)
    }
    fn remove_file(&self, name: &str) -> Result<()> {
        self.inner.remove_file(name)
    }
    fn remove_dir(&self, name: &str) -> Result<()> {
        self.inner.remove_dir(name)
    }
    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        self.inner.try_lock(name)
    }
    fn try_lock_self(&self) -> Result<Option<Lock>> {
        self.inner.try_lock_self()
    }
    fn create_link(&self, _: &str, _: &str) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "no links here"))
    }
    fn read_link(&self, name: &str) -> Result<String> {
        self.inner.read_link(name)
    }
}
