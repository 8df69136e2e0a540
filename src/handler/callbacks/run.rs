//! The moments of a training run: hooks on every rank, one vote, and what was asked for.
//!
//! ```text
//! hooks (all):        each callback in turn; error and panic contained
//! phase "callbacks":  requests and failures ─(coordinator) its requests are the answer─ all
//! saves (all):        in order, each a save of its own
//! phase "weights":    (coordinator) puts weights into its model; then they go to every rank
//! ```

use std::collections::BTreeMap;

use tch::Tensor;

use super::context::CallbackContext;
use super::request::{Requests, SaveRequest};
use super::vote::{Brought, Verdict, decide};
use super::{Callback, weights};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup, guarded};
use crate::handler::auto_save::{Marks, remove_own};
use crate::handler::{Model, NNHandler, ddp};
use crate::layout::{CheckpointName, SaveId};
use crate::plan::OnExisting;
use crate::rank::Rank;
use crate::save::Checkpoint;
use crate::storage::Storage;
use crate::sweep::{self, Existing};

/// Name of the phase, and of where a failing hook failed.
const PHASE: &str = "callbacks";

type Hook = fn(&mut dyn Callback, &mut CallbackContext<'_>) -> Result<()>;

/// Weights that callbacks gave on this rank, by callback.
type Weights = Vec<Option<BTreeMap<String, Tensor>>>;

/// What hooks see beside the handler.
#[derive(Clone, Copy)]
struct Seen<'a> {
    logs: &'a BTreeMap<String, f64>,
    validated: bool,
}

impl<M: Model> NNHandler<M> {
    /// Training begins; whether it is to end at once.
    pub(in crate::handler) fn callbacks_begin(&mut self) -> Result<bool> {
        self.callbacks.warn_of_one_sided(self.group.rank());
        self.callbacks.stop_reason = None;
        self.callbacks.logs.clear();
        self.moment(|callback, context| callback.on_train_begin(context), None)
    }

    /// After an optimizer step. Not collective.
    pub(in crate::handler) fn callbacks_step(&mut self) {
        if self.callbacks.is_empty() {
            return;
        }
        let seen = Seen { logs: &BTreeMap::new(), validated: false };
        let (brought, _) = self.run_hooks(|callback, context| callback.on_step_end(context), seen);
        for (entry, brought) in self.callbacks.entries.iter_mut().zip(brought) {
            let mut failures = brought.failures.into_iter();
            if brought.requests.is_some_and(|requests| !requests.is_empty()) {
                let message = "a callback asked for something after a step, where there is no vote";
                let error = Error::new(ErrorKind::InvalidInput, message)
                    .at_rank(self.group.rank())
                    .with_help("ask in `on_epoch_end`");
                warn(&entry.id, &error);
                entry.failure.get_or_insert(error);
            }
            entry.failure = entry.failure.take().or_else(|| failures.next());
        }
    }

    /// An epoch has ended; whether training is to end with it.
    pub(in crate::handler) fn callbacks_epoch(
        &mut self,
        logs: &BTreeMap<String, f64>,
        validated: bool,
    ) -> Result<bool> {
        self.callbacks.logs.clone_from(logs);
        self.callbacks.weights_put = false;
        self.moment(|callback, context| callback.on_epoch_end(context), Some(validated))
    }

    /// `train` is about to return.
    pub(in crate::handler) fn callbacks_end(&mut self) -> Result<()> {
        let reason = self.callbacks.stop_reason.take();
        let ended = self.moment(|callback, context| callback.on_train_end(context), None);
        // There is nothing left to stop.
        self.callbacks.stop_reason = reason;
        ended.map(|_| ())
    }

