//! What the coordinator alone does on disk: make the attempt, publish it, replace.
//!
//! An attempt is a directory whose name begins with a dot; it becomes a checkpoint by one rename.
//! Every line below says, by its order, what a crash leaves behind: until the rename, debris that
//! is never read; after it, the whole checkpoint.

mod attached;
mod linked;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::layout::{self, CheckpointName, SaveId};
use crate::manifest::{HEADER_BYTES_MAX, Manifest, hash16_of};
use crate::memory::buffers::Buffer;
use crate::memory::zeroed;
use crate::plan::{FileReceipt, OnExisting, Receipt};
use crate::rank::Rank;
use crate::sabotage::{self, Defect};
use crate::space::Need;
use crate::storage::{Directory, Lock, ReadFile, Rename};
use crate::sweep::{
    Existing, Pace, RETRY_INTERVAL, When, discard, existing, holds_another_save, lock_parent,
    log_failure, restore_interrupted, sweep,
};

/// Bytes of a file that are read at once to be hashed.
const HASHED_AT_ONCE: usize = 1 << 20;

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
    /// Chooses the final name and makes the directory of the attempt. Under the lock of the
    /// parent, so that no sweep sees the attempt before its owner has locked it. What it `need`s
    /// must fit after the sweep, or nothing is made.
    pub(crate) fn begin(
        parent: Arc<dyn Directory>,
        name: &CheckpointName,
        save_id: SaveId,
        on_existing: OnExisting,
        need: &Need,
        pace: &Pace,
    ) -> Result<Self> {
        sweep(parent.as_ref(), When::BeforeSave, pace);
        let _lock = lock_parent(parent.as_ref(), pace.patience)?;
        restore_interrupted(parent.as_ref(), name)?;
        let name = match on_existing {
            OnExisting::Number => free_name(parent.as_ref(), name)?,
            OnExisting::Refuse | OnExisting::Replace => name.clone(),
        };
        let replaces = existing(parent.as_ref(), name.as_str())?;
        refuse_taken(replaces, on_existing)
            .map_err(|e| e.with_path(parent.path().join(name.as_str())))?;
        need.check(parent.as_ref())?;
        let dir = create_attempt(parent.as_ref(), &layout::partial_dir(&name, &save_id))?;
        let owner = match dir.try_lock_self() {
            Err(e) if e.kind() == ErrorKind::Unsupported => None,
            locked => locked?,
        };
        Ok(Self { parent, dir, _owner: owner, name, save_id, replaces, stage: Stage::Hidden })
    }

    /// The directory of checkpoints in which it will lie.
    pub(crate) fn directory(&self) -> &Path {
        self.parent.path()
    }

    /// The name that the checkpoint will have.
    pub(crate) fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// Opens every file that a rank says it wrote, by name, from here: a directory that ranks do
    /// not share is found now and not at the next load. Network file systems may take a moment to
    /// show a file of another host, hence the patience.
    pub(crate) fn check_visible(&self, receipts: &[Receipt], pace: &Pace) -> Result<()> {
        let until = clock::now() + pace.patience;
        for (rank, receipt) in receipts.iter().enumerate() {
            let check = || -> Result<()> {
                for file in &receipt.files {
                    check_data_file(self.dir.as_ref(), file, until, &pace.progress)?;
                    pace.progress.add(1);
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
        let file = self.dir.create_file(name).map_err(nobody_elses)?;
        file.write_at(0, bytes)?;
        let unsynced = if name == layout::MANIFEST {
            Defect::ManifestNotSynced
        } else {
            Defect::DataNotSynced
        };
        sabotage::finished(unsynced, || file.finish())
    }

    /// Writes the manifest, and makes it and all entries of the attempt durable. It is read again:
    /// a commit may remove what it replaces, so what commits has to be what was meant.
    fn record(&self, manifest: &Manifest) -> Result<()> {
        let bytes = manifest.encode()?;
        self.write_file(layout::MANIFEST, &bytes)?;
        sabotage::unless(Defect::DirectoriesNotSynced, || self.dir.sync())?;
        check_written(self.dir.as_ref(), layout::MANIFEST, &bytes)
    }

    /// The commit: manifest, fsync, rename, fsync. On success the checkpoint is durable under its
    /// name; whatever it replaced is already out of sight. When all but the rename was done.
    pub(crate) fn publish(&mut self, manifest: &Manifest, pace: &Pace) -> Result<Instant> {
        let is_late = sabotage::is_on(Defect::ManifestAfterRename);
        if !is_late {
            self.record(manifest)?;
        }
        let recorded = clock::now();
        let lock = lock_parent(self.parent.as_ref(), pace.patience)?;
        match existing(self.parent.as_ref(), self.name.as_str())? {
            now if now == self.replaces => {}
            // Nothing stands in the way any more.
            Existing::Absent => self.replaces = Existing::Absent,
            _ => return Err(self.superseded()),
        }
        if sabotage::is_on(Defect::CarelessDeletion) && self.replaces != Existing::Absent {
            discard(self.parent.as_ref(), self.name.as_str(), pace)?;
            self.replaces = Existing::Absent;
        }
        self.rename_into_place().or_else(|error| self.renamed_all_the_same(error))?;
        self.stage = Stage::Visible;
        if is_late {
            self.record(manifest)?;
        }
        if lock.is_none() {
            self.undo_if_superseded().map_err(|e| self.outcome_unknown(e))?;
        }
        // Even a panic must not turn a visible checkpoint into one that was "not committed".
        let panicked = |_| Err(Error::new(ErrorKind::Panic, "the storage panicked"));
        let sync = || sabotage::unless(Defect::DirectoriesNotSynced, || self.parent.sync());
        let synced = catch_unwind(AssertUnwindSafe(sync));
        synced.unwrap_or_else(panicked).map_err(|e| {
            e.with_kind(ErrorKind::DurabilityUncertain).with_help(
                "the checkpoint is complete and visible, but a power cut could still take it \
                 back; save again",
            )
        })?;
        self.stage = Stage::Durable;
        Ok(recorded)
    }

    fn superseded(&self) -> Error {
        Error::new(ErrorKind::Superseded, "another job has written under this name meanwhile")
            .with_path(self.parent.path().join(self.name.as_str()))
            .with_help("its checkpoint is untouched; this one was not committed")
    }

    /// A network file system may carry out a rename and lose the answer.
    fn renamed_all_the_same(&mut self, error: Error) -> Result<()> {
        match existing(self.parent.as_ref(), self.name.as_str()) {
            Ok(Existing::Checkpoint(found)) if found == self.save_id => Ok(()),
            Ok(_) => Err(error),
            Err(_) => {
                // It may be visible: then what it replaced is all that is known to be durable.
                self.stage = Stage::Visible;
                Err(self.outcome_unknown(error))
            }
        }
    }

    /// What to say of an error after which the name may hold this checkpoint; the verdict on an
    /// exchange that was undone stays what it is.
    fn outcome_unknown(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Superseded {
            return error;
        }
        error.with_kind(ErrorKind::OutcomeUnknown).with_help(format!(
            "if the name holds save {}, it was committed; nothing was removed",
            self.save_id
        ))
    }

    /// Without locks another job may have come between the last look and the exchange.
    fn undo_if_superseded(&mut self) -> Result<()> {
        if self.replaces == Existing::Absent {
            return Ok(());
        }
        let partial = layout::partial_dir(&self.name, &self.save_id);
        let found = existing(self.parent.as_ref(), &partial)?;
        // Absent: replaced without an exchange.
        if [Existing::Absent, self.replaces, Existing::Checkpoint(self.save_id)].contains(&found) {
            return Ok(());
        }
        self.parent.rename(&partial, self.name.as_str(), Rename::Exchange)?;
        self.stage = Stage::Hidden;
        Err(self.superseded())
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
    pub(crate) fn close(self, pace: &Pace) {
        let parent = self.parent.clone();
        if self.close_own(pace) == Stage::Durable {
            sweep(parent.as_ref(), When::AfterCommit, pace);
        }
    }

    /// Removes what is of this attempt alone; how far it came.
    fn close_own(self, pace: &Pace) -> Stage {
        // After an exchange the partial name holds what was replaced.
        let partial = layout::partial_dir(&self.name, &self.save_id);
        let old = layout::old_dir(&self.name, &self.save_id);
        let parent = self.parent.as_ref();
        let tidy = |name: &str| log_failure("tidying up", || discard(parent, name, pace));
        match self.stage {
            Stage::Hidden => match parent.open_dir(&partial) {
                Ok(dir) if holds_another_save(dir.as_ref(), self.save_id) => {}
                _ => tidy(&partial),
            },
            Stage::Visible => {}
            Stage::Durable => {
                tidy(&partial);
                tidy(&old);
            }
        }
        self.stage
    }

    /// As [`close`](Self::close) for a checkpoint that was written out of another one: it is not
    /// newer than what other attempts have replaced, which may be all that is left, and stays.
    pub(crate) fn close_copy(self, pace: &Pace) {
        self.close_own(pace);
    }
}

/// The directory of an attempt. Its name is random: where one exists and is empty, a network file
/// system has made it and asked again, since the answer was lost.
fn create_attempt(parent: &dyn Directory, partial: &str) -> Result<Arc<dyn Directory>> {
    match parent.create_dir(partial) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let dir = parent.open_dir(partial).map_err(|_| nobody_elses(e.clone()))?;
            if dir.list()?.is_empty() { Ok(dir) } else { Err(nobody_elses(e)) }
        }
        created => created,
    }
}

/// What of an attempt is there already is no choice that the caller made.
pub(crate) fn nobody_elses(error: Error) -> Error {
    match error.kind() {
        ErrorKind::AlreadyExists => error
            .with_kind(ErrorKind::Storage)
            .with_help("the file system made it and lost the answer, or makes one thing twice"),
        _ => error,
    }
}

/// Whether file `name` begins with `bytes`, as was written.
pub(crate) fn check_written(dir: &dyn Directory, name: &str, bytes: &[u8]) -> Result<()> {
    let file = dir.open_file(name)?;
    let mut found = zeroed(file.len().min(bytes.len() as u64))?;
    file.read_at(0, &mut found)?;
    if found == bytes {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "the storage gives back something else than was written")
        .with_path(dir.path().join(name)))
}

