//! What a hook sees, and by which it asks.

use std::collections::BTreeMap;

use tch::{Tensor, nn};

use super::request::{Requests, SaveRequest};
use super::weights;
use crate::autosave::Number;
use crate::error::Result;
use crate::group::{ProcessGroup, Progress};
use crate::handler::History;
use crate::handler::auto_save::name_fields;
use crate::storage::Storage;
use crate::torch::Optimizer;

/// A handler as its callbacks see it. All but [`CallbackContext::is_coordinator`] is equal on
/// every rank.
pub struct CallbackContext<'a> {
    pub(super) epoch: u64,
    pub(super) step: u64,
    pub(super) logs: &'a BTreeMap<String, f64>,
    pub(super) validated: bool,
    pub(super) history: &'a History,
    pub(super) vars: &'a nn::VarStore,
    pub(super) optimizer: Option<&'a Optimizer>,
    pub(super) group: &'a ProcessGroup,
    pub(super) storage: &'a dyn Storage,
    pub(super) requests: Requests,
    pub(super) weights: Option<BTreeMap<String, Tensor>>,
}

impl CallbackContext<'_> {
    /// Epochs completed, over all runs; so, at the end of an epoch, its number counted from 1.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Optimizer steps completed, over all runs.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The numbers of the epoch: `loss`, `val_loss`, `lr`, `epoch_time`, the metrics and their
    /// `val_` twins. NaN or absent where the epoch had none; empty before the first epoch of a
    /// `train` has ended, and after a step.
    #[must_use]
    pub fn logs(&self) -> &BTreeMap<String, f64> {
        self.logs
    }

    /// One number of [`CallbackContext::logs`].
    #[must_use]
    pub fn log(&self, name: &str) -> Option<f64> {
        self.logs.get(name).copied()
    }

    /// Whether this epoch was validated, so that its `val_` numbers mean something.
    #[must_use]
    pub fn validated(&self) -> bool {
        self.validated
    }

    /// Losses and metrics of all epochs, this one included.
    #[must_use]
    pub fn history(&self) -> &History {
        self.history
    }

    /// The variables of the model. To be read only: ranks must stay equal.
    #[must_use]
    pub fn variables(&self) -> &nn::VarStore {
        self.vars
    }

    /// The optimizer.
    #[must_use]
    pub fn optimizer(&self) -> Option<&Optimizer> {
        self.optimizer
    }

    /// Whether this rank is the one that writes what is written once.
    #[must_use]
    pub fn is_coordinator(&self) -> bool {
        self.group.is_coordinator()
    }

    /// The handle by which long work keeps this rank from being taken for dead.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.group.progress()
    }

    /// Where the handler keeps checkpoints.
    #[must_use]
    pub fn storage(&self) -> &dyn Storage {
        self.storage
    }

    /// What a name template can mention, with the values of now.
    #[must_use]
    pub fn name_fields(&self) -> BTreeMap<String, Number> {
        name_fields(self.epoch, self.step, self.logs, self.optimizer)
    }

    /// Asks for training to end here: the epoch counts as the last one.
    pub fn stop(&mut self, reason: impl Into<String>) {
        self.requests.stop = Some(reason.into());
    }

    /// Asks for a save, to be done when the hooks of this moment have run, before an automatic
    /// save. One that fails is an error of `train` on every rank.
    pub fn save(&mut self, request: SaveRequest) {
        self.requests.saves.push(request);
    }

    /// Asks for these values of variables to be put into the model, when the saves that were asked
    /// for are done, before an automatic save. The coordinator's go to every rank, so other ranks
    /// may call it with what they have, or not at all.
    ///
    /// # Errors
    /// [`Mismatch`](crate::ErrorKind::Mismatch) unless they are all variables of the model, with
    /// their shapes and kinds; then nothing was asked for.
    pub fn put_weights(&mut self, values: BTreeMap<String, Tensor>) -> Result<()> {
        weights::check(self.vars, &values)?;
        self.weights = Some(values);
        self.requests.weights = true;
        Ok(())
    }
}
