//! How a run trains, and how far it has come: plain data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::adapters::LoraConfig;
use super::described::StackId;
use super::precision::StackPrecision;
use super::stack::BLOCKS_MAX;
use crate::checkpointer::{CheckpointerConfig, read_table};
use crate::error::{Error, ErrorKind, Result};
use crate::torch::{AdamW, OptimizerConfig};

/// A [`TrainingInfo`], as JSON.
pub(super) const TRAINING: &str = "progressive.training";
/// The newest losses that are kept.
const LOSSES_MAX: usize = 1000;
/// The table of a file that holds these settings; `[checkpoint]` holds those of the checkpointer.
const TABLE: &str = "progressive";
/// Names that say which stack was trained, and when.
pub(super) const NAME: &str = "progressive_stack_{stack:.0f}_step_{step:08d}";

/// What becomes of the stacks below the one that is trained.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrunkStrategy {
    /// They stay as they are. Default.
    #[default]
    Frozen,
    /// Their weights stay as they are; adapters on them are trained beside the new stack.
    Adapters(LoraConfig),
    /// They are trained too.
    Trained,
}

/// How a [`ProgressiveTrainer`](super::ProgressiveTrainer) trains. The same on every rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Training steps for each stack. Default: 100.
    pub steps_per_stack: u64,
    /// Blocks of a stack that is added. Default: 1.
    pub blocks_per_stack: usize,
    /// Precision of a stack that is added. Default: that of the rack.
    pub new_stack_precision: Option<StackPrecision>,
    /// What becomes of the stacks below the one that is trained. Default: frozen.
    pub trunk: TrunkStrategy,
    /// How parameters are updated. Default: AdamW with a learning rate of 0.001.
    pub optimizer: OptimizerConfig,
    /// Save after every so many training steps, counted over all stacks and resumes; 0 is never.
    /// Default: 100. At the end of each stack there is a save as well.
    pub save_interval: u64,
    /// Most memory, in MiB, for what a frozen trunk gives for each batch, on each rank; it travels
    /// with checkpoints. Default: 0, nothing is kept.
    pub activation_cache_mib: u64,
    /// Where checkpoints lie, what is kept, what a run begins with. Its `save_every_steps` is
    /// `save_interval`; its names are `progressive_stack_<index>_step_<step>` unless it has others.
    #[serde(skip)]
    pub checkpoint: CheckpointerConfig,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps_per_stack: 100,
            blocks_per_stack: 1,
            new_stack_precision: None,
            trunk: TrunkStrategy::Frozen,
            optimizer: AdamW::default().into(),
            save_interval: 100,
            activation_cache_mib: 0,
            checkpoint: CheckpointerConfig::default(),
        }
    }
}

impl TrainingConfig {
    /// Reads a file that ends in `.toml`, `.yaml`, `.yml` or `.json`: these settings from its table
    /// `progressive`, those of the checkpointer from its table `checkpoint`, as
    /// [`CheckpointerConfig::from_file_at`] does.
    ///
    /// ```
    /// use tch_checkpoint::progressive::TrainingConfig;
    ///
    /// # let scratch = tempfile::tempdir().unwrap();
    /// let file = scratch.path().join("train.toml");
    /// std::fs::write(&file, r#"
    ///     [progressive]
    ///     steps_per_stack = 500
    ///     save_interval = 50
    ///     new_stack_precision = "bf16"
    ///
    ///     [checkpoint]
    ///     experiment = "letters"
    ///     keep_last = 3
    /// "#).unwrap();
    /// let config = TrainingConfig::from_file(&file)?;
    /// assert_eq!((config.save_interval, config.checkpoint.keep_last), (50, Some(3)));
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CheckpointerConfig::from_file_at`], for either table.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let checkpoint = CheckpointerConfig::from_file_at(path, "checkpoint")?;
        Ok(Self { checkpoint, ..read_table(path, TABLE)? })
    }

    /// Whether one can train so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with everything that is wrong; that of
    /// [`CheckpointerConfig::check`].
    pub fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        if self.steps_per_stack == 0 {
            faults.push("steps_per_stack is 0".to_owned());
        }
        if self.blocks_per_stack == 0 || self.blocks_per_stack > BLOCKS_MAX {
            faults.push(format!("blocks_per_stack is {}", self.blocks_per_stack));
        }
        if let TrunkStrategy::Adapters(adapters) = &self.trunk {
            faults.extend(adapters.check().err().map(|error| error.message().to_owned()));
        }
        if !faults.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, faults.join("; ")));
        }
        self.checkpointer().check()
    }

    /// The settings of the checkpointer, with what these say.
    pub(super) fn checkpointer(&self) -> CheckpointerConfig {
        let mut config = self.checkpoint.clone();
        config.save_every_steps = (self.save_interval > 0).then_some(self.save_interval);
        if config.name == CheckpointerConfig::default().name {
            config.name = NAME.to_owned();
        }
        for metric in ["stack", "loss"] {
            if !config.metrics.iter().any(|known| known == metric) {
                config.metrics.push(metric.to_owned());
            }
        }
        config
    }
}

/// What is trained at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing yet.
    #[default]
    Idle,
    /// The stack of this identity, and the head.
    Stack(StackId),
    /// Adapters alone, on all stacks.
    Adapters,
}

/// One stage of training that has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageHistory {
    /// What was trained.
    pub stage: Stage,
    /// How many steps.
    pub steps: u64,
    /// The loss of its first step; the mean over all ranks, as all losses.
    pub first_loss: Option<f64>,
    /// The loss of its last step so far.
    pub final_loss: Option<f64>,
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingInfo {
    /// Training steps completed, over all stages.
    pub step: u64,
    /// Passes over the data completed, as the data counts them.
    pub epoch: u64,
    /// What is trained.
    pub stage: Stage,
    /// The place of the stack that is trained, or of the last one.
    pub stack_idx: usize,
    /// Steps of this stage completed.
    pub stage_step: u64,
    /// The loss of the last step.
    pub loss: Option<f64>,
    /// What became of the trunk.
    pub trunk: TrunkStrategy,
    /// Every stage, in order.
    pub history: Vec<StageHistory>,
    /// The losses of the last 1000 steps.
    pub losses: Vec<f64>,
}

impl TrainingInfo {
    /// Another stage begins.
    pub(super) fn begin(&mut self, stage: Stage, stack_idx: usize, trunk: &TrunkStrategy) {
        (self.stage, self.stack_idx, self.stage_step) = (stage, stack_idx, 0);
        self.trunk = trunk.clone();
        self.history.push(StageHistory { stage, steps: 0, first_loss: None, final_loss: None });
    }

    /// A step was made.
    pub(super) fn stepped(&mut self, loss: f64, epoch: u64) {
        self.step += 1;
        self.stage_step += 1;
        (self.loss, self.epoch) = (Some(loss), epoch);
        self.losses.push(loss);
        self.losses.drain(..self.losses.len().saturating_sub(LOSSES_MAX));
        if let Some(stage) = self.history.last_mut() {
            stage.steps += 1;
            stage.first_loss = stage.first_loss.or(Some(loss));
            stage.final_loss = Some(loss);
        }
    }
}
