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
}

/// The checkpoint meant; `None` if there is none at all, of whatever state.
pub(super) fn choose<'a>(
    found: &'a [CheckpointInfo],
    question: &Question<'_>,
) -> Result<Option<&'a CheckpointInfo>> {
    let usable = |info: &&CheckpointInfo| {
        info.is_committed() && !info.save_id.is_some_and(|id| question.damaged.contains(&id))
    };
    let usable = || found.iter().filter(usable);
    if let Some(loaded) = question.loaded {
        return Ok(usable().find(|info| info.save_id == Some(loaded)));
    }
    let chosen = match (question.resume, question.monitor) {
        (Resume::Fresh, _) => {
            let message = "`fresh` names no checkpoint that could be loaded";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        (Resume::Best, Some((monitor, mode))) => {
            let best = KeepBest::one(monitor, mode).best_of(usable());
            best.map_or_else(|| no_best(found, monitor), Ok)
        }
        (Resume::Best, None) => {
            let message = "the best is asked for, but no metric is monitored";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_help("set `monitor`"));
        }
        (Resume::Step(step), _) => {
            let of_step = usable().filter(|info| info.step == *step);
            newest(of_step).map_or_else(|| no_step(found, *step), Ok)
        }
        _ => newest(usable()).map_or_else(|| none_good(found), Ok),
    };
    if found.iter().all(|info| info.state == CheckpointState::Partial) {
        return match question.resume {
            Resume::Step(_) => chosen.map(Some),
            _ => Ok(None),
        };
    }
    let chosen = chosen?;
    if *question.resume == Resume::Latest && !question.fall_back {
        refuse_damage_above(found, chosen, question.latest)?;
    }
    Ok(Some(chosen))
}

/// The newest of some.
fn newest<'a>(found: impl Iterator<Item = &'a CheckpointInfo>) -> Option<&'a CheckpointInfo> {
    found.max_by(|a, b| a.age_key().cmp(&b.age_key()))
}

/// A damaged checkpoint that is, or may be, newer than the newest good one must not be passed over
/// in silence. One whose manifest cannot be read is older for sure only if the link to the latest
/// points elsewhere.
fn refuse_damage_above(
    found: &[CheckpointInfo],
    chosen: &CheckpointInfo,
    latest: Option<&str>,
) -> Result<()> {
    let above = |info: &&CheckpointInfo| match info.save_id {
        Some(_) => info.age_key() > chosen.age_key(),
        None => latest.is_none_or(|latest| {
            latest == info.name || !found.iter().any(|i| i.is_committed() && i.name == latest)
        }),
    };
    let mut damaged = found.iter().filter(|info| info.state == CheckpointState::Damaged);
    let Some(info) = damaged.find(above) else { return Ok(()) };
    let fault = info.fault.as_deref().unwrap_or("it cannot be read");
    let message =
        format!("the newest checkpoint may be `{}`, which is damaged: {fault}", info.name);
    Err(Error::new(ErrorKind::Corrupt, message).with_help(format!(
        "`resume_fall_back` takes `{}` of step {} instead; nothing was changed",
        chosen.name, chosen.step
    )))
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

fn no_best<'a>(found: &[CheckpointInfo], monitor: &str) -> Result<&'a CheckpointInfo> {
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
pub(super) fn listed(found: &[CheckpointInfo]) -> String {
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
