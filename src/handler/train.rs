//! The epoch loop.
//!
//! Order at the end of an epoch: aggregate training numbers → validate → history → auto-save. So a
//! checkpoint includes the finished epoch.

use std::collections::BTreeMap;
use std::time::Instant;

use tch::Tensor;

use crate::error::{Error, ErrorKind, Result};
use crate::handler::ddp::{average_gradients, broadcast, device_error};
use crate::handler::progress::EpochDisplay;
use crate::handler::{Feed, Model, NNHandler, shard};
use crate::sabotage;

/// Sums over samples on this rank: count, loss, then each metric.
struct Sums(Vec<f64>);

impl Sums {
    fn new(metrics: usize) -> Self {
        Self(vec![0.0; 2 + metrics])
    }

    fn add(&mut self, samples: usize, loss: f64, metrics: impl Iterator<Item = f64>) {
        let samples = samples as f64;
        let means = [1.0, loss].into_iter().chain(metrics);
        for (sum, mean) in self.0.iter_mut().zip(means) {
            *sum += mean * samples;
        }
    }

    fn mean_loss(&self) -> f64 {
        self.0[1] / self.0[0]
    }
}

impl<M: Model> NNHandler<M> {
    /// Trains `epochs` **more** epochs, saving as [`NNHandler::auto_save`] says.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// Before anything is trained, on every rank: [`ErrorKind::InvalidInput`] if optimizer, loss or
    /// training data is missing, data makes no batch, a metric has the name of another number, or
    /// the name template does not fit the metrics; [`ErrorKind::Disagreement`] if ranks are set up
    /// differently; [`ErrorKind::Poisoned`].
    ///
    /// Later: errors of an automatic save (what was saved before is untouched, and training may go
    /// on); [`ErrorKind::PeerLost`], [`ErrorKind::CoordinatorLost`] or [`ErrorKind::Deadline`] if a
    /// rank is lost, also by an error or panic of its own, such as [`ErrorKind::Device`].
    pub fn train(&mut self, epochs: u64) -> Result<()> {
        self.agree_to_train(epochs)?;
        let last = self.epoch.saturating_add(epochs);
        while self.epoch < last {
            self.train_epoch(last)?;
        }
        Ok(())
    }

    fn train_epoch(&mut self, last: u64) -> Result<()> {
        let started = Instant::now();
        let mut logs = self.train_batches(last)?;
        broadcast(&self.group, &self.buffers())?;
        let epoch = self.epoch + 1;
        let due =
            self.validate_every > 0 && (epoch.is_multiple_of(self.validate_every) || epoch == last);
        logs.extend(match &self.val_feed {
            Some(feed) if due => self.validate(feed)?,
            _ => BTreeMap::from([("val_loss".to_owned(), f64::NAN)]),
        });
        logs.insert("lr".to_owned(), self.optimizer.as_ref().map_or(f64::NAN, |o| o.lr()));
        logs.insert("epoch_time".to_owned(), self.coordinators(started.elapsed().as_secs_f64())?);
        // Together, so that history has one number per epoch whatever fails before or after.
        self.epoch = epoch;
        self.history.push(&logs);
        tracing::info!(
            rank = self.group.rank().get(),
            epoch = self.epoch,
            step = self.step,
            loss = logs.get("loss"),
            val_loss = logs.get("val_loss"),
            "epoch done"
        );
        EpochDisplay::line(self, last, &logs);
        self.auto_save_epoch(self.epoch == last, &logs)
    }

    /// One pass over the training data; the logs `loss` and each metric, equal on every rank.
    fn train_batches(&mut self, last: u64) -> Result<BTreeMap<String, f64>> {
        // Out of the handler for as long as its batches change the rest of it.
        let Some(feed) = self.train_feed.take() else {
            return Err(Error::new(ErrorKind::InvalidInput, "no training data"));
        };
        let sums = self.train_feed(&feed, last);
        self.train_feed = Some(feed);
        self.aggregate("", sums?)
    }

    fn train_feed(&mut self, feed: &Feed, last: u64) -> Result<Sums> {
        let world = self.group.world_size();
        let batches = feed.loader.batches(world, feed.dataset.len(), self.seed, self.epoch)?;
        let display = EpochDisplay::start(self, last, batches.len());
        let mut sums = Sums::new(self.metrics.len());
        for batch in &batches {
            sabotage::visit(self.group.rank(), "train", "step")?;
            self.train_batch(feed, batch, &mut sums)?;
            self.group.progress().add(1);
            display.advance(sums.mean_loss());
        }
        Ok(sums)
    }

    /// One step: forward and backward on this rank's shard, average, update.
    fn train_batch(&mut self, feed: &Feed, batch: &[i64], sums: &mut Sums) -> Result<()> {
        let own = shard(batch, self.group.rank(), self.group.world_size());
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.zero_grad()?;
        }
        if !own.is_empty() {
            let (input, target) = feed.dataset.batch(own, self.device);
            let output = self.model.forward(&input, true);
            let loss = self.loss(&output, &target)?;
            loss.f_backward().map_err(|e| device_error(&e))?;
            sums.add(own.len(), scalar(&loss)?, self.measure(&output, &target));
        }
        let weight = own.len() as f64 / batch.len() as f64;
        average_gradients(&self.group, &self.parameters(), weight)?;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.step()?;
        }
        self.step += 1;
        Ok(())
    }

    /// Mean loss and metrics over the validation data, each rank looking at its shards.
    fn validate(&self, feed: &Feed) -> Result<BTreeMap<String, f64>> {
        let mut sums = Sums::new(self.metrics.len());
        let world = self.group.world_size();
        let _no_grad = tch::no_grad_guard();
        for batch in feed.loader.batches(world, feed.dataset.len(), self.seed, 0)? {
            let own = shard(&batch, self.group.rank(), world);
            if !own.is_empty() {
                let (input, target) = feed.dataset.batch(own, self.device);
                let output = self.model.forward(&input, false);
                let loss = self.loss(&output, &target)?;
                sums.add(own.len(), scalar(&loss)?, self.measure(&output, &target));
            }
            self.group.progress().add(1);
        }
        self.aggregate("val_", sums)
    }

    fn loss(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        let missing = || Error::new(ErrorKind::InvalidInput, "no loss function");
        self.loss_fn.as_ref().map(|loss| loss(output, target)).ok_or_else(missing)
    }

    fn measure<'a>(
        &'a self,
        output: &'a Tensor,
        target: &'a Tensor,
    ) -> impl Iterator<Item = f64> + 'a {
        let output = output.detach();
        self.metrics.iter().map(move |(_, metric)| metric(&output, target))
    }

    /// Means over all ranks, named `prefix` + `loss` and `prefix` + each metric.
    fn aggregate(&self, prefix: &str, mut sums: Sums) -> Result<BTreeMap<String, f64>> {
        self.group.all_reduce_sum_f64(&mut sums.0)?;
        let names = std::iter::once("loss").chain(self.metrics.iter().map(|(n, _)| n.as_str()));
        let means = sums.0.iter().skip(1).map(|sum| sum / sums.0[0]);
        Ok(names.map(|name| format!("{prefix}{name}")).zip(means).collect())
    }

    /// The coordinator's value, on every rank.
    fn coordinators(&self, value: f64) -> Result<f64> {
        let mut bytes = value.to_le_bytes();
        self.group.broadcast(&mut bytes)?;
        Ok(f64::from_le_bytes(bytes))
    }
}

fn scalar(loss: &Tensor) -> Result<f64> {
    loss.f_double_value(&[]).map_err(|e| device_error(&e))
}
