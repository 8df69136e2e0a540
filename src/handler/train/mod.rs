//! The training loop.
//!
//! Order at the end of an epoch: aggregate training numbers → validate, with averaged parameters if
//! kept → advance the learning rate → history → callbacks → saves that they asked for → auto-save. So a
//! checkpoint includes the finished epoch. An epoch that a resumed run finds half
//! done is gone on with.
//!
//! Whether the job is to end is asked after every step, at the end of every epoch, and in front of
//! every batch of a validation, which may take longer than there is time; then the epoch counts as
//! under way, with all its samples done.

mod measure;
mod step;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

pub(super) use self::step::StepSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::auto_save::Occasion;
use crate::handler::in_epoch::{DataFacts, InEpoch};
use crate::handler::progress::EpochDisplay;
use crate::handler::random::RandomNow;
use crate::handler::{Feed, Model, NNHandler};
use crate::torch::SchedulerUnit;

/// Where a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// So many epochs completed.
    Epoch(u64),
    /// So many steps completed.
    Step(u64),
}

impl Goal {
    fn is_reached(self, epoch: u64, step: u64) -> bool {
        match self {
            Self::Epoch(last) => epoch >= last,
            Self::Step(last) => step >= last,
        }
    }

    /// The last epoch, where it is known.
    pub(super) fn last_epoch(self) -> Option<u64> {
        match self {
            Self::Epoch(last) => Some(last),
            Self::Step(_) => None,
        }
    }
}

impl<M: Model> NNHandler<M> {
    /// Trains `epochs` **more** epochs, saving as [`NNHandler::auto_save`] says. An epoch that was
    /// left half done, by [`NNHandler::train_steps`] or by the run that saved a loaded checkpoint,
    /// is completed first and counts as one of them. A callback may end it early; the epoch then
    /// counts as the last one. So may [`NNHandler::save_on_signal`], in the middle of an epoch.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// Before anything is trained, on every rank: [`ErrorKind::InvalidInput`] if optimizer, loss or
    /// training data is missing, data makes no batch or is not that with which the epoch began, a
    /// metric has the name of another number, or the name template does not fit the metrics;
    /// [`ErrorKind::Disagreement`] if ranks are set up differently; [`ErrorKind::Poisoned`].
    ///
    /// Later: errors of an automatic save, or of one that a callback asked for (what was saved
    /// before is untouched, and training may go on); [`ErrorKind::PeerLost`], [`ErrorKind::CoordinatorLost`] or [`ErrorKind::Deadline`] if a
    /// rank is lost, also by an error or panic of its own, such as [`ErrorKind::Device`]. If that
    /// came while parameters were being updated, the handler is poisoned: it refuses to train or
    /// save until a load succeeds.
    pub fn train(&mut self, epochs: u64) -> Result<()> {
        self.train_to(Goal::Epoch(self.epoch.saturating_add(epochs)))
    }

