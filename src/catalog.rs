//! Finding and reading checkpoints: one directory handle, one manifest.

mod foreign;
mod list;
mod other;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::files::{self, FoundFile};
use crate::layout::{self, CheckpointName, Debris};
use crate::manifest::{Form, Manifest};
use crate::memory::zeroed;
use crate::storage::{Directory, EntryKind, Storage};

pub(crate) use foreign::foreign_files;
pub(crate) use list::list;
pub use list::{Order, find_checkpoints};
pub(crate) use other::open_other;
pub use other::read_other;

/// Where a checkpoint is: a directory that holds checkpoints, and a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPath {
    directory: PathBuf,
    name: CheckpointName,
}

impl CheckpointPath {
    /// Splits `runs/e5` into the directory `runs` and the name `e5`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the last component is missing or can be no checkpoint's
    /// name (`..`, a leading dot, over 200 bytes).
    pub fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "the path does not end in a checkpoint's name")
                .with_path(path)
        })?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let name = CheckpointName::new(name).map_err(|e| e.with_path(path))?;
        Ok(Self { directory, name })
    }

    /// A name in a directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, name: CheckpointName) -> Self {
        Self { directory: directory.into(), name }
    }

    /// The directory that holds checkpoints.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// Both, joined.
    #[must_use]
    pub fn full(&self) -> PathBuf {
        self.directory.join(self.name.as_str())
    }
}

/// Which checkpoint of a directory is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Which {
    /// The one of this name.
    Named(CheckpointName),
    /// The newest: highest step, then epoch, then time of saving.
    Latest,
}

/// A checkpoint to be found: a directory, and which one of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    directory: PathBuf,
    which: Which,
    /// Whether files of other tools, which cannot be verified, will do.
    unverified: bool,
}

impl Wanted {
    /// As [`CheckpointPath::parse`]; the last component `latest` stands for the newest.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the last component can be no checkpoint's name.
    pub fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.file_name().is_some_and(|name| name == layout::LATEST) {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            return Ok(Self::latest(directory.unwrap_or(Path::new("."))));
        }
        CheckpointPath::parse(path).map(Self::from)
    }

    /// The newest checkpoint of a directory.
    #[must_use]
    pub fn latest(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), which: Which::Latest, unverified: false }
    }

    /// Accepts safetensors files of other tools too: they have no sums, nothing can be verified.
    #[must_use]
    pub fn or_unverified(self) -> Self {
        Self { unverified: true, ..self }
    }

    /// The directory that holds checkpoints.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which of them.
    #[must_use]
    pub fn which(&self) -> &Which {
        &self.which
    }
}

impl From<CheckpointPath> for Wanted {
    fn from(path: CheckpointPath) -> Self {
        Self { directory: path.directory, which: Which::Named(path.name), unverified: false }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match &self.which {
            Which::Named(name) => name.as_str(),
            Which::Latest => layout::LATEST,
        };
        self.directory.join(name).display().fmt(f)
    }
}

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
}

/// Opens a checkpoint, a directory or a file (see [`single`](crate::single)); an interrupted replacement is
/// looked through.
///
/// # Errors
/// [`ErrorKind::NotFound`], listing what there is; [`ErrorKind::Corrupt`] or
/// [`ErrorKind::Incompatible`] from the manifest, for the newest one only if all are damaged;
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
    let parent = storage.open_dir(wanted.directory()).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::NotFound, "no directory of checkpoints here")
            .with_path(wanted.directory())
            .with_help("check the path; nothing was changed"),
        _ => e,
    })?;
    let found = match wanted.which() {
        Which::Named(name) => find_named(parent.as_ref(), name).or_else(|e| match e.kind() {
            ErrorKind::NotFound => find_file(&parent, name, wanted.unverified)?.ok_or(e),
            _ => Err(e),
        }),
        Which::Latest => newest(parent.as_ref(), looked),
    };
    found.map_err(|e| match e.kind() {
        ErrorKind::NotFound => not_a_checkpoint(parent.as_ref(), wanted),
        _ => e,
    })
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

/// The newest good one. A damaged one is passed over, but if there is no good one its damage is
/// the error: "nothing here" would invite a fresh start over it.
fn newest(parent: &dyn Directory, looked: &mut dyn FnMut()) -> Result<Found> {
    let order = |found: &Found| {
        let m = &found.manifest;
        (m.step(), m.epoch(), m.created_unix_ms(), found.name.clone())
    };
    let mut best: Option<Found> = None;
    let mut damage = None;
    visit(parent, &mut |_, opened| {
        looked();
        match opened {
            Ok(found) if best.as_ref().is_none_or(|b| order(b) < order(&found)) => {
                best = Some(found);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a damaged checkpoint is passed over");
                damage.get_or_insert(error);
            }
        }
    })?;
    let none = || damage.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "no checkpoint"));
    best.ok_or_else(none)
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
    let entries = parent.list()?;
    let taken: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    for entry in entries.iter().filter(|e| e.kind == EntryKind::Directory) {
        let name = match (CheckpointName::new(&entry.name), Debris::parse(&entry.name)) {
            (Ok(name), _) => name,
            (_, Some(Debris::Old { name, .. })) if !taken.contains(name.as_str()) => name,
            _ => continue,
        };
        match open_entry(parent, &name, &entry.name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if !matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
                return Err(e);
            }
            opened => each(&name, opened),
        }
    }
    Ok(())
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
    let mut bytes = zeroed(file.len()).map_err(|e| e.with_path(&path))?;
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn open_entry(parent: &dyn Directory, name: &CheckpointName, entry: &str) -> Result<Found> {
    let dir = parent.open_dir(entry)?;
    let manifest = read_manifest(dir.as_ref())?;
    Ok(Found { name: name.clone(), entry: entry.to_owned(), dir, manifest })
}

fn not_a_checkpoint(parent: &dyn Directory, wanted: &Wanted) -> Error {
    let (mut names, mut damaged) = (Vec::new(), 0usize);
    let listed = visit(parent, &mut |name, opened| match opened {
        Ok(_) => names.push(name.to_string()),
        Err(_) => damaged += 1,
    });
    names.sort();
    let more = names.len().saturating_sub(10);
    names.truncate(10);
    let mut have = match (listed, names.is_empty()) {
        (Err(_), _) => "the directory cannot be listed".to_owned(),
        (_, true) => "the directory holds no checkpoint".to_owned(),
        _ => format!("the directory holds: {}", names.join(", ")),
    };
    for (count, what) in [(more, "more"), (damaged, "damaged")] {
        if count > 0 {
            have.push_str(&format!(" and {count} {what}"));
        }
    }
    let is_file = match &wanted.which {
        Which::Named(name) => parent.open_file(name.as_str()).is_ok(),
        Which::Latest => false,
    };
    let message = if is_file { "this file is no checkpoint" } else { "no checkpoint here" };
    Error::new(ErrorKind::NotFound, message).with_path(wanted.to_string()).with_help(have)
}
