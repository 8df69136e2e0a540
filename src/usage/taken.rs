//! What the files of one entry take, those with several names (hard links) among them.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Directory, EntryKind, FileFacts};

/// How deep directories are looked into: those of this library have a few levels.
const DEPTH_MAX: usize = 64;

/// Device and number of a file.
type Id = (u64, u64);

/// What the files of one entry of a directory take.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    /// Their lengths, once for each name.
    pub(super) bytes: u64,
    /// What those take on the device that have one name.
    single: u64,
    /// Those with further names.
    linked: BTreeMap<Id, Linked>,
}

/// A file with several names.
#[derive(Debug, Clone, Copy)]
struct Linked {
    on_disk: u64,
    names: u64,
    names_here: u64,
}

impl Taken {
    /// Looks at the lengths of all files of entry `name`; follows no link. What goes away meanwhile
    /// counts as nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`].
    pub(crate) fn of(parent: &dyn Directory, name: &str, kind: EntryKind) -> Result<Self> {
        let mut taken = Self::default();
        taken.add(parent, name, kind, DEPTH_MAX)?;
        Ok(taken)
    }

    /// What they take on the device, each file once.
    pub(super) fn on_disk(&self) -> u64 {
        self.single + self.linked.values().map(|file| file.on_disk).sum::<u64>()
    }

    /// What would be free on the device without them: what has no name elsewhere.
    pub(super) fn unique(&self) -> u64 {
        Names::default().remove(self)
    }

    fn add(
        &mut self,
        parent: &dyn Directory,
        name: &str,
        kind: EntryKind,
        levels: usize,
    ) -> Result<()> {
        match kind {
            EntryKind::Directory => self.add_directory(parent, name, levels),
            EntryKind::File => self.add_file(parent, name),
            EntryKind::Link | EntryKind::Other => Ok(()),
        }
    }

    fn add_directory(&mut self, parent: &dyn Directory, name: &str, levels: usize) -> Result<()> {
        if levels == 0 {
            let message = format!("directories in directories, more than {DEPTH_MAX} levels deep");
            return Err(Error::new(ErrorKind::Storage, message).with_path(parent.path()));
        }
        let Some(dir) = unless_gone(parent.open_dir(name))? else { return Ok(()) };
        for entry in dir.list()? {
            self.add(dir.as_ref(), &entry.name, entry.kind, levels - 1)?;
        }
        Ok(())
    }

    fn add_file(&mut self, parent: &dyn Directory, name: &str) -> Result<()> {
        let Some(facts) = unless_gone(parent.file_facts(name))? else { return Ok(()) };
        let Some(FileFacts { bytes, on_disk, names, id }) = facts else {
            let Some(file) = unless_gone(parent.open_file(name))? else { return Ok(()) };
            self.bytes += file.len();
            self.single += file.len();
            return Ok(());
        };
        self.bytes += bytes;
        if names > 1 {
            let new = Linked { on_disk, names, names_here: 0 };
            self.linked.entry(id).or_insert(new).names_here += 1;
        } else {
            self.single += on_disk;
        }
        Ok(())
    }
}

/// Names of files with several, in the entries that were added or removed so far.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<Id, u64>);

impl Names {
    /// Adds the names that an entry has; what it takes that none before it has taken.
    pub(super) fn add(&mut self, taken: &Taken) -> u64 {
        let mut new = taken.single;
        for (id, file) in &taken.linked {
            let names = self.0.entry(*id).or_default();
            new += if *names == 0 { file.on_disk } else { 0 };
            *names += file.names_here;
        }
        new
    }

    /// Removes the names that an entry has, after those before it; what becomes free, which is
    /// that of the files whose last name goes.
    pub(crate) fn remove(&mut self, taken: &Taken) -> u64 {
        let mut free = taken.single;
        for (id, file) in &taken.linked {
            let names = self.0.entry(*id).or_default();
            *names += file.names_here;
            free += if *names >= file.names { file.on_disk } else { 0 };
        }
        free
    }
}

fn unless_gone<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}
