//! A disk that keeps what was fsynced apart from what was merely done, and shows what a power cut
//! may leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tch_checkpoint::storage::{
    DirEntry, Directory, EntryKind, Lock, MemoryStorage, ReadFile, Rename, Storage, WriteFile,
};
use tch_checkpoint::{Error, ErrorKind, Result};

/// What a power cut leaves; file systems differ, and promise no more than the worst of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// What was fsynced, and nothing else.
    Synced,
    /// Names as they were last, whatever was fsynced; of files, the bytes that were.
    NamesFirst,
    /// Everything: a killed process, not a cut.
    All,
}

/// As fast as it was done, and as it is on the platter.
#[derive(Debug, Clone, Default)]
struct Twofold<T> {
    live: T,
    durable: T,
}

#[derive(Debug, Clone)]
enum Node {
    Dir(Twofold<BTreeMap<String, usize>>),
    File(Twofold<Vec<u8>>),
    Link(String),
}

/// The disk; clones are the same one. Locks are always free: it is for one job.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<Vec<Node>>>);

const ROOT: usize = 0;

impl Disk {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(vec![Node::Dir(Twofold::default())])))
    }

    /// A disk that holds what a power cut may leave of this one.
    pub fn after_a_cut(&self, left: Left) -> MemoryStorage {
        let memory = MemoryStorage::new();
        copy(&self.nodes(), ROOT, left, &memory, Path::new(""));
        memory
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.0.lock().unwrap()
    }

    fn at(&self, node: usize, path: &Path) -> Arc<dyn Directory> {
        Arc::new(Handle { disk: self.clone(), node, path: path.to_owned() })
    }
}

fn copy(nodes: &[Node], node: usize, left: Left, to: &MemoryStorage, path: &Path) {
    let Node::Dir(entries) = &nodes[node] else { return };
    let dir = to.create_dir_all(path).unwrap();
    let shown = if left == Left::Synced { &entries.durable } else { &entries.live };
    for (name, node) in shown {
        match &nodes[*node] {
            Node::Dir(_) => copy(nodes, *node, left, to, &path.join(name)),
            Node::Link(target) => dir.create_link(name, target).unwrap(),
            Node::File(bytes) => {
                let file = dir.create_file(name).unwrap();
                let bytes = if left == Left::All { &bytes.live } else { &bytes.durable };
                file.write_at(0, bytes).unwrap();
                file.finish().unwrap();
            }
        }
    }
}

fn error(kind: ErrorKind, path: &Path) -> Error {
    Error::new(kind, "on the disk of a test").with_path(path)
}

impl Storage for Disk {
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        let mut dir = self.at(ROOT, Path::new(""));
        for name in path {
            dir = dir.open_dir(name.to_str().unwrap())?;
        }
        Ok(dir)
    }

    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        let mut dir = self.at(ROOT, Path::new(""));
        for name in path {
            let name = name.to_str().unwrap();
            if dir.open_dir(name).is_err() {
                drop(dir.create_dir(name));
                dir.sync()?;
            }
            dir = dir.open_dir(name)?;
        }
        Ok(dir)
    }
}

#[derive(Debug)]
struct Handle {
    disk: Disk,
    node: usize,
    path: PathBuf,
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut Twofold<BTreeMap<String, usize>>) -> T) -> T {
        match &mut self.disk.nodes()[self.node] {
            Node::Dir(entries) => act(entries),
            _ => panic!("a handle of a directory"),
        }
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.with(|entries| entries.live.get(name).copied());
        found.ok_or_else(|| error(ErrorKind::NotFound, &self.path.join(name)))
    }

    fn add(&self, name: &str, node: Node) -> Result<usize> {
        if self.find(name).is_ok() {
            return Err(error(ErrorKind::AlreadyExists, &self.path.join(name)));
        }
        let mut nodes = self.disk.nodes();
        nodes.push(node);
        let made = nodes.len() - 1;
        drop(nodes);
        self.with(|entries| entries.live.insert(name.to_owned(), made));
        Ok(made)
    }

    fn file(&self, name: &str) -> Result<Box<Open>> {
        let node = self.find(name)?;
        match &self.disk.nodes()[node] {
            Node::File(_) => Ok(Box::new(Open { disk: self.disk.clone(), node })),
            _ => Err(error(ErrorKind::Corrupt, &self.path.join(name))),
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.find(name)?;
        self.with(|entries| entries.live.remove(name));
        Ok(())
    }
}

