//! What the coordinator alone does on disk: make the attempt, publish it, replace, sweep.
//!
//! An attempt is a directory whose name begins with a dot; it becomes a checkpoint by one rename.
//! Every line below says, by its order, what a crash leaves behind: until the rename, debris that
//! is never read; after it, the whole checkpoint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName, Debris, SaveId};
use crate::manifest::{Manifest, hash16};
use crate::plan::{FileReceipt, OnExisting, Receipt};
use crate::rank::Rank;
use crate::storage::{Directory, EntryKind, Lock, Rename};

/// How often a lock that another job holds, or a file that is not visible yet, is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// What is under the name of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Absent,
    Checkpoint(SaveId),
    /// A directory with a manifest that does not parse; it may be replaced, not read.
    Damaged,
    /// Something of the user's: never touched.
    Foreign,
}

/// One attempt to save, in the hands of the coordinator.
pub(crate) struct Attempt {
    parent: Arc<dyn Directory>,
    dir: Arc<dyn Directory>,
    /// Held until the attempt is over, so that a sweep by another job leaves it alone.
    _owner: Option<Lock>,
    name: CheckpointName,
    save_id: SaveId,
    replaces: Existing,
    stage: Stage,
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not visible: what it left is debris.
    Hidden,
    /// Visible, but a power cut may take it back: what it replaced must stay.
    Visible,
    /// Durable: what it replaced can go.
    Durable,
}

impl Attempt {
    /// Chooses the final name and makes the directory of the attempt.
    pub(crate) fn begin(
        parent: Arc<dyn Directory>,
        name: &CheckpointName,
        save_id: SaveId,
        on_existing: OnExisting,
    ) -> Result<Self> {
        let name = match on_existing {
            OnExisting::Number => free_name(parent.as_ref(), name)?,
            OnExisting::Refuse | OnExisting::Replace => name.clone(),
        };
        let replaces = existing(parent.as_ref(), name.as_str())?;
        let path = parent.path().join(name.as_str());
        match (replaces, on_existing) {
            (Existing::Absent, _) => {}
            (Existing::Foreign, _) => {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    "the name is taken by something that is no checkpoint",
                )
                .with_path(path)
                .with_help("nothing was written; choose another name"));
            }
            (_, OnExisting::Replace) => {}
            _ => {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    "a checkpoint of this name exists",
                )
                .with_path(path)
                .with_help(
                    "nothing was written; ask for it to be replaced, or choose another name",
                ));
            }
        }
        let dir = parent.create_dir(&layout::partial_dir(&name, &save_id))?;
        let owner = dir.try_lock_self().unwrap_or(None);
        Ok(Self { parent, dir, _owner: owner, name, save_id, replaces, stage: Stage::Hidden })
    }

    /// The name that the checkpoint will have.
    pub(crate) fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// Opens every file that a rank says it wrote, by name, from here: a directory that ranks do
    /// not share is found now and not at the next load. Network file systems may take a moment to
    /// show a file of another host, hence `patience`.
    pub(crate) fn check_visible(&self, receipts: &[Receipt], patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        for (rank, receipt) in receipts.iter().enumerate() {
            let check = || -> Result<()> {
                for file in &receipt.files {
                    check_data_file(self.dir.as_ref(), file, until)?;
                }
                if let Some(sums) = &receipt.sums_file {
                    check_length(self.dir.as_ref(), &sums.name, sums.len, until)?;
                }
                Ok(())
            };
            let writer = Rank::new(u32::try_from(rank).unwrap_or(u32::MAX));
            check().map_err(|e| match e.kind() {
                ErrorKind::NotShared => e.at_rank(writer),
                _ => e,
            })?;
        }
        Ok(())
    }

    /// Writes a small file into the attempt, durably but for its directory entry.
    pub(crate) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.dir.create_file(name)?;
        file.write_at(0, bytes)?;
        file.finish()
    }

    /// The commit: manifest, fsync, rename, fsync. On success the checkpoint is durable under its
    /// name; whatever it replaced is already out of sight.
    pub(crate) fn publish(&mut self, manifest: &Manifest, patience: Duration) -> Result<()> {
        self.write_file(layout::MANIFEST, &manifest.encode()?)?;
        self.dir.sync()?;
        let _lock = lock_parent(self.parent.as_ref(), patience)?;
        let now = existing(self.parent.as_ref(), self.name.as_str())?;
        if now != self.replaces {
            let message = "another job has written under this name meanwhile";
            return Err(Error::new(ErrorKind::Superseded, message)
                .with_path(self.parent.path().join(self.name.as_str()))
                .with_help("its checkpoint is untouched; this one was not committed"));
        }
        self.rename_into_place().or_else(|error| self.renamed_all_the_same(error))?;
        self.stage = Stage::Visible;
        // Even a panic must not turn a visible checkpoint into one that was "not committed".
        let synced = catch_unwind(AssertUnwindSafe(|| self.parent.sync()));
        synced.unwrap_or_else(|_| Err(panicked())).map_err(|e| {
            e.with_kind(ErrorKind::DurabilityUncertain).with_help(
                "the checkpoint is complete and visible, but a power cut could still take it \
                 back; save again",
            )
        })?;
        self.stage = Stage::Durable;
        Ok(())
    }

    /// A network file system may carry out a rename and lose the answer.
    fn renamed_all_the_same(&self, error: Error) -> Result<()> {
        match existing(self.parent.as_ref(), self.name.as_str()) {
            Ok(Existing::Checkpoint(found)) if found == self.save_id => Ok(()),
            _ => Err(error),
        }
    }

    fn rename_into_place(&self) -> Result<()> {
        let partial = layout::partial_dir(&self.name, &self.save_id);
        let name = self.name.as_str();
        if self.replaces == Existing::Absent {
            return self.parent.rename(&partial, name, Rename::NoReplace);
        }
        match self.parent.rename(&partial, name, Rename::Exchange) {
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                // Between the two renames the name is gone; readers then fall back to `.old`.
                let old = layout::old_dir(&self.name, &self.save_id);
                self.parent.rename(name, &old, Rename::NoReplace)?;
                self.parent.rename(&partial, name, Rename::NoReplace).inspect_err(|_| {
                    let _ = self.parent.rename(&old, name, Rename::NoReplace);
                })
            }
            done => done,
        }
    }

    /// Ends the attempt: removes what it replaced, or, if it was not committed, what it left.
    /// Failures are logged; a later sweep finishes the work.
    pub(crate) fn close(self) {
        // After an exchange the partial name holds what was replaced.
        let partial = layout::partial_dir(&self.name, &self.save_id);
        let old = layout::old_dir(&self.name, &self.save_id);
        let stale: &[&str] = match self.stage {
            Stage::Hidden => &[&partial],
            Stage::Visible => &[],
            Stage::Durable => &[&partial, &old],
        };
        for name in stale {
            log_failure("removing what this save left behind", || {
                discard(self.parent.as_ref(), name)
            });
        }
    }
}

