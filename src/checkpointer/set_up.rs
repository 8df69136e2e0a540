//! Making a checkpointer: configuration, directory, template.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ask::Longest;
use super::{
    Checkpointer, CheckpointerConfig, FieldDifference, Location, ThisMachine, TrainerState,
    differences,
};
use crate::autosave::{Counters, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::lineage::{Lineage, top_of};
use crate::preempt::{Poll, Watch};
use crate::rank::Rank;
use crate::storage::{LocalStorage, Storage};
use crate::sweep::{Pace, When, sweep};
use crate::tensorboard::EventLog;
use crate::tidy::{Pointed, Tidy};
use crate::{catalog, space};

/// A checkpointer as `config` says; `None` if it says that there is to be none. `config` is taken as
/// it is: variables of the environment have overridden it when it was
/// [read from a file](CheckpointerConfig::from_file).
///
/// # Collective
/// As [`Checkpointer::new`].
///
/// # Errors
/// As [`Checkpointer::new`].
pub fn create_checkpointer_from_config(
    group: &ProcessGroup,
    config: &CheckpointerConfig,
) -> Result<Option<Checkpointer>> {
    let made = Checkpointer::new(group, config.clone())?;
    Ok(config.enabled.then_some(made))
}

impl Checkpointer {
    /// A checkpointer on the file system. Its directory is made, and what crashed jobs left in it
    /// is swept.
    ///
    /// # Collective
    /// Every rank, with the same configuration.
    ///
    /// # Errors
    /// On every rank: [`ErrorKind::InvalidInput`] for what contradicts itself, naming each field;
    /// [`ErrorKind::Disagreement`] if ranks are configured differently, naming the first field;
    /// [`ErrorKind::Storage`] if the directory cannot be made.
    pub fn new(group: &ProcessGroup, config: CheckpointerConfig) -> Result<Self> {
        Self::with_storage(group, Arc::new(LocalStorage::new()), config)
    }

    /// The same on any storage.
    ///
    /// # Collective
    /// Every rank, with the same configuration.
    ///
    /// # Errors
    /// As [`Checkpointer::new`].
    pub fn with_storage(
        group: &ProcessGroup,
        storage: Arc<dyn Storage>,
        config: CheckpointerConfig,
    ) -> Result<Self> {
        let mut watch = None;
        let check = || {
            config.check()?;
            watch = Some(begin_to_watch(&config)?);
            to_json(&config)
        };
        let directory_of = |by_rank: Vec<String>| {
            compare(&by_rank)?;
            let place = match config.location.resolve(&config.experiment, &ThisMachine) {
                // Nothing is going to be saved there.
                Err(_) if !config.enabled => Location::local(&config.experiment)?,
                place => place?,
            };
            let warning_mib = config.space_warning_mib.max(place.space_warning_mib);
            let reserve = warning_mib.saturating_mul(1 << 20);
            let lineage = match config.enabled {
                true => prepare(group, storage.as_ref(), &place.directory, reserve)?,
                false => Lineage::default(),
            };
            Ok((place.directory, reserve, lineage))
        };
        let (directory, space_reserve, lineage) =
            group.phase_all(Channel::Training, "configure", check, directory_of)?;
        let template = config.name_template()?;
        Ok(Self {
            group: group.clone(),
            storage,
            directory,
            space_reserve,
            template,
            triggers: config.triggers()?,
            retention: config.retention()?.unwrap_or_default(),
            predicate: None,
            watch: watch.unwrap_or_default(),
            poll: Poll::default(),
            state: TrainerState { experiment: config.experiment.clone(), ..Default::default() },
            before: Counters::default(),
            saved_step: None,
            clock: Instant::now(),
            save_takes: Longest::default(),
            resumed: None,
            passed_over: Vec::new(),
            poisoned: false,
            has_warned: false,
            lineage,
            pointed: Pointed::default(),
            pending: None,
            events: events_of(group, &config),
            stop: None,
            config,
        })
    }

    pub(super) fn monitor(&self) -> Option<(&str, Mode)> {
        monitor(&self.config)
    }

    /// What happens after the commit of a save of that step.
    pub(super) fn tidy(&self, step: u64) -> Tidy {
        Tidy {
            group: self.group.clone(),
            storage: self.storage.clone(),
            directory: self.directory.clone(),
            retention: self.retention.clone(),
            monitor: self.config.monitor.clone().map(|name| (name, self.config.mode)),
            protected: self.resumed.iter().chain(&self.passed_over).copied().collect(),
            line: self.lineage.line,
            pointed: self.pointed.clone(),
            events: self.events.clone().map(|events| (events, step)),
        }
    }
}

/// The metric that tells the best, and which way it is to go.
pub(super) fn monitor(config: &CheckpointerConfig) -> Option<(&str, Mode)> {
    config.monitor.as_deref().map(|name| (name, config.mode))
}

/// Coordinator: the event log of the experiment.
fn events_of(group: &ProcessGroup, config: &CheckpointerConfig) -> Option<Arc<EventLog>> {
    let directory = config.tensorboard.as_ref()?.join(&config.experiment);
    (config.enabled && group.is_coordinator()).then(|| Arc::new(EventLog::new(&directory)))
}

fn begin_to_watch(config: &CheckpointerConfig) -> Result<Watch> {
    let margin = Duration::try_from_secs_f64(config.time_limit_margin_seconds).unwrap_or_default();
    let time_limit = config.save_before_time_limit.then_some(margin);
    if !config.enabled {
        return Ok(Watch::default());
    }
    Watch::begin(config.save_on_signal, time_limit)
}

fn to_json(config: &CheckpointerConfig) -> Result<String> {
    serde_json::to_string(config).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, format!("the configuration has no JSON form: {e}"))
    })
}

/// Every rank is configured alike, or all hear of the first field that differs.
fn compare(by_rank: &[String]) -> Result<()> {
    let parsed =
        |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    let by_rank: Vec<_> = by_rank.iter().map(parsed).collect();
    let Some(ours) = by_rank.first() else { return Ok(()) };
    for (theirs, rank) in by_rank.iter().zip(0..) {
        if let Some(FieldDifference { field, ours, theirs }) = differences(ours, theirs).first() {
            let message = format!("`{field}` is {theirs} on this rank, {ours} on the coordinator");
            return Err(Error::new(ErrorKind::Disagreement, message)
                .at_rank(Rank::new(rank))
                .with_help("give every rank the same configuration and environment"));
        }
    }
    Ok(())
}

/// Coordinator: a directory that cannot be made shows before days of training. Where a run stands
/// that begins anew beside what is in it.
fn prepare(
    group: &ProcessGroup,
    storage: &dyn Storage,
    directory: &Path,
    space_reserve: u64,
) -> Result<Lineage> {
    let made = storage.create_dir_all(directory);
    let parent = made.map_err(|e| e.with_help("nothing was trained; choose another location"))?;
    let pace = Pace::of(group);
    sweep(parent.as_ref(), When::BeforeSave, &pace);
    space::look(parent.as_ref(), space_reserve);
    let found = catalog::list(parent.as_ref(), &mut || pace.progress.add(1))?;
    Lineage::fresh(top_of(&found))
}
