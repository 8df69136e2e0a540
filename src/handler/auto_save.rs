//! Saving by itself: when, under which name, and what to remove afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::autosave::{Every, KnownFields, NameTemplate, Number};
use crate::catalog::CheckpointPath;
use crate::error::Result;
use crate::handler::{Model, NNHandler};
use crate::layout::{CheckpointName, SaveId};
use crate::load::Loaded;
use crate::plan::OnExisting;
use crate::save::Checkpoint;
use crate::storage::Storage;
use crate::sweep::{self, Pace};
use crate::torch::Optimizer;

/// How many checkpoints to be removed a state may name.
const PREVIOUS_MAX: usize = 8;

/// Saves while training, at the end of epochs or of steps; made by [`NNHandler::auto_save`]. Part
/// of every checkpoint, so that a loaded handler goes on saving to the old place.
#[derive(Debug, Clone)]
pub struct AutoSaver {
    state: AutoSaverState,
    template: NameTemplate,
    /// When it last saved, or when it first trained: minutes count from here.
    clock: Option<Instant>,
}

/// What a checkpoint holds of an auto-saver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AutoSaverState {
    interval: Every,
    directory: PathBuf,
    template: String,
    metrics: Vec<String>,
    overwrite: bool,
    save_on_last_epoch: bool,
    /// Checkpoints saved by itself before, which overwriting removes: the last one, and the one
    /// before it where a crash came between commit and removal.
    previous: Vec<(CheckpointName, SaveId)>,
    /// The name that was asked for when the checkpoint that holds this state was saved
    /// automatically; none if it was saved by hand.
    automatic: Option<CheckpointName>,
}

impl AutoSaverState {
    /// Without what it has saved.
    pub(super) fn settings(self) -> Self {
        Self { previous: Vec::new(), automatic: None, ..self }
    }
}

impl AutoSaver {
    pub(super) fn new(
        interval: Every,
        directory: &Path,
        template: &str,
        metrics: &[String],
    ) -> Result<Self> {
        Self::from_state(AutoSaverState {
            interval,
            directory: directory.to_path_buf(),
            template: template.to_owned(),
            metrics: metrics.to_vec(),
            overwrite: false,
            save_on_last_epoch: true,
            previous: Vec::new(),
            automatic: None,
        })
    }

    pub(super) fn from_state(mut state: AutoSaverState) -> Result<Self> {
        if state.automatic.is_some() && !state.overwrite {
            // The checkpoint that holds this followed them, and they were to stay.
            state.previous.clear();
        }
        keep_newest(&mut state.previous);
        let template = NameTemplate::parse(&state.template, &KnownFields::new(&state.metrics))?;
        Ok(Self { template, state, clock: None })
    }

    pub(super) fn state(&self) -> AutoSaverState {
        self.state.clone()
    }

    /// Takes note of the checkpoint out of which it was loaded: if it was an automatic one,
    /// overwriting removes it later.
    pub(super) fn adopt(&mut self, loaded: &Loaded) {
        let Some(asked) = self.state.automatic.take() else { return };
        let name = loaded.path.file_name().and_then(|n| CheckpointName::new(n.to_str()?).ok());
        // A copy under a name of the user's has the same save id, and is the user's. In which
        // directory it was found does not matter: removal looks for name and save id in its own.
        if let Some(name) = name.filter(|name| is_version_of(name.as_str(), asked.as_str())) {
            self.state.previous.push((name, loaded.save_id));
        }
    }

    /// Whether it saves to the directory out of which this checkpoint was loaded.
    pub(super) fn saves_beside(&self, loaded: &Loaded) -> bool {
        let absolute = |path: &Path| std::path::absolute(path).ok();
        let place = loaded.path.parent().and_then(absolute);
        place.is_some() && place == absolute(&self.state.directory)
    }

    /// What was saved before is another training's, and stays.
    pub(super) fn forget(&mut self) {
        self.state.previous.clear();
        self.state.automatic = None;
    }

