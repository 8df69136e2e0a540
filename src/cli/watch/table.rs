//! What a terminal shows: as much as fits, drawn anew.

use std::time::Duration;

use super::event::{metrics, seconds};
use super::look::Seen;
use crate::cli::format::bytes;
use crate::cli::grid::{Column, Grid};
use crate::shown::line;

/// So many of the newest checkpoints are shown, and saves under way.
const CHECKPOINTS_MAX: usize = 10;
const ATTEMPTS_MAX: usize = 4;

/// What is shown beside what lies there.
pub(super) struct Around<'a> {
    pub(super) dir: &'a str,
    /// Since 1970.
    pub(super) now: Duration,
    pub(super) usual: Option<Duration>,
    pub(super) is_late: bool,
    /// The last thing that happened that the table does not show.
    pub(super) last: Option<&'a str>,
}

/// Lines that are no longer than `width`.
pub(super) fn lines(seen: &Seen, around: &Around<'_>, width: Option<usize>) -> Vec<String> {
    let committed = seen.committed();
    let since = |ms: u64| seconds(around.now.saturating_sub(Duration::from_millis(ms)));
    let mut lines = vec![format!("{}: {} checkpoints", around.dir, committed.len())];
    let mut grid = Grid::new([
        ("name", Column::Middle(8)),
        ("step", Column::Right),
        ("epoch", Column::Right),
        ("metrics", Column::End(7)),
        ("size", Column::Right),
        ("saved", Column::Right),
    ]);
    for info in committed.iter().rev().take(CHECKPOINTS_MAX) {
        grid.row([
            line(&info.name),
            info.step.to_string(),
            info.epoch.to_string(),
            metrics(info).trim().to_owned(),
            bytes(info.tensor_bytes),
            format!("{} ago", since(info.created_unix_ms)),
        ]);
    }
    if !committed.is_empty() {
        lines.extend(grid.lines(width));
    }
    for attempt in seen.attempts.values().take(ATTEMPTS_MAX) {
        lines.push(format!("saving {}: {} so far", line(&attempt.name), bytes(attempt.bytes)));
    }
    lines.extend(around.last.map(str::to_owned));
    lines.push(pace(committed.last().map(|info| since(info.created_unix_ms)), around));
    lines.iter().map(|line| cut(line, width)).collect()
}

/// How many rows lines of these lengths take: a terminal that was made narrower has wrapped them.
pub(super) fn rows_of(lengths: &[usize], width: Option<usize>) -> usize {
    let width = width.unwrap_or(usize::MAX).max(1);
    lengths.iter().map(|length| length.div_ceil(width).max(1)).sum()
}

fn pace(since: Option<String>, around: &Around<'_>) -> String {
    let Some(since) = since else { return "no checkpoint yet".to_owned() };
    let usual =
        around.usual.map_or(String::new(), |usual| format!(", usually every {}", seconds(usual)));
    let warning = if around.is_late { "LATE: " } else { "" };
    format!("{warning}last save {since} ago{usual}   Ctrl-C ends")
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            line.chars().take(width.saturating_sub(1)).chain("…".chars()).collect()
        }
        _ => line.to_owned(),
    }
}
