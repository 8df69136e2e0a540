//! A directory of checkpoints: which are whole, and where `latest` and `best` lead.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{Output, Repair, Stop, as_json, is_partial, looked_at, state_of};
use crate::autosave::KeepBest;
use crate::catalog::pointer::{Named, read_json, read_link};
use crate::catalog::{CheckpointPath, Found, Survey, Wanted, find, open_parent, survey_of};
use crate::cli::format::bytes;
use crate::cli::{DAMAGED, progress, verdict};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::{self, CheckpointName, SaveId};
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::pointers;
use crate::repair::Assessment;
use crate::shown::line;
use crate::storage::{Directory, LocalStorage};
use crate::sweep::Pace;
use crate::verify::verify;

/// A checkpoint of the directory that could be looked at.
struct Looked {
    info: CheckpointInfo,
    /// Whether every byte is right, and it is no part of another one.
    is_good: bool,
    has_lost: bool,
    /// What is said of it, an object or a line.
    said: Said,
}

enum Said {
    Json(serde_json::Value),
    Text(String),
}

/// What became of a directory.
struct Outcome<'a> {
    arguments: &'a Repair,
    looked: &'a [Looked],
    unreadable: &'a [&'a CheckpointInfo],
    /// Newest first.
    good: &'a [CheckpointInfo],
    pointers: &'a Pointers,
}

/// What links say that do not lead to a good checkpoint.
struct Pointers {
    broken: Vec<String>,
    /// Those of them that are right now.
    mended: Vec<String>,
}

pub(super) fn run(
    out: &mut Output<'_>,
    storage: &LocalStorage,
    arguments: &Repair,
) -> Result<u8, Stop> {
    let parent = open_parent(storage, &arguments.path)?;
    let count = progress::count("looking at", "entries");
    let survey = survey_of(parent.as_ref(), &mut || count.inc(1))?;
    count.finish_and_clear();
    let looked = look(storage, arguments, &survey)?;
    let good: Vec<CheckpointInfo> =
        looked.iter().filter(|one| one.is_good).map(|one| one.info.clone()).collect();
    let now = survey_of(parent.as_ref(), &mut || {})?;
    let standing = standing(&survey, &now, &good);
    let broken = broken_pointers(parent.as_ref(), &standing)?;
    let unreadable: Vec<&CheckpointInfo> = survey
        .of_state(CheckpointState::Damaged)
        .filter(|info| !looked.iter().any(|one| one.info.name == info.name))
        .collect();
    let mut pointers = Pointers { broken, mended: Vec::new() };
    if arguments.pointers {
        mend(&parent, arguments, &standing)?;
        let left = broken_pointers(parent.as_ref(), &standing)?;
        pointers.mended = pointers.broken.clone();
        pointers.mended.retain(|one| !left.contains(one));
    }
    let outcome = Outcome {
        arguments,
        looked: &looked,
        unreadable: &unreadable,
        good: &good,
        pointers: &pointers,
    };
    let said = if arguments.json { outcome.json(out) } else { outcome.text(out) };
    let has_lost = !unreadable.is_empty() || looked.iter().any(|one| one.has_lost);
    verdict(if has_lost { DAMAGED } else { 0 }, said)
}