/// Tidying up may fail, even panic, but never changes the outcome of a save.
fn log_failure(doing: &str, tidy: impl FnOnce() -> Result<()>) {
    let tidied = catch_unwind(AssertUnwindSafe(tidy)).unwrap_or_else(|_| Err(panicked()));
    if let Err(error) = tidied {
        tracing::warn!(%error, doing, "left for a later save to finish");
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "the storage panicked")
}

/// Removes a checkpoint if it is still the one meant: out of sight first, durably, then unlinked.
/// Freed blocks may be reused before an unlink is durable, so the order matters.
///
/// # Errors
/// [`ErrorKind::Superseded`] if another save has replaced it; [`ErrorKind::Storage`].
pub fn remove(
    parent: &dyn Directory,
    name: &CheckpointName,
    save_id: &SaveId,
    patience: Duration,
) -> Result<()> {
    let _lock = lock_parent(parent, patience)?;
    match existing(parent, name.as_str())? {
        Existing::Absent => Ok(()),
        Existing::Checkpoint(found) if found == *save_id => discard(parent, name.as_str()),
        _ => Err(Error::new(ErrorKind::Superseded, "another save is under this name now")
            .with_path(parent.path().join(name.as_str()))),
    }
}

/// Renames an entry to trash, makes that durable, then unlinks it. A missing entry is fine.
fn discard(parent: &dyn Directory, name: &str) -> Result<()> {
    let trash = layout::trash_dir(&SaveId::random()?);
    match parent.rename(name, &trash, Rename::NoReplace) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    parent.sync()?;
    remove_tree(parent, &trash)
}

/// Removes a directory and everything in it, following no link.
fn remove_tree(parent: &dyn Directory, name: &str) -> Result<()> {
    let dir = parent.open_dir(name)?;
    for entry in dir.list()? {
        match entry.kind {
            EntryKind::Directory => remove_tree(dir.as_ref(), &entry.name)?,
            _ => dir.remove_file(&entry.name)?,
        }
    }
    drop(dir);
    parent.remove_dir(name)
}