    /// Takes over from another auto-saver what it saved in the same directory, unless this one has
    /// saved there since.
    pub(super) fn inherit(&mut self, before: &Self) {
        if self.state.directory == before.state.directory {
            if self.state.previous.is_empty() {
                self.state.previous.clone_from(&before.state.previous);
            }
            self.state.automatic.clone_from(&before.state.automatic);
        }
    }

    /// Keep one: after a new checkpoint is committed, the one that was saved automatically before
    /// it is removed, also across a resume; never any other. And a checkpoint that has the name
    /// already is replaced. Default: no; then the new one gets `-v1`, `-v2`, … appended.
    pub fn overwrite(&mut self, overwrite: bool) -> &mut Self {
        self.state.overwrite = overwrite;
        self
    }

    /// Whether the end of each `train` and `train_steps` is saved too, if an interval is set at all.
    /// Default: yes.
    pub fn save_on_last_epoch(&mut self, save: bool) -> &mut Self {
        self.state.save_on_last_epoch = save;
        self
    }

    /// Whether the template fits the metrics that exist now.
    pub(super) fn check(&self, metrics: &[String]) -> Result<()> {
        NameTemplate::parse(&self.state.template, &KnownFields::new(metrics)).map(|_| ())
    }

    /// Makes its directory, so that one that cannot be made shows before days of training. `used`:
    /// also if it saves only when somebody else asks it to.
    pub(super) fn check_directory(&self, storage: &dyn Storage, used: bool) -> Result<()> {
        if self.state.interval == Every::Off && !used {
            return Ok(());
        }
        let made = storage.create_dir_all(&self.state.directory).map(drop);
        made.map_err(|e| e.with_help("nothing was trained; give `auto_save` another directory"))
    }

    /// Where the checkpoint goes; `epoch` is the one that ended, or the one under way.
    fn path(&self, epoch: u64, logs: &BTreeMap<String, Number>) -> Result<CheckpointPath> {
        let rendered = self.template.render(epoch, logs);
        if let Some(warning) = rendered.warning {
            tracing::warn!(warning, "name of the checkpoint");
        }
        let name = CheckpointName::new(&rendered.name)?;
        Ok(CheckpointPath::new(&self.state.directory, name))
    }

    fn due(&self, epoch: u64, step: u64, last: bool) -> bool {
        let every = self.state.interval;
        every.due(epoch, last, self.state.save_on_last_epoch) || self.due_at_step(step)
    }

    fn due_at_step(&self, step: u64) -> bool {
        let since = self.clock.map_or(Duration::ZERO, |began| began.elapsed());
        self.state.interval.due_at_step(step, since)
    }
}

impl<M: Model> NNHandler<M> {
    /// Training begins: minutes between automatic saves count from here on, unless they already do
    /// from a save or an earlier call, which may have been short.
    pub(super) fn start_auto_save_clock(&mut self) {
        if let Some(saver) = &mut self.auto_saver {
            saver.clock.get_or_insert_with(Instant::now);
        }
    }

