//! Saving and ending when the job is told to end, at the same step on every rank.

use std::cell::Cell;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::handler::auto_save::Occasion;
use crate::handler::{Model, NNHandler};
use crate::preempt::{Poll, Preempted, Watch, poll};

/// What a handler watches. Not part of checkpoints: it belongs to the process.
#[derive(Default)]
pub(super) struct Preemption {
    signals: bool,
    margin: Option<Duration>,
    watch: Watch,
    /// In a cell, since validation has no more than a look at the handler.
    poll: Cell<Poll>,
    /// How long automatic saves of this process have taken, at most.
    save_took: Duration,
    reason: Option<Preempted>,
}

impl Preemption {
    pub(super) fn is_on(&self) -> bool {
        self.watch.is_active()
    }

    /// What has to be equal on every rank.
    pub(super) fn describe(&self) -> String {
        format!("{}, {:?}", self.signals, self.margin)
    }

    pub(super) fn saved_in(&mut self, took: Duration) {
        self.save_took = self.save_took.max(took);
    }

    fn begin(&mut self, signals: bool, margin: Option<Duration>) -> Result<()> {
        self.watch = Watch::begin(signals, margin)?;
        (self.signals, self.margin) = (signals, margin);
        Ok(())
    }
}

impl<M: Model> NNHandler<M> {
    /// At SIGUSR1 or SIGTERM, to any rank, saves to where [`NNHandler::auto_save`] says, at the end
    /// of the step on which all ranks agree, and ends training: `train` returns `Ok`, and
    /// [`NNHandler::preempted`] says why. A second signal, over a second later, ends the process
    /// at once. Default: no. Not stored in checkpoints; the same on every rank.
    ///
    /// ```no_run
    /// # use std::process::ExitCode;
    /// # use tch_checkpoint::handler::{Model, NNHandler};
    /// # fn example<M: Model>(mut handler: NNHandler<M>) -> tch_checkpoint::Result<ExitCode> {
    /// handler.auto_save(1, "checkpoints", "epoch{epoch:03d}_step{step}")?;
    /// handler.save_on_signal(true)?;
    /// handler.train(30)?;
    /// if let Some(reason) = handler.preempted() {
    ///     handler.process_group().clone().finish()?;
    ///     return Ok(reason.into()); // 75: start this job again
    /// }
    /// # Ok(ExitCode::SUCCESS) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is no auto-saver yet (an interval of
    /// [`Every::Off`](crate::autosave::Every::Off) is enough); as [`Watch::begin`].
    pub fn save_on_signal(&mut self, on: bool) -> Result<()> {
        self.require_auto_saver(on, "save_on_signal")?;
        self.preemption.begin(on, self.preemption.margin)
    }

    /// The same before the job's time ends, as [`Watch::begin`] finds it: `margin` before, or as
    /// long before as two automatic saves have taken, if that is more. `None`: not, the default.
    ///
    /// # Errors
    /// As [`NNHandler::save_on_signal`]; [`ErrorKind::InvalidInput`] for a variable that is no
    /// time.
    pub fn save_before_time_limit(&mut self, margin: Option<Duration>) -> Result<()> {
        self.require_auto_saver(margin.is_some(), "save_before_time_limit")?;
        self.preemption.begin(self.preemption.signals, margin)
    }

    /// Why training has ended early, with everything saved, if it has: leave the job, and end with
    /// [`Preempted::exit_code`]. Later calls of [`NNHandler::train`] train nothing. Equal on every
    /// rank.
    #[must_use]
    pub fn preempted(&self) -> Option<Preempted> {
        self.preemption.reason
    }

    /// Before training begins: there is a place to save to.
    pub(super) fn check_preemption(&self) -> Result<()> {
        self.require_auto_saver(self.preemption.signals, "save_on_signal")?;
        self.require_auto_saver(self.preemption.margin.is_some(), "save_before_time_limit")
    }

    fn require_auto_saver(&self, on: bool, call: &str) -> Result<()> {
        if !on || self.auto_saver.is_some() {
            return Ok(());
        }
        let text = format!("`{call}` has no place to save to");
        Err(Error::new(ErrorKind::InvalidInput, text)
            .with_help("call `auto_save` first; with `Every::Off` it saves when told to, only"))
    }

    /// Why all ranks are to save and end now, if they are. Collective, though most calls ask
    /// nobody.
    pub(super) fn ask_if_preempted(&self) -> Result<Option<Preempted>> {
        let Preemption { watch, save_took, .. } = &self.preemption;
        if !watch.is_active() {
            return Ok(None);
        }
        let mut schedule = self.preemption.poll.get();
        let answer = poll(&self.group, &mut schedule, watch, *save_took, || false);
        self.preemption.poll.set(schedule);
        answer.map(|answer| answer.preempted)
    }

    /// From here on a step is something else, and takes another time: the next one asks. Every rank.
    pub(super) fn ask_anew(&self) {
        self.preemption.poll.take();
    }

    /// Saves where training is, inside an epoch.
    pub(super) fn preempt_in_epoch(&mut self, reason: Preempted) -> Result<()> {
        self.auto_save_in_epoch(Occasion::Preempted)?;
        self.note_preempted(Some(reason));
        Ok(())
    }

    /// To be called when everything is saved.
    pub(super) fn note_preempted(&mut self, preempted: Option<Preempted>) {
        let Some(reason) = preempted else { return };
        if self.group.is_coordinator() {
            tracing::warn!(%reason, epoch = self.epoch, step = self.step, "saved; training ends");
        }
        self.preemption.reason = Some(reason);
        self.callbacks.stop_reason = Some(format!("preempted: {reason}"));
    }
}
