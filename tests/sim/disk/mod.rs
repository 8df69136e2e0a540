//! A disk that all ranks share, with a cache in front of it that a power cut empties.
//!
//! What is durable is what the contract of the storage says, and no more: fsync of a file its
//! content, fsync of a directory its entries. Of everything else any part may survive.

mod handles;
mod node;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::rng::Rng;
pub use handles::SimStorage;
use node::{Change, Dir, Entry, File, Id};

/// The root of the file system.
const ROOT: Id = 0;

#[derive(Debug, Clone)]
enum Node {
    Dir(Dir),
    File(File),
}

/// The disk of a simulated machine.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: BTreeMap<Id, Node>,
    next: Id,
    /// Which process holds the lock on a file or directory, and which of its locks that is.
    locks: BTreeMap<Id, (u64, u64)>,
    locks_taken: u64,
    writes: u64,
    /// Whether two names can be exchanged in one step.
    can_exchange: bool,
    lie: Lie,
}

/// What a disk acknowledges without doing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// fsync of files.
    Files,
    /// fsync of directories.
    Directories,
}

/// What all handles share.
pub type Shared = Arc<Mutex<Disk>>;

impl Disk {
    pub fn new(can_exchange: bool, lie: Lie) -> Shared {
        let root = Node::Dir(Dir::default());
        Arc::new(Mutex::new(Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            locks: BTreeMap::new(),
            locks_taken: 0,
            writes: 0,
            can_exchange,
            lie,
        }))
    }

    /// What is left once the power is back. Blocks of files whose last name had gone, but not
    /// durably, may hold what was written since.
    pub fn cut(&mut self, rng: &mut Rng) {
        let recent = self.recent_bytes();
        let mut left = BTreeMap::new();
        for (id, node) in &self.nodes {
            let node = match node {
                Node::Dir(dir) => Node::Dir(dir.after_cut(rng)),
                Node::File(file) => {
                    let mut kept = file.after_cut(rng);
                    let reused = file.freed_at.is_some_and(|at| at < self.writes);
                    if reused && !recent.is_empty() && rng.one_in(2) {
                        let other = rng.index(recent.len());
                        kept.overwrite_by(&recent[other], rng);
                    }
                    Node::File(kept)
                }
            };
            left.insert(*id, node);
        }
        self.nodes = left;
        self.locks.clear();
        self.forget_unreachable();
    }

    /// The contents of files that still have a name.
    fn recent_bytes(&self) -> Vec<Vec<u8>> {
        let files = self.nodes.values().filter_map(|node| match node {
            Node::File(file) if file.freed_at.is_none() => Some(file.bytes.clone()),
            _ => None,
        });
        files.filter(|bytes| !bytes.is_empty()).collect()
    }

    fn forget_unreachable(&mut self) {
        let mut reached = std::collections::BTreeSet::from([ROOT]);
        let mut todo = vec![ROOT];
        while let Some(Node::Dir(dir)) = todo.pop().and_then(|id| self.nodes.get(&id)) {
            for entry in dir.entries.values() {
                if let Entry::Directory(id) | Entry::File(id) = entry
                    && reached.insert(*id)
                {
                    todo.extend(matches!(entry, Entry::Directory(_)).then_some(*id));
                }
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
    }

    /// The kernel gives back what a dead process held.
    pub fn release_locks_of(&mut self, process: u64) {
        self.locks.retain(|_, (holder, _)| *holder != process);
    }

    fn dir(&mut self, id: Id) -> Result<&mut Dir, Errno> {
        match self.nodes.get_mut(&id) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(Errno::STALE),
        }
    }

    fn file(&mut self, id: Id) -> Result<&mut File, Errno> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(Errno::STALE),
        }
    }

    fn sync_dir(&mut self, id: Id) -> Result<(), Errno> {
        let lies = self.lie == Lie::Directories;
        let dir = self.dir(id)?;
        if !lies {
            dir.sync();
        }
        Ok(())
    }

    fn sync_file(&mut self, id: Id) -> Result<(), Errno> {
        let lies = self.lie == Lie::Files;
        let file = self.file(id)?;
        if !lies {
            file.sync();
        }
        Ok(())
    }

    fn entry(&mut self, dir: Id, name: &str) -> Result<Entry, Errno> {
        self.dir(dir)?.entries.get(name).cloned().ok_or(Errno::NOENT)
    }

    fn walk(&mut self, path: &Path) -> Result<Id, Errno> {
        components(path).try_fold(ROOT, |at, name| match self.entry(at, name)? {
            Entry::Directory(id) => Ok(id),
            _ => Err(Errno::NOTDIR),
        })
    }

    fn make(&mut self, dir: Id, name: &str, node: Node) -> Result<Id, Errno> {
        let id = self.next;
        let entry = match node {
            Node::Dir(_) => Entry::Directory(id),
            Node::File(_) => Entry::File(id),
        };
        self.link(dir, name, entry)?;
        self.nodes.insert(id, node);
        self.next += 1;
        Ok(id)
    }

    fn link(&mut self, dir: Id, name: &str, entry: Entry) -> Result<(), Errno> {
        let dir = self.dir(dir)?;
        if dir.is_removed {
            return Err(Errno::NOENT);
        }
        if dir.entries.contains_key(name) {
            return Err(Errno::EXIST);
        }
        dir.apply(vec![(name.to_owned(), Some(entry))]);
        Ok(())
    }

    fn rename(&mut self, dir: Id, from: &str, to: &str, mode: Mode) -> Result<(), Errno> {
        if mode == Mode::Exchange && !self.can_exchange {
            return Err(Errno::INVAL);
        }
        let source = self.entry(dir, from)?;
        let target = self.dir(dir)?.entries.get(to).cloned();
        let named = |name: &str, entry| (name.to_owned(), entry);
        let change: Change = match (mode, &target) {
            (Mode::Exchange, None) => return Err(Errno::NOENT),
            (Mode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Mode::Exchange, Some(_)) => vec![named(from, target), named(to, Some(source))],
            (_, Some(Entry::Directory(_))) => return Err(Errno::ISDIR),
            (_, _) => {
                self.free(target.as_ref());
                vec![named(from, None), named(to, Some(source))]
            }
        };
        self.dir(dir)?.apply(change);
        Ok(())
    }

    fn unlink(&mut self, dir: Id, name: &str) -> Result<(), Errno> {
        let entry = self.entry(dir, name)?;
        if matches!(entry, Entry::Directory(_)) {
            return Err(Errno::ISDIR);
        }
        self.free(Some(&entry));
        self.dir(dir)?.apply(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn remove_dir(&mut self, dir: Id, name: &str) -> Result<(), Errno> {
        let Entry::Directory(id) = self.entry(dir, name)? else { return Err(Errno::NOTDIR) };
        let removed = self.dir(id)?;
        if !removed.entries.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        removed.is_removed = true;
        self.dir(dir)?.apply(vec![(name.to_owned(), None)]);
        Ok(())
    }

    /// Gives the file of directory `from` a second name in directory `to`; both are in `dir`.
    fn link_file(&mut self, dir: Id, from: &str, to: &str, name: &str) -> Result<(), Errno> {
        let (Entry::Directory(from), Entry::Directory(to)) =
            (self.entry(dir, from)?, self.entry(dir, to)?)
        else {
            return Err(Errno::NOTDIR);
        };
        match self.entry(from, name)? {
            Entry::File(id) => {
                self.sync_file(id)?;
                self.link(to, name, Entry::File(id))
            }
            _ => Err(Errno::LOOP),
        }
    }

    /// A name of the entry is about to go: a file goes with its last one.
    fn free(&mut self, entry: Option<&Entry>) {
        let Some(Entry::File(id)) = entry else { return };
        let (writes, names) = (self.writes, self.names_of(*id));
        if names <= 1
            && let Ok(file) = self.file(*id)
        {
            file.freed_at = Some(writes);
        }
    }

    fn names_of(&self, file: Id) -> usize {
        let dirs = self.nodes.values().filter_map(|node| match node {
            Node::Dir(dir) => Some(dir),
            Node::File(_) => None,
        });
        let is_it = |entry: &&Entry| matches!(entry, Entry::File(id) if *id == file);
        dirs.map(|dir| dir.entries.values().filter(is_it).count()).sum()
    }

    /// The number of the lock, if nobody else holds one.
    fn lock(&mut self, id: Id, process: u64) -> Option<u64> {
        if self.locks.contains_key(&id) {
            return None;
        }
        self.locks_taken += 1;
        self.locks.insert(id, (process, self.locks_taken));
        Some(self.locks_taken)
    }

    fn unlock(&mut self, id: Id, lock: u64) {
        if self.locks.get(&id).is_some_and(|(_, held)| *held == lock) {
            self.locks.remove(&id);
        }
    }
}

/// How a rename treats the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    NoReplace,
    Exchange,
    Replace,
}

fn components(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    })
}