/// Finishes what crashed jobs left: interrupted deletions and replacements, abandoned attempts.
/// An attempt whose owner still lives (its lock is held, or locks do not work) is left alone.
/// Failures are logged: a sweep never fails a save.
pub(crate) fn sweep(parent: &dyn Directory, patience: Duration) {
    log_failure("looking for debris", || {
        let debris: Vec<_> = parent
            .list()?
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::Directory)
            .filter_map(|entry| Debris::parse(&entry.name).map(|debris| (entry.name, debris)))
            .collect();
        if debris.is_empty() {
            return Ok(());
        }
        let _lock = lock_parent(parent, patience)?;
        for (entry, debris) in debris {
            log_failure("sweeping", || sweep_one(parent, &entry, &debris));
        }
        Ok(())
    });
}

fn sweep_one(parent: &dyn Directory, entry: &str, debris: &Debris) -> Result<()> {
    match debris {
        Debris::Trash { .. } => {
            // Whoever renamed it may have died before its fsync.
            parent.sync()?;
            remove_tree(parent, entry)
        }
        Debris::Old { name, .. } => {
            if existing(parent, name.as_str())? == Existing::Absent {
                parent.rename(entry, name.as_str(), Rename::NoReplace)?;
                return parent.sync();
            }
            discard(parent, entry)
        }
        Debris::Partial { .. } => {
            let dir = match parent.open_dir(entry) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            };
            match dir.try_lock_self() {
                Ok(Some(_owner)) => {
                    tracing::info!(entry, "removing an attempt that was never committed");
                    discard(parent, entry)
                }
                Ok(None) | Err(_) => Ok(()),
            }
        }
    }
}

/// The lock of the directory of checkpoints, or `None` where locks do not work.
fn lock_parent(parent: &dyn Directory, patience: Duration) -> Result<Option<Lock>> {
    let until = Instant::now() + patience;
    loop {
        match parent.try_lock(layout::LOCK) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) if Instant::now() < until => std::thread::sleep(RETRY_INTERVAL),
            Ok(None) => {
                return Err(Error::new(ErrorKind::Deadline, "another job holds the lock")
                    .with_path(parent.path().join(layout::LOCK)));
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// What is under `name` now.
fn existing(parent: &dyn Directory, name: &str) -> Result<Existing> {
    let Some(entry) = parent.list()?.into_iter().find(|entry| entry.name == name) else {
        return Ok(Existing::Absent);
    };
    if entry.kind != EntryKind::Directory {
        return Ok(Existing::Foreign);
    }
    let dir = match parent.open_dir(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Existing::Absent),
        opened => opened?,
    };
    match crate::catalog::read_manifest(dir.as_ref()) {
        Ok(manifest) => Ok(Existing::Checkpoint(manifest.save_id())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Existing::Foreign),
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible) => {
            Ok(Existing::Damaged)
        }
        Err(e) => Err(e),
    }
}

fn free_name(parent: &dyn Directory, name: &CheckpointName) -> Result<CheckpointName> {
    let taken: Vec<String> = parent.list()?.into_iter().map(|entry| entry.name).collect();
    let free = crate::autosave::unique_name(name.as_str(), |n| taken.iter().any(|t| t == n));
    CheckpointName::new(&free)
}

fn check_data_file(dir: &dyn Directory, file: &FileReceipt, until: Instant) -> Result<()> {
    let read = check_length(dir, &file.name, file.len, until)?;
    let mut header = vec![0; usize::try_from(file.data_start).unwrap_or(usize::MAX)];
    read.read_at(0, &mut header)?;
    if hash16(&header) == file.header_hash {
        return Ok(());
    }
    Err(not_shared(dir, &file.name, "holds another header than the rank wrote"))
}

fn check_length(
    dir: &dyn Directory,
    name: &str,
    len: u64,
    until: Instant,
) -> Result<Arc<dyn crate::storage::ReadFile>> {
    loop {
        let fault = match dir.open_file(name) {
            Ok(file) if file.len() == len => return Ok(file),
            Ok(file) => format!("is {} bytes long here, the rank wrote {len}", file.len()),
            Err(e) if e.kind() == ErrorKind::NotFound => "is not visible here".to_owned(),
            Err(e) => return Err(e),
        };
        if Instant::now() >= until {
            return Err(not_shared(dir, name, &fault));
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

fn not_shared(dir: &dyn Directory, name: &str, fault: &str) -> Error {
    Error::new(ErrorKind::NotShared, format!("a file written by a rank {fault}"))
        .with_path(dir.path().join(name))
        .with_help("is the directory on a file system that all ranks share?")
}
