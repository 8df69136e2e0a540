//! Stopping when a number no longer improves.

use std::collections::BTreeMap;

use tch::Tensor;

use super::monitor::{Monitor, Reading, count, load_best, load_count, save_best};
use super::state::fit_id;
use super::{Callback, CallbackContext, CallbackState, Mode, weights};
use crate::autosave::KnownFields;
use crate::error::{Error, ErrorKind, Result};
use crate::state::Values;

/// Prefix of the names of the best weights.
const BEST: &str = "best.";

/// Ends training when a number has not improved for `patience` epochs. The epoch in which it does
/// counts as the last one, so that it is saved as [`auto_save`](crate::NNHandler::auto_save) says.
///
/// The best value, the count of epochs without improvement and the best weights are part of
/// checkpoints: a resumed run stops where the uninterrupted one does. A `train` that follows a stop
/// waits for `patience` epochs again, with the best value so far. Settings are never loaded; a
/// state of another number or direction is not taken over.
///
/// An epoch in which the number is NaN or infinite is one without improvement; one in which it was
/// not measured (no validation) does not count.
#[derive(Debug)]
pub struct EarlyStopping {
    id: Option<String>,
    monitor: Monitor,
    min_delta: f64,
    patience: u64,
    restore: bool,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    /// Epochs since the best one.
    wait: u64,
    stopped_epoch: Option<u64>,
    best: Option<f64>,
    best_epoch: u64,
    /// On the coordinator's host, if they are to be restored.
    weights: BTreeMap<String, Tensor>,
}

impl Default for EarlyStopping {
    fn default() -> Self {
        Self::new()
    }
}

impl EarlyStopping {
    /// Watches `val_loss` going down, with a patience of 10 epochs.
    #[must_use]
    pub fn new() -> Self {
        Self {
            id: None,
            monitor: Monitor::new("val_loss"),
            min_delta: 0.0,
            patience: 10,
            restore: false,
            state: State::default(),
        }
    }

    /// The number to watch: one of the logs of an epoch. Default `val_loss`.
    #[must_use]
    pub fn monitor(mut self, name: &str) -> Self {
        self.monitor.name = name.to_owned();
        self
    }

    /// Which way it is to go. Default [`Mode::Min`].
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.monitor.mode = mode;
        self
    }

    /// By more than how much it must change to count as better; at least 0. Default 0.
    #[must_use]
    pub fn min_delta(mut self, min_delta: f64) -> Self {
        self.min_delta = min_delta;
        self
    }

    /// After how many epochs without improvement to stop; 0 is as 1. Default 10.
    #[must_use]
    pub fn patience(mut self, epochs: u64) -> Self {
        self.patience = epochs;
        self
    }

    /// Whether a stop puts the weights of the best epoch (all variables) back into the model of
    /// every rank: after the saves that callbacks asked for, before an automatic save. Keeps a
    /// copy of the model in the coordinator's host memory and in checkpoints. Default: no.
    #[must_use]
    pub fn restore_best_weights(mut self, restore: bool) -> Self {
        self.restore = restore;
        self
    }

    /// The id. Default: made of number and direction, so that one with another patience resumes.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// The best value so far, over all runs.
    #[must_use]
    pub fn best(&self) -> Option<f64> {
        self.state.best
    }

    /// The epoch of the best value, counted from 1; 0 if there is none.
    #[must_use]
    pub fn best_epoch(&self) -> u64 {
        self.state.best_epoch
    }

    /// Epochs since the best one that counted.
    #[must_use]
    pub fn waited(&self) -> u64 {
        self.state.wait
    }

    /// The epoch with which it ended the last `train`, if it did.
    #[must_use]
    pub fn stopped_epoch(&self) -> Option<u64> {
        self.state.stopped_epoch
    }

    fn remember(&mut self, value: f64, context: &CallbackContext<'_>) -> Result<()> {
        if self.restore && context.is_coordinator() {
            self.state.weights = weights::snapshot(context.variables())?;
        }
        self.state.best = Some(value);
        self.state.best_epoch = context.epoch();
        self.state.wait = 0;
        Ok(())
    }

    fn stop(&mut self, context: &mut CallbackContext<'_>) {
        self.state.stopped_epoch = Some(context.epoch());
        let best = match self.state.best {
            Some(best) => format!("best: {best} in epoch {}", self.state.best_epoch),
            None => "it never had a value".to_owned(),
        };
        let (name, epochs) = (&self.monitor.name, self.state.wait);
        context.stop(format!("`{name}` has not improved for {epochs} epochs; {best}"));
        if !self.restore || !context.is_coordinator() {
            return;
        }
        let best = self.state.weights.iter().map(|(name, t)| (name.clone(), t.shallow_clone()));
        if self.state.weights.is_empty() {
            tracing::warn!("stopped without best weights to restore");
        } else if let Err(error) = context.put_weights(best.collect()) {
            tracing::warn!(%error, "stopped, but the best weights do not fit the model");
        }
    }

    /// The stored state, or a new one if it is of another number.
    fn parse(&self, stored: &CallbackState) -> Result<Option<State>> {
        let values = stored.values();
        let (best, best_epoch) = load_best(values)?;
        let stopped = values.find("stopped_epoch").map(|_| load_count(values, "stopped_epoch"));
        let state = State {
            wait: load_count(values, "wait")?,
            stopped_epoch: stopped.transpose()?,
            best,
            best_epoch,
            weights: BTreeMap::new(),
        };
        Ok(self.monitor.is_that_of(values)?.then_some(state))
    }
}

