//! Directories in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::disk::Disk;
use super::file::{Content, MemoryReadFile, MemoryWriteFile};
use super::refused;
use crate::error::{ErrorKind, Result};
use crate::storage::errors::no_regular_file;
use crate::storage::name::{check_link_text, check_name};
use crate::storage::{DirEntry, Directory, EntryKind, Lock, ReadFile, Rename, Space, WriteFile};

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Directory(Arc<Tree>),
    File(Arc<Content>),
    Link(String),
}

/// What all handles of one directory share. Locked from the root downwards only.
#[derive(Debug, Default)]
pub(super) struct Tree {
    entries: Mutex<Entries>,
    is_locked: AtomicBool,
    disk: Arc<Disk>,
}

struct Held(Arc<Tree>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.is_locked.store(false, Ordering::Release);
    }
}

#[derive(Debug, Default)]
struct Entries {
    nodes: BTreeMap<String, Node>,
    /// Nothing can be created in a directory that was removed under its handles.
    is_removed: bool,
}

impl Tree {
    /// An empty directory on the disk of this one.
    pub(super) fn new_tree(&self) -> Arc<Tree> {
        Arc::new(Self { disk: self.disk.clone(), ..Self::default() })
    }

    /// An empty file on the disk of this directory.
    pub(super) fn new_content(&self) -> Arc<Content> {
        Arc::new(Content::new(self.disk.clone()))
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(super) fn get(&self, name: &str) -> Option<Node> {
        self.entries.lock().nodes.get(name).cloned()
    }

    pub(super) fn directory(&self, name: &str) -> Option<Arc<Tree>> {
        match self.get(name)? {
            Node::Directory(tree) => Some(tree),
            Node::File(_) | Node::Link(_) => None,
        }
    }

    pub(super) fn content(&self, name: &str) -> Option<Arc<Content>> {
        match self.get(name)? {
            Node::File(content) => Some(content),
            Node::Directory(_) | Node::Link(_) => None,
        }
    }

    /// Adds `node` under a free name.
    pub(super) fn insert(&self, name: &str, node: Node) -> Result<(), ErrorKind> {
        self.entries.lock().insert(name, node)
    }

    fn try_lock(self: Arc<Self>) -> Option<Lock> {
        let was_locked = self.is_locked.swap(true, Ordering::AcqRel);
        (!was_locked).then(|| Lock::new(Held(self)))
    }

    /// Marks an empty directory as removed; false if it is not empty.
    fn bury(&self) -> bool {
        let mut entries = self.entries.lock();
        entries.is_removed = entries.nodes.is_empty();
        entries.is_removed
    }
}

impl Entries {
    fn insert(&mut self, name: &str, node: Node) -> Result<(), ErrorKind> {
        if self.is_removed {
            return Err(ErrorKind::Storage);
        }
        if self.nodes.contains_key(name) {
            return Err(ErrorKind::AlreadyExists);
        }
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, mode: Rename) -> Result<(), ErrorKind> {
        let source = self.nodes.get(from).cloned().ok_or(ErrorKind::NotFound)?;
        let target = self.nodes.get(to).cloned();
        match (mode, target) {
            (Rename::Exchange, None) => return Err(ErrorKind::NotFound),
            (Rename::NoReplace, Some(_)) => return Err(ErrorKind::AlreadyExists),
            (Rename::Replace, _) if from == to => return Ok(()),
            (Rename::Exchange, Some(target)) => {
                self.nodes.insert(to.to_owned(), source);
                self.nodes.insert(from.to_owned(), target);
                return Ok(());
            }
            (Rename::Replace, Some(target)) => make_room(&source, &target)?,
            (Rename::NoReplace | Rename::Replace, None) => {}
        }
        self.nodes.remove(from);
        self.nodes.insert(to.to_owned(), source);
        Ok(())
    }
}

/// Whether `source` may take the name of `target`: like for like, and only an empty directory.
fn make_room(source: &Node, target: &Node) -> Result<(), ErrorKind> {
    match (source, target) {
        (Node::Directory(_), Node::Directory(tree)) => {
            if tree.bury() {
                Ok(())
            } else {
                Err(ErrorKind::AlreadyExists)
            }
        }
        (Node::Directory(_), _) | (_, Node::Directory(_)) => Err(ErrorKind::Storage),
        _ => Ok(()),
    }
}

#[derive(Debug)]
pub(super) struct MemoryDir {
    tree: Arc<Tree>,
    path: PathBuf,
}

impl MemoryDir {
    pub(super) fn new(tree: Arc<Tree>, path: PathBuf) -> Self {
        Self { tree, path }
    }

    /// Where the entry `name` is, if that can be a name.
    fn entry(&self, name: &str) -> Result<PathBuf> {
        check_name(name, &self.path)?;
        Ok(self.path.join(name))
    }

