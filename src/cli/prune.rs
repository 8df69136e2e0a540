//! `prune`: the library's retention, on demand.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use serde_json::json;

use super::format::{bytes, number};
use super::grid::{Column, Grid};
use super::{Output, Stop, verdict};
use crate::autosave::{KeepBest, Mode, Reason, Retention};
use crate::catalog::open_parent;
use crate::group::Progress;
use crate::retain::{Considered, prune};
use crate::shown::line;
use crate::storage::LocalStorage;
use crate::sweep::Pace;

#[derive(Args)]
pub(super) struct Prune {
    /// Directory of checkpoints.
    dir: PathBuf,
    #[command(flatten)]
    rules: Rules,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object for each checkpoint instead of a table.
    #[arg(long)]
    json: bool,
}

/// What stays is what any of them keeps.
#[derive(Args)]
#[command(group = one_of_the_rules())]
struct Rules {
    /// Keep the newest N.
    #[arg(long, value_name = "N")]
    keep_last: Option<NonZeroU64>,
    /// Keep the best M by the metric of --monitor.
    #[arg(long, value_name = "M", requires = "monitor")]
    keep_best: Option<NonZeroU64>,
    /// The metric, as `ls` shows it.
    #[arg(long, value_name = "METRIC", requires = "keep_best")]
    monitor: Option<String>,
    /// Which way that metric is to go.
    #[arg(long, value_name = "min|max", default_value = "min", value_parser = super::mode)]
    mode: Mode,
    /// Keep those whose step is a multiple of N.
    #[arg(long, value_name = "N")]
    keep_every_steps: Option<NonZeroU64>,
    /// Keep one of each number of epochs that is a multiple of N.
    #[arg(long, value_name = "N")]
    keep_every_epochs: Option<NonZeroU64>,
    /// Keep these names, which may have `*`, `?`, `[a-z]`, `{a,b}`; beside another rule.
    #[arg(long, value_name = "NAME")]
    keep: Vec<String>,
}

/// Names alone would be an exception from nothing.
fn one_of_the_rules() -> ArgGroup {
    let rules = ["keep_last", "keep_best", "keep_every_steps", "keep_every_epochs"];
    ArgGroup::new("rule").required(true).multiple(true).args(rules)
}

impl Rules {
    fn retention(&self) -> Retention {
        let best = self.keep_best.zip(self.monitor.clone());
        Retention {
            last: self.keep_last,
            best: best.map(|(count, monitor)| KeepBest { count, monitor, mode: self.mode }),
            every_steps: self.keep_every_steps,
            every_epochs: self.keep_every_epochs,
            pinned: self.keep.clone(),
        }
    }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Prune) -> Result<u8, Stop> {
    let retention = arguments.rules.retention();
    let parent = open_parent(&LocalStorage::new(), &arguments.dir)?;
    let pace = Pace { patience: Duration::from_secs(10), progress: Progress::default() };
    let all = prune(parent.as_ref(), &retention, &pace, arguments.dry_run)?;
    let is_dry = arguments.dry_run;
    let said = if arguments.json {
        all.iter().try_for_each(|one| out.json(&object(one, &retention, is_dry)))
    } else {
        text(out, &all, &retention, is_dry)
    };
    let failed = all.iter().find_map(|one| one.not_removed.as_ref());
    verdict(failed.map_or(0, |error| error.exit_code()), said)
}

fn text(
    out: &mut Output<'_>,
    all: &[Considered],
    retention: &Retention,
    is_dry: bool,
) -> Result<(), Stop> {
    let mut grid = Grid::new([
        ("", Column::Left),
        ("name", Column::Middle(12)),
        ("step", Column::Right),
        ("size", Column::Right),
        ("why", Column::End(24)),
    ]);
    for one in all {
        let info = &one.info;
        let why = if one.goes() { why_it_goes(one) } else { why(one, retention).join(", ") };
        let (name, step) = (info.name.clone(), info.step.to_string());
        grid.row([action(one, is_dry).to_owned(), name, step, bytes(info.tensor_bytes), why]);
    }
    if !all.is_empty() {
        grid.write(out)?;
        out.line("")?;
    }
    let gone = || all.iter().filter(|one| one.goes() && one.not_removed.is_none());
    let freed = bytes(gone().map(|one| one.freed).sum());
    let (gone, stay) = (gone().count(), all.len() - gone().count());
    let done = if is_dry { "to be removed" } else { "removed" };
    out.line(format!("{gone} {done} ({freed}), {stay} kept"))
}

fn action(one: &Considered, is_dry: bool) -> &'static str {
    match (one.goes(), is_dry, &one.not_removed) {
        (false, ..) => "keep",
        (true, true, _) => "remove",
        (true, false, None) => "removed",
        (true, false, Some(_)) => "not removed",
    }
}

fn why_it_goes(one: &Considered) -> String {
    one.not_removed.as_ref().map_or("no rule keeps it".to_owned(), |error| line(&error.to_string()))
}

fn why(one: &Considered, retention: &Retention) -> Vec<String> {
    one.reasons.iter().map(|reason| words(*reason, one, retention)).collect()
}

fn words(reason: Reason, one: &Considered, retention: &Retention) -> String {
    let count = |rule: Option<NonZeroU64>| rule.map_or(String::new(), |n| n.to_string());
    match reason {
        Reason::NoRules => "no rule for it".to_owned(),
        Reason::NotCommitted => "not committed".to_owned(),
        Reason::NotAutomatic => "no policy saved it".to_owned(),
        Reason::OtherLine => "of another run".to_owned(),
        Reason::Newest => "newest".to_owned(),
        Reason::Last => format!("of the last {}", count(retention.last)),
        Reason::Best => retention.best.as_ref().map_or(String::new(), |best| {
            let value = one.info.finite_metric(&best.monitor).map_or(String::new(), number);
            format!("of the best {}: {}={value}", best.count, line(&best.monitor))
        }),
        Reason::EverySteps => format!("every {} steps", count(retention.every_steps)),
        Reason::EveryEpochs => format!("every {} epochs", count(retention.every_epochs)),
        Reason::Pinned => "pinned".to_owned(),
        Reason::Copied => "there under several names".to_owned(),
        Reason::Protected => "in use".to_owned(),
        Reason::Linked => "a link names it".to_owned(),
    }
}

fn object(one: &Considered, retention: &Retention, is_dry: bool) -> serde_json::Value {
    json!({
        "name": one.info.name, "step": one.info.step, "bytes": one.info.tensor_bytes,
        "save_id": one.info.save_id.map(|id| id.to_string()),
        "action": action(one, is_dry), "reasons": why(one, retention), "freed": one.freed,
        "error": one.not_removed.as_ref().map(|error| error.to_string()),
    })
}
