//! A storage that asks a hook before each operation: the hook may look, act, or refuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch_checkpoint::storage::{
    DirEntry, Directory, FileFacts, Lock, ReadFile, Rename, Storage, WriteFile,
};
use tch_checkpoint::{Error, ErrorKind, Result};

/// An operation about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Name of the method.
    pub operation: &'static str,
    /// The directory itself, or the entry concerned.
    pub path: PathBuf,
    /// The mode of a rename.
    pub mode: Option<Rename>,
    /// Bytes of a read.
    pub bytes: usize,
}

type Hook = dyn Fn(&Call) -> Result<()> + Send + Sync;
/// May change what is about to be written: gets the file, the offset and the bytes.
type Alter = dyn Fn(&Path, u64, &mut [u8]) + Send + Sync;

/// A storage behind a hook.
#[derive(Clone)]
pub struct Hooked {
    inner: Arc<dyn Storage>,
    hook: Arc<Hook>,
    alter: Option<Arc<Alter>>,
}

impl Hooked {
    pub fn new(
        inner: &(impl Storage + Clone + 'static),
        hook: impl Fn(&Call) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(inner.clone()), hook: Arc::new(hook), alter: None }
    }

    /// A storage that writes other bytes than it is given, and says that it wrote them.
    pub fn altering(
        inner: &(impl Storage + Clone + 'static),
        alter: impl Fn(&Path, u64, &mut [u8]) + Send + Sync + 'static,
    ) -> Self {
        Self { alter: Some(Arc::new(alter)), ..Self::new(inner, |_| Ok(())) }
    }

    fn ask(&self, operation: &'static str, path: &Path, mode: Option<Rename>) -> Result<()> {
        (self.hook)(&Call { operation, path: path.to_owned(), mode, bytes: 0 })
    }

    fn wrap(&self, inner: Arc<dyn Directory>) -> Arc<dyn Directory> {
        Arc::new(HookedDir { inner, storage: self.clone() })
    }
}

/// What a storage says that lacks a feature.
pub fn unsupported() -> Error {
    Error::new(ErrorKind::Unsupported, "this storage cannot do that")
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

impl Storage for Hooked {
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        self.ask("open_dir", path, None)?;
        Ok(self.wrap(self.inner.open_dir(path)?))
    }

    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        self.ask("create_dir_all", path, None)?;
        Ok(self.wrap(self.inner.create_dir_all(path)?))
    }
}

#[derive(Debug)]
struct HookedDir {
    inner: Arc<dyn Directory>,
    storage: Hooked,
}

impl HookedDir {
    fn ask(&self, operation: &'static str, name: &str) -> Result<()> {
        self.storage.ask(operation, &self.inner.path().join(name), None)
    }

    fn writing(&self, name: &str, inner: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
        match &self.storage.alter {
            Some(alter) => {
                let path = self.inner.path().join(name);
                Box::new(AlteringWrite { inner, path, alter: alter.clone() })
            }
            None => inner,
        }
    }
}

impl Directory for HookedDir {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        self.ask("create_dir", name)?;
        Ok(self.storage.wrap(self.inner.create_dir(name)?))
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        self.ask("open_dir", name)?;
        Ok(self.storage.wrap(self.inner.open_dir(name)?))
    }

    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        self.ask("create_file", name)?;
        Ok(self.writing(name, self.inner.create_file(name)?))
    }

    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        self.ask("open_for_writing", name)?;
        Ok(self.writing(name, self.inner.open_for_writing(name)?))
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        self.ask("open_file", name)?;
        let inner = self.inner.open_file(name)?;
        Ok(Arc::new(HookedRead {
            inner,
            path: self.path().join(name),
            storage: self.storage.clone(),
        }))
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        self.storage.ask("list", self.path(), None)?;
        self.inner.list()
    }

    fn sync(&self) -> Result<()> {
        self.storage.ask("sync", self.path(), None)?;
        self.inner.sync()
    }

    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        self.storage.ask("rename", &self.path().join(to), Some(mode))?;
        self.inner.rename(from, to, mode)
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        self.ask("remove_file", name)?;
        self.inner.remove_file(name)
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        self.ask("remove_dir", name)?;
        self.inner.remove_dir(name)
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        self.ask("try_lock", name)?;
        self.inner.try_lock(name)
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        self.storage.ask("try_lock_self", self.path(), None)?;
        self.inner.try_lock_self()
    }

    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        self.ask("create_link", name)?;
        self.inner.create_link(name, target)
    }

    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        self.ask("link_file", name)?;
        self.inner.link_file(from, to, name)
    }

    fn read_link(&self, name: &str) -> Result<String> {
        self.ask("read_link", name)?;
        self.inner.read_link(name)
    }

    fn file_facts(&self, name: &str) -> Result<Option<FileFacts>> {
        self.ask("file_facts", name)?;
        self.inner.file_facts(name)
    }
}

struct HookedRead {
    inner: Arc<dyn ReadFile>,
    path: PathBuf,
    storage: Hooked,
}

impl ReadFile for HookedRead {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let (path, bytes) = (self.path.clone(), out.len());
        (self.storage.hook)(&Call { operation: "read_at", path, mode: None, bytes })?;
        self.inner.read_at(offset, out)
    }
}

struct AlteringWrite {
    inner: Box<dyn WriteFile>,
    path: PathBuf,
    alter: Arc<Alter>,
}

impl WriteFile for AlteringWrite {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes.to_vec();
        (self.alter)(&self.path, offset, &mut bytes);
        self.inner.write_at(offset, &bytes)
    }

    fn reserve(&self, len: u64) -> Result<()> {
        self.inner.reserve(len)
    }

    fn write_back(&self) -> Result<bool> {
        self.inner.write_back()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish()
    }
}
