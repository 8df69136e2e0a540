//! Numbers over samples: loss and metrics, on this rank and over all.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tch::Tensor;

use crate::error::{Error, ErrorKind, Result};
use crate::handler::ddp::device_error;
use crate::handler::in_epoch::Sums;
use crate::handler::{Feed, Model, NNHandler, shard};
use crate::preempt::Preempted;

impl<M: Model> NNHandler<M> {
    /// Mean loss and metrics over the validation data, each rank looking at its shards; or why it
    /// was left off.
    pub(super) fn validate(
        &self,
        feed: &Feed,
    ) -> Result<ControlFlow<Preempted, BTreeMap<String, f64>>> {
        let mut sums = Sums::default();
        let world = self.group.world_size();
        let _no_grad = tch::no_grad_guard();
        self.ask_anew();
        for batch in feed.loader.batches(world, feed.dataset.len(), self.seed, 0, 0)? {
            if let Some(reason) = self.ask_if_preempted()? {
                return Ok(ControlFlow::Break(reason));
            }
            let own = shard(&batch, self.group.rank(), world);
            if !own.is_empty() {
                let (input, target) = feed.dataset.batch(own, self.device);
                let (output, loss) = self.evaluate(&input, &target, false)?;
                self.measure(&mut sums, own.len(), scalar(&loss)?, &output, &target);
            }
            self.group.progress().add(1);
        }
        self.ask_anew();
        self.aggregate("val_", &sums).map(ControlFlow::Continue)
    }

    /// Output and loss of a batch, in the precision that was set.
    pub(super) fn evaluate(
        &self,
        input: &Tensor,
        target: &Tensor,
        train: bool,
    ) -> Result<(Tensor, Tensor)> {
        let Some(loss_fn) = &self.loss_fn else {
            return Err(Error::new(ErrorKind::InvalidInput, "no loss function"));
        };
        self.steps.precision.run(self.device, || {
            let output = self.model.forward(input, train);
            let loss = loss_fn(&output, target);
            (output, loss)
        })
    }

    /// Adds a batch of this rank.
    pub(super) fn measure(
        &self,
        sums: &mut Sums,
        samples: usize,
        loss: f64,
        output: &Tensor,
        target: &Tensor,
    ) {
        sums.add("loss", samples, loss);
        let output = output.detach();
        for (name, metric) in &self.metrics {
            sums.add(name, samples, metric(&output, target));
        }
    }

    /// Means over all ranks, named `prefix` + `loss` and `prefix` + each metric.
    pub(in crate::handler) fn aggregate(
        &self,
        prefix: &str,
        sums: &Sums,
    ) -> Result<BTreeMap<String, f64>> {
        let names = std::iter::once("loss").chain(self.metrics.iter().map(|(n, _)| n.as_str()));
        let names: Vec<&str> = names.collect();
        let mut totals: Vec<f64> = names.iter().flat_map(|name| sums.get(name)).collect();
        self.group.all_reduce_sum_f64(&mut totals)?;
        let means = totals.chunks_exact(2).map(|total| total[0] / total[1]);
        Ok(names.iter().map(|name| format!("{prefix}{name}")).zip(means).collect())
    }

    /// The coordinator's value, on every rank.
    pub(in crate::handler) fn coordinators(&self, value: f64) -> Result<f64> {
        let mut bytes = value.to_le_bytes();
        self.group.broadcast(&mut bytes)?;
        Ok(f64::from_le_bytes(bytes))
    }
}

pub(super) fn scalar(loss: &Tensor) -> Result<f64> {
    loss.f_double_value(&[]).map_err(|e| device_error(&e))
}
