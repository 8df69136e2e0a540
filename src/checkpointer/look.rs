//! Phase "look": the coordinator lists the directory and chooses, all ranks hear the same. What
//! is asked or answered otherwise is a phase of another name, so that ranks which ask for different
//! things are told so.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::choose::{Choice, Question, choose};
use super::{Checkpointer, Resume};
use crate::agree::agree;
use crate::catalog::{self, Wanted, pointer};
use crate::error::{ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::{self, CheckpointName, SaveId};
use crate::lineage::{Lineage, is_placed, top_of};
use crate::manifest::CheckpointInfo;

/// Most names of checkpoints that an answer lists.
const NAMES_MAX: usize = 100;

/// What a rank asks for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Asked {
    resume: Resume,
    fall_back: bool,
    damaged: Vec<SaveId>,
    loaded: Option<SaveId>,
}

impl Asked {
    /// `damaged` proved to be so when they were loaded.
    pub(super) fn of(resume: &Resume, fall_back: bool, damaged: &[SaveId]) -> Self {
        Self { resume: resume.clone(), fall_back, damaged: damaged.to_vec(), loaded: None }
    }

    /// Where what was loaded is among the others.
    pub(super) fn again(resume: &Resume, loaded: SaveId) -> Self {
        Self { loaded: Some(loaded), ..Self::of(resume, false, &[]) }
    }
}

/// The coordinator's answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Looked {
    /// `None` if there is none, or if what was loaded lies elsewhere.
    pub(super) chosen: Option<CheckpointInfo>,
    /// Where a run stands that begins anew beside all of them.
    pub(super) fresh: Lineage,
    /// Damaged ones that would have been chosen.
    pub(super) passed_over: Vec<String>,
    /// Those that are newer; damaged ones too, if it is known where they stand.
    pub(super) abandoned: Vec<String>,
}

impl Checkpointer {
    /// Only the newest and the best have one before them to fall back to.
    pub(super) fn falls_back(&self, which: &Resume) -> bool {
        self.config.resume_fall_back && matches!(which, Resume::Latest | Resume::Best)
    }

    pub(super) fn look(&self, asked: Asked) -> Result<Looked> {
        let look = |asked: Vec<Asked>| self.answer(alike(&asked)?);
        self.group.phase_all(Channel::Save, "look", || Ok(asked), look)
    }

    pub(super) fn is_there(&self, which: &Resume) -> Result<bool> {
        let ask = || Ok(Asked::of(which, self.falls_back(which), &[]));
        let look = |asked: Vec<Asked>| {
            let asked = alike(&asked)?;
            match &asked.resume {
                Resume::Fresh => Ok(false),
                Resume::Path(path) => {
                    let found = catalog::find(self.storage.as_ref(), &Wanted::parse(path)?)?;
                    Ok(found.fault_of_files()?.is_none())
                }
                _ => self.answer(asked).map(|looked| looked.chosen.is_some()),
            }
        };
        self.group.phase_all(Channel::Save, "look whether", ask, look)
    }

    fn list(&self) -> Result<Listed> {
        let parent = match self.storage.open_dir(&self.directory) {
            // Nothing was ever saved: a disabled checkpointer makes no directory.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Listed::default()),
            opened => opened?,
        };
        let progress = self.group.progress();
        let found = catalog::list(parent.as_ref(), &mut || progress.add(1))?;
        let named = |pointer| -> Result<Option<CheckpointName>> {
            Ok(pointer::read(parent.as_ref(), pointer)?.and_then(std::result::Result::ok))
        };
        Ok(Listed { found, latest: named(layout::LATEST)?, best: named(layout::BEST)? })
    }

    fn answer(&self, asked: &Asked) -> Result<Looked> {
        let Listed { found, latest, best } = self.list()?;
        let question = Question {
            resume: &asked.resume,
            monitor: self.monitor(),
            damaged: &asked.damaged,
            fall_back: asked.fall_back,
            loaded: asked.loaded,
            latest: latest.as_ref().map(CheckpointName::as_str),
            best: best.as_ref().map(CheckpointName::as_str),
        };
        let choice = choose(&found, &question).map_err(|e| e.with_path(&self.directory))?;
        let fresh = Lineage::fresh(top_of(&found))?;
        let Some(Choice { chosen, passed_over }) = choice else {
            return Ok(Looked { fresh, ..Looked::default() });
        };
        let newer = newer_than(&found, chosen);
        Ok(Looked {
            chosen: Some(chosen.clone()),
            fresh,
            passed_over: names(passed_over.into_iter()),
            abandoned: names(newer.into_iter()),
        })
    }
}

/// What the directory holds, and where its links lead.
#[derive(Default)]
struct Listed {
    found: Vec<CheckpointInfo>,
    latest: Option<CheckpointName>,
    best: Option<CheckpointName>,
}

/// The path that all ranks mean.
pub(super) fn wanted_by_all(group: &ProcessGroup, path: &Path) -> Result<Wanted> {
    let same = |wanted: Vec<Wanted>| alike(&wanted).cloned();
    group.phase_all(Channel::Save, "look there", || Wanted::parse(path), same)
}

fn alike<T: PartialEq + std::fmt::Debug>(asked: &[T]) -> Result<&T> {
    let difference = |ours: &T, theirs: &T| {
        let sides = || format!("ranks resume differently: {theirs:?}, the coordinator {ours:?}");
        (theirs != ours).then(sides)
    };
    agree(asked, difference, "nothing was changed; every rank has to ask for the same checkpoint")
}

/// What is newer than `chosen`, newest first: of damaged ones those that can be told to be.
fn newer_than<'a>(found: &'a [CheckpointInfo], chosen: &CheckpointInfo) -> Vec<&'a CheckpointInfo> {
    let is_newer = |info: &&CheckpointInfo| {
        // A copy under another name is the same one.
        is_placed(info) && info.save_id != chosen.save_id && info.age_key() > chosen.age_key()
    };
    let mut newer: Vec<&CheckpointInfo> = found.iter().filter(is_newer).collect();
    newer.sort_by(|a, b| b.age_key().cmp(&a.age_key()));
    newer
}

fn names<'a>(infos: impl Iterator<Item = &'a CheckpointInfo>) -> Vec<String> {
    infos.take(NAMES_MAX).map(|info| info.name.clone()).collect()
}
