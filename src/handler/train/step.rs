//! One training step: forward and backward on this rank's shards, average, update.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::Result;
use crate::handler::ddp::{average_gradients, broadcast_tensors, device_error};
use crate::handler::in_epoch::Sums;
use crate::handler::train::measure::scalar;
use crate::handler::{Feed, Model, NNHandler, shard};
use crate::sabotage;
use crate::torch::{Clip, Ema, Precision, SchedulerUnit};

/// How a step is made; stored, since a resumed run has to make the same steps.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::handler) struct StepSettings {
    accumulate: Option<NonZeroUsize>,
    pub(in crate::handler) clip: Option<Clip>,
    pub(in crate::handler) precision: Precision,
}

impl StepSettings {
    /// Batches of one step.
    pub(in crate::handler) fn accumulate(&self) -> usize {
        self.accumulate.map_or(1, NonZeroUsize::get)
    }

    /// Whether steps can be made so; what comes from a file may say anything.
    pub(in crate::handler) fn validate(&self) -> Result<()> {
        self.clip.map_or(Ok(()), |clip| clip.validate())
    }
}

impl<M: Model> NNHandler<M> {
    /// Makes each step of `batches` batches, whose gradients are averaged over all their samples
    /// (gradient accumulation); the last step of an epoch may have fewer. Default 1, and 0 is 1.
    /// Stored in checkpoints.
    pub fn accumulate(&mut self, batches: usize) {
        self.steps.accumulate = NonZeroUsize::new(batches);
    }

    pub(super) fn train_step(&mut self, feed: &Feed, batches: &[Vec<i64>]) -> Result<()> {
        sabotage::visit(self.group.rank(), "train", "step")?;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.zero_grad()?;
        }
        let (rank, world) = (self.group.rank(), self.group.world_size());
        let samples: usize = batches.iter().map(Vec::len).sum();
        let shards: Vec<&[i64]> = batches.iter().map(|batch| shard(batch, rank, world)).collect();
        let own: usize = shards.iter().map(|shard| shard.len()).sum();
        // A step that fails is made again: what it saw must not count twice.
        let mut sums = self.in_epoch.sums.clone();
        for shard in shards.into_iter().filter(|shard| !shard.is_empty()) {
            self.backward(feed, shard, shard.len() as f64 / own as f64, &mut sums)?;
        }
        let parameters = self.parameters();
        average_gradients(&self.group, &parameters, own as f64 / samples as f64)?;
        sabotage::visit(rank, "train", "update")?;
        self.before_update();
        // From here on parameters may be updated in part, or on some ranks only.
        self.poisoned = true;
        self.update(&parameters)?;
        // Running statistics saw only this rank's samples. The coordinator's count, as in PyTorch,
        // and from here on: a checkpoint may be saved between any two steps.
        broadcast_tensors(&self.group, &self.buffers())?;
        self.poisoned = false;
        self.step += 1;
        self.in_epoch.samples += samples;
        self.in_epoch.sums = sums;
        self.group.progress().add(1);
        self.callbacks_step();
        Ok(())
    }

    /// From averaged gradients, equal on every rank, to the parameters; and so every rank finds
    /// the same infinity, if any, and skips the update.
    fn update(&mut self, parameters: &[Tensor]) -> Result<()> {
        let (Some(optimizer), parts) = (&mut self.optimizer, &mut self.parts) else {
            return Ok(());
        };
        let found_inf = match &parts.scaler {
            Some(scaler) => scaler.unscale(parameters)?,
            None => false,
        };
        if !found_inf {
            if let Some(clip) = &self.steps.clip {
                clip.apply(parameters)?;
            }
            optimizer.step()?;
            parts.ema.as_mut().map_or(Ok(()), Ema::update)?;
            parts.advance(SchedulerUnit::Step, optimizer, None)?;
        }
        if let Some(scaler) = &mut parts.scaler {
            scaler.update(found_inf);
        }
        Ok(())
    }

    /// Adds the gradients of a batch, whose share of this rank's samples in the step is `share`.
    fn backward(&self, feed: &Feed, indices: &[i64], share: f64, sums: &mut Sums) -> Result<()> {
        let (input, target) = feed.dataset.batch(indices, self.device);
        let (output, mut loss) = self.evaluate(&input, &target, true)?;
        sabotage::visit(self.group.rank(), "train", "backward")?;
        self.measure(sums, indices.len(), scalar(&loss)?, &output, &target);
        if share < 1.0 {
            loss = loss.f_mul_scalar(share).map_err(|e| device_error(&e))?;
        }
        if let Some(scaler) = &self.parts.scaler {
            loss = scaler.scale_loss(&loss)?;
        }
        loss.f_backward().map_err(|e| device_error(&e))
    }
}
