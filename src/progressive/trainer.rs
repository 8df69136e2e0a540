//! [`ProgressiveTrainer`]: grows a rack stack by stack, trains what is new, saves and resumes.
//!
//! ```text
//! stage:  add a stack, freeze what is below, a new optimizer
//! step:   (all) forward and backward on this rank's batch ─ gradients averaged ─ update
//!         ─ the checkpointer saves if that is due
//! end:    a save when a stage is complete
//! ```

mod stage;
mod step;

use std::path::Path;

use tch::Tensor;

use super::adapters::LoraConfig;
use super::architecture::Architecture;
use super::cache::ActivationCache;
use super::rack::Rack;
use super::run_state::{RunState, Training};
use super::training::{Stage, TrainingConfig, TrainingInfo, TrunkStrategy};
use crate::agree::{agree, unlike};
use crate::checkpointer::{At, Checkpointer, CheckpointerConfig, Outcome, Parts, Resume, Resumed};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::{broadcast_tensors, seed_of_rank};
use crate::preempt::Preempted;
use crate::rank::{Rank, WorldSize};
use crate::save::Checkpoint;
use crate::torch::{Optimizer, RandomState};
pub use step::Batches;

/// What a batch of outputs is worth: outputs and targets to a loss of one element.
pub type LossFn = dyn Fn(&Tensor, &Tensor) -> Tensor;

/// Trains a [`Rack`] that grows, on all ranks, and saves it.
///
/// # Collective
/// Every rank has one, made of the same configuration, and calls its methods in the same order with
/// an equal rack, but for those that say otherwise.
pub struct ProgressiveTrainer {
    group: ProcessGroup,
    config: TrainingConfig,
    checkpointer: Checkpointer,
    training: Training,
    /// The optimizer and cache are for the rack that has been trained last.
    has_broadcast: bool,
    /// Whether the trunk of the cache is known to be that of the rack, which its owner may change
    /// between two calls.
    has_hashed: bool,
    stop: Option<Preempted>,
    /// What the last save took.
    saved: Option<Checkpoint>,
}