    /// One moment: hooks, vote, and what was asked for; whether a stop was. `validated` if an epoch
    /// has ended: whether it was.
    fn moment(&mut self, hook: Hook, validated: Option<bool>) -> Result<bool> {
        if self.callbacks.is_empty() {
            return Ok(false);
        }
        let (group, storage) = (self.group.clone(), self.storage.clone());
        let voters = self.callbacks.voters();
        let logs = self.callbacks.logs.clone();
        let mut own = (Vec::new(), Weights::new());
        let local = || {
            let validated = validated.unwrap_or(false);
            own = self.run_hooks(hook, Seen { logs: &logs, validated });
            Ok(own.0.clone())
        };
        let resolve = |request: &SaveRequest| on_existing(storage.as_ref(), request);
        let verdicts = group
            .phase_all(Channel::Training, PHASE, local, |all| decide(&voters, &all, resolve))?;
        let (brought, weights) = own;
        self.take_note(&brought, &verdicts);
        // At other moments the model need not be what the numbers of the last epoch describe.
        let metrics = validated.map(|_| &logs);
        self.save_requested(&verdicts, &Marks { automatic: false, metrics })?;
        self.put_requested(&verdicts, weights)?;
        let stops = verdicts.iter().filter_map(|verdict| verdict.requests.as_ref()?.stop.clone());
        let stop = stops.into_iter().next();
        if let Some(reason) = &stop {
            tracing::info!(epoch = self.epoch, reason, "a callback stops training");
            self.callbacks.stop_reason = Some(reason.clone());
        }
        Ok(stop.is_some())
    }

    /// Runs a hook of every callback on this rank.
    fn run_hooks(&mut self, hook: Hook, seen: Seen<'_>) -> (Vec<Brought>, Weights) {
        let mut all = (Vec::new(), Weights::new());
        for entry in &mut self.callbacks.entries {
            let mut context = CallbackContext {
                epoch: self.epoch,
                step: self.step,
                logs: seen.logs,
                validated: seen.validated,
                history: &self.history,
                vars: &self.vars,
                optimizer: self.optimizer.as_ref(),
                group: &self.group,
                storage: self.storage.as_ref(),
                requests: Requests::default(),
                weights: None,
            };
            let ran =
                guarded(self.group.rank(), PHASE, || hook(entry.callback.as_mut(), &mut context));
            let (requests, weights) = (context.requests, context.weights);
            let mut brought = Brought { requests: Some(requests), failures: Vec::new() };
            brought.failures.extend(entry.failure.take());
            if let Err(error) = ran {
                // At once, should this rank not live to the vote; not again at every step.
                if brought.failures.is_empty() {
                    warn(&entry.id, &error);
                }
                brought.requests = None;
                brought.failures.push(error);
            }
            all.0.push(brought);
            all.1.push(weights);
        }
        all
    }

    /// Failures of other ranks become warnings here, and requests that nobody carries out are told
    /// to who made them.
    fn take_note(&mut self, brought: &[Brought], verdicts: &[Verdict]) {
        let rank = self.group.rank();
        let entries = self.callbacks.entries.iter_mut().zip(brought);
        for ((entry, own), verdict) in entries.zip(verdicts) {
            entry.diverged |= !verdict.failures.is_empty();
            verdict.failures.iter().filter(|e| e.rank() != Some(rank)).for_each(|e| {
                warn(&entry.id, e);
            });
            let (Some(own), None) = (&own.requests, &verdict.requests) else { continue };
            let message = "not begun: the callback failed on the coordinator";
            let error = Error::new(ErrorKind::Disagreement, message).at_rank(Rank::COORDINATOR);
            for request in &own.saves {
                tell(entry, rank, |callback| callback.on_saved(request, Err(&error)));
            }
        }
    }

