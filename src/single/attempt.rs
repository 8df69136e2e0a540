//! What the coordinator alone does on disk: make the hidden files, finish them, rename them.
//!
//! As with directories, the order of the lines says what a crash leaves: until the rename, hidden
//! debris; after it, the whole file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::clock;
use crate::commit::{check_written, nobody_elses};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName, SaveId};
use crate::plan::OnExisting;
use crate::sabotage::{self, Defect};
use crate::single::debris::{existing, sweep};
use crate::space::{Margin, Need};
use crate::storage::{Directory, Lock, Rename, WriteFile};
use crate::sweep::{Existing, Pace, When, lock_parent, log_failure};

/// One attempt to save files, in the hands of the coordinator.
pub(super) struct Attempt {
    parent: Arc<dyn Directory>,
    save_id: SaveId,
    files: Vec<AttemptFile>,
}

/// One file of an attempt.
struct AttemptFile {
    name: CheckpointName,
    /// Open until its header is written.
    file: Option<Box<dyn WriteFile>>,
    /// Held until the attempt is over, so that a sweep by another job leaves it alone.
    _owner: Option<Lock>,
    replaces: Existing,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not visible: what is under the hidden name is debris.
    Hidden,
    /// Visible, but a power cut may take it back.
    Visible,
    /// Durable: what it replaced, under the hidden name, can go.
    Durable,
}

impl Attempt {
    /// Chooses names and makes the hidden files, with space for as many bytes as asked; nothing
    /// is made if they do not fit with that margin.
    pub(super) fn begin(
        parent: Arc<dyn Directory>,
        files: &[(CheckpointName, u64)],
        save_id: SaveId,
        on_existing: OnExisting,
        margin: Margin,
        pace: &Pace,
    ) -> Result<Self> {
        sweep(parent.as_ref(), When::BeforeSave, pace);
        let _lock = lock_parent(parent.as_ref(), pace.patience)?;
        Need::of_files(files.iter().map(|(_, len)| *len), margin).check(parent.as_ref())?;
        let mut attempt = Self { parent, save_id, files: Vec::new() };
        for (name, len) in files {
            let made = attempt.make_file(name, *len, on_existing);
            if let Err(error) = made {
                attempt.close(pace);
                return Err(error);
            }
        }
        Ok(attempt)
    }

    fn make_file(
        &mut self,
        name: &CheckpointName,
        len: u64,
        on_existing: OnExisting,
    ) -> Result<()> {
        let parent = self.parent.clone();
        let name = match on_existing {
            OnExisting::Number => free_name(parent.as_ref(), name)?,
            OnExisting::Refuse | OnExisting::Replace => name.clone(),
        };
        let replaces = existing(parent.as_ref(), name.as_str())?;
        refuse_taken(replaces, on_existing)
            .map_err(|e| e.with_path(parent.path().join(name.as_str())))?;
        let partial = layout::partial_dir(&name, &self.save_id);
        let file = parent.create_file(&partial).map_err(nobody_elses)?;
        // From here on it is ours to remove.
        let stage = Stage::Hidden;
        self.files.push(AttemptFile { name, file: Some(file), _owner: None, replaces, stage });
        let Some(made) = self.files.last_mut() else { return Ok(()) };
        made._owner = match parent.try_lock(&partial) {
            Err(e) if e.kind() == ErrorKind::Unsupported => None,
            locked => locked?,
        };
        made.file.as_ref().map_or(Ok(()), |file| file.reserve(len))
    }

    /// The names that the files will have.
    pub(super) fn names(&self) -> Vec<CheckpointName> {
        self.files.iter().map(|file| file.name.clone()).collect()
    }

    /// The directory of the files.
    pub(super) fn parent(&self) -> &dyn Directory {
        self.parent.as_ref()
    }

