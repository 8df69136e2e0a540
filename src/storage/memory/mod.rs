//! A file system in memory, for tests and for rehearsals: the same contract, nothing durable.

mod dir;
mod disk;
mod file;
#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Directory, Storage};
use dir::{MemoryDir, Node, Tree};
use file::Content;

/// A file system in memory. Clones share it; relative paths start at its root.
///
/// Links in the path of [`Storage::open_dir`] are not followed, and `sync` does nothing.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    root: Arc<Tree>,
}

impl MemoryStorage {
    /// An empty file system.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes all files together may have from now on; `None`, as at first, for no limit.
    /// A write that goes beyond it fails like one on a full disk.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.root.disk().set_capacity(bytes);
    }

    /// How many bytes all files together have, those included that are only held open.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.root.disk().used()
    }

    /// The bytes of the file at `path`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no file.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        Ok(self.content(path)?.to_vec())
    }

    /// Makes `bytes` the content of the file at `path`, creating it if it is missing.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if its directory is missing, else
    /// [`Storage`](ErrorKind::Storage).
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let (directory, name) = self.parent(path)?;
        let content = match directory.content(&name) {
            Some(content) => content,
            None => {
                let content = directory.new_content();
                directory
                    .insert(&name, Node::File(content.clone()))
                    .map_err(|kind| refused(kind, "writing", path))?;
                content
            }
        };
        if content.replace(bytes) { Ok(()) } else { Err(full(path)) }
    }

    /// Flips the bits of `mask` in the byte at `offset` of the file at `path`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no file;
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it has no such byte.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> Result<()> {
        if self.content(path)?.flip(offset, mask) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, "no byte to corrupt")
            .with_path(path)
            .with_offset(offset))
    }

    fn content(&self, path: &Path) -> Result<Arc<Content>> {
        let (directory, name) = self.parent(path)?;
        directory.content(&name).ok_or_else(|| refused(ErrorKind::NotFound, "opening", path))
    }

    /// The directory that holds the last component of `path`, and that component.
    fn parent(&self, path: &Path) -> Result<(Arc<Tree>, String)> {
        let mut names = components(path);
        let name = names.pop().ok_or_else(|| refused(ErrorKind::NotFound, "opening", path))?;
        Ok((self.walk(&names, path)?, name))
    }

    fn walk(&self, names: &[String], path: &Path) -> Result<Arc<Tree>> {
        let step = |tree: Arc<Tree>, name: &String| tree.directory(name);
        names
            .iter()
            .try_fold(self.root.clone(), step)
            .ok_or_else(|| refused(ErrorKind::NotFound, "opening the directory", path))
    }

    fn handle(tree: Arc<Tree>, path: &Path) -> Arc<dyn Directory> {
        Arc::new(MemoryDir::new(tree, path.to_owned()))
    }
}

impl Storage for MemoryStorage {
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        Ok(Self::handle(self.walk(&components(path), path)?, path))
    }

    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        let mut tree = self.root.clone();
        for name in components(path) {
            // Whoever creates it first, all go on with the one that is there.
            let made = tree.insert(&name, Node::Directory(tree.new_tree()));
            tree = match made {
                Ok(()) | Err(ErrorKind::AlreadyExists) => tree.directory(&name),
                Err(_) => None,
            }
            .ok_or_else(|| refused(ErrorKind::Storage, "creating the directory", path))?;
        }
        Ok(Self::handle(tree, path))
    }
}

/// The error of a write beyond the capacity.
fn full(path: &Path) -> Error {
    Error::io(&Errno::NOSPC.into(), "writing", path).with_help("raise the capacity")
}

/// The names on the way from the root; `..` goes back by one.
fn components(path: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

/// The error of `doing` something to `path` that the tree refuses.
fn refused(kind: ErrorKind, doing: &str, path: impl Into<PathBuf>) -> Error {
    let why = match kind {
        ErrorKind::NotFound => "no such file or directory",
        ErrorKind::AlreadyExists => "the name is taken",
        _ => "not possible with what is there",
    };
    Error::new(kind, format!("{doing}: {why}")).with_path(path.into())
}