impl Directory for Handle {
    fn path(&self) -> &Path {
        &self.path
    }
    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let node = self.add(name, Node::Dir(Twofold::default()))?;
        Ok(self.disk.at(node, &self.path.join(name)))
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let (node, path) = (self.find(name)?, self.path.join(name));
        match &self.disk.nodes()[node] {
            Node::Dir(_) => Ok(self.disk.at(node, &path)),
            _ => Err(error(ErrorKind::NotFound, &path)),
        }
    }
    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let node = self.add(name, Node::File(Twofold::default()))?;
        Ok(Box::new(Open { disk: self.disk.clone(), node }))
    }
    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        Ok(self.file(name)?)
    }
    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        Ok(Arc::new(*self.file(name)?))
    }
    fn list(&self) -> Result<Vec<DirEntry>> {
        let entries = self.with(|entries| entries.live.clone());
        let nodes = self.disk.nodes();
        let entry = |(name, node): (String, usize)| {
            let kind = match &nodes[node] {
                Node::Dir(_) => EntryKind::Directory,
                Node::File(_) => EntryKind::File,
                Node::Link(_) => EntryKind::Link,
            };
            DirEntry { name, kind }
        };
        Ok(entries.into_iter().map(entry).collect())
    }
    fn sync(&self) -> Result<()> {
        self.with(|entries| entries.durable = entries.live.clone());
        Ok(())
    }
    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        let (node, there) = (self.find(from)?, self.find(to).ok());
        self.with(|entries| match (mode, there) {
            (Rename::NoReplace, Some(_)) => Err(ErrorKind::AlreadyExists),
            (Rename::Exchange, None) => Err(ErrorKind::NotFound),
            _ => {
                entries.live.remove(from);
                if let (Rename::Exchange, Some(other)) = (mode, there) {
                    entries.live.insert(from.to_owned(), other);
                }
                entries.live.insert(to.to_owned(), node);
                Ok(())
            }
        })
        .map_err(|kind| error(kind, &self.path.join(to)))
    }
    fn remove_file(&self, name: &str) -> Result<()> {
        self.remove(name)
    }
    fn remove_dir(&self, name: &str) -> Result<()> {
        if !self.open_dir(name)?.list()?.is_empty() {
            return Err(error(ErrorKind::Storage, &self.path.join(name)));
        }
        self.remove(name)
    }
    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        if self.find(name).is_err() {
            self.create_file(name)?;
        }
        Ok(Some(Lock::new(())))
    }
    fn try_lock_self(&self) -> Result<Option<Lock>> {
        Ok(Some(Lock::new(())))
    }
    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        self.add(name, Node::Link(target.to_owned())).map(drop)
    }
    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        let directory = |entry: &str| -> Result<Handle> {
            let node = self.find(entry)?;
            Ok(Handle { disk: self.disk.clone(), node, path: self.path.join(entry) })
        };
        let (from, to) = (directory(from)?, directory(to)?);
        let file = from.find(name)?;
        if to.find(name).is_ok() {
            return Err(error(ErrorKind::AlreadyExists, &to.path.join(name)));
        }
        to.with(|entries| entries.live.insert(name.to_owned(), file));
        Ok(())
    }

    fn read_link(&self, name: &str) -> Result<String> {
        let node = self.find(name)?;
        match &self.disk.nodes()[node] {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(error(ErrorKind::NotFound, &self.path.join(name))),
        }
    }
}

/// An open file.
struct Open {
    disk: Disk,
    node: usize,
}

impl Open {
    fn with<T>(&self, act: impl FnOnce(&mut Twofold<Vec<u8>>) -> T) -> T {
        match &mut self.disk.nodes()[self.node] {
            Node::File(bytes) => act(bytes),
            _ => panic!("a handle of a file"),
        }
    }
}

impl WriteFile for Open {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (begin, end) = (offset as usize, offset as usize + bytes.len());
        self.with(|file| {
            file.live.resize(file.live.len().max(end), 0);
            file.live[begin..end].copy_from_slice(bytes);
        });
        Ok(())
    }
    fn reserve(&self, _len: u64) -> Result<()> {
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<()> {
        self.with(|file| file.durable = file.live.clone());
        Ok(())
    }
}

impl ReadFile for Open {
    fn len(&self) -> u64 {
        self.with(|file| file.live.len() as u64)
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let range = offset as usize..offset as usize + out.len();
        let ends_early = || error(ErrorKind::Corrupt, Path::new("a file that ends early"));
        self.with(|file| {
            out.copy_from_slice(file.live.get(range).ok_or_else(ends_early)?);
            Ok(())
        })
    }
}