/// Whether a save may go on with what is under its name.
fn refuse_taken(found: Existing, on_existing: OnExisting) -> Result<()> {
    let (message, help) = match (found, on_existing) {
        (Existing::Absent, _) => return Ok(()),
        (Existing::Foreign, _) => (
            "the name is taken by something that is no checkpoint",
            "nothing was written; choose another name",
        ),
        (_, OnExisting::Replace) => return Ok(()),
        _ => (
            "a checkpoint of this name exists",
            "nothing was written; ask for it to be replaced, or choose another name",
        ),
    };
    Err(Error::new(ErrorKind::AlreadyExists, message).with_help(help))
}

fn free_name(parent: &dyn Directory, name: &CheckpointName) -> Result<CheckpointName> {
    let taken: Vec<String> = parent.list()?.into_iter().map(|entry| entry.name).collect();
    let free = crate::autosave::unique_name(name.as_str(), |n| taken.iter().any(|t| t == n));
    CheckpointName::new(&free)
}

fn check_data_file(
    dir: &dyn Directory,
    file: &FileReceipt,
    until: Instant,
    progress: &Progress,
) -> Result<()> {
    let read = check_length(dir, &file.name, file.len, until)?;
    if file.data_start > file.len.min(HEADER_BYTES_MAX + 8) {
        let message = format!("a header of {} bytes was reported", file.data_start);
        return Err(Error::new(ErrorKind::Disagreement, message).with_path(&file.name));
    }
    if hash_of(read.as_ref(), file.data_start, progress)? == file.header_hash {
        return Ok(());
    }
    Err(not_shared(dir, &file.name, "holds another header than the rank wrote"))
}