    fn add(&self, name: &str, node: Node, doing: &str) -> Result<PathBuf> {
        let path = self.entry(name)?;
        self.tree.insert(name, node).map_err(|kind| refused(kind, doing, &path))?;
        Ok(path)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.tree.entries.lock()
    }
}

impl Directory for MemoryDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let tree = self.tree.new_tree();
        let path = self.add(name, Node::Directory(tree.clone()), "creating the directory")?;
        Ok(Arc::new(Self { tree, path }))
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let path = self.entry(name)?;
        let Some(tree) = self.tree.directory(name) else {
            return Err(refused(ErrorKind::NotFound, "opening the directory", path));
        };
        Ok(Arc::new(Self { tree, path }))
    }

    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let content = self.tree.new_content();
        let path = self.add(name, Node::File(content.clone()), "creating the file")?;
        Ok(Box::new(MemoryWriteFile { content, path }))
    }

    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let path = self.entry(name)?;
        match self.tree.get(name) {
            Some(Node::File(content)) => Ok(Box::new(MemoryWriteFile { content, path })),
            Some(_) => Err(no_regular_file(&path)),
            None => Err(refused(ErrorKind::NotFound, "opening", path)),
        }
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let path = self.entry(name)?;
        match self.tree.get(name) {
            Some(Node::File(content)) => Ok(Arc::new(MemoryReadFile::new(content, path))),
            Some(_) => Err(no_regular_file(&path)),
            None => Err(refused(ErrorKind::NotFound, "opening", path)),
        }
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        let kind = |node: &Node| match node {
            Node::Directory(_) => EntryKind::Directory,
            Node::File(_) => EntryKind::File,
            Node::Link(_) => EntryKind::Link,
        };
        let entries = self.lock();
        let entry =
            |(name, node): (&String, &Node)| DirEntry { name: name.clone(), kind: kind(node) };
        Ok(entries.nodes.iter().map(entry).collect())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        let (source, target) = (self.entry(from)?, self.entry(to)?);
        self.lock().rename(from, to, mode).map_err(|kind| match kind {
            ErrorKind::AlreadyExists => refused(kind, &format!("renaming {from:?}"), target),
            _ => refused(kind, &format!("renaming to {to:?}"), source),
        })
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        let path = self.entry(name)?;
        let mut entries = self.lock();
        let kind = match entries.nodes.get(name) {
            Some(Node::File(_) | Node::Link(_)) => {
                entries.nodes.remove(name);
                return Ok(());
            }
            Some(Node::Directory(_)) => ErrorKind::Storage,
            None => ErrorKind::NotFound,
        };
        Err(refused(kind, "removing the file", path))
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        let path = self.entry(name)?;
        let mut entries = self.lock();
        let kind = match entries.nodes.get(name) {
            Some(Node::Directory(tree)) if tree.bury() => {
                entries.nodes.remove(name);
                return Ok(());
            }
            Some(_) => ErrorKind::Storage,
            None => ErrorKind::NotFound,
        };
        Err(refused(kind, "removing the directory", path))
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let path = self.entry(name)?;
        let mut entries = self.lock();
        if !entries.nodes.contains_key(name) {
            entries
                .insert(name, Node::File(self.tree.new_content()))
                .map_err(|kind| refused(kind, "locking", &path))?;
        }
        match entries.nodes.get(name) {
            Some(Node::File(content)) => Ok(content.clone().try_lock()),
            _ => Err(refused(ErrorKind::Storage, "locking", path)),
        }
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        Ok(self.tree.clone().try_lock())
    }

    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        check_link_text(target, &self.path.join(name))?;
        self.add(name, Node::Link(target.to_owned()), "linking").map(drop)
    }

    fn read_link(&self, name: &str) -> Result<String> {
        let path = self.entry(name)?;
        match self.tree.get(name) {
            Some(Node::Link(target)) => Ok(target),
            _ => Err(refused(ErrorKind::NotFound, "reading the link", path)),
        }
    }

    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        let path = self.entry(to)?.join(name);
        check_name(name, &path)?;
        let directory = |entry: &str| -> Result<Arc<Tree>> {
            let path = self.entry(entry)?;
            let found = self.tree.directory(entry);
            found.ok_or_else(|| refused(ErrorKind::NotFound, "opening the directory", path))
        };
        let (source, target) = (directory(from)?, directory(to)?);
        let doing = "giving the file a second name";
        match source.get(name) {
            Some(Node::File(content)) => {
                target.insert(name, Node::File(content)).map_err(|kind| refused(kind, doing, &path))
            }
            Some(_) => Err(no_regular_file(&self.path.join(from).join(name))),
            None => Err(refused(ErrorKind::NotFound, doing, path)),
        }
    }

    fn space(&self) -> Result<Option<Space>> {
        Ok(self.tree.disk().available().map(Space::of_bytes))
    }
}
