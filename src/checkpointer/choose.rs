//! Which checkpoint a run goes on from: a pure decision over a listing.

use super::Resume;
use crate::autosave::{KeepBest, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::{CheckpointInfo, CheckpointState};

/// Most names that a message lists.
const LISTED_MAX: usize = 10;

/// What is asked of a listing.
pub(super) struct Question<'a> {
    pub(super) resume: &'a Resume,
    pub(super) monitor: Option<(&'a str, Mode)>,
    /// Saves that proved to be damaged when they were loaded.
    pub(super) damaged: &'a [SaveId],
    /// Whether damaged ones are passed over.
    pub(super) fall_back: bool,
    /// The save that was loaded, if it is to be found again.
    pub(super) loaded: Option<SaveId>,
    /// The checkpoint to which the link `latest` points.
    pub(super) latest: Option<&'a str>,
    /// The same of the link `best`.
    pub(super) best: Option<&'a str>,
}

/// The checkpoint meant.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) chosen: &'a CheckpointInfo,
    /// Damaged ones that are, or may be, meant rather than it.
    pub(super) passed_over: Vec<&'a CheckpointInfo>,
}

/// The checkpoint meant; `None` if there is none at all, of whatever state.
pub(super) fn choose<'a>(
    found: &'a [CheckpointInfo],
    question: &Question<'_>,
) -> Result<Option<Choice<'a>>> {
    if let Some(loaded) = question.loaded {
        let chosen = found.iter().find(|i| i.is_committed() && i.save_id == Some(loaded));
        return Ok(chosen.map(|chosen| Choice { chosen, passed_over: Vec::new() }));
    }
    let picked = pick(found, question);
    let none_will_do = matches!(question.resume, Resume::Latest | Resume::Best);
    if none_will_do && found.iter().all(|info| info.state == CheckpointState::Partial) {
        return Ok(None);
    }
    let chosen = picked?;
    let mut damaged = found.iter().filter(|info| info.state == CheckpointState::Damaged);
    let may_be_meant = |info: &&CheckpointInfo| may_be_meant(info, chosen, found, question);
    if question.fall_back {
        let passed_over = damaged.filter(may_be_meant).collect();
        return Ok(Some(Choice { chosen, passed_over }));
    }
    match damaged.find(may_be_meant) {
        Some(damaged) => Err(refuse(damaged, chosen, question.resume)),
        None => Ok(Some(Choice { chosen, passed_over: Vec::new() })),
    }
}

/// The one asked for, of those that can be loaded.
fn pick<'a>(found: &'a [CheckpointInfo], question: &Question<'_>) -> Result<&'a CheckpointInfo> {
    let usable = found.iter().filter(|info| {
        info.is_committed() && !info.save_id.is_some_and(|id| question.damaged.contains(&id))
    });
    match (question.resume, question.monitor) {
        (Resume::Best, Some((monitor, mode))) => {
            // As the link: an earlier run in the same directory is another one.
            let line = newest(usable.clone()).map(|info| info.line);
            let own = usable.filter(|info| !info.aside && Some(info.line) == line);
            let best = KeepBest::one(monitor, mode).best_of(own);
            best.map_or_else(|| no_best(found, question, monitor), Ok)
        }
        (Resume::Best, None) => {
            let message = "the best is asked for, but no metric is monitored";
            Err(Error::new(ErrorKind::InvalidInput, message).with_help("set `monitor`"))
        }
        (Resume::Step(step), _) => {
            newest(usable.filter(|i| i.step == *step)).map_or_else(|| no_step(found, *step), Ok)
        }
        (Resume::Fresh, _) => {
            let message = "to begin anew, there is nothing to load";
            Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("name what to load: the latest, the best, a step or a path"))
        }
        (Resume::Latest | Resume::Path(_), _) => {
            newest(usable).map_or_else(|| none_good(found), Ok)
        }
    }
}

/// The newest of some.
fn newest<'a>(found: impl Iterator<Item = &'a CheckpointInfo>) -> Option<&'a CheckpointInfo> {
    found.max_by(|a, b| a.age_key().cmp(&b.age_key()))
}