/// Hash of the first `len` bytes.
fn hash_of(file: &dyn ReadFile, len: u64, progress: &Progress) -> Result<[u8; 16]> {
    let mut buffer = Buffer::new()?;
    let scratch = buffer.take(usize::try_from(len).unwrap_or(usize::MAX).min(HASHED_AT_ONCE));
    hash16_of(len, scratch, |at, part| {
        // Sums of a large component are gigabytes, and the other ranks wait for them.
        progress.add(part.len() as u64);
        file.read_at(at, part)
    })
}

fn check_length(
    dir: &dyn Directory,
    name: &str,
    len: u64,
    until: Instant,
) -> Result<Arc<dyn ReadFile>> {
    loop {
        let fault = match dir.open_file(name) {
            Ok(file) if file.len() == len => return Ok(file),
            Ok(file) => format!("is {} bytes long here, the rank wrote {len}", file.len()),
            Err(e) if e.kind() == ErrorKind::NotFound => "is not visible here".to_owned(),
            Err(e) => return Err(e),
        };
        if clock::now() >= until {
            return Err(not_shared(dir, name, &fault));
        }
        clock::sleep(RETRY_INTERVAL);
    }
}

fn not_shared(dir: &dyn Directory, name: &str, fault: &str) -> Error {
    Error::new(ErrorKind::NotShared, format!("a file written by a rank {fault}"))
        .with_path(dir.path().join(name))
        .with_help("is the directory on a file system that all ranks share?")
}
