//! How much of a storage a directory of checkpoints takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::catalog::{self, Other, Survey};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::CheckpointState;
use crate::storage::{Directory, EntryKind, Storage};

/// How deep directories are looked into: those of this library have a few levels.
const DEPTH_MAX: usize = 64;

/// How much of a storage a directory of checkpoints takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its entries, by name, without those that are not of this library.
    pub entries: Vec<EntryUsage>,
    /// How many entries are not of this library; they are not measured.
    pub foreign: usize,
}

/// How much an entry takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryUsage {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: Held,
    /// Bytes of its files.
    pub bytes: u64,
    /// What they take on the device, as far as the storage tells; else their bytes. What is there
    /// under several names, in this entry or in an earlier one, counts once.
    pub on_disk: u64,
    /// Of `bytes`, those of files that have further names, here or elsewhere (hard links).
    pub shared: u64,
}

/// What takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// A checkpoint.
    Committed,
    /// A checkpoint that is damaged.
    Damaged,
    /// What no checkpoint refers to: an attempt, which may be under way, or what was left behind.
    Unreferenced(Other),
    /// The lock, the links and the pins.
    Own,
}

impl Usage {
    /// What all entries take on the device.
    #[must_use]
    pub fn on_disk(&self) -> u64 {
        self.entries.iter().map(|entry| entry.on_disk).sum()
    }

    /// What is taken by what no checkpoint refers to.
    #[must_use]
    pub fn unreferenced(&self) -> u64 {
        let is_it = |entry: &&EntryUsage| matches!(entry.what, Held::Unreferenced(_));
        self.entries.iter().filter(is_it).map(|entry| entry.on_disk).sum()
    }
}

/// Measures a directory of checkpoints; reads manifests and lengths, follows no link, changes
/// nothing. What goes away meanwhile counts as nothing. Not collective: one process looks.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such directory; [`ErrorKind::Storage`].
pub fn usage(storage: &dyn Storage, directory: &Path) -> Result<Usage> {
    let parent = catalog::open_parent(storage, directory)?;
    usage_of(parent.as_ref(), &mut || {})
}

/// As [`usage`]; `looked` is called after each entry.
pub(crate) fn usage_of(parent: &dyn Directory, looked: &mut dyn FnMut()) -> Result<Usage> {
    let held = held(&catalog::survey_of(parent, looked)?);
    let (mut usage, mut seen) = (Usage::default(), BTreeSet::new());
    let mut entries = parent.list()?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in entries {
        let what = match held.get(&entry.name) {
            Some(None) => {
                usage.foreign += 1;
                continue;
            }
            Some(Some(what)) => *what,
            None => Held::Own,
        };
        let name = entry.name.clone();
        let mut one = EntryUsage { name, what, bytes: 0, on_disk: 0, shared: 0 };
        one.add(parent, &entry.name, entry.kind, &mut seen, DEPTH_MAX)?;
        usage.entries.push(one);
        looked();
    }
    Ok(usage)
}

/// What takes space, by the names of entries; `None` for what is not of this library.
fn held(survey: &Survey) -> BTreeMap<String, Option<Held>> {
    let others = survey.others.iter().map(|other| {
        let what = match other.what {
            Other::Interrupted => Some(Held::Committed),
            what if what.is_foreign() => None,
            what => Some(Held::Unreferenced(what)),
        };
        (other.name.clone(), what)
    });
    let checkpoints = survey.checkpoints.iter().filter_map(|info| match info.state {
        CheckpointState::Committed => Some((info.name.clone(), Some(Held::Committed))),
        CheckpointState::Damaged => Some((info.name.clone(), Some(Held::Damaged))),
        // Its entry has another name.
        CheckpointState::Partial => None,
    });
    checkpoints.chain(others).collect()
}

impl EntryUsage {
    fn add(
        &mut self,
        parent: &dyn Directory,
        name: &str,
        kind: EntryKind,
        seen: &mut BTreeSet<(u64, u64)>,
        levels: usize,
    ) -> Result<()> {
        match kind {
            EntryKind::Directory => self.add_directory(parent, name, seen, levels),
            EntryKind::File => self.add_file(parent, name, seen),
            EntryKind::Link | EntryKind::Other => Ok(()),
        }
    }

    fn add_directory(
        &mut self,
        parent: &dyn Directory,
        name: &str,
        seen: &mut BTreeSet<(u64, u64)>,
        levels: usize,
    ) -> Result<()> {
        if levels == 0 {
            let message = format!("directories in directories, more than {DEPTH_MAX} levels deep");
            return Err(Error::new(ErrorKind::Storage, message).with_path(parent.path()));
        }
        let Some(dir) = unless_gone(parent.open_dir(name))? else { return Ok(()) };
        for entry in dir.list()? {
            self.add(dir.as_ref(), &entry.name, entry.kind, seen, levels - 1)?;
        }
        Ok(())
    }

    fn add_file(
        &mut self,
        parent: &dyn Directory,
        name: &str,
        seen: &mut BTreeSet<(u64, u64)>,
    ) -> Result<()> {
        let Some(facts) = unless_gone(parent.file_facts(name))? else { return Ok(()) };
        let Some(facts) = facts else {
            let Some(file) = unless_gone(parent.open_file(name))? else { return Ok(()) };
            self.bytes += file.len();
            self.on_disk += file.len();
            return Ok(());
        };
        self.bytes += facts.bytes;
        let has_others = facts.names > 1;
        self.shared += if has_others { facts.bytes } else { 0 };
        if !has_others || seen.insert(facts.id) {
            self.on_disk += facts.on_disk;
        }
        Ok(())
    }
}

fn unless_gone<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{LocalStorage, MemoryStorage};

    #[test]
    fn hard_links_count_once_and_sparse_files_by_what_they_take() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = folder.path().join(".a.00112233445566778899aabbccddeeff.partial");
        std::fs::create_dir_all(attempt.join("code")).unwrap();
        std::fs::write(attempt.join("x"), vec![1u8; 100_000]).unwrap();
        std::fs::hard_link(attempt.join("x"), attempt.join("code/y")).unwrap();
        std::fs::File::create(attempt.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", attempt.join("link")).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "foreign").unwrap();
        let usage = usage(&LocalStorage::new(), folder.path()).unwrap();
        let [entry] = &usage.entries[..] else { panic!("{usage:?}") };
        assert_eq!(entry.what, Held::Unreferenced(Other::Attempt));
        assert_eq!((entry.bytes, entry.shared), (200_000 + (1 << 30), 200_000));
        assert!((100_000..200_000).contains(&entry.on_disk), "{entry:?}");
        assert_eq!((usage.foreign, usage.unreferenced()), (1, entry.on_disk));
    }

    #[test]
    fn a_storage_that_does_not_tell_is_measured_by_lengths() {
        let storage = MemoryStorage::new();
        let dir = storage.create_dir_all(Path::new("runs")).unwrap();
        dir.create_file(".tch-checkpoint.lock").unwrap().finish().unwrap();
        let file = dir.create_file(".a.pin").unwrap();
        file.write_at(0, b"12345").unwrap();
        file.finish().unwrap();
        let usage = usage(&storage, Path::new("runs")).unwrap();
        assert_eq!((usage.entries.len(), usage.on_disk(), usage.foreign), (2, 5, 0));
        assert!(usage.entries.iter().all(|entry| entry.what == Held::Own));
    }
}
