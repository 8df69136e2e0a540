//! What lies in a directory of checkpoints: good ones, damaged ones, and what is neither.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::catalog::{self, Order};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName, Debris};
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::storage::{DirEntry, Directory, EntryKind, Storage};

/// What lies in a directory.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Committed, as far as manifests and lengths tell; newest first.
    pub(super) committed: Vec<CheckpointInfo>,
    /// Visible as checkpoints, but not whole: the entry, and why.
    pub(super) damaged: Vec<(String, String)>,
    /// Everything else that is there, and what it is.
    pub(super) notes: Vec<(String, &'static str)>,
}

/// Opens a directory, if it is there.
///
/// # Errors
/// [`ErrorKind::NotFound`] for what is no directory, [`ErrorKind::Storage`].
pub(in crate::cli) fn open_if_there(
    storage: &dyn Storage,
    path: &Path,
) -> Result<Option<Arc<dyn Directory>>> {
    match storage.open_dir(path) {
        Err(e) if e.os_code() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Looks at all of a directory; reads manifests, no content, and changes nothing.
///
/// # Errors
/// [`ErrorKind::Storage`].
pub(super) fn survey(parent: &dyn Directory) -> Result<Survey> {
    let mut survey = Survey::default();
    for info in catalog::list(parent, &mut || {})? {
        match info.state {
            CheckpointState::Committed => survey.committed.push(info),
            CheckpointState::Damaged => {
                survey.damaged.push((info.name, info.fault.unwrap_or_default()));
            }
            // The entry says so.
            CheckpointState::Partial => {}
        }
    }
    survey.committed.sort_by(|a, b| Order::Latest.compare(a, b));
    let entries = parent.list()?;
    for entry in &entries {
        survey.look_at(parent, entry, &entries)?;
    }
    survey.damaged.sort();
    survey.notes.sort();
    Ok(survey)
}

impl Survey {
    /// An entry that may be no checkpoint of the list.
    fn look_at(
        &mut self,
        parent: &dyn Directory,
        entry: &DirEntry,
        all: &[DirEntry],
    ) -> Result<()> {
        let name = &entry.name;
        if let Some(debris) = Debris::parse(name) {
            self.note(name, of_debris(&debris, all));
        } else if entry.kind == EntryKind::Directory && CheckpointName::new(name).is_ok() {
            let listed = self.committed.iter().map(|info| &info.name);
            let listed: BTreeSet<_> =
                listed.chain(self.damaged.iter().map(|(name, _)| name)).collect();
            if !listed.contains(name) {
                self.look_into(parent, name)?;
            }
        } else if !is_ours(name) {
            self.note(name, "no directory of a checkpoint");
        }
        Ok(())
    }

    /// A visible directory from which no checkpoint can be read.
    fn look_into(&mut self, parent: &dyn Directory, name: &str) -> Result<()> {
        let dir = match parent.open_dir(name) {
            // Removed since it was listed.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let unread = match catalog::read_manifest(dir.as_ref()) {
            Ok(_) => return Ok(()),
            Err(e) => e,
        };
        match unread.kind() {
            ErrorKind::NotFound if catalog::holds_our_files(dir.as_ref())? => {
                let text = "files of a checkpoint without its manifest.bin";
                let error = Error::new(ErrorKind::Corrupt, text).with_path(dir.path());
                self.damaged.push((name.to_owned(), error.to_string()));
            }
            ErrorKind::NotFound => self.note(name, "no checkpoint"),
            ErrorKind::Corrupt | ErrorKind::Incompatible => {
                self.damaged.push((name.to_owned(), unread.to_string()));
            }
            _ => return Err(unread),
        }
        Ok(())
    }

    fn note(&mut self, entry: &str, what: &'static str) {
        self.notes.push((entry.to_owned(), what));
    }
}

fn of_debris(debris: &Debris, all: &[DirEntry]) -> &'static str {
    match debris {
        Debris::Partial { .. } => "an attempt: not committed, or under way",
        Debris::Old { name, .. } if all.iter().any(|entry| entry.name == name.as_str()) => {
            "was replaced, and is to be removed"
        }
        Debris::Old { .. } => "stands for its name: a replacement was interrupted",
        Debris::Trash { .. } => "was removed, its files not all yet",
        Debris::Pointer { .. } => "a link that did not take its name",
    }
}

/// Names that mean something in a directory of checkpoints besides checkpoints.
fn is_ours(name: &str) -> bool {
    let pointers = [layout::LATEST, layout::BEST];
    name == layout::LOCK
        || pointers.iter().any(|pointer| name == *pointer || name == layout::pointer_json(pointer))
        || layout::parse_pin_file(name).is_some()
}
