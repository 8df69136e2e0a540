//! `watch`: the saves of a running job as they happen. Looks again and again; nothing is written,
//! no lock is taken, and the job knows nothing of it.

mod event;
mod look;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::bench::interrupt;
use super::{Output, Stop, grid};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::shown;
use crate::storage::{LocalStorage, Storage};
use event::{Event, events_between, usual_interval};
use look::{Attempt, Seen};

/// At most one part in so many of the time is spent looking.
const LOOKS_SHARE: u32 = 20;
/// How often a save that goes on is told of, where there is no terminal.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
/// How soon Ctrl-C is obeyed.
const NAP: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Watch {
    /// Directory of checkpoints; it may not be there yet.
    dir: PathBuf,
    /// Time between looks, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    interval: Duration,
    /// End after so many seconds.
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    time: Option<Duration>,
    /// End after so many new checkpoints.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Warn when no checkpoint came for so many times the usual interval.
    #[arg(long, value_name = "N", default_value_t = 3.0, value_parser = factor)]
    late: f64,
    /// One JSON object for each event instead of text.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    let time =
        Duration::try_from_secs_f64(seconds).map_err(|_| "a number of seconds".to_owned())?;
    if time < NAP { Err("at least 0.1 seconds".to_owned()) } else { Ok(time) }
}

fn factor(text: &str) -> std::result::Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| "a number".to_owned())?;
    if factor >= 1.0 { Ok(factor) } else { Err("at least 1".to_owned()) }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Watch) -> std::result::Result<u8, Stop> {
    interrupt::watch();
    let begun = clock::now();
    let ends = arguments.time.and_then(|time| begun.checked_add(time));
    let mut watcher = Watcher::new(arguments);
    loop {
        let looked = clock::now();
        let events = watcher.look()?;
        watcher.tell(out, &events)?;
        let is_enough = arguments.count.is_some_and(|count| watcher.committed >= count);
        let took = clock::now().saturating_duration_since(looked);
        let next = looked.checked_add(arguments.interval.max(took * LOOKS_SHARE));
        if is_enough || !nap_until(next.unwrap_or(looked), ends, out)? {
            return Ok(0);
        }
    }
}

/// Whether to go on then. Nothing may happen for long: a reader that has left is seen without it.
fn nap_until(
    next: Instant,
    ends: Option<Instant>,
    out: &Output<'_>,
) -> std::result::Result<bool, Stop> {
    loop {
        let now = clock::now();
        if interrupt::is_noted() || ends.is_some_and(|end| now >= end) {
            return Ok(false);
        }
        if now >= next {
            return Ok(true);
        }
        if out.is_closed() {
            return Err(Stop::ClosedPipe);
        }
        let until = ends.map_or(next, |end| next.min(end));
        clock::sleep(NAP.min(until.saturating_duration_since(now)));
    }
}

/// What is remembered from look to look.
struct Watcher<'a> {
    arguments: &'a Watch,
    seen: Seen,
    /// `None` before the first look.
    is_there: Option<bool>,
    committed: u64,
    is_late: bool,
    /// What was told of attempts, and when.
    told: BTreeMap<SaveId, (Instant, u64)>,
    /// Gone at the last look: a listing may miss what is renamed meanwhile.
    gone: BTreeMap<SaveId, Attempt>,
    is_drawn: bool,
    /// How long the lines are that are on the terminal.
    drawn: Vec<usize>,
    last: Option<String>,
}

impl<'a> Watcher<'a> {
    fn new(arguments: &'a Watch) -> Self {
        Self {
            arguments,
            seen: Seen::default(),
            is_there: None,
            committed: 0,
            is_late: false,
            told: BTreeMap::new(),
            gone: BTreeMap::new(),
            is_drawn: !arguments.json && std::io::stdout().is_terminal(),
            drawn: Vec::new(),
            last: None,
        }
    }

