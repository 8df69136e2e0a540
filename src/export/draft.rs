//! An export that is not visible yet: a hidden file or directory, renamed when it is whole.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use crate::catalog::{self, CheckpointPath};
use crate::error::{Error, ErrorKind, Result};
use crate::export::taken::{Taken, taken};
use crate::layout::{self, CheckpointName, SaveId};
use crate::shown;
use crate::single::sweep_files;
use crate::space::{Margin, Need};
use crate::storage::{Directory, Lock, Rename, Storage, WriteFile};
use crate::sweep::{self, Pace, When, lock_parent, log_failure};

/// One attempt to export. Dropping it removes what is not visible.
pub(super) struct Draft<'p> {
    parent: Arc<dyn Directory>,
    name: CheckpointName,
    hidden: String,
    /// Where the files go, if the export is a directory.
    dir: Option<Arc<dyn Directory>>,
    overwrite: bool,
    pace: &'p Pace,
    stage: Stage,
    /// Held until the attempt is over, so that a sweep by another job leaves it alone.
    _owner: Option<Lock>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What is under the hidden name is of no use to anybody.
    Hidden,
    /// Visible, but a power cut may take it back: what it replaced must stay.
    Visible,
    /// What it replaced, if anything, is under the hidden name and can go.
    Durable,
}

impl<'p> Draft<'p> {
    pub(super) fn begin(
        storage: &dyn Storage,
        path: &CheckpointPath,
        is_directory: bool,
        overwrite: bool,
        pace: &'p Pace,
    ) -> Result<Self> {
        let parent = storage.create_dir_all(path.directory())?;
        refuse_checkpoint(parent.as_ref())?;
        sweep_files(parent.as_ref(), When::BeforeSave, pace);
        sweep::sweep(parent.as_ref(), When::BeforeSave, pace);
        let name = path.name().clone();
        let hidden = layout::partial_dir(&name, &SaveId::random()?);
        let mut draft = Self {
            parent,
            name,
            hidden,
            dir: None,
            overwrite,
            pace,
            stage: Stage::Hidden,
            _owner: None,
        };
        draft.check_name(is_directory)?;
        if is_directory {
            let dir = draft.parent.create_dir(&draft.hidden)?;
            // From here on it is ours to remove.
            let dir = draft.dir.insert(dir);
            draft._owner = held(dir.try_lock_self())?;
        }
        Ok(draft)
    }

    /// Whether files of these lengths fit.
    pub(super) fn check_space(&self, lengths: impl Iterator<Item = u64>) -> Result<()> {
        Need::of_files(lengths, Margin::default()).check(self.parent.as_ref())
    }

    /// Makes the file of this name in the directory of the export, or the one that is the export.
    pub(super) fn create(&mut self, name: Option<&str>) -> Result<Box<dyn WriteFile>> {
        let Some(dir) = &self.dir else {
            let file = self.parent.create_file(&self.hidden)?;
            self._owner = held(self.parent.try_lock(&self.hidden))?;
            return Ok(file);
        };
        dir.create_file(name.unwrap_or_default())
    }

    /// Where such a file will be.
    pub(super) fn path_of(&self, name: Option<&str>) -> PathBuf {
        let path = self.parent.path().join(self.name.as_str());
        if self.dir.is_some() { path.join(name.unwrap_or_default()) } else { path }
    }

    /// The commit: makes entries durable, renames, makes that durable.
    pub(super) fn publish(mut self) -> Result<()> {
        if let Some(dir) = &self.dir {
            dir.sync()?;
        }
        self.parent.sync()?;
        let lock = lock_parent(self.parent.as_ref(), self.pace.patience)?;
        let taken = self.check_name(self.dir.is_some())?;
        self.show(taken)?;
        self.stage = Stage::Visible;
        // Even a panic must not turn a visible export into one that failed.
        let panicked = |_| Err(Error::new(ErrorKind::Panic, "the storage panicked"));
        let synced = catch_unwind(AssertUnwindSafe(|| self.parent.sync()));
        synced.unwrap_or_else(panicked).map_err(|e| {
            e.with_kind(ErrorKind::DurabilityUncertain).with_help(
                "the export is complete and visible, but a power cut could still take it back; \
                 export again",
            )
        })?;
        self.stage = Stage::Durable;
        drop(lock);
        Ok(())
    }

    fn show(&self, taken: Taken) -> Result<()> {
        let (parent, hidden, name) = (self.parent.as_ref(), &self.hidden, self.name.as_str());
        match taken {
            Taken::ExportedFile => parent.rename(hidden, name, Rename::Replace),
            Taken::ExportedDirectory => match parent.rename(hidden, name, Rename::Exchange) {
                // Nothing is under the name for a moment: this file system knows no better way.
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    sweep::discard(parent, name, self.pace)?;
                    parent.rename(hidden, name, Rename::NoReplace)
                }
                done => done,
            },
            Taken::EmptyDirectory => {
                parent.remove_dir(name)?;
                parent.rename(hidden, name, Rename::NoReplace)
            }
            _ => parent.rename(hidden, name, Rename::NoReplace),
        }
    }

    /// Whether the export may take its name, as things are.
    fn check_name(&self, is_directory: bool) -> Result<Taken> {
        let taken = taken(self.parent.as_ref(), self.name.as_str())?;
        let (message, help) = match (&taken, is_directory) {
            (Taken::Nothing, _) | (Taken::EmptyDirectory, true) => return Ok(taken),
            (Taken::ExportedFile, false) | (Taken::ExportedDirectory, true) if self.overwrite => {
                return Ok(taken);
            }
            (Taken::ExportedFile, false) | (Taken::ExportedDirectory, true) => (
                "an export of this name exists".to_owned(),
                "ask for `overwrite` (`--force`), or choose another name",
            ),
            (Taken::Beside(entry), true) => (
                format!("a directory with `{}`, which no export wrote", shown::short(entry)),
                "choose another name",
            ),
            _ => ("the name is taken by something else".to_owned(), "choose another name"),
        };
        Err(Error::new(ErrorKind::AlreadyExists, message)
            .with_path(self.parent.path().join(self.name.as_str()))
            .with_help(format!("nothing was written; {help}")))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        let parent = self.parent.as_ref();
        match (&self.dir, self.stage) {
            (_, Stage::Visible) | (None, Stage::Durable) => {}
            (Some(_), _) => {
                log_failure("tidying up", || sweep::discard(parent, &self.hidden, self.pace));
            }
            (None, Stage::Hidden) => {
                log_failure("tidying up", || match parent.remove_file(&self.hidden) {
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                    removed => removed,
                });
            }
        }
    }
}

/// Nothing is ever written into a checkpoint.
fn refuse_checkpoint(parent: &dyn Directory) -> Result<()> {
    match catalog::read_manifest(parent) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(_) if !catalog::holds_our_files(parent)? => return Ok(()),
        _ => {}
    }
    Err(Error::new(ErrorKind::InvalidInput, "this directory is a checkpoint itself")
        .with_path(parent.path())
        .with_help("nothing was written; choose another directory"))
}

fn held(lock: Result<Option<Lock>>) -> Result<Option<Lock>> {
    match lock {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(None),
        locked => locked,
    }
}
