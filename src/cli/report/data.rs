//! What is known of a directory of checkpoints, for a report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::curve::Kept;
use super::saves::{Save, saves_of};
use super::trace::Traces;
use super::treemap::Tensor;
use super::{Report, ls};
use crate::autosave::KeepBest;
use crate::catalog::{Found, Survey, open_parent, survey_of, visit};
use crate::cli::progress;
use crate::error::Result;
use crate::manifest::{CheckpointState, Manifest};
use crate::state::Value;
use crate::storage::{Directory, LocalStorage};

/// What a series of losses begins with, among the values of a checkpoint.
const HISTORY: &str = "history.";
/// So many series are drawn.
const SERIES_MAX: usize = 4;

/// Everything of which a report tells.
pub(super) struct Data {
    pub(super) survey: Survey,
    pub(super) monitor: Option<String>,
    /// Committed, oldest first.
    pub(super) kept: Vec<Kept>,
    /// What the newest one holds, if there is one.
    pub(super) newest: Option<Newest>,
    pub(super) traces: Traces,
    /// Oldest first; of this directory.
    pub(super) saves: Vec<Save>,
    /// Saves into other directories, and events of none.
    pub(super) elsewhere: usize,
    pub(super) loose_events: usize,
    here: BTreeMap<String, Duration>,
}

/// The content of the newest checkpoint.
pub(super) struct Newest {
    pub(super) name: String,
    pub(super) tensors: Vec<Tensor>,
    pub(super) history: Vec<(String, Vec<f64>)>,
}

impl Data {
    pub(super) fn gather(arguments: &Report) -> Result<Self> {
        let parent = open_parent(&LocalStorage::new(), &arguments.dir)?;
        let count = progress::count("looking at", "entries");
        let survey = survey_of(parent.as_ref(), &mut || count.inc(1))?;
        let monitor = arguments.monitor.clone().or_else(|| ls::most_common(&survey));
        let (kept, newest) = kept_of(parent.as_ref(), &survey, monitor.as_deref(), arguments)?;
        let mut traces = Traces::default();
        for path in &arguments.trace {
            traces.read(path)?;
        }
        count.finish_and_clear();
        let (all, loose_events) = saves_of(&traces.events);
        traces.events = Vec::new();
        let (saves, others): (Vec<Save>, Vec<Save>) =
            all.into_iter().partition(|save| is_of(save, &arguments.dir));
        let elsewhere = others.len();
        let here = last_of(&kept, &saves);
        Ok(Self { survey, monitor, kept, newest, traces, saves, elsewhere, loose_events, here })
    }

    /// Whether what this save made is still there: it is the last one under a name that is there.
    pub(super) fn is_here(&self, save: &Save) -> bool {
        !save.failed() && self.here.get(save.name()) == Some(&save.begin)
    }
}

/// When the last save began of each checkpoint that is there.
fn last_of(kept: &[Kept], saves: &[Save]) -> BTreeMap<String, Duration> {
    let names: BTreeSet<&str> = kept.iter().map(|kept| kept.info.name.as_str()).collect();
    let of_kept = |save: &&Save| !save.failed() && names.contains(save.name());
    saves.iter().filter(of_kept).map(|save| (save.name().to_owned(), save.begin)).collect()
}

/// Whether it saved into this directory: jobs may name it by another way, so its name decides.
fn is_of(save: &Save, dir: &Path) -> bool {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    match Path::new(save.directory()).file_name() {
        Some(name) => dir.file_name() == Some(name),
        None => true,
    }
}

fn kept_of(
    parent: &dyn Directory,
    survey: &Survey,
    monitor: Option<&str>,
    arguments: &Report,
) -> Result<(Vec<Kept>, Option<Newest>)> {
    let latest = survey.newest().map(|info| info.name.as_str());
    let (mut file_bytes, mut newest) = (BTreeMap::new(), None);
    visit(parent, &mut |name, found: Result<Found>| {
        let Ok(found) = found else { return };
        file_bytes.insert(name.to_string(), found.manifest.total_bytes());
        if latest == Some(name.as_str()) {
            newest = Some(content_of(name.as_str(), &found.manifest));
        }
    })?;
    let by_metric = monitor.zip(arguments.mode).map(|(name, mode)| KeepBest::one(name, mode));
    let best = match &by_metric {
        Some(rule) => rule.best_of(&survey.checkpoints).map(|info| info.name.clone()),
        None => survey.best.as_ref().map(|name| name.to_string()),
    };
    let committed = survey.of_state(CheckpointState::Committed);
    let mut kept: Vec<Kept> = committed
        .map(|info| Kept {
            file_bytes: file_bytes.get(&info.name).copied().unwrap_or(info.tensor_bytes),
            is_best: best.as_ref() == Some(&info.name),
            is_latest: latest == Some(info.name.as_str()),
            info: info.clone(),
        })
        .collect();
    kept.reverse();
    Ok((kept, newest))
}

fn content_of(name: &str, manifest: &Manifest) -> Newest {
    let tensors = manifest.tensors().iter().map(|record| Tensor {
        component: record.component.as_str().to_owned(),
        name: record.name.as_str().to_owned(),
        spec: format!("{} {:?}", record.spec.dtype(), record.spec.shape()),
        bytes: record.spec.size_bytes(),
    });
    let series = |(name, value): (&str, &Value)| match value {
        Value::Floats(losses) => Some((name.strip_prefix(HISTORY)?.to_owned(), losses.clone())),
        _ => None,
    };
    let history = manifest.values().iter().filter_map(series).take(SERIES_MAX).collect();
    Newest { name: name.to_owned(), tensors: tensors.collect(), history }
}
