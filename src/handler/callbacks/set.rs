//! The callbacks of a handler, and states that wait for theirs.

use std::any::Any;
use std::collections::BTreeMap;

use super::state::{self, check_id};
use super::vote::Voter;
use super::{Callback, CallbackState, Origin};
use crate::autosave::KnownFields;
use crate::error::{Error, ErrorKind, Result};
use crate::group::guarded;
use crate::handler::{Model, NNHandler};
use crate::load::Loaded;
use crate::manifest::Manifest;
use crate::rank::Rank;
use crate::state::{LoadTargets, StateDict};

/// One callback of a handler.
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) callback: Box<dyn Callback>,
    /// Whether it took over the state of the checkpoint loaded last.
    restored: bool,
    /// Whether a hook failed on any rank: its state may differ by rank since then.
    pub(super) diverged: bool,
    /// The first failure since the last vote.
    pub(super) failure: Option<Error>,
}

/// All callbacks of one handler, in the order in which they were added.
#[derive(Default)]
pub(in crate::handler) struct Callbacks {
    pub(super) entries: Vec<Entry>,
    /// States out of a checkpoint whose callbacks have not been added.
    pending: BTreeMap<String, CallbackState>,
    /// States that a load is filling.
    incoming: BTreeMap<String, CallbackState>,
    /// Set by a load.
    origin: Option<Origin>,
    /// Whether the report about the last load is still to be given.
    report_due: bool,
    /// Logs of the last epoch of this `train`.
    pub(super) logs: BTreeMap<String, f64>,
    /// Whether weights were put into the model since the last epoch ended.
    pub(in crate::handler) weights_put: bool,
    /// Why the last `train` ended early.
    pub(in crate::handler) stop_reason: Option<String>,
}

/// Which callbacks went on with the state of the checkpoint loaded last; ids, sorted. Empty before
/// a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallbackReport {
    /// Have taken over their state.
    pub restored: Vec<String>,
    /// Were not added, or did not take their state; what was not claimed stays in later saves.
    pub only_in_checkpoint: Vec<String>,
    /// The checkpoint holds no state for them, or none that they took.
    pub only_in_handler: Vec<String>,
}