impl Callback for EarlyStopping {
    fn id(&self) -> String {
        self.id.clone().unwrap_or_else(|| {
            fit_id(&format!("EarlyStopping({}, {})", self.monitor.name, self.monitor.mode.as_str()))
        })
    }

    fn check(&self, fields: &KnownFields) -> Result<()> {
        fields.check(&self.monitor.name)?;
        if self.min_delta.is_finite() && self.min_delta >= 0.0 {
            return Ok(());
        }
        let message = format!("a min_delta of {}, which is no distance", self.min_delta);
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    fn on_train_begin(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.monitor.begin();
        if !context.is_coordinator() {
            self.state.weights.clear();
        }
        if self.state.stopped_epoch.take().is_some() {
            self.state.wait = 0;
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        match self.monitor.read(context) {
            Reading::Absent => return Ok(()),
            Reading::Value(value)
                if self.monitor.improves(value, self.state.best, self.min_delta) =>
            {
                return self.remember(value, context);
            }
            Reading::Value(_) | Reading::NotFinite => {}
        }
        self.state.wait += 1;
        if self.state.wait >= self.patience {
            self.stop(context);
        }
        Ok(())
    }

    fn on_train_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.monitor.end(context);
        Ok(())
    }

    fn save_state(&self) -> Result<CallbackState> {
        let mut values = Values::new();
        self.monitor.save(&mut values);
        save_best(self.state.best, self.state.best_epoch, &mut values);
        values.set("wait", count(self.state.wait));
        if let Some(epoch) = self.state.stopped_epoch {
            values.set("stopped_epoch", count(epoch));
        }
        let state = CallbackState::from(values);
        let weights = self.state.weights.iter();
        Ok(weights.fold(state, |state, (name, t)| state.with_tensor(&format!("{BEST}{name}"), t)))
    }

    fn check_state(&self, state: &CallbackState) -> Result<()> {
        self.parse(state).map(|_| ())
    }

    fn load_state(&mut self, stored: &CallbackState) -> Result<()> {
        let Some(mut state) = self.parse(stored)? else {
            tracing::warn!(
                callback = Callback::id(self),
                "the stored best value is of another number or direction; it begins anew"
            );
            self.state = State::default();
            return Ok(());
        };
        if self.restore {
            let best = stored.tensors().iter();
            let best = best.filter_map(|(n, t)| Some((n.strip_prefix(BEST)?, t.shallow_clone())));
            state.weights = best.map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        }
        self.state = state;
        Ok(())
    }
}