    /// What has happened since the last look; `None` at the first one.
    fn look(&mut self) -> Result<Option<Vec<Event>>> {
        // It may also go while it is looked at.
        let parent = LocalStorage::new().open_dir(&self.arguments.dir);
        let now = match parent.and_then(|parent| self.seen.again(parent.as_ref())) {
            Ok(seen) => Some(seen),
            Err(e) if e.kind() == ErrorKind::NotFound && !self.arguments.dir.exists() => None,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::InvalidInput, "this is no directory")
                    .with_path(&self.arguments.dir));
            }
            Err(e) => return Err(e),
        };
        let is_first = self.is_there.is_none();
        self.is_there = Some(now.is_some());
        let now = now.unwrap_or_default();
        let mut events = events_between(&self.seen, &now);
        events.extend(self.ended(&now));
        self.seen = now;
        if is_first {
            self.is_late = self.late().is_some();
            return Ok(None);
        }
        let is_commit = |event: &&Event| matches!(event, Event::Committed(_));
        self.committed += events.iter().filter(is_commit).count() as u64;
        events.extend(self.late_now());
        events.extend(self.writing());
        Ok(Some(events))
    }

    /// Attempts that were missing twice, and of which there is no checkpoint.
    fn ended(&mut self, now: &Seen) -> Vec<Event> {
        let is_ended = |id: &SaveId| !now.attempts.contains_key(id) && !now.holds(*id);
        let ended = std::mem::take(&mut self.gone);
        let before = self.seen.attempts.iter().map(|(id, attempt)| (*id, attempt.clone()));
        self.gone = before.filter(|(id, _)| is_ended(id)).collect();
        let ended = ended.into_iter().filter(|(id, _)| is_ended(id));
        ended.map(|(id, attempt)| Event::Ended(id, attempt)).collect()
    }

    /// Since the newest checkpoint, and the usual interval, if it is late.
    fn late(&self) -> Option<(Duration, Duration)> {
        let usual = usual_interval(&self.seen)?;
        let newest = Duration::from_millis(self.seen.committed().last()?.created_unix_ms);
        let since = clock::unix_time().saturating_sub(newest);
        // Intervals of nothing are those of a test, or of clocks that were set.
        let limit = usual.as_secs_f64() * self.arguments.late;
        (limit > 0.0 && since.as_secs_f64() > limit).then_some((since, usual))
    }

    /// Once, until the next checkpoint.
    fn late_now(&mut self) -> Option<Event> {
        let late = self.late();
        let was_late = std::mem::replace(&mut self.is_late, late.is_some());
        late.filter(|_| !was_late).map(|(since, usual)| Event::Late(since, usual))
    }

    /// Of saves that go on for long.
    fn writing(&mut self) -> Vec<Event> {
        let now = clock::now();
        let attempts = &self.seen.attempts;
        self.told.retain(|id, _| attempts.contains_key(id));
        let mut events = Vec::new();
        for (id, attempt) in attempts {
            let (at, bytes) = self.told.entry(*id).or_insert((now, attempt.bytes));
            let is_due = now.saturating_duration_since(*at) >= PROGRESS_EVERY;
            if is_due && *bytes != attempt.bytes {
                (*at, *bytes) = (now, attempt.bytes);
                events.push(Event::Writing(*id, attempt.clone()));
            }
        }
        events
    }

    fn tell(
        &mut self,
        out: &mut Output<'_>,
        events: &Option<Vec<Event>>,
    ) -> std::result::Result<(), Stop> {
        if self.is_drawn {
            return self.draw(out, events.as_deref().unwrap_or_default());
        }
        let Some(events) = events else { return self.begin(out) };
        events.iter().try_for_each(|event| {
            if self.arguments.json { out.json(&event.json()) } else { out.line(event.text()) }
        })
    }

    /// What is there when the watch begins.
    fn begin(&self, out: &mut Output<'_>) -> std::result::Result<(), Stop> {
        let committed = self.seen.committed();
        let newest = committed.last();
        if self.arguments.json {
            return out.json(&json!({
                "event": "watching", "exists": self.is_there, "checkpoints": committed.len(),
                "newest": newest.map(|info| &info.name), "saving": self.seen.attempts.len(),
            }));
        }
        let dir = shown::path(&self.arguments.dir);
        if self.is_there == Some(false) {
            return out.line(format!("watching   {dir}, which is not there yet"));
        }
        let newest = newest.map_or(String::new(), |info| {
            format!(", newest {}, step {}", shown::line(&info.name), info.step)
        });
        out.line(format!("watching   {dir}: {} checkpoints{newest}", committed.len()))
    }

    fn draw(&mut self, out: &mut Output<'_>, events: &[Event]) -> std::result::Result<(), Stop> {
        let is_news = |event: &&Event| {
            matches!(event, Event::Ended(..) | Event::Removed(_) | Event::Damaged(..))
        };
        if let Some(news) = events.iter().rev().find(is_news) {
            self.last = Some(news.text());
        }
        let dir = shown::path(&self.arguments.dir);
        let around = table::Around {
            dir: &dir,
            now: clock::unix_time(),
            usual: usual_interval(&self.seen),
            is_late: self.is_late,
            last: self.last.as_deref(),
        };
        let width = grid::width();
        let lines = table::lines(&self.seen, &around, width);
        out.redraw(table::rows_of(&self.drawn, width), &lines)?;
        self.drawn = lines.iter().map(|line| line.chars().count()).collect();
        Ok(())
    }
}
