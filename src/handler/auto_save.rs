//! Saving by itself: when, under which name, and what to remove afterwards.

mod after;
mod beside;
mod due;
mod line;
mod marks;
mod policies;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::autosave::{Every, KnownFields, NameTemplate, Number};
use crate::catalog::CheckpointPath;
use crate::error::Result;
use crate::layout::{CheckpointName, SaveId};
use crate::load::Loaded;
use crate::storage::Storage;
use crate::torch::Optimizer;

pub(super) use after::remove_own;
pub(super) use beside::Beside;
pub(super) use due::Occasion;
pub(super) use line::Line;
pub(super) use marks::Marks;
use policies::Policies;

/// How many checkpoints to be removed a state may name.
const PREVIOUS_MAX: usize = 8;

/// Saves while training, at the end of epochs or of steps; made by
/// [`NNHandler::auto_save`](crate::NNHandler::auto_save). Part of every checkpoint, so that a loaded
/// handler goes on saving to the old place.
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
    #[serde(default, skip_serializing_if = "Policies::are_defaults")]
    policies: Policies,
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
            policies: Policies::default(),
        })
    }

    pub(super) fn from_state(mut state: AutoSaverState) -> Result<Self> {
        if state.automatic.is_some() && !state.overwrite {
            // The checkpoint that holds this followed them, and they were to stay.
            state.previous.clear();
        }
        keep_newest(&mut state.previous);
        let template = NameTemplate::parse(&state.template, &KnownFields::new(&state.metrics))?;
        state.policies.check(state.overwrite)?;
        Ok(Self { template, state, clock: None })
    }

    pub(super) fn state(&self) -> AutoSaverState {
        self.state.clone()
    }

    /// As it is once note is taken of a save of its own that is committed.
    pub(super) fn state_after(&self, landed: Option<(CheckpointName, SaveId)>) -> AutoSaverState {
        let mut state = self.state();
        if let Some(committed) = landed {
            state.previous = vec![committed];
        }
        state
    }

    /// Takes note of a save of its own that is committed: it alone is what overwriting removes next.
    fn remember(&mut self, committed: (CheckpointName, SaveId)) {
        self.state.previous = vec![committed];
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
    /// already is replaced. Default: no; then the new one gets `-v1`, `-v2`, … appended. Contradicts
    /// what [`AutoSaver::keep`] and its kin say, which
    /// [`NNHandler::train`](crate::NNHandler::train) refuses.
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

    /// Whether template and rules fit the metrics that exist now, and one another.
    pub(super) fn check(&self, metrics: &[String], validates: bool) -> Result<()> {
        NameTemplate::parse(&self.state.template, &KnownFields::new(metrics))?;
        self.state.policies.check(self.state.overwrite)?;
        self.state.policies.check_monitor(metrics, validates)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.state.directory
    }

    /// Whether it is to save at all. `anyway`: somebody else may ask it to.
    pub(super) fn is_used(&self, anyway: bool) -> bool {
        anyway || self.state.interval != Every::Off
    }

    /// Makes its directory, so that one that cannot be made shows before days of training. `used`:
    /// also if it saves only when somebody else asks it to.
    pub(super) fn check_directory(&self, storage: &dyn Storage, used: bool) -> Result<()> {
        if !self.is_used(used) {
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