/// Whether a damaged checkpoint is, or may be, the one that is asked for rather than `chosen`. Of
/// one whose manifest cannot be read only the links know: it is older for sure only if the link to
/// the latest leads elsewhere, and the best only if that link says so.
fn may_be_meant(
    damaged: &CheckpointInfo,
    chosen: &CheckpointInfo,
    found: &[CheckpointInfo],
    question: &Question<'_>,
) -> bool {
    let is_known = damaged.save_id.is_some();
    match (question.resume, question.monitor) {
        (Resume::Latest, _) if is_known => damaged.age_key() > chosen.age_key(),
        (Resume::Latest, _) => question.latest.is_none_or(|latest| {
            latest == damaged.name || !found.iter().any(|i| i.is_committed() && i.name == latest)
        }),
        (Resume::Best, Some(_)) if is_known && damaged.line != chosen.line => false,
        (Resume::Best, Some((monitor, mode))) if is_known => {
            let whole = CheckpointInfo { state: CheckpointState::Committed, ..damaged.clone() };
            let best = KeepBest::one(monitor, mode);
            best.best_of([&whole, chosen]).is_some_and(|best| best.name == damaged.name)
        }
        (Resume::Best, _) => question.best == Some(damaged.name.as_str()),
        _ => false,
    }
}

fn refuse(damaged: &CheckpointInfo, chosen: &CheckpointInfo, resume: &Resume) -> Error {
    let which = if *resume == Resume::Best { "best" } else { "newest" };
    let fault = damaged.fault.as_deref().unwrap_or("it cannot be read");
    let message =
        format!("the {which} checkpoint may be `{}`, which is damaged: {fault}", damaged.name);
    Error::new(ErrorKind::Corrupt, message).with_help(format!(
        "`resume_fall_back` takes `{}` of step {} instead; nothing was changed",
        chosen.name, chosen.step
    ))
}

fn none_good<'a>(found: &[CheckpointInfo]) -> Result<&'a CheckpointInfo> {
    Err(Error::new(ErrorKind::Corrupt, "every checkpoint here is damaged").with_help(listed(found)))
}

fn no_step<'a>(found: &[CheckpointInfo], step: u64) -> Result<&'a CheckpointInfo> {
    let broken = found
        .iter()
        .find(|info| info.state == CheckpointState::Damaged && info.step == step && step > 0);
    if let Some(info) = broken {
        let message = format!("the checkpoint of step {step}, `{}`, is damaged", info.name);
        return Err(Error::new(ErrorKind::Corrupt, message).with_help(listed(found)));
    }
    Err(Error::new(ErrorKind::NotFound, format!("no checkpoint of step {step}"))
        .with_help(listed(found)))
}

fn no_best<'a>(
    found: &[CheckpointInfo],
    question: &Question<'_>,
    monitor: &str,
) -> Result<&'a CheckpointInfo> {
    // What was left out, or is damaged, may have had it.
    let had = |info: &&CheckpointInfo| {
        let number = info.metrics.get(monitor).is_some_and(|number| number.is_finite());
        number || info.save_id.is_none() && question.best == Some(info.name.as_str())
    };
    if let Some(info) = found.iter().filter(|i| i.state != CheckpointState::Partial).find(had) {
        let message =
            format!("every checkpoint with a finite `{monitor}` is damaged: `{}`", info.name);
        return Err(Error::new(ErrorKind::Corrupt, message).with_help(listed(found)));
    }
    let mut names: Vec<&str> =
        found.iter().flat_map(|info| info.metrics.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(LISTED_MAX);
    let have = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let message = format!("no checkpoint has a finite `{monitor}`");
    Err(Error::new(ErrorKind::NotFound, message)
        .with_help(format!("metrics that are there: {have}; {}", listed(found))))
}

/// What there is, newest first.
fn listed(found: &[CheckpointInfo]) -> String {
    let mut committed: Vec<&CheckpointInfo> = found.iter().filter(|i| i.is_committed()).collect();
    committed.sort_by(|a, b| b.age_key().cmp(&a.age_key()));
    let shown: Vec<String> = committed
        .iter()
        .take(LISTED_MAX)
        .map(|info| format!("step {} (`{}`)", info.step, info.name))
        .collect();
    let mut text = if shown.is_empty() {
        "the directory holds no checkpoint that can be loaded".to_owned()
    } else {
        format!("the directory holds {}", shown.join(", "))
    };
    let more = committed.len().saturating_sub(LISTED_MAX);
    let damaged = found.iter().filter(|i| i.state == CheckpointState::Damaged).count();
    for (count, what) in [(more, "more"), (damaged, "damaged")] {
        if count > 0 {
            text.push_str(&format!(" and {count} {what}"));
        }
    }
    text
}

#[cfg(test)]
mod tests;