impl Callbacks {
    fn add(&mut self, mut callback: Box<dyn Callback>, fields: &KnownFields) -> Result<()> {
        let id = callback.id();
        check_id(&id)?;
        if self.entries.iter().any(|entry| entry.id == id) {
            let message = format!("a callback with id `{id}` was added before");
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("give one of them another id: their states are kept under it"));
        }
        callback.check(fields).map_err(|e| named(&id, e))?;
        let restored = match self.pending.get(&id) {
            Some(state) => callback.load_state(state).map(|()| true).map_err(|e| unfit(&id, &e))?,
            None => false,
        };
        self.pending.remove(&id);
        self.entries.push(Entry { id, callback, restored, diverged: false, failure: None });
        Ok(())
    }

    pub(in crate::handler) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the settings of each can work.
    pub(in crate::handler) fn check(&self, fields: &KnownFields) -> Result<()> {
        self.entries.iter().try_for_each(|e| e.callback.check(fields).map_err(|x| named(&e.id, x)))
    }

    /// Which there are, in order; the same on every rank or there is no training.
    pub(in crate::handler) fn ids(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    pub(super) fn voters(&self) -> Vec<Voter> {
        let voter = |entry: &Entry| Voter { id: entry.id.clone(), diverged: entry.diverged };
        self.entries.iter().map(voter).collect()
    }

    /// Adds all states, also those that nobody has claimed. Tensors are the coordinator's alone, as
    /// values are: those of other ranks differ if a hook failed somewhere, of which this rank may
    /// not have heard yet.
    pub(in crate::handler) fn save_state(&self, rank: Rank, state: &mut StateDict) -> Result<()> {
        let mut ids = Vec::new();
        for entry in &self.entries {
            let own = entry.callback.save_state().map_err(|e| named(&entry.id, e))?;
            own.add_to(&entry.id, rank.is_coordinator(), state).map_err(|e| named(&entry.id, e))?;
            ids.push(entry.id.as_str());
        }
        for (id, pending) in &self.pending {
            pending.add_to(id, true, state)?;
            ids.push(id);
        }
        state::list_ids(&ids, &mut state.values)
    }

    /// A load begins: makes room for the states of its checkpoint.
    pub(in crate::handler) fn expect(&mut self, manifest: &Manifest) -> Result<()> {
        self.incoming = state::stored(manifest)?;
        Ok(())
    }

    pub(in crate::handler) fn targets(&self, targets: &mut LoadTargets<'_>) -> Result<()> {
        self.incoming.iter().try_for_each(|(id, state)| state.add_targets(id, targets))
    }

    /// Whether the callbacks that are there would take what is coming.
    pub(in crate::handler) fn check_incoming(&self) -> Result<()> {
        let fits = |entry: &Entry| match self.incoming.get(&entry.id) {
            Some(state) => entry.callback.check_state(state).map_err(|e| unfit(&entry.id, &e)),
            None => Ok(()),
        };
        self.entries.iter().try_for_each(fits)
    }

    /// The load has failed.
    pub(in crate::handler) fn forget_incoming(&mut self) {
        self.incoming.clear();
    }

    /// The load has succeeded: callbacks that are there take over their states, others wait.
    pub(in crate::handler) fn adopt(&mut self, loaded: &Loaded, rank: Rank) {
        let origin = Origin { path: loaded.path.clone(), save_id: loaded.save_id };
        self.pending = std::mem::take(&mut self.incoming);
        self.pending.values_mut().for_each(|state| state.set_origin(&origin));
        self.origin = Some(origin);
        self.report_due = true;
        for entry in &mut self.entries {
            entry.restored = false;
            let Some(state) = self.pending.remove(&entry.id) else { continue };
            // What could be checked was; a failure now must not undo a load that is complete.
            match guarded(rank, "callbacks", || entry.callback.load_state(&state)) {
                Ok(()) => (entry.restored, entry.diverged) = (true, false),
                Err(error) => {
                    tracing::warn!(callback = entry.id, %error, "the state of a callback is lost");
                    // Other ranks may have theirs: they hear of it in the next vote.
                    entry.failure.get_or_insert(error);
                }
            }
        }
    }

    /// Forgets the checkpoint's states and that there were any.
    pub(in crate::handler) fn skip(&mut self) {
        self.incoming.clear();
        self.pending.clear();
        self.origin = None;
        self.report_due = false;
    }

    fn report(&self) -> CallbackReport {
        if self.origin.is_none() {
            return CallbackReport::default();
        }
        let ids = |restored: bool| -> Vec<String> {
            let chosen = self.entries.iter().filter(|entry| entry.restored == restored);
            let mut ids: Vec<String> = chosen.map(|entry| entry.id.clone()).collect();
            ids.sort();
            ids
        };
        CallbackReport {
            restored: ids(true),
            only_in_checkpoint: self.pending.keys().cloned().collect(),
            only_in_handler: ids(false),
        }
    }

    /// Says once after a load what is on one side only.
    pub(super) fn warn_of_one_sided(&mut self, rank: Rank) {
        let due = std::mem::take(&mut self.report_due);
        let report = self.report();
        let one_sided = report.only_in_checkpoint.len() + report.only_in_handler.len() > 0;
        if due && one_sided && rank.is_coordinator() {
            tracing::warn!(only_in_checkpoint = ?report.only_in_checkpoint,
                only_in_handler = ?report.only_in_handler,
                "callbacks on one side only: some begin anew, or are not there");
        }
    }
}

fn named(id: &str, error: Error) -> Error {
    let message = format!("callback `{id}`: {}", error.message());
    let made = Error::new(error.kind(), message);
    match error.help() {
        Some(help) => made.with_help(help),
        None => made,
    }
}

/// A stored state that its callback refuses.
fn unfit(id: &str, error: &Error) -> Error {
    let message = format!("the stored state of callback `{id}` does not fit: {}", error.message());
    Error::new(ErrorKind::Mismatch, message)
        .with_help("load with `skip_callbacks`, or give the callback another id to begin anew")
}

impl<M: Model> NNHandler<M> {
    /// Adds a callback, which takes over its state if a checkpoint that was loaded before holds
    /// one of its id. Settings are those given here; loading never changes them. Add metrics
    /// before, so that their names are known.
    ///
    /// On every rank, in the same order; nothing is sent, [`NNHandler::train`] compares the ids.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an id that is taken or unfit, and for settings that can
    /// never work; [`ErrorKind::Mismatch`] if the stored state does not fit. It was not added then.
    pub fn add_callback(&mut self, callback: impl Callback) -> Result<()> {
        let fields = KnownFields::new(self.metric_names());
        self.callbacks.add(Box::new(callback), &fields)
    }

    /// The callback of this id, if there is one and it is a `T`.
    pub fn callback<T: Callback>(&self, id: &str) -> Option<&T> {
        let entry = self.callbacks.entries.iter().find(|entry| entry.id == id)?;
        let callback: &dyn Any = entry.callback.as_ref();
        callback.downcast_ref()
    }

    /// Which callbacks went on with the state of the checkpoint loaded last.
    pub fn callback_report(&self) -> CallbackReport {
        self.callbacks.report()
    }

    /// Why the last `train` ended before its time, by the wish of a callback or because the job is
    /// [preempted](NNHandler::preempted); `None` if it did not.
    pub fn stop_reason(&self) -> Option<&str> {
        self.callbacks.stop_reason.as_deref()
    }
}