/// Every checkpoint that has a manifest, newest first.
fn look(storage: &LocalStorage, arguments: &Repair, survey: &Survey) -> Result<Vec<Looked>> {
    let mut looked = Vec::new();
    for info in &survey.checkpoints {
        let Ok(name) = CheckpointName::new(&info.name) else { continue };
        if info.state == CheckpointState::Partial {
            continue;
        }
        match find(storage, &Wanted::from(CheckpointPath::new(&arguments.path, name))) {
            Ok(found) => {
                let assessment = looked_at(&found)?;
                let said = if arguments.json {
                    Said::Json(as_json(&found, &assessment, None, None))
                } else {
                    Said::Text(line_of(&found, &assessment))
                };
                looked.push(Looked {
                    info: CheckpointInfo::of(&info.name, &found.manifest),
                    is_good: assessment.is_intact() && !is_partial(&found),
                    has_lost: assessment.has_lost(),
                    said,
                });
            }
            Err(e) if is_about_one(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(looked)
}

fn line_of(found: &Found, assessment: &Assessment) -> String {
    let (name, state) = (line(found.name.as_str()), state_of(found, assessment));
    let (whole, all) = (assessment.whole.len(), assessment.whole.len() + assessment.lost.len());
    let (have, size) = (bytes(assessment.whole_bytes), bytes(assessment.tensor_bytes));
    match (assessment.has_lost(), assessment.is_intact()) {
        (true, _) => {
            format!("{state}: {name}: {whole} of {all} tensors are whole, {have} of {size}")
        }
        (false, false) => format!("{state}: {name}: {all} tensors are whole"),
        (false, true) => format!("{state}: {name}: step {}, {size}", found.manifest.step()),
    }
}

/// Whether it is what is wrong with one checkpoint, and not with the storage.
fn is_about_one(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Incompatible)
}

/// The newest checkpoint of which every byte is right, but for one save.
pub(super) fn newest_good(
    storage: &LocalStorage,
    dir: &Path,
    but: Option<&SaveId>,
) -> Result<Option<String>> {
    let parent = open_parent(storage, dir)?;
    let survey = survey_of(parent.as_ref(), &mut || {})?;
    for info in survey.of_state(CheckpointState::Committed) {
        let Ok(name) = CheckpointName::new(&info.name) else { continue };
        if info.save_id.as_ref() == but {
            continue;
        }
        let found = match find(storage, &Wanted::from(CheckpointPath::new(dir, name))) {
            Err(e) if is_about_one(&e) => continue,
            found => found?,
        };
        if is_partial(&found) {
            continue;
        }
        let bar = progress::bytes("verifying", found.manifest.total_bytes());
        let verified = verify(&found, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        if verified.damage.is_empty() {
            return Ok(Some(info.name.clone()));
        }
    }
    Ok(None)
}

/// What links may lead to, newest first: what is good and still there, and what a job has saved
/// while others were looked at.
fn standing(before: &Survey, now: &Survey, good: &[CheckpointInfo]) -> Vec<CheckpointInfo> {
    let key = |info: &CheckpointInfo| (info.name.clone(), info.save_id);
    let good: HashSet<_> = good.iter().map(key).collect();
    let before: HashSet<_> = before.checkpoints.iter().map(key).collect();
    let stands = |info: &&CheckpointInfo| good.contains(&key(info)) || !before.contains(&key(info));
    now.of_state(CheckpointState::Committed).filter(stands).cloned().collect()
}

/// What is wrong with `latest` and `best`, and the files that say the same.
fn broken_pointers(parent: &dyn Directory, good: &[CheckpointInfo]) -> Result<Vec<String>> {
    let is_good = |name: &CheckpointName| good.iter().any(|info| info.name == name.as_str());
    let mut broken = Vec::new();
    for pointer in [layout::LATEST, layout::BEST] {
        let json = layout::pointer_json(pointer);
        let link: Option<Named> = read_link(parent, pointer)?;
        let file = read_json(parent, pointer)?.map(Ok);
        for (entry, named) in [(pointer.to_owned(), link), (json, file)] {
            match named {
                Some(Err(text)) => {
                    broken.push(format!(
                        "`{entry}` leads to `{}`, which is no checkpoint here",
                        line(&text)
                    ));
                }
                Some(Ok(name)) if !is_good(&name) => {
                    broken.push(format!(
                        "`{entry}` names `{name}`, which is not whole, or not there"
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(broken)
}

fn mend(parent: &Arc<dyn Directory>, arguments: &Repair, good: &[CheckpointInfo]) -> Result<()> {
    // What was saved aside is part of no run.
    let of_runs = || good.iter().filter(|info| !info.aside);
    let best = match (&arguments.monitor, arguments.mode) {
        (Some(metric), Some(mode)) => KeepBest::one(metric, mode).best_of(of_runs()),
        _ => None,
    };
    let pace = Pace::of(&ProcessGroup::solo());
    pointers::update(parent.as_ref(), of_runs().next(), best, &pace)
}

impl Outcome<'_> {
    fn text(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        for one in self.looked {
            if let Said::Text(text) = &one.said {
                out.line(text)?;
            }
        }
        for info in self.unreadable {
            let fault = info.fault.as_deref().unwrap_or_default();
            out.line(format!("lost: {}: {fault}", line(&info.name)))?;
        }
        for pointer in &self.pointers.broken {
            let state = if self.pointers.mended.contains(pointer) { "mended" } else { "broken" };
            out.line(format!("{state}: {pointer}"))?;
        }
        match self.good.first() {
            Some(info) => {
                out.line(format!("good: {} is the newest that is whole", line(&info.name)))?
            }
            None => out.line("good: none")?,
        }
        if !self.pointers.broken.is_empty() && !self.arguments.pointers {
            return out.line("nothing was changed; --pointers mends what leads nowhere");
        }
        Ok(())
    }

    fn json(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        for one in self.looked {
            if let Said::Json(object) = &one.said {
                out.json(object)?;
            }
        }
        let dir = &self.arguments.path;
        for info in self.unreadable {
            out.json(&json!({
                "path": dir.join(&info.name).display().to_string(), "manifest": false, "ok": false,
                "fault": info.fault, "lost_everything": true,
            }))?;
        }
        out.json(&json!({
            "path": dir.display().to_string(), "good": self.good.first().map(|info| &info.name),
            "broken_pointers": self.pointers.broken, "mended": self.pointers.mended,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, id: u8, state: CheckpointState) -> CheckpointInfo {
        let save_id = Some(SaveId::from_bytes([id; 16]));
        CheckpointInfo { save_id, ..CheckpointInfo::unknown(name, state) }
    }

    fn survey(checkpoints: &[CheckpointInfo]) -> Survey {
        Survey { checkpoints: checkpoints.to_vec(), ..Survey::default() }
    }

    /// A job goes on saving and removing while repair reads every byte of what was there.
    #[test]
    fn links_may_lead_to_what_was_saved_meanwhile_and_not_to_what_is_gone() {
        use CheckpointState::{Committed, Damaged};
        let [bad, gone, kept, replaced] = [("bad", 1), ("gone", 2), ("kept", 3), ("replaced", 4)]
            .map(|(n, i)| info(n, i, Committed));
        let before = survey(&[bad.clone(), gone.clone(), kept.clone(), replaced.clone()]);
        let anew = [info("new", 5, Committed), info("replaced", 6, Committed)];
        let torn = info("torn", 7, Damaged);
        let now = [&anew[..], &[bad, kept.clone(), torn]].concat();
        let stand = standing(&before, &survey(&now), &[gone, kept.clone(), replaced]);
        assert_eq!(stand, [&anew[..], &[kept]].concat());
    }
}
