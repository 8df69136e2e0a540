//! What must be in order, and equal on every rank, before training begins: else the collectives
//! of the ranks would not match, and the ranks would find out by waiting for each other.

use std::collections::BTreeSet;

use crate::autosave::KnownFields;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Channel;
use crate::handler::train::Goal;
use crate::handler::{Feed, Model, NNHandler};
use crate::rank::Rank;
use crate::torch::Optimizer;

/// What a rank is about to do, each part with its name.
type Setup = Vec<(String, String)>;

impl<M: Model> NNHandler<M> {
    /// The phase before training: every rank is ready, and all are about to do the same, going on
    /// from the same of the checkpoints that are there.
    pub(super) fn agree_to_train(&mut self, goal: Goal) -> Result<()> {
        let this = &*self;
        let decide = |all: Vec<Setup>| agree(&all).and_then(|()| this.look_for_line());
        let found =
            this.group.phase_all(Channel::Training, "train", || this.setup(goal), decide)?;
        self.take_line(found);
        Ok(())
    }

    fn setup(&self, goal: Goal) -> Result<Setup> {
        self.refuse_if_poisoned()?;
        let missing = [
            (self.optimizer.is_none(), "set_optimizer"),
            (self.loss_fn.is_none(), "set_loss_fn"),
            (self.train_feed.is_none(), "set_train_loader"),
        ];
        if let Some((_, call)) = missing.into_iter().find(|(absent, _)| *absent) {
            return Err(invalid(format!("`{call}` was not called before training")));
        }
        let looks = self.parts.scheduler.as_ref().is_some_and(|s| s.config().plateau().is_some());
        if looks && (self.val_feed.is_none() || self.validate_every == 0) {
            let message =
                "the schedule of the learning rate looks at `val_loss`, but nothing is validated";
            return Err(invalid(message.to_owned()).with_help("call `set_val_loader`"));
        }
        let metrics = self.metric_names();
        check_metrics(&metrics)?;
        self.check_preemption()?;
        if let Some(saver) = &self.auto_saver {
            saver.check(&metrics, self.val_feed.is_some() && self.validate_every > 0)?;
            if self.group.is_coordinator() {
                saver.check_directory(&*self.storage, self.preemption.is_on())?;
            }
        }
        self.train_feed.as_ref().map_or(Ok(()), |feed| self.check_same_data(feed))?;
        self.callbacks.check(&KnownFields::new(&metrics))?;
        let of = |feed: Option<&Feed>, call| feed.map(|f| self.describe(f, call)).transpose();
        Ok([
            ("goal", format!("{goal:?}")),
            ("epoch and step", format!("{} and {}", self.epoch, self.step)),
            ("samples in the epoch under way", self.in_epoch.samples.to_string()),
            ("steps", format!("{:?}", self.steps)),
            ("seed", self.seed.to_string()),
            ("optimizer", format!("{:?}", self.optimizer.as_ref().map(describe_optimizer))),
            ("schedule", format!("{:?}", self.parts.scheduler)),
            ("gradient scaler", format!("{:?}", self.parts.scaler)),
            ("averages", format!("{:?}", self.parts.ema.as_ref().map(|ema| ema.config()))),
            ("training data", format!("{:?}", of(self.train_feed.as_ref(), "set_train_loader")?)),
            ("validation data", format!("{:?}", of(self.val_feed.as_ref(), "set_val_loader")?)),
            ("validate_every", self.validate_every.to_string()),
            ("metrics", metrics.join(", ")),
            ("callbacks", format!("{:?}", self.callbacks.ids())),
            ("save_on_signal and save_before_time_limit", self.preemption.describe()),
            ("auto_save", format!("{:?}", self.auto_saver.as_ref().map(|s| s.state()))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into())
    }

    /// How data is cut into batches; an error if there is no batch, whose mean loss would be none.
    fn describe(&self, feed: &Feed, call: &str) -> Result<String> {
        let (loader, samples) = (feed.loader, feed.dataset.len());
        let size = loader.global_batch(self.group.world_size());
        let size = size.map_err(|e| invalid(format!("`{call}`: {}", e.message())))?;
        if samples == 0 || (loader.drop_last && samples < size) {
            let message = format!("`{call}`: {samples} samples make no batch of {size}");
            return Err(invalid(message).with_help("give more data, or allow incomplete batches"));
        }
        let (shuffle, drop_last) = (loader.shuffle, loader.drop_last);
        Ok(format!("{samples} samples by {size}, shuffle {shuffle}, drop_last {drop_last}"))
    }
}

/// Algorithm and settings, and who keeps the state; per group its learning rate and weight decay
/// in use, and which parameters it has.
fn describe_optimizer(optimizer: &Optimizer) -> String {
    let state = if optimizer.is_sharded() { "shared" } else { "whole" };
    let groups = optimizer.groups().iter().map(|group| {
        // Names may be many: a hash tells as well whether they differ.
        let mut names = blake3::Hasher::new();
        for (name, _) in group.parameters() {
            names.update(format!("{name}\0").as_bytes());
        }
        let names = names.finalize().to_hex();
        let (count, lr, decay) = (group.parameters().count(), group.lr, group.weight_decay);
        format!("lr {lr}, weight decay {decay}, {count} parameters with names of hash {names:.8}")
    });
    let groups: Vec<_> = groups.collect();
    format!("{:?}, {state} state, groups [{}]", optimizer.config(), groups.join("; "))
}

/// A metric must not hide another number of an epoch's log.
fn check_metrics(metrics: &[String]) -> Result<()> {
    let built_in = KnownFields::new([""; 0]);
    let mut seen = BTreeSet::new();
    for name in metrics.iter().flat_map(|metric| [metric.clone(), format!("val_{metric}")]) {
        if built_in.contains(&name) || !seen.insert(name.clone()) {
            let message = format!("a metric takes the name `{name}`, which another number has");
            return Err(invalid(message).with_help("give the metric another name"));
        }
    }
    Ok(())
}

/// Coordinator: the first difference, if any.
fn agree(all: &[Setup]) -> Result<()> {
    let Some(ours) = all.first() else { return Ok(()) };
    for (theirs, rank) in all.iter().zip(0..) {
        let differing = ours.iter().zip(theirs).find(|(a, b)| a != b);
        if let Some(((name, ours), (_, theirs))) = differing {
            let message = format!("{name}: {theirs}, but {ours} on the coordinator");
            return Err(Error::new(ErrorKind::Disagreement, message)
                .at_rank(Rank::new(rank))
                .with_help("set up every rank alike before training"));
        }
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