    /// The commit: each header, fsync, then rename and fsync. The first file is the last to be
    /// renamed, once the others are durable: it is the one that names them. When all but the
    /// renames was done.
    pub(super) fn publish(&mut self, headers: &[Vec<u8>], pace: &Pace) -> Result<Instant> {
        for (made, header) in self.files.iter_mut().zip(headers) {
            let Some(file) = made.file.take() else { continue };
            file.write_at(0, header)?;
            sabotage::finished(Defect::ManifestNotSynced, || file.finish())?;
            let partial = layout::partial_dir(&made.name, &self.save_id);
            check_written(self.parent.as_ref(), &partial, header)?;
            pace.progress.add(header.len() as u64);
        }
        self.sync_parent()?;
        let recorded = clock::now();
        let lock = lock_parent(self.parent.as_ref(), pace.patience)?;
        for index in 0..self.files.len() {
            self.check_unchanged(index)?;
        }
        if self.files.len() > 1 {
            for index in 1..self.files.len() {
                self.show(index, lock.is_none())?;
            }
            self.sync_parent()?;
        }
        self.show(0, lock.is_none())?;
        // Even a panic must not turn a visible file into one that was "not committed".
        let panicked = |_| Err(Error::new(ErrorKind::Panic, "the storage panicked"));
        let synced = catch_unwind(AssertUnwindSafe(|| self.sync_parent()));
        synced.unwrap_or_else(panicked).map_err(|e| {
            e.with_kind(ErrorKind::DurabilityUncertain).with_help(
                "the file is complete and visible, but a power cut could still take it back; \
                 save again",
            )
        })?;
        self.files.iter_mut().for_each(|file| file.stage = Stage::Durable);
        Ok(recorded)
    }

    fn sync_parent(&self) -> Result<()> {
        sabotage::unless(Defect::DirectoriesNotSynced, || self.parent.sync())
    }

    /// Whether the name is as it was in the first phase.
    fn check_unchanged(&mut self, index: usize) -> Result<()> {
        let Some(made) = self.files.get_mut(index) else { return Ok(()) };
        match existing(self.parent.as_ref(), made.name.as_str())? {
            now if now == made.replaces => Ok(()),
            Existing::Absent => {
                made.replaces = Existing::Absent;
                Ok(())
            }
            _ => Err(superseded(self.parent.as_ref(), &made.name)),
        }
    }

    /// Renames one file to its name.
    fn show(&mut self, index: usize, without_lock: bool) -> Result<()> {
        let (parent, save_id) = (self.parent.clone(), self.save_id);
        let Some(made) = self.files.get_mut(index) else { return Ok(()) };
        let partial = layout::partial_dir(&made.name, &save_id);
        let name = made.name.as_str();
        let renamed = if made.replaces == Existing::Absent {
            parent.rename(&partial, name, Rename::NoReplace)
        } else {
            match parent.rename(&partial, name, Rename::Exchange) {
                // What is replaced is gone at once then, and not only when its successor is
                // durable: file systems that know no exchange leave no better way.
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    parent.rename(&partial, name, Rename::Replace)
                }
                done => done,
            }
        };
        match renamed {
            Ok(()) => made.stage = Stage::Visible,
            // A network file system may carry out a rename and lose the answer.
            Err(error) => match existing(parent.as_ref(), name) {
                Ok(Existing::Checkpoint(found)) if found == save_id => made.stage = Stage::Visible,
                Ok(_) => return Err(error),
                Err(_) => {
                    made.stage = Stage::Visible;
                    return Err(outcome_unknown(error, save_id));
                }
            },
        }
        if !without_lock {
            return Ok(());
        }
        made.undo_if_superseded(parent.as_ref(), save_id).map_err(|e| match e.kind() {
            ErrorKind::Superseded => e,
            _ => outcome_unknown(e, save_id),
        })
    }

    /// Ends the attempt: removes what it replaced, or, if it was not committed, what it left.
    /// Failures are logged; a later sweep finishes the work.
    pub(super) fn close(self, pace: &Pace) {
        let parent = self.parent.as_ref();
        let is_committed = self.files.first().is_some_and(|file| file.stage != Stage::Hidden);
        for made in &self.files {
            let partial = layout::partial_dir(&made.name, &self.save_id);
            log_failure("tidying up", || match made.stage {
                Stage::Hidden => remove_if(
                    parent,
                    &partial,
                    |found| !matches!(found, Existing::Checkpoint(id) if id != self.save_id),
                ),
                // A sibling of a file that was never shown belongs to nothing.
                Stage::Visible if !is_committed => remove_if(parent, made.name.as_str(), |found| {
                    found == Existing::Checkpoint(self.save_id)
                }),
                Stage::Visible => Ok(()),
                Stage::Durable => remove_if(parent, &partial, |_| true),
            });
        }
        if self.files.first().is_some_and(|file| file.stage == Stage::Durable) {
            sweep(parent, When::AfterCommit, pace);
        }
    }
}