    /// Saves what the verdict says, in order. After a failure the rest is not tried, so that every
    /// callback hears of it and `train` returns the first.
    fn save_requested(&mut self, verdicts: &[Verdict], marks: &Marks<'_>) -> Result<()> {
        let rank = self.group.rank();
        let mut all = verdicts.iter().flat_map(|verdict| &verdict.requests);
        let mut failed = match all.any(|requests| !requests.saves.is_empty()) {
            true => self.wait_for_save().err(),
            false => None,
        };
        for (index, verdict) in verdicts.iter().enumerate() {
            for request in verdict.requests.iter().flat_map(|requests| &requests.saves) {
                let outcome = match &failed {
                    Some(error) => Err(error.clone()),
                    None => {
                        self.tell(index, rank, |callback| callback.on_saving(request));
                        self.save_request(request, marks)
                    }
                };
                self.tell(index, rank, |callback| callback.on_saved(request, outcome.as_ref()));
                match outcome {
                    Ok(committed) => self.remove_superseded(request, &committed),
                    Err(error) => failed = Some(error),
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn tell(&mut self, index: usize, rank: Rank, what: impl FnOnce(&mut dyn Callback)) {
        if let Some(entry) = self.callbacks.entries.get_mut(index) {
            tell(entry, rank, what);
        }
    }

    fn save_request(&self, request: &SaveRequest, marks: &Marks<'_>) -> Result<Checkpoint> {
        if request.is_weights_only() {
            return self.save_weights_as(&request.path(), request.existing(), marks);
        }
        self.save_as(&request.path(), request.existing(), marks)
    }

    fn remove_superseded(&self, request: &SaveRequest, committed: &Checkpoint) {
        let (directory, superseded) = (request.directory(), request.superseded());
        let storage = self.storage.as_ref();
        remove_own(&self.group, storage, directory, superseded, &committed.name);
    }

    /// Puts the weights that were asked for into the model of every rank: the coordinator's.
    fn put_requested(&mut self, verdicts: &[Verdict], own: Weights) -> Result<()> {
        let asked = |v: &Verdict| v.requests.as_ref().is_some_and(|requests| requests.weights);
        let Some(index) = verdicts.iter().position(asked) else { return Ok(()) };
        self.before_update();
        self.callbacks.weights_put = true;
        let group: ProcessGroup = self.group.clone();
        let values = own.into_iter().nth(index).flatten().filter(|_| group.is_coordinator());
        let put = || values.map_or(Ok(()), |values| weights::put(&self.vars, &values));
        let done = group
            .phase_all(Channel::Training, "weights", put, |_| Ok(()))
            .and_then(|()| ddp::broadcast_tensors(&group, &self.variables(|_| true)));
        // Some of the weights may be in place by now.
        self.poisoned |= done.is_err();
        done
    }
}

fn tell(entry: &mut super::set::Entry, rank: Rank, what: impl FnOnce(&mut dyn Callback)) {
    let told = guarded(rank, PHASE, || {
        what(entry.callback.as_mut());
        Ok(())
    });
    if let Err(error) = told {
        warn(&entry.id, &error);
        entry.failure.get_or_insert(error);
    }
}

fn warn(id: &str, error: &Error) {
    tracing::warn!(callback = id, %error, "a callback failed; training goes on");
}

/// Coordinator: a name that is taken by the very checkpoint that the new one supersedes is
/// replaced; one that is taken by anything else is not.
fn on_existing(storage: &dyn Storage, request: &SaveRequest) -> Result<OnExisting> {
    let of_that_name = |earlier: &&(CheckpointName, SaveId)| earlier.0 == *request.name();
    let mut own = request.superseded().iter().filter(of_that_name).peekable();
    if own.peek().is_none() || request.existing() != OnExisting::Number {
        return Ok(request.existing());
    }
    let found = storage
        .open_dir(request.directory())
        .and_then(|dir| sweep::existing(dir.as_ref(), request.name().as_str()));
    Ok(match found {
        Ok(Existing::Checkpoint(found)) if own.any(|(_, id)| *id == found) => OnExisting::Replace,
        // Whatever is wrong there, the save will find out, and replaces nothing.
        _ => OnExisting::Number,
    })
}