impl ProgressiveTrainer {
    /// A trainer that has trained nothing.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`TrainingConfig::check`] and [`Checkpointer::new`].
    pub fn new(group: &ProcessGroup, config: TrainingConfig) -> Result<Self> {
        // The checkpointer compares its own settings.
        let say = || {
            config.check()?;
            let own =
                TrainingConfig { checkpoint: CheckpointerConfig::default(), ..config.clone() };
            serde_json::to_string(&own)
                .map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string()))
        };
        group.phase_all(Channel::Save, "progressive", say, |said: Vec<String>| {
            let differs = |a: &_, b: &_| unlike("the training configuration", a, b);
            agree(&said, differs, "every rank is to train in the same way").map(drop)
        })?;
        let checkpointer = Checkpointer::new(group, config.checkpointer())?;
        let training = Training::new(&config);
        let group = group.clone();
        Ok(Self {
            group,
            config,
            checkpointer,
            training,
            has_broadcast: false,
            has_hashed: false,
            stop: None,
            saved: None,
        })
    }

    /// What it was told. Any rank.
    #[must_use]
    pub fn config(&self) -> &TrainingConfig {
        &self.config
    }

    /// How far it has come. Any rank.
    #[must_use]
    pub fn get_training_info(&self) -> &TrainingInfo {
        &self.training.info
    }

    /// Where its checkpoints lie. Any rank.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.checkpointer.directory()
    }

    /// The last checkpoint that it has saved and waited for. Any rank.
    #[must_use]
    pub fn last_saved(&self) -> Option<&Checkpoint> {
        self.saved.as_ref()
    }

    /// What it keeps of the frozen trunk. Any rank.
    #[must_use]
    pub fn activation_cache(&self) -> &ActivationCache {
        &self.training.cache
    }

    /// Why the run is to end, if it has been told to: then leave, with
    /// [`Preempted::exit_code`]. The same on every rank.
    #[must_use]
    pub fn preempted(&self) -> Option<Preempted> {
        self.stop
    }

    /// Adds stacks and trains each, until the rack has `target_stacks` and the last is trained. A
    /// run that was interrupted, within a stack or between two, goes on where it was; stacks that
    /// are there and were never trained by this run count as trained.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the rack has no room for so many, or adapters are merged that
    /// were to be trained; [`ErrorKind::Disagreement`] if ranks have racks or targets that differ;
    /// those of the architecture, the data, libtorch, and of saves.
    pub fn train_rack<A: Architecture>(
        &mut self,
        rack: &mut Rack<A>,
        batches: &dyn Batches,
        loss: &LossFn,
        target_stacks: usize,
    ) -> Result<()> {
        let what = format!("training to {target_stacks} stacks");
        self.together(rack, &what, |trainer, rack| trainer.check_room(rack, target_stacks))?;
        while self.stop.is_none() {
            match self.training.info.stage {
                Stage::Stack(_) if self.training.info.stage_step < self.config.steps_per_stack => {}
                _ if rack.stacks().len() >= target_stacks => break,
                _ => self.together(rack, "another stack", Self::begin_stack)?,
            }
            self.train_stage(rack, batches, loss, self.config.steps_per_stack)?;
        }
        Ok(())
    }

    /// Freezes all of the rack, attaches adapters to every stack that has none, and trains adapters
    /// for `steps` steps. A run that was interrupted goes on where it was.
    ///
    /// # Errors
    /// As [`ProgressiveTrainer::train_rack`] and [`Rack::attach_adapters`]; no stack has got
    /// adapters then.
    pub fn train_adapters<A: Architecture>(
        &mut self,
        rack: &mut Rack<A>,
        batches: &dyn Batches,
        loss: &LossFn,
        adapters: &LoraConfig,
        steps: u64,
    ) -> Result<()> {
        let what = format!("{steps} steps of {adapters:?}");
        self.together(rack, &what, |trainer, rack| trainer.begin_adapters(rack, adapters))?;
        self.train_stage(rack, batches, loss, steps)
    }

    fn begin<A: Architecture>(
        &mut self,
        rack: &Rack<A>,
        stage: Stage,
        index: usize,
        trunk: &TrunkStrategy,
    ) -> Result<()> {
        if self.training.info.step == 0 {
            self.seed(rack);
        }
        let optimizer = Optimizer::for_unfrozen(self.config.optimizer, rack.store())?;
        self.training.optimizer = Some(optimizer);
        self.training.info.begin(stage, index, trunk);
        self.has_broadcast = false;
        if self.group.is_coordinator() {
            tracing::info!(?stage, index, "a stage of progressive training begins");
        }
        Ok(())
    }

    /// What is drawn in training follows from the rack's seed and the rank.
    fn seed<A: Architecture>(&self, rack: &Rack<A>) {
        tch::manual_seed(seed_of_rank(rack.seed, Some(self.group.rank())));
    }

    /// Trains what is trained at present until the stage has had so many steps.
    fn train_stage<A: Architecture>(
        &mut self,
        rack: &mut Rack<A>,
        batches: &dyn Batches,
        loss: &LossFn,
        steps: u64,
    ) -> Result<()> {
        if !self.has_broadcast {
            // Initial values follow from the seed; other builds of libtorch may draw other ones.
            let all: Vec<Tensor> = step::all_variables(rack);
            broadcast_tensors(&self.group, &all)?;
            self.has_broadcast = true;
        }
        self.has_hashed = false;
        while self.training.info.stage_step < steps && self.stop.is_none() {
            self.step(rack, batches, loss)?;
            self.save_if_due(rack)?;
        }
        if self.stop.is_none() && self.config.checkpoint.enabled {
            self.save_progressive_checkpoint(rack)?;
        }
        Ok(())
    }

    fn at(&self) -> At {
        let info = &self.training.info;
        #[expect(clippy::cast_precision_loss, reason = "there are few stacks")]
        let at = At::step(info.step).epoch(info.epoch).metric("stack", info.stack_idx as f64);
        match info.loss {
            Some(loss) => at.metric("loss", loss),
            None => at,
        }
    }

    fn save_if_due<A: Architecture>(&mut self, rack: &mut Rack<A>) -> Result<()> {
        let at = self.at();
        let stepped =
            self.with_parts(rack, |checkpointer, parts| checkpointer.step_callback(&at, parts))?;
        self.stop = stepped.stop;
        if let Some((_, Outcome::Saved(saved))) = stepped.save {
            self.saved = Some(saved);
        }
        Ok(())
    }

    /// Saves the rack and what trains it, now, under the name that the configuration gives; a step
    /// that is saved already is not saved again. What the rules do not keep is removed.
    ///
    /// # Errors
    /// As [`Checkpointer::save`].
    pub fn save_progressive_checkpoint<A: Architecture>(
        &mut self,
        rack: &mut Rack<A>,
    ) -> Result<Option<Checkpoint>> {
        let at = self.at();
        let outcome = self.with_parts(rack, |checkpointer, parts| checkpointer.save(&at, parts))?;
        if let Outcome::Saved(saved) = outcome {
            self.saved = Some(saved.clone());
            return Ok(Some(saved));
        }
        Ok(None)
    }

    /// Goes on from the checkpoint that the configuration names, by default the newest; `None` if
    /// there is none. A rack without stacks takes the structure that is stored, any other must have
    /// it. Whatever fails, rack and trainer are as they were.
    ///
    /// # Errors
    /// As [`Checkpointer::resume`]; [`ErrorKind::Mismatch`] with every difference in structure.
    pub fn resume<A: Architecture>(&mut self, rack: &mut Rack<A>) -> Result<Option<Resumed>> {
        // For ranks of which no random state was saved: the world has grown.
        self.seed(rack);
        self.with_parts(rack, |checkpointer, parts| checkpointer.resume(parts))
    }

    /// Goes on from the checkpoint at `path`, as [`ProgressiveTrainer::resume`].
    ///
    /// # Errors
    /// As [`ProgressiveTrainer::resume`].
    pub fn restore_from_checkpoint<A: Architecture>(
        &mut self,
        path: impl AsRef<Path>,
        rack: &mut Rack<A>,
    ) -> Result<Resumed> {
        let which = Resume::Path(path.as_ref().to_path_buf());
        self.with_parts(rack, |checkpointer, parts| checkpointer.load(&which, parts))
    }

    /// Waits for a save beside training.
    ///
    /// # Errors
    /// As [`Checkpointer::wait`].
    pub fn wait(&mut self) -> Result<()> {
        self.saved = self.checkpointer.wait()?.or(self.saved.take());
        Ok(())
    }

    fn with_parts<A: Architecture, T>(
        &mut self,
        rack: &mut Rack<A>,
        act: impl FnOnce(&mut Checkpointer, &mut Parts<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut random = RandomState::of(rack.device());
        let mut run = RunState::new(&self.config, rack, &mut self.training);
        let mut parts = Parts::new().model(&mut run).with("rng", &mut random);
        act(&mut self.checkpointer, &mut parts)
    }

    fn place(&self) -> (Rank, WorldSize) {
        (self.group.rank(), self.group.world_size())
    }
}
