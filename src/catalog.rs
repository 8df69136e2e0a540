//! Finding and reading checkpoints: one directory handle, one manifest.

mod choose;
mod foreign;
mod list;
mod missing;
mod order;
mod other;
mod path;
pub(crate) mod pointer;
mod survey;
mod wanted;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::files::{self, FoundFile};
use crate::layout::{self, CheckpointName, DataFileName, Debris, SaveId};
use crate::manifest::{Form, Manifest};
use crate::memory::zeroed;
use crate::shard::ShardReader;
use crate::shown;
use crate::storage::{DirEntry, Directory, EntryKind, Storage};

use choose::choose;
pub(crate) use foreign::foreign_files;
pub use list::{find_checkpoints, find_checkpoints_on};
pub(crate) use list::{list, list_one};
pub use order::Order;
pub(crate) use other::open_other;
pub use other::read_other;
pub use path::CheckpointPath;
pub(crate) use survey::survey_of;
pub use survey::{Other, OtherEntry, Survey, survey};
pub use wanted::{Wanted, Which};

/// A manifest beyond this is looked at before there is memory for all of it: a file of nothing may
/// have any length.
const READ_AT_ONCE: u64 = 1 << 20;

/// A checkpoint found on disk: its directory handle and its parsed manifest.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub name: CheckpointName,
    /// The entry of the directory under which it lies; differs from the name only while a
    /// replacement was interrupted.
    pub entry: String,
    /// The handle through which its files are to be read: the checkpoint's directory, or the one
    /// in which it lies as a file.
    pub dir: Arc<dyn Directory>,
    /// What it consists of.
    pub manifest: Manifest,
}

impl Found {
    /// Where it is: its directory, or its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self.manifest.form() {
            Form::Directory => self.dir.path().to_path_buf(),
            _ => self.dir.path().join(&self.entry),
        }
    }

    /// What is wrong with its data and sums files, as far as their lengths tell.
    pub(crate) fn fault_of_files(&self) -> Result<Option<Error>> {
        match ShardReader::of(self.dir.clone(), &self.manifest).check_lengths() {
            Ok(()) => Ok(None),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(Some(e)),
            Err(e) => Err(e),
        }
    }
}

/// Opens a checkpoint, a directory or a file (see [`single`](crate::single)); an interrupted
/// replacement is looked through. The newest, the one of a step and the best by a metric are looked
/// for among directories.
///
/// Manifests decide which checkpoint is meant, data is not looked at: a damaged one fails when it
/// is loaded, and another one is taken only if [`Wanted::except`] asks for it.
///
/// # Errors
/// [`ErrorKind::NotFound`], listing what there is: names, steps or metrics;
/// [`ErrorKind::Corrupt`] or [`ErrorKind::Incompatible`] from the manifest, for one of several
/// only if all are damaged; [`ErrorKind::Corrupt`] if [`Wanted::except`] leaves nothing;
/// [`ErrorKind::Storage`].
pub fn find(storage: &dyn Storage, wanted: &Wanted) -> Result<Found> {
    find_counting(storage, wanted, &mut || {})
}

/// As [`find`]; `looked` is called after each checkpoint that was looked at.
pub(crate) fn find_counting(
    storage: &dyn Storage,
    wanted: &Wanted,
    looked: &mut dyn FnMut(),
) -> Result<Found> {
    let parent = open_parent(storage, wanted.directory())?;
    match wanted.which() {
        Which::Named(name) => find_by_name(&parent, name, wanted).map_err(|e| match e.kind() {
            ErrorKind::NotFound => missing::named(parent.as_ref(), name, wanted),
            _ => e,
        }),
        Which::Best => find_best(&parent, wanted),
        _ => choose(parent.as_ref(), wanted, looked),
    }
}

/// A directory of checkpoints.
pub(crate) fn open_parent(storage: &dyn Storage, directory: &Path) -> Result<Arc<dyn Directory>> {
    storage.open_dir(directory).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "no directory of checkpoints here")
            .with_path(directory)
            .with_help("check the path; nothing was changed"),
        _ => e,
    })
}

/// What the pointer `best` names.
fn find_best(parent: &Arc<dyn Directory>, wanted: &Wanted) -> Result<Found> {
    let absent = |why: String| missing::pointed(parent.as_ref(), &why, wanted);
    let name = match pointer::read(parent.as_ref(), layout::BEST)? {
        Some(Ok(name)) => name,
        Some(Err(text)) => {
            let text = shown::short(&text);
            return Err(absent(format!(
                "`best` points to `{text}`, which is no name of a checkpoint"
            )));
        }
        None => return Err(absent("nothing says which checkpoint is the best".to_owned())),
    };
    find_by_name(parent, &name, wanted).map_err(|e| match e.kind() {
        ErrorKind::NotFound => absent(format!("`best` points to `{name}`, which is not there")),
        _ => e,
    })
}

fn find_by_name(
    parent: &Arc<dyn Directory>,
    name: &CheckpointName,
    wanted: &Wanted,
) -> Result<Found> {
    let found = find_named(parent.as_ref(), name).or_else(|e| match e.kind() {
        ErrorKind::NotFound => find_file(parent, name, wanted.unverified)?.ok_or(e),
        _ => Err(e),
    })?;
    if wanted.left_out().contains(&found.manifest.save_id()) {
        return Err(missing::left_out(wanted));
    }
    Ok(found)
}

