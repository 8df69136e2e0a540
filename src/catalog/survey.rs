//! All that lies in a directory of checkpoints: good ones, damaged ones, and what is neither.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Order, holds_our_files, is_lost_found, list, open_parent, pointer, read_manifest};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, CheckpointName, Debris};
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::storage::{DirEntry, Directory, EntryKind, Storage};

/// All that lies in a directory of checkpoints.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// As [`find_checkpoints`](super::find_checkpoints) lists them, newest first, and as damaged
    /// ones also directories that hold files of a checkpoint without its manifest.
    pub checkpoints: Vec<CheckpointInfo>,
    /// Every other entry but the lock, the pins and the links of the directory, by name.
    pub others: Vec<OtherEntry>,
    /// What `best` names, if that is a checkpoint of the directory.
    pub best: Option<CheckpointName>,
}

/// An entry of a directory of checkpoints that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherEntry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: Other,
}

/// What an entry is that is no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Other {
    /// An attempt; listed as a partial checkpoint as well.
    Attempt,
    /// What a save has replaced, and the next one removes.
    Replaced,
    /// A checkpoint whose replacement was interrupted; listed as a checkpoint as well.
    Interrupted,
    /// What was removed, its files not all yet.
    Removed,
    /// A link that did not take its name.
    Pointer,
    /// A directory that is not of this library.
    ForeignDirectory,
    /// Anything else that is not of this library, or a checkpoint that is a file.
    ForeignFile,
}

impl Other {
    /// What it is, in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempt => "an attempt: not committed, or under way",
            Self::Replaced => "was replaced, and is to be removed",
            Self::Interrupted => "stands for its name: a replacement was interrupted",
            Self::Removed => "was removed, its files not all yet",
            Self::Pointer => "a link that did not take its name",
            Self::ForeignDirectory => "no checkpoint",
            Self::ForeignFile => "no directory of a checkpoint",
        }
    }

    /// Whether it is not of this library: nothing here ever touches it.
    #[must_use]
    pub const fn is_foreign(self) -> bool {
        matches!(self, Self::ForeignDirectory | Self::ForeignFile)
    }

    /// Whether it was left behind, and a save removes it; an attempt may be under way instead.
    #[must_use]
    pub const fn is_debris(self) -> bool {
        matches!(self, Self::Replaced | Self::Removed | Self::Pointer)
    }
}

/// Looks at all of a directory of checkpoints; reads manifests, no content, one at a time, changes
/// nothing and takes no lock: a save may go on meanwhile. Not collective: one process looks.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such directory; [`ErrorKind::Storage`]. Damage is none.
pub fn survey(storage: &dyn Storage, directory: &Path) -> Result<Survey> {
    survey_of(open_parent(storage, directory)?.as_ref(), &mut || {})
}

/// As [`survey`]; `looked` is called after each entry.
pub(crate) fn survey_of(parent: &dyn Directory, looked: &mut dyn FnMut()) -> Result<Survey> {
    let mut survey = Survey { checkpoints: list(parent, looked)?, ..Survey::default() };
    let listed = survey.checkpoints.iter().filter(|info| info.state != CheckpointState::Partial);
    let listed: BTreeSet<String> = listed.map(|info| info.name.clone()).collect();
    let entries = parent.list()?;
    for entry in entries.iter().filter(|entry| !listed.contains(&entry.name)) {
        survey.look_at(parent, entry, &entries)?;
        looked();
    }
    survey.best = pointer::read(parent, layout::BEST)?.and_then(|named| named.ok());
    survey.checkpoints.sort_by(|a, b| Order::Latest.compare(a, b));
    survey.others.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(survey)
}

impl Survey {
    /// The newest committed checkpoint: what `latest` stands for.
    #[must_use]
    pub fn newest(&self) -> Option<&CheckpointInfo> {
        self.checkpoints.first().filter(|info| info.is_committed())
    }

    /// Those of this state, newest first.
    pub fn of_state(&self, state: CheckpointState) -> impl Iterator<Item = &CheckpointInfo> {
        self.checkpoints.iter().filter(move |info| info.state == state)
    }

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
                Unlisted::Foreign => self.note(name, Other::ForeignDirectory),
                // What is being removed looks like that too, but not twice.
                Unlisted::Damaged(_) => {
                    if let Unlisted::Damaged(error) = look_into(parent, name)? {
                        self.damaged(name, &error);
                    }
                }
            }
        } else if !is_ours(name) {
            self.note(name, Other::ForeignFile);
        }
        Ok(())
    }

    fn note(&mut self, name: &str, what: Other) {
        self.others.push(OtherEntry { name: name.to_owned(), what });
    }

    fn damaged(&mut self, name: &str, fault: &Error) {
        let unknown = CheckpointInfo::unknown(name, CheckpointState::Damaged);
        self.checkpoints.push(CheckpointInfo { fault: Some(fault.to_string()), ..unknown });
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
        Err(e) if is_lost_found(name, &e) => return Ok(Unlisted::Foreign),
        opened => opened?,
    };
    let unread = match read_manifest(dir.as_ref()) {
        Ok(_) => return Ok(Unlisted::Gone),
        Err(e) => e,
    };
    match unread.kind() {
        ErrorKind::NotFound if holds_our_files(dir.as_ref())? => {
            let text = "files of a checkpoint without its manifest.bin";
            Ok(Unlisted::Damaged(Error::new(ErrorKind::Corrupt, text).with_path(dir.path())))
        }
        ErrorKind::NotFound => Ok(Unlisted::Foreign),
        ErrorKind::Corrupt | ErrorKind::Incompatible => Ok(Unlisted::Damaged(unread)),
        _ => Err(unread),
    }
}

fn of_debris(debris: &Debris, all: &[DirEntry]) -> Other {
    match debris {
        Debris::Partial { .. } => Other::Attempt,
        Debris::Old { name, .. } if all.iter().any(|entry| entry.name == name.as_str()) => {
            Other::Replaced
        }
        Debris::Old { .. } => Other::Interrupted,
        Debris::Trash { .. } => Other::Removed,
        Debris::Pointer { .. } => Other::Pointer,
    }
}

/// Names that mean something in a directory of checkpoints besides checkpoints.
fn is_ours(name: &str) -> bool {
    let pointers = [layout::LATEST, layout::BEST];
    name == layout::LOCK
        || pointers.iter().any(|pointer| name == *pointer || name == layout::pointer_json(pointer))
        || layout::parse_pin_file(name).is_some()
}
