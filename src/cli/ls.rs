//! `ls`: the checkpoints of a directory, newest first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::format::{age, bytes, finite, number};
use super::grid::{Column, Grid, short_id};
use super::sparkline::sparkline;
use super::{DAMAGED, Output, Stop, complain, progress, verdict};
use crate::autosave::{KeepBest, Mode};
use crate::catalog::{Survey, open_parent, read_manifest, survey_of};
use crate::clock;
use crate::manifest::{CheckpointInfo, CheckpointState};
use crate::shown::line;
use crate::storage::LocalStorage;

/// Most characters of the curve of a metric.
const CURVE_CHARS: usize = 40;

#[derive(Args)]
pub(super) struct Ls {
    /// Directory of checkpoints.
    dir: PathBuf,
    /// The metric that comes first and whose curve is shown; default: the one that most
    /// checkpoints have, of these one called `val…`, of these the first by name.
    #[arg(long, value_name = "METRIC")]
    monitor: Option<String>,
    /// Which way that metric is to go: `best` is marked by it, and not by the link.
    #[arg(long, value_name = "min|max", requires = "monitor", value_parser = super::mode)]
    mode: Option<Mode>,
    /// One JSON object for each checkpoint instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Ls) -> Result<u8, Stop> {
    let parent = open_parent(&LocalStorage::new(), &arguments.dir)?;
    let count = progress::count("looking at", "entries");
    let survey = survey_of(parent.as_ref(), &mut || count.inc(1))?;
    count.finish_and_clear();
    if survey.checkpoints.is_empty() && read_manifest(parent.as_ref()).is_ok() {
        complain(&"note: this is a checkpoint itself; `tch-checkpoint inspect` shows it");
    }
    let listing = Listing::new(survey, arguments);
    let said = if arguments.json { listing.json(out) } else { listing.text(out) };
    let is_damaged = listing.survey.of_state(CheckpointState::Damaged).next().is_some();
    verdict(if is_damaged { DAMAGED } else { 0 }, said)
}

/// What is shown, and what is marked of it.
struct Listing {
    survey: Survey,
    monitor: Option<String>,
    latest: Option<String>,
    best: Option<String>,
}

impl Listing {
    fn new(survey: Survey, arguments: &Ls) -> Self {
        let monitor = arguments.monitor.clone().or_else(|| most_common(&survey));
        let by_link = survey.best.as_ref().map(|name| name.to_string());
        let best = match (&monitor, arguments.mode) {
            (Some(name), Some(mode)) => {
                let best = KeepBest::one(name, mode);
                best.best_of(&survey.checkpoints).map(|info| info.name.clone())
            }
            _ => by_link,
        };
        let latest = survey.newest().map(|info| info.name.clone());
        Self { monitor, latest, best, survey }
    }

    fn is_latest(&self, info: &CheckpointInfo) -> bool {
        info.is_committed() && self.latest.as_ref() == Some(&info.name)
    }

    fn is_best(&self, info: &CheckpointInfo) -> bool {
        info.is_committed() && self.best.as_ref() == Some(&info.name)
    }

    fn text(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        if !self.survey.checkpoints.is_empty() {
            self.table().write(out)?;
            out.line("")?;
        }
        for info in self.survey.of_state(CheckpointState::Damaged) {
            out.line(format!("damaged: {}", info.fault.as_deref().unwrap_or_default()))?;
        }
        self.curve().map_or(Ok(()), |curve| out.line(curve))?;
        out.line(self.counts())
    }

    fn table(&self) -> Grid {
        let mut grid = Grid::new([
            ("", Column::Left),
            ("name", Column::Middle(8)),
            ("step", Column::Right),
            ("epoch", Column::Right),
            ("metrics", Column::End(self.monitored_chars())),
            ("size", Column::Right),
            ("age", Column::Right),
            ("ranks", Column::Right),
            ("state", Column::Left),
        ]);
        let now = clock::unix_time();
        for info in &self.survey.checkpoints {
            let known = |text: String| if is_known(info) { text } else { "-".to_owned() };
            grid.row([
                self.marks(info),
                shown_name(info),
                known(info.step.to_string()),
                known(info.epoch.to_string()),
                self.metrics(info),
                known(bytes(info.tensor_bytes)),
                known(age(now.saturating_sub(Duration::from_millis(info.created_unix_ms)))),
                known(info.world_size.to_string()),
                state(info).to_owned(),
            ]);
        }
        grid
    }

    fn marks(&self, info: &CheckpointInfo) -> String {
        let marks = [(self.is_latest(info), '>'), (self.is_best(info), '*'), (info.pinned, '+')];
        marks.into_iter().filter_map(|(is_set, mark)| is_set.then_some(mark)).collect()
    }