    /// The end of an epoch. `logs` are equal on every rank, and so is what follows from them.
    /// `anyway`: whether or not a save is due.
    pub(super) fn auto_save_epoch(
        &mut self,
        last: bool,
        anyway: bool,
        logs: &BTreeMap<String, f64>,
    ) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        if !anyway && !self.agreed(saver, saver.due(self.epoch, self.step, last))? {
            return Ok(());
        }
        self.auto_save_now(self.epoch, logs)
    }

    /// The end of a training step inside an epoch; `last`: of this call.
    pub(super) fn auto_save_step(&mut self, last: bool) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        let last = last && saver.state.save_on_last_epoch && saver.state.interval != Every::Off;
        if !self.agreed(saver, last || saver.due_at_step(self.step))? {
            return Ok(());
        }
        self.auto_save_in_epoch()
    }

    /// Saves inside an epoch, due or not.
    pub(super) fn auto_save_in_epoch(&mut self) -> Result<()> {
        let mut logs = self.aggregate("", &self.in_epoch.sums)?;
        logs.insert("lr".to_owned(), self.lr());
        let seconds = self.in_epoch.seconds_until_now();
        logs.insert("epoch_time".to_owned(), self.coordinators(seconds)?);
        self.auto_save_now(self.epoch + 1, &logs)
    }

    /// Clocks differ: the coordinator's decides.
    fn agreed(&self, saver: &AutoSaver, due: bool) -> Result<bool> {
        if !saver.state.interval.asks_the_clock() {
            return Ok(due);
        }
        Ok(self.coordinators(f64::from(u8::from(due)))? > 0.0)
    }

    fn auto_save_now(&mut self, epoch: u64, logs: &BTreeMap<String, f64>) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        let numbers = name_fields(epoch, self.step, logs, self.optimizer.as_ref());
        let path = saver.path(epoch, &numbers)?;
        let overwrite = saver.state.overwrite;
        let on_existing = if overwrite { OnExisting::Replace } else { OnExisting::Number };
        self.mark_automatic(Some(path.name().clone()));
        let began = Instant::now();
        let committed = self.save_as(&path, on_existing);
        self.preemption.saved_in(began.elapsed());
        self.mark_automatic(None);
        self.remember(&committed?, overwrite);
        Ok(())
    }

    fn mark_automatic(&mut self, automatic: Option<CheckpointName>) {
        if let Some(saver) = &mut self.auto_saver {
            saver.state.automatic = automatic;
        }
    }

    /// After the commit: the predecessor goes, if asked for. It goes only now that the successor
    /// is durable, and a failure is logged, never fatal.
    fn remember(&mut self, committed: &Checkpoint, overwrite: bool) {
        let Some(saver) = &mut self.auto_saver else { return };
        saver.clock = Some(Instant::now());
        let now = (committed.name.clone(), committed.save_id);
        let previous = std::mem::replace(&mut saver.state.previous, vec![now]);
        if overwrite {
            let directory = saver.state.directory.clone();
            self.remove_own(&directory, &previous, &committed.name);
        }
    }

    /// Coordinator: removes those of `previous`, but never `keep`, that still are the saves meant.
    pub(super) fn remove_own(
        &self,
        directory: &Path,
        previous: &[(CheckpointName, SaveId)],
        keep: &CheckpointName,
    ) {
        if previous.is_empty() || !self.group.is_coordinator() {
            return;
        }
        let pace = Pace::of(&self.group);
        let opened = self.storage.open_dir(directory);
        for (name, save_id) in previous.iter().filter(|(name, _)| name != keep) {
            let removed = opened
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|dir| sweep::remove(dir.as_ref(), name, save_id, &pace));
            if let Err(error) = removed {
                tracing::warn!(%error, %name, "a previous checkpoint stays");
            }
        }
    }
}

/// Forgets all but so many of one's own checkpoints: each costs a look at the directory, and each
/// resume adds one. Removing those before them was tried when the next one was saved.
pub(super) fn keep_newest(previous: &mut Vec<(CheckpointName, SaveId)>) {
    let surplus = previous.len().saturating_sub(PREVIOUS_MAX);
    previous.drain(..surplus);
}

/// What a name can mention, after an epoch with these logs.
pub(super) fn name_fields(
    epoch: u64,
    step: u64,
    logs: &BTreeMap<String, f64>,
    optimizer: Option<&Optimizer>,
) -> BTreeMap<String, Number> {
    let mut numbers: BTreeMap<String, Number> =
        logs.iter().map(|(name, value)| (name.clone(), Number::Float(*value))).collect();
    numbers.insert("epoch".to_owned(), Number::Int(count(epoch)));
    numbers.insert("step".to_owned(), Number::Int(count(step)));
    for (group, index) in optimizer.into_iter().flat_map(Optimizer::groups).zip(0..) {
        numbers.insert(format!("lr_group_{index}"), Number::Float(group.lr));
    }
    numbers
}

/// Whether `name` is `asked`, or `asked-v<N>` as it is numbered where the name is taken.
pub(super) fn is_version_of(name: &str, asked: &str) -> bool {
    let number = name.strip_prefix(asked).and_then(|rest| rest.strip_prefix("-v"));
    name == asked || number.is_some_and(|n| n.parse::<u32>().is_ok())
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
