//! `latest` and `verify --dir`: a directory of checkpoints as a whole. Nothing is written, and no
//! lock is taken: a save may go on meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustix::io::Errno;
use serde_json::json;

use super::verify as one;
use super::{DAMAGED, Output, Stop, progress, verdict};
use crate::catalog::{Survey, Wanted, Which, find, survey_of};
use crate::error::{ErrorKind, Result};
use crate::layout::CheckpointName;
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::shown::line;
use crate::storage::{Directory, LocalStorage, Storage};
use crate::verify::{Verified, verify as verify_all};

#[derive(Args)]
pub(super) struct Look {
    /// Directory of checkpoints; it may be missing.
    #[arg(long)]
    pub(super) dir: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    pub(super) json: bool,
}

/// What is said of a directory.
#[derive(Default)]
struct Report {
    survey: Survey,
    /// Those that were verified, in that order: the path, and what was found.
    verified: Vec<(String, Verified)>,
    newest: Option<CheckpointInfo>,
    /// The directory, if it is not there.
    missing: Option<String>,
}

/// The newest checkpoint by manifests and lengths.
pub(super) fn latest(out: &mut Output<'_>, look: &Look) -> Result<u8, Stop> {
    let mut report = Report::of(&look.dir)?;
    report.newest = report.survey.newest().cloned();
    report.tell(out, look.json)
}

/// The newest checkpoint of which every byte is right; with `all`, the others are verified too.
pub(super) fn verify(out: &mut Output<'_>, dir: &Path, all: bool, json: bool) -> Result<u8, Stop> {
    let mut report = Report::of(dir)?;
    let committed = report.survey.of_state(CheckpointState::Committed).cloned();
    for info in committed.collect::<Vec<_>>() {
        if report.newest.is_some() && !all {
            break;
        }
        let Some((path, verified)) = verify_one(dir, &info)? else { continue };
        if verified.damage.is_empty() && report.newest.is_none() {
            report.newest = Some(info);
        }
        report.verified.push((path, verified));
    }
    report.tell(out, json)
}

/// Opens a directory, if it is there.
///
/// # Errors
/// [`ErrorKind::NotFound`] for what is no directory, [`ErrorKind::Storage`].
pub(super) fn open_if_there(
    storage: &dyn Storage,
    path: &Path,
) -> Result<Option<Arc<dyn Directory>>> {
    match storage.open_dir(path) {
        Err(e) if e.os_code() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        opened => opened.map(Some),
    }
}

/// What lies there as a checkpoint and is not whole: why not.
pub(super) fn damaged(dir: &Path) -> Result<Vec<String>> {
    let report = Report::of(dir)?;
    let damaged = report.damaged().into_iter();
    Ok(damaged.map(|info| info.fault.clone().unwrap_or_default()).collect())
}

/// One checkpoint of the list; `None` if it has been removed or replaced meanwhile.
fn verify_one(dir: &Path, info: &CheckpointInfo) -> Result<Option<(String, Verified)>> {
    let wanted = Wanted::new(dir, Which::Named(CheckpointName::new(&info.name)?));
    let storage = LocalStorage::new();
    let find_it = || match find(&storage, &wanted) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Ok(found) if Some(found.manifest.save_id()) != info.save_id => Ok(None),
        found => found.map(Some),
    };
    let Some(found) = find_it()? else { return Ok(None) };
    let bar = progress::bytes("verifying", found.manifest.total_bytes());
    let verified = verify_all(&found, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    // What was removed under our hands looks damaged.
    if !verified.as_ref().is_ok_and(|v| v.damage.is_empty()) && find_it()?.is_none() {
        return Ok(None);
    }
    Ok(Some((found.path().display().to_string(), verified?)))
}

impl Report {
    /// A directory that is not there is a note and no error.
    fn of(dir: &Path) -> Result<Self> {
        match open_if_there(&LocalStorage::new(), dir)? {
            Some(parent) => {
                let survey = survey_of(parent.as_ref(), &mut || {})?;
                Ok(Self { survey, ..Self::default() })
            }
            None => Ok(Self { missing: Some(dir.display().to_string()), ..Self::default() }),
        }
    }

    /// By name.
    fn damaged(&self) -> Vec<&CheckpointInfo> {
        let mut damaged: Vec<_> = self.survey.of_state(CheckpointState::Damaged).collect();
        damaged.sort_by(|a, b| a.name.cmp(&b.name));
        damaged
    }

    /// Entries that are no checkpoints, and what they are.
    fn notes(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let missing = self.missing.iter().map(|dir| (dir.as_str(), "there is no such directory"));
        missing.chain(self.survey.others.iter().map(|o| (o.name.as_str(), o.what.as_str())))
    }

    fn tell(&self, out: &mut Output<'_>, json: bool) -> Result<u8, Stop> {
        let said = if json { out.json(&self.as_json()) } else { self.as_text(out) };
        let is_damaged = !self.damaged().is_empty()
            || self.verified.iter().any(|(_, verified)| !verified.damage.is_empty());
        verdict(if is_damaged { DAMAGED } else { 0 }, said)
    }

    fn as_text(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        for (path, verified) in &self.verified {
            one::text(out, path, verified)?;
        }
        for info in self.damaged() {
            out.line(format!("damaged: {}", info.fault.as_deref().unwrap_or_default()))?;
        }
        for (entry, what) in self.notes() {
            out.line(format!("note: `{}`: {what}", line(entry)))?;
        }
        match self.newest.as_ref().and_then(|info| info.save_id.map(|id| (info.step, id))) {
            Some((step, save_id)) => out.line(format!("LATEST {step} {save_id}")),
            None => out.line("LATEST none"),
        }
    }

    fn as_json(&self) -> serde_json::Value {
        let newest = self.newest.as_ref().map(|info| {
            let save_id = info.save_id.map(|id| id.to_string());
            json!({ "name": info.name, "step": info.step, "save_id": save_id })
        });
        let verified: Vec<_> =
            self.verified.iter().map(|(path, verified)| one::as_json(path, verified)).collect();
        let fault = |info: &&CheckpointInfo| json!({ "entry": info.name, "fault": info.fault });
        let note = |(name, what): (&str, &str)| json!({ "entry": name, "what": what });
        json!({
            "latest": newest, "verified": verified,
            "damaged": self.damaged().iter().map(fault).collect::<Vec<_>>(),
            "notes": self.notes().map(note).collect::<Vec<_>>(),
        })
    }
}