    /// Trains `steps` more training steps, which may begin and end inside epochs; epochs that end
    /// on the way end as in [`NNHandler::train`].
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`NNHandler::train`].
    pub fn train_steps(&mut self, steps: u64) -> Result<()> {
        self.train_to(Goal::Step(self.step.saturating_add(steps)))
    }

    fn train_to(&mut self, goal: Goal) -> Result<()> {
        self.wait_for_save()?;
        self.agree_to_train(goal)?;
        if self.preempted().is_some() {
            return Ok(());
        }
        let trained = self.train_on(goal);
        // What goes on beside training ends with it.
        let saved = self.wait_for_save().map(drop);
        if let (Err(_), Err(error)) = (&trained, &saved) {
            tracing::error!(%error, "a save beside training failed too");
        }
        trained.and(saved)
    }

    fn train_on(&mut self, goal: Goal) -> Result<()> {
        self.start_auto_save_clock();
        self.warn_of_other_random_state();
        let mut stopped = self.callbacks_begin()?;
        while !self.has_reached(goal) && !stopped {
            stopped = self.train_epoch(goal)?;
        }
        if self.preempted().is_some() {
            return Ok(());
        }
        self.callbacks_end()
    }

    /// A program that makes data after a load, say, draws numbers that the saved run did not draw.
    fn warn_of_other_random_state(&mut self) {
        let Some(loaded) = self.loaded_random.take() else { return };
        let is_same = RandomNow::of(self.device).is_ok_and(|now| now == loaded);
        if !is_same && self.group.is_coordinator() {
            tracing::warn!(
                "random numbers were drawn, or the generator was seeded, between load and train: \
                 training goes on, but not exactly as the saved run would have; make random data \
                 before loading"
            );
        }
    }

    fn has_reached(&self, goal: Goal) -> bool {
        goal.is_reached(self.epoch, self.step)
    }

    /// The rest of the epoch under way, or as much of it as the goal asks for; whether training is
    /// to stop.
    fn train_epoch(&mut self, goal: Goal) -> Result<bool> {
        let Some(feed) = self.train_feed.clone() else {
            return Err(Error::new(ErrorKind::InvalidInput, "no training data"));
        };
        self.in_epoch.data = Some(DataFacts::of(&feed));
        self.in_epoch.since = Some(Instant::now());
        let is_through = self.train_batches(&feed, goal);
        self.in_epoch.seconds = self.in_epoch.seconds_until_now();
        self.in_epoch.since = None;
        if is_through? { self.finish_epoch(goal) } else { Ok(self.preempted().is_some()) }
    }

    /// Whether the epoch is through.
    fn train_batches(&mut self, feed: &Feed, goal: Goal) -> Result<bool> {
        let (world, samples) = (self.group.world_size(), feed.dataset.len());
        let done = self.in_epoch.samples;
        let batches = feed.loader.batches(world, samples, self.seed, self.epoch, done)?;
        let display = EpochDisplay::start(self, goal, done, samples);
        let mut steps = batches.chunks(self.steps.accumulate()).peekable();
        while let Some(batches) = steps.next() {
            if self.has_reached(goal) {
                return Ok(false);
            }
            self.train_step(feed, batches)?;
            display.advance(self.in_epoch.samples, self.in_epoch.sums.mean("loss"));
            // After the last step the epoch ends first: the same save then has all its numbers.
            if steps.peek().is_some() {
                let is_last = self.has_reached(goal);
                if !is_last && let Some(reason) = self.ask_if_preempted()? {
                    self.preempt_in_epoch(reason)?;
                    return Ok(false);
                }
                self.auto_save_step(is_last)?;
            }
        }
        Ok(true)
    }

    /// Whether training is to stop, by the wish of a callback or because the job is preempted.
    fn finish_epoch(&mut self, goal: Goal) -> Result<bool> {
        let mut logs = self.aggregate("", &self.in_epoch.sums)?;
        let epoch = self.epoch + 1;
        let last = goal.is_reached(epoch, self.step);
        let due = self.validate_every > 0 && (epoch.is_multiple_of(self.validate_every) || last);
        let validated = due && self.val_feed.is_some();
        let val_logs = match self.val_feed.clone() {
            Some(feed) if due => self.with_ema(|handler| handler.validate(&feed))??,
            _ => ControlFlow::Continue(BTreeMap::from([("val_loss".to_owned(), f64::NAN)])),
        };
        match val_logs {
            ControlFlow::Continue(val_logs) => logs.extend(val_logs),
            ControlFlow::Break(reason) => {
                self.preempt_in_epoch(reason)?;
                return Ok(true);
            }
        }
        let seconds = self.in_epoch.seconds;
        logs.insert("epoch_time".to_owned(), self.coordinators(seconds)?);
        // After all that can fail on one rank alone: an epoch that is finished again must not
        // advance twice.
        if let Some(optimizer) = &mut self.optimizer {
            let metric = logs.get("val_loss").copied();
            self.parts.advance(SchedulerUnit::Epoch, optimizer, metric)?;
        }
        logs.insert("lr".to_owned(), self.lr());
        // Together, so that history has one number per epoch whatever fails before or after.
        self.epoch = epoch;
        self.in_epoch = InEpoch::default();
        self.history.push(&logs);
        tracing::info!(
            rank = self.group.rank().get(),
            epoch = self.epoch,
            step = self.step,
            loss = logs.get("loss"),
            val_loss = logs.get("val_loss"),
            "epoch done"
        );
        EpochDisplay::line(self, goal, &logs);
        let stopped = self.callbacks_epoch(&logs, validated)?;
        let is_last = last || stopped;
        let preempted = if is_last { None } else { self.ask_if_preempted()? };
        let occasion = match preempted {
            Some(_) => Occasion::Preempted,
            None if is_last => Occasion::Last,
            None => Occasion::Due,
        };
        self.auto_save_epoch(occasion, &logs)?;
        self.note_preempted(preempted);
        Ok(stopped || preempted.is_some())
    }

    /// Learning rate of the first parameter group.
    pub(super) fn lr(&self) -> f64 {
        self.optimizer.as_ref().map_or(f64::NAN, |optimizer| optimizer.lr())
    }
}
