//! What has happened between two looks.

use std::time::Duration;

use serde_json::json;

use super::look::{Attempt, Seen};
use crate::cli::format::{bytes, finite, number};
use crate::layout::SaveId;
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::shown::line;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A save has made its attempt.
    Began(SaveId, Attempt),
    /// A save goes on.
    Writing(SaveId, Attempt),
    Committed(Box<CheckpointInfo>),
    /// An attempt is gone, and no checkpoint of it is there.
    Ended(SaveId, Attempt),
    Removed(String),
    Damaged(String, String),
    /// None was committed for so long; the usual interval.
    Late(Duration, Duration),
}

/// In order: what began, what was committed, what is gone.
pub(super) fn events_between(before: &Seen, now: &Seen) -> Vec<Event> {
    let mut events = Vec::new();
    for (id, attempt) in &now.attempts {
        if !before.attempts.contains_key(id) {
            events.push(Event::Began(*id, attempt.clone()));
        }
    }
    let old = |info: &CheckpointInfo| before.checkpoints.get(&info.name).map(|known| &known.info);
    let is_new = |info: &&CheckpointInfo| {
        old(info).is_none_or(|old| old.save_id != info.save_id || !old.is_committed())
    };
    let new = now.committed().into_iter().filter(is_new);
    events.extend(new.map(|info| Event::Committed(Box::new(info.clone()))));
    for info in now.checkpoints.values().map(|checkpoint| &checkpoint.info) {
        let was_damaged = old(info).is_some_and(|old| old.state == CheckpointState::Damaged);
        if info.state == CheckpointState::Damaged && !was_damaged {
            let fault = info.fault.clone().unwrap_or_default();
            events.push(Event::Damaged(info.name.clone(), fault));
        }
    }
    let gone = before.checkpoints.keys().filter(|name| !now.checkpoints.contains_key(*name));
    events.extend(gone.map(|name| Event::Removed(name.clone())));
    events
}

/// The usual time between saves: the median of the newest ones.
pub(super) fn usual_interval(seen: &Seen) -> Option<Duration> {
    /// Of so many intervals.
    const NEWEST: usize = 10;
    let times: Vec<u64> =
        seen.committed().iter().filter(|i| !i.aside).map(|i| i.created_unix_ms).collect();
    let times = times.get(times.len().saturating_sub(NEWEST + 1)..)?;
    let mut intervals: Vec<u64> =
        times.windows(2).filter_map(|pair| pair.last()?.checked_sub(*pair.first()?)).collect();
    intervals.sort_unstable();
    intervals.get(intervals.len() / 2).copied().map(Duration::from_millis)
}

impl Event {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Began(_, attempt) => format!("saving     {}", line(&attempt.name)),
            Self::Writing(_, Attempt { name, bytes: count }) => {
                format!("saving     {}  {} so far", line(name), bytes(*count))
            }
            Self::Committed(info) => format!(
                "committed  {}  step {}  epoch {}  {}{}",
                line(&info.name),
                info.step,
                info.epoch,
                bytes(info.tensor_bytes),
                metrics(info)
            ),
            Self::Ended(_, attempt) => {
                format!(
                    "not there  {}: its save ended, no checkpoint of it is there",
                    line(&attempt.name)
                )
            }
            Self::Removed(name) => format!("removed    {}", line(name)),
            Self::Damaged(name, fault) => format!("damaged    {}: {}", line(name), line(fault)),
            Self::Late(since, usual) => format!(
                "late       no checkpoint for {}; usually one every {}",
                seconds(*since),
                seconds(*usual)
            ),
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let of = |what: &str, id: &SaveId, attempt: &Attempt| {
            let id = id.to_string();
            json!({ "event": what, "name": attempt.name, "save_id": id, "bytes": attempt.bytes })
        };
        match self {
            Self::Began(id, attempt) => of("saving", id, attempt),
            Self::Writing(id, attempt) => of("saving", id, attempt),
            Self::Ended(id, attempt) => of("ended", id, attempt),
            Self::Committed(info) => {
                let metrics: serde_json::Map<_, _> =
                    info.metrics.iter().map(|(name, n)| (name.clone(), finite(*n))).collect();
                json!({
                    "event": "committed", "name": info.name, "step": info.step,
                    "epoch": info.epoch, "metrics": metrics, "bytes": info.tensor_bytes,
                    "world_size": info.world_size, "created_unix_ms": info.created_unix_ms,
                    "save_id": info.save_id.map(|id| id.to_string()),
                })
            }
            Self::Removed(name) => json!({ "event": "removed", "name": name }),
            Self::Damaged(name, fault) => {
                json!({ "event": "damaged", "name": name, "fault": fault })
            }
            Self::Late(since, usual) => json!({
                "event": "late", "seconds": since.as_secs_f64(),
                "usual_seconds": usual.as_secs_f64(),
            }),
        }
    }
}

/// `  val_loss=0.25`
pub(super) fn metrics(info: &CheckpointInfo) -> String {
    let pair = |(name, value): (&String, &f64)| format!("  {}={}", line(name), number(*value));
    info.metrics.iter().map(pair).collect()
}

/// A time as people say it.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..120 => format!("{} s", time.as_secs()),
        120..7200 => format!("{} min", time.as_secs() / 60),
        _ => format!("{} h", time.as_secs() / 3600),
    }
}
