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
    let committed = survey.committed.iter().map(|info| &info.name);
    let damaged = survey.damaged.iter().map(|(name, _)| name);
    let listed: BTreeSet<String> = committed.chain(damaged).cloned().collect();
    for entry in entries.iter().filter(|entry| !listed.contains(&entry.name)) {
        survey.look_at(parent, entry, &entries)?;
    }
    survey.damaged.sort();
    survey.notes.sort();
    Ok(survey)
}

impl Survey {
    /// An entry that is no checkpoint of the list.
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
            match look_into(parent, name)? {
                Unlisted::Gone => {}
                Unlisted::Foreign => self.note(name, "no checkpoint"),
                // What is being removed looks like that too, but not twice.
                Unlisted::Damaged(_) => {
                    if let Unlisted::Damaged(error) = look_into(parent, name)? {
                        self.damaged.push((name.clone(), error.to_string()));
                    }
                }
            }
        } else if !is_ours(name) {
            self.note(name, "no directory of a checkpoint");
        }
        Ok(())
    }

    fn note(&mut self, entry: &str, what: &'static str) {
        self.notes.push((entry.to_owned(), what));
    }
}

/// What a visible directory is that was not listed.
enum Unlisted {
    /// Removed since, or committed since.
    Gone,
    Foreign,
    Damaged(Error),
}

fn look_into(parent: &dyn Directory, name: &str) -> Result<Unlisted> {
    let dir = match parent.open_dir(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Unlisted::Gone),
        Err(e) if catalog::is_lost_found(name, &e) => return Ok(Unlisted::Foreign),
        opened => opened?,
    };
    let unread = match catalog::read_manifest(dir.as_ref()) {
        Ok(_) => return Ok(Unlisted::Gone),
        Err(e) => e,
    };
    match unread.kind() {
        ErrorKind::NotFound if catalog::holds_our_files(dir.as_ref())? => {
            let text = "files of a checkpoint without its manifest.bin";
            Ok(Unlisted::Damaged(Error::new(ErrorKind::Corrupt, text).with_path(dir.path())))
        }
        ErrorKind::NotFound => Ok(Unlisted::Foreign),
        ErrorKind::Corrupt | ErrorKind::Incompatible => Ok(Unlisted::Damaged(unread)),
        _ => Err(unread),
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
