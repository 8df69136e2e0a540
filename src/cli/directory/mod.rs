//! `latest` and `verify --dir`: a directory of checkpoints as a whole. Nothing is written, and no
//! lock is taken: a save may go on meanwhile.

mod survey;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::verify as one;
use super::{DAMAGED, Output, Stop, progress, verdict};
use crate::catalog::{Wanted, Which, find};
use crate::error::{ErrorKind, Result};
use crate::layout::CheckpointName;
use crate::manifest::CheckpointInfo;
use crate::shown::line;
use crate::storage::LocalStorage;
use crate::verify::{Verified, verify as verify_all};
pub(super) use survey::open_if_there;
use survey::{Survey, survey};

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
}

/// The newest checkpoint by manifests and lengths.
pub(super) fn latest(out: &mut Output<'_>, look: &Look) -> Result<u8, Stop> {
    let survey = survey_of(&look.dir)?;
    let newest = survey.committed.first().cloned();
    Report { survey, newest, ..Report::default() }.tell(out, look.json)
}

/// The newest checkpoint of which every byte is right; with `all`, the others are verified too.
pub(super) fn verify(out: &mut Output<'_>, dir: &Path, all: bool, json: bool) -> Result<u8, Stop> {
    let mut report = Report { survey: survey_of(dir)?, ..Report::default() };
    for info in std::mem::take(&mut report.survey.committed) {
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

fn survey_of(dir: &Path) -> Result<Survey> {
    match open_if_there(&LocalStorage::new(), dir)? {
        Some(parent) => survey(parent.as_ref()),
        None => {
            let note = (dir.display().to_string(), "there is no such directory");
            Ok(Survey { notes: vec![note], ..Survey::default() })
        }
    }
}

/// What lies there as a checkpoint and is not whole: the entry, and why.
pub(super) fn damaged(dir: &Path) -> Result<Vec<(String, String)>> {
    Ok(survey_of(dir)?.damaged)
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
    fn tell(&self, out: &mut Output<'_>, json: bool) -> Result<u8, Stop> {
        let said = if json { out.json(&self.as_json()) } else { self.as_text(out) };
        let is_damaged = !self.survey.damaged.is_empty()
            || self.verified.iter().any(|(_, verified)| !verified.damage.is_empty());
        verdict(if is_damaged { DAMAGED } else { 0 }, said)
    }

    fn as_text(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        for (path, verified) in &self.verified {
            one::text(out, path, verified)?;
        }
        for (_, fault) in &self.survey.damaged {
            out.line(format!("damaged: {fault}"))?;
        }
        for (entry, what) in &self.survey.notes {
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
        let fault = |(name, fault): &(String, String)| json!({ "entry": name, "fault": fault });
        let note = |(name, what): &(String, &str)| json!({ "entry": name, "what": what });
        json!({
            "latest": newest, "verified": verified,
            "damaged": self.survey.damaged.iter().map(fault).collect::<Vec<_>>(),
            "notes": self.survey.notes.iter().map(note).collect::<Vec<_>>(),
        })
    }
}