fn find_file(
    parent: &Arc<dyn Directory>,
    name: &CheckpointName,
    unverified: bool,
) -> Result<Option<Found>> {
    let found = files::find(parent, name, unverified)?;
    Ok(found.map(|FoundFile { entry, dir, manifest }| Found {
        name: name.clone(),
        entry,
        dir,
        manifest,
    }))
}

fn find_named(parent: &dyn Directory, name: &CheckpointName) -> Result<Found> {
    let missing = match open_entry(parent, name, name.as_str()) {
        Err(e) if e.kind() == ErrorKind::NotFound => e,
        found => return found,
    };
    for entry in parent.list()?.into_iter().filter(|e| e.kind == EntryKind::Directory) {
        match Debris::parse(&entry.name) {
            Some(Debris::Old { name: old, .. }) if old == *name => {
                match open_entry(parent, name, &entry.name) {
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    found => return found,
                }
            }
            _ => {}
        }
    }
    // Its successor may have taken the name between the two looks.
    match open_entry(parent, name, name.as_str()) {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(missing),
        found => found,
    }
}

/// Opens every checkpoint of a directory, one at a time, in no particular order; interrupted
/// replacements are looked through, and what is no checkpoint is passed over. `each` gets the
/// damage ([`ErrorKind::Corrupt`], [`ErrorKind::Incompatible`]) of those that cannot be read.
///
/// # Errors
/// [`ErrorKind::Storage`] if the storage fails: what it hides might be the newest.
pub fn visit(
    parent: &dyn Directory,
    each: &mut dyn FnMut(&CheckpointName, Result<Found>),
) -> Result<()> {
    for (name, entry) in candidates(&parent.list()?) {
        match open_entry(parent, &name, entry) {
            Err(e) if e.kind() == ErrorKind::NotFound || is_lost_found(entry, &e) => {}
            Err(e) if !matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
                return Err(e);
            }
            opened => each(&name, opened),
        }
    }
    Ok(())
}

/// The entries that may be checkpoints, each with the name that it stands for: its own, or that
/// of an interrupted replacement, if it is free.
fn candidates(entries: &[DirEntry]) -> Vec<(CheckpointName, &str)> {
    let taken: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let name_of = |entry: &str| match (CheckpointName::new(entry), Debris::parse(entry)) {
        (Ok(name), _) => Some(name),
        (_, Some(Debris::Old { name, .. })) if !taken.contains(name.as_str()) => Some(name),
        _ => None,
    };
    let directories = entries.iter().filter(|entry| entry.kind == EntryKind::Directory);
    directories.filter_map(|entry| Some((name_of(&entry.name)?, entry.name.as_str()))).collect()
}

/// Whether this is no checkpoint that may not be opened, but what a file system keeps for itself:
/// a directory of checkpoints may be the top of one.
pub(crate) fn is_lost_found(entry: &str, error: &Error) -> bool {
    let denied = [Errno::ACCESS, Errno::PERM].map(|errno| Some(errno.raw_os_error()));
    entry == layout::LOST_FOUND && denied.contains(&error.os_code())
}

/// Whether a directory has data or sums files as this library names them.
pub(crate) fn holds_our_files(dir: &dyn Directory) -> Result<bool> {
    Ok(dir.list()?.iter().any(|entry| save_of_file(&entry.name).is_some()))
}

/// Whether it has such files of this save, perhaps beside others that it has linked.
pub(crate) fn holds_files_of(dir: &dyn Directory, save_id: SaveId) -> Result<bool> {
    Ok(dir.list()?.iter().any(|entry| save_of_file(&entry.name) == Some(save_id)))
}

/// The save that wrote a data or sums file, by its name.
fn save_of_file(name: &str) -> Option<SaveId> {
    let data = DataFileName::parse(name).map(|data| data.save_id);
    data.or_else(|| layout::parse_sums_file(name))
}

/// Reads and parses `manifest.bin` of an open checkpoint.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Corrupt`],
/// [`ErrorKind::Incompatible`], [`ErrorKind::Storage`].
pub fn read_manifest(dir: &dyn Directory) -> Result<Manifest> {
    let path = dir.path().join(layout::MANIFEST);
    let manifest = Manifest::parse(&read_manifest_bytes(dir)?).map_err(|e| e.with_path(&path))?;
    if *manifest.form() != Form::Directory {
        let message = "the manifest of a file is no manifest of a directory";
        return Err(Error::new(ErrorKind::Corrupt, message).with_path(path));
    }
    Ok(manifest)
}

fn read_manifest_bytes(dir: &dyn Directory) -> Result<Vec<u8>> {
    let path = dir.path().join(layout::MANIFEST);
    let file = dir.open_file(layout::MANIFEST)?;
    if file.len() > crate::manifest::MANIFEST_BYTES_MAX {
        let message = format!("the manifest claims {} bytes", file.len());
        return Err(Error::new(ErrorKind::Corrupt, message).with_path(path));
    }
    if file.len() > READ_AT_ONCE {
        let mut head = [0; crate::manifest::HEAD_BYTES];
        file.read_at(0, &mut head)?;
        crate::manifest::check_head(&head, file.len()).map_err(|e| e.with_path(&path))?;
    }
    let mut bytes = zeroed(file.len()).map_err(|e| e.with_path(&path))?;
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn open_entry(parent: &dyn Directory, name: &CheckpointName, entry: &str) -> Result<Found> {
    let dir = parent.open_dir(entry)?;
    let manifest = read_manifest(dir.as_ref())?;
    Ok(Found { name: name.clone(), entry: entry.to_owned(), dir, manifest })
}