impl AttemptFile {
    /// Without locks another job may have come between the last look and the exchange.
    fn undo_if_superseded(&mut self, parent: &dyn Directory, save_id: SaveId) -> Result<()> {
        if self.replaces == Existing::Absent {
            return Ok(());
        }
        let partial = layout::partial_dir(&self.name, &save_id);
        let found = existing(parent, &partial)?;
        // Absent: replaced without an exchange.
        if [Existing::Absent, self.replaces, Existing::Checkpoint(save_id)].contains(&found) {
            return Ok(());
        }
        parent.rename(&partial, self.name.as_str(), Rename::Exchange)?;
        self.stage = Stage::Hidden;
        Err(superseded(parent, &self.name))
    }
}

fn superseded(parent: &dyn Directory, name: &CheckpointName) -> Error {
    Error::new(ErrorKind::Superseded, "another job has written under this name meanwhile")
        .with_path(parent.path().join(name.as_str()))
        .with_help("its file is untouched; this one was not committed")
}

fn outcome_unknown(error: Error, save_id: SaveId) -> Error {
    error.with_kind(ErrorKind::OutcomeUnknown).with_help(format!(
        "if the name holds save {save_id}, it was committed; nothing was removed"
    ))
}

fn remove_if(
    parent: &dyn Directory,
    name: &str,
    may_go: impl FnOnce(Existing) -> bool,
) -> Result<()> {
    match existing(parent, name)? {
        Existing::Absent => Ok(()),
        found if may_go(found) => parent.remove_file(name),
        _ => Ok(()),
    }
}

fn refuse_taken(found: Existing, on_existing: OnExisting) -> Result<()> {
    let (message, help) = match (found, on_existing) {
        (Existing::Absent, _) => return Ok(()),
        (Existing::Foreign, _) => (
            "the name is taken by something that this library did not save as a file",
            "nothing was written; choose another name",
        ),
        (_, OnExisting::Replace) => return Ok(()),
        _ => (
            "a file of this name exists",
            "nothing was written; ask for it to be replaced, or choose another name",
        ),
    };
    Err(Error::new(ErrorKind::AlreadyExists, message).with_help(help))
}

/// `model-v1.safetensors` where `model.safetensors` is taken.
fn free_name(parent: &dyn Directory, name: &CheckpointName) -> Result<CheckpointName> {
    let taken: Vec<String> = parent.list()?.into_iter().map(|entry| entry.name).collect();
    let (stem, extension) = match name.as_str().strip_suffix(layout::SAFETENSORS) {
        Some(stem) if !stem.is_empty() => (stem, layout::SAFETENSORS),
        _ => (name.as_str(), ""),
    };
    let is_taken = |stem: &str| taken.iter().any(|t| *t == format!("{stem}{extension}"));
    let free = crate::autosave::unique_name(stem, is_taken);
    CheckpointName::new(&format!("{free}{extension}"))
}
