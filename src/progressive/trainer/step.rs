//! One training step of a rack.

use tch::{Device, Tensor};

use super::{LossFn, ProgressiveTrainer};
use crate::error::{Error, ErrorKind, Result};
use crate::handler::average_gradients;
use crate::progressive::architecture::Architecture;
use crate::progressive::rack::Rack;
use crate::rank::{Rank, WorldSize};
use crate::torch::torch_error;

/// Batches by number: what is trained on follows from the step alone, so that a run that is resumed
/// sees what it would have seen.
pub trait Batches {
    /// Input and target of this rank in training step `step`, counted from 0 over all stages. All
    /// ranks have batches of the same size.
    ///
    /// # Errors
    /// Any.
    fn batch(
        &self,
        step: u64,
        rank: Rank,
        world: WorldSize,
        device: Device,
    ) -> Result<(Tensor, Tensor)>;

    /// How many passes over the data so many steps are. Default: 0.
    fn epoch(&self, steps: u64) -> u64 {
        let _ = steps;
        0
    }
}

/// Every variable of a rack, by name.
pub(super) fn all_variables<A: Architecture>(rack: &Rack<A>) -> Vec<Tensor> {
    let variables = rack.store().variables();
    let mut named: Vec<_> = variables.into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named.into_iter().map(|(_, tensor)| tensor).collect()
}

impl ProgressiveTrainer {
    pub(super) fn step<A: Architecture>(
        &mut self,
        rack: &Rack<A>,
        batches: &dyn Batches,
        loss: &LossFn,
    ) -> Result<()> {
        let (rank, world) = self.place();
        let number = self.training.info.step;
        let Some(optimizer) = &mut self.training.optimizer else {
            return Err(Error::new(ErrorKind::InvalidInput, "a step without a stage"));
        };
        optimizer.zero_grad()?;
        let (input, target) = batches.batch(number, rank, world, rack.device())?;
        let output = self.forward(rack, &input)?;
        let loss = loss(&output, &target);
        loss.f_backward().map_err(|e| torch_error("the backward pass", &e))?;
        let trained = all_variables(rack);
        let trained: Vec<Tensor> = trained.into_iter().filter(Tensor::requires_grad).collect();
        #[expect(clippy::cast_precision_loss, reason = "a share of the batch")]
        let share = 1.0 / world.len() as f64;
        average_gradients(&self.group, &trained, share)?;
        let own = loss.f_double_value(&[]).map_err(|e| torch_error("reading the loss", &e))?;
        let mut mean = [own * share];
        self.group.all_reduce_sum_f64(&mut mean)?;
        // A save beside training may still be copying what changes now.
        self.checkpointer.before_update();
        if let Some(optimizer) = &mut self.training.optimizer {
            optimizer.step()?;
        }
        let [mean] = mean;
        self.training.info.stepped(mean, batches.epoch(number + 1));
        self.group.progress().add(1);
        Ok(())
    }

    /// The output for a batch, with what the frozen trunk gave for it before.
    fn forward<A: Architecture>(&mut self, rack: &Rack<A>, input: &Tensor) -> Result<Tensor> {
        let prefix = rack.frozen_prefix();
        if prefix == 0 {
            return rack.forward(input, true);
        }
        // What is frozen is evaluated, not trained: the same with and without a cache.
        let evaluated = || tch::no_grad(|| rack.forward_trunk(prefix, input, false));
        if !self.training.cache.is_on() {
            return rack.forward_from(prefix, &evaluated()?, true);
        }
        let trunk = match self.training.cache.trunk() {
            Some(trunk) if self.has_hashed => trunk,
            _ => rack.trunk_hash(prefix)?,
        };
        self.has_hashed = true;
        let hidden = match self.training.cache.get(trunk, input)? {
            Some(hidden) => hidden,
            None => {
                let hidden = evaluated()?;
                self.training.cache.put(trunk, input, &hidden)?;
                hidden
            }
        };
        rack.forward_from(prefix, &hidden, true)
    }
}