    /// The monitored one first.
    fn metrics(&self, info: &CheckpointInfo) -> String {
        let is_monitored = |name: &&String| Some(*name) == self.monitor.as_ref();
        let first = info.metrics.iter().filter(|(name, _)| is_monitored(name));
        let others = info.metrics.iter().filter(|(name, _)| !is_monitored(name));
        let pair = |(name, value): (&String, &f64)| format!("{}={}", line(name), number(*value));
        first.chain(others).map(pair).collect::<Vec<_>>().join(" ")
    }

    /// Down to the monitored metric, and a sign that there are others, these give way.
    fn monitored_chars(&self) -> usize {
        let chars = |info| match self.metrics(info).split_once(' ') {
            Some((first, _)) => first.chars().count() + 1,
            None => self.metrics(info).chars().count(),
        };
        self.survey.checkpoints.iter().map(chars).max().unwrap_or(0).clamp(7, 24)
    }

    /// How the monitored metric went, oldest first; nothing for less than two numbers.
    fn curve(&self) -> Option<String> {
        let monitor = self.monitor.as_ref()?;
        let committed = self.survey.of_state(CheckpointState::Committed);
        let mut numbers: Vec<f64> =
            committed.filter_map(|info| info.finite_metric(monitor)).collect();
        numbers.reverse();
        let (first, last) = (numbers.first()?, numbers.last().filter(|_| numbers.len() > 1)?);
        let curve = sparkline(&numbers, CURVE_CHARS);
        let name = line(monitor);
        Some(format!("{name}  {curve}  from {} to {}", number(*first), number(*last)))
    }

    fn counts(&self) -> String {
        let of = |state| self.survey.of_state(state).count();
        let others = || self.survey.others.iter().map(|other| other.what);
        let foreign = others().filter(|what| what.is_foreign()).count();
        // Attempts are rows of the table.
        let debris = others().filter(|what| what.is_debris()).count();
        let counts = [
            (of(CheckpointState::Damaged), "damaged"),
            (of(CheckpointState::Partial), "partial"),
            (debris, "to be removed by the next save"),
            (foreign, "foreign"),
        ];
        let mut text = format!("{} committed", of(CheckpointState::Committed));
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!(", {count} {what}"));
        }
        let legend = [
            (self.latest.is_some(), "> latest"),
            (self.survey.checkpoints.iter().any(|info| self.is_best(info)), "* best"),
            (self.survey.checkpoints.iter().any(|info| info.pinned), "+ pinned"),
        ];
        let legend = legend.into_iter().filter_map(|(is_used, mark)| is_used.then_some(mark));
        [text].into_iter().chain(legend.map(str::to_owned)).collect::<Vec<_>>().join("   ")
    }

    fn json(&self, out: &mut Output<'_>) -> Result<(), Stop> {
        self.survey.checkpoints.iter().try_for_each(|info| out.json(&self.object(info)))
    }

    fn object(&self, info: &CheckpointInfo) -> serde_json::Value {
        let known = |count: u64| is_known(info).then_some(count);
        let metrics: serde_json::Map<_, _> =
            info.metrics.iter().map(|(name, value)| (name.clone(), finite(*value))).collect();
        json!({
            "name": info.name, "state": state(info), "step": known(info.step),
            "epoch": known(info.epoch), "metrics": metrics, "bytes": known(info.tensor_bytes),
            "created_unix_ms": known(info.created_unix_ms),
            "world_size": known(info.world_size.into()),
            "save_id": info.save_id.map(|id| id.to_string()),
            "latest": self.is_latest(info), "best": self.is_best(info), "pinned": info.pinned,
            "automatic": info.automatic, "fault": info.fault,
        })
    }
}

/// Whether a manifest could be read.
fn is_known(info: &CheckpointInfo) -> bool {
    info.world_size > 0
}

/// Of an attempt several may be under way.
fn shown_name(info: &CheckpointInfo) -> String {
    match (info.state, info.save_id) {
        (CheckpointState::Partial, Some(id)) => {
            format!("{} ({})", info.name, short_id(&id.to_string()))
        }
        _ => info.name.clone(),
    }
}

fn state(info: &CheckpointInfo) -> &'static str {
    match info.state {
        CheckpointState::Committed => "committed",
        CheckpointState::Damaged => "damaged",
        CheckpointState::Partial => "partial",
    }
}

/// The metric that most checkpoints have, of these one called `val…`, of these the first by name.
pub(super) fn most_common(survey: &Survey) -> Option<String> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for info in survey.of_state(CheckpointState::Committed) {
        for (name, _) in info.metrics.iter().filter(|(_, value)| value.is_finite()) {
            *counts.entry(name).or_default() += 1;
        }
    }
    let key = |(name, count): &(&String, usize)| (usize::MAX - count, !name.starts_with("val"));
    counts.into_iter().min_by_key(key).map(|(name, _)| name.clone())
}
