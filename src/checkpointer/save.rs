//! Saving out of a training loop.
//!
//! ```text
//! phase "poll"  (now and then, if they are watched): a signal, the clock ─ whether to save
//! phase "due"   (at each step, if asked for): the predicate, the metric ─ whether to save
//! phase "in flight" (if that may hinder): whether the save beside training is done
//! phase "state": every rank has a state ─(coordinator) metrics, name; see `agree`
//! save:          see `save`; beside training if so configured
//! after:         (coordinator) retention, then the links
//! ```

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::agree::{Agreed, Under};
use super::{AsyncMode, At, Checkpointer, Parts};
use crate::autosave::Counters;
use crate::catalog::CheckpointPath;
use crate::error::Result;
use crate::layout::CheckpointName;
use crate::plan::OnExisting;
use crate::preempt::Preempted;
use crate::save::{Checkpoint, PendingSave, SaveOptions, save, save_async, save_async_overlapped};
use crate::state::StateDict;

/// Why a checkpoint is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// A multiple of epochs was completed.
    Epochs,
    /// A multiple of steps was completed.
    Steps,
    /// The time since the last save is up.
    Minutes,
    /// The predicate says so.
    Predicate,
    /// The monitored metric is better than ever before.
    Best,
    /// The program asked for it.
    Asked,
    /// Training ends.
    End,
    /// The job is to end.
    Preempted(Preempted),
}

/// What became of a save.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "one per save")]
pub enum Outcome {
    /// Committed: it survives a power cut.
    Saved(Checkpoint),
    /// Going on beside training; not committed yet.
    Started(CheckpointName),
    /// Left out: this step is saved already (or, beside training, about to be), or is the one that
    /// was loaded.
    SavedBefore,
    /// Left out: another one is still going on.
    InFlight,
    /// Left out: the configuration says so.
    Disabled,
}

/// What a step of training led to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Stepped {
    /// Why something was to be saved, and what became of it; `None` if nothing was due.
    pub save: Option<(Reason, Outcome)>,
    /// The run is to end: it is saved; leave the loop and end with [`Preempted::exit_code`].
    pub stop: Option<Preempted>,
}

/// A save that goes on beside training, and what counted before it.
pub(super) struct Beside {
    pending: PendingSave,
    before: Counted,
}

/// What follows from the saves so far, to return to if one fails.
struct Counted {
    saved_step: Option<u64>,
    clock: Instant,
    best_saved: Option<f64>,
}

impl Checkpointer {
    /// After a training step: saves if that is due, as the configuration says.
    ///
    /// # Collective
    /// Every rank, with the same step and epoch. Without anything due it costs a vote now and then
    /// (about four times a second) if signals, minutes or a time limit are watched, one at every
    /// step with a predicate or `save_on_best`, and none otherwise.
    ///
    /// # Durability
    /// As [`Outcome`] says.
    ///
    /// # Errors
    /// As [`save`](fn@crate::save::save), and on every rank if one has no state to save, or one
    /// that a load left half changed ([`Poisoned`](crate::ErrorKind::Poisoned)); those of the save
    /// before, if that went on beside training.
    pub fn step_callback(&mut self, at: &At, parts: &mut Parts<'_>) -> Result<Stepped> {
        if !self.config.enabled {
            return Ok(Stepped { save: None, stop: None });
        }
        let reason = self.due(at)?;
        let mode = match reason {
            // It ends at once: nothing is left beside which to save.
            Some(Reason::Preempted(_)) => AsyncMode::Disabled,
            _ => self.config.save_mode,
        };
        let save = match reason {
            Some(reason) => Some((reason, self.save_at(reason, at, parts, mode)?)),
            None => None,
        };
        Ok(Stepped { save, stop: self.stop })
    }

    /// Whether [`Checkpointer::step_callback`] would save here, for loops that save by themselves:
    /// counts as its call for this step.
    ///
    /// # Collective
    /// As [`Checkpointer::step_callback`].
    ///
    /// # Errors
    /// As [`ProcessGroup::phase`](crate::ProcessGroup::phase).
    pub fn should_save(&mut self, at: &At) -> Result<Option<Reason>> {
        if !self.config.enabled {
            return Ok(None);
        }
        Ok(self.due(at)?.filter(|_| !self.is_saved(at)))
    }

    /// Saves now, under a name of the template; returns when it is committed. For what decides by
    /// itself when to save: another callback, several metrics that improved.
    ///
    /// # Collective
    /// Every rank, with the same step and epoch.
    ///
    /// # Errors
    /// As [`Checkpointer::step_callback`].
    pub fn save(&mut self, at: &At, parts: &mut Parts<'_>) -> Result<Outcome> {
        self.save_at(Reason::Asked, at, parts, AsyncMode::Disabled)
    }

    /// The same beside training: returns when `parts` may change.
    ///
    /// # Collective
    /// As [`Checkpointer::save`].
    ///
    /// # Errors
    /// As [`Checkpointer::step_callback`].
    pub fn save_async(&mut self, at: &At, parts: &mut Parts<'_>) -> Result<Outcome> {
        self.save_at(Reason::Asked, at, parts, AsyncMode::Async)
    }

    /// Saves now, under a name of its own, which no rule ever removes; an existing one is refused.
    /// Returns when it is committed.
    ///
    /// # Collective
    /// Every rank, with the same name, step and epoch.
    ///
    /// # Errors
    /// As [`save`](fn@crate::save::save); [`InvalidInput`](crate::ErrorKind::InvalidInput) for a
    /// name that is none.
    pub fn save_as(&mut self, name: &str, at: &At, parts: &mut Parts<'_>) -> Result<Outcome> {
        if !self.config.enabled {
            return Ok(Outcome::Disabled);
        }
        let earlier = self.wait();
        let saved = self
            .agree(at, parts, Under::Name(name))
            .and_then(|(agreed, state)| self.save_now(&agreed, &state, at, OnExisting::Refuse));
        surface(earlier, saved.map(Outcome::Saved))
    }

    /// Training ends: waits for what goes on beside it, and saves unless this step is saved already
    /// or the configuration says not to. A save that failed beside training is an error also if
    /// this one makes up for it.
    ///
    /// # Collective
    /// Every rank, with the same step and epoch.
    ///
    /// # Errors
    /// As [`Checkpointer::step_callback`].
    pub fn finish(&mut self, at: &At, parts: &mut Parts<'_>) -> Result<Outcome> {
        if !self.config.save_at_end || !self.config.enabled {
            return self.wait().map(|_| Outcome::Disabled);
        }
        self.save_at(Reason::End, at, parts, AsyncMode::Disabled)
    }

    /// Before anything that is trained changes (the optimizer's step, a swap of averages): waits
    /// until a save that overlaps with training has copied it. Costs nothing otherwise. A program
    /// that forgets it gets an error from that save, and nothing is committed.
    ///
    /// Any rank; needs no other.
    pub fn before_update(&self) {
        if let Some(Beside { pending, .. }) = &self.pending {
            pending.wait_copied();
        }
    }

    /// Waits for the save that goes on beside training, if there is one, and returns it.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// Those of that save, the same on every rank.
    pub fn wait(&mut self) -> Result<Option<Checkpoint>> {
        let Some(Beside { pending, before }) = self.pending.take() else { return Ok(None) };
        let waited = pending.wait();
        if waited.is_err() {
            // It does not count: the step may be saved again, and the best is still to be saved.
            (self.saved_step, self.clock) = (before.saved_step, before.clock);
            self.state.best_saved = before.best_saved;
        }
        waited.map(Some)
    }

    fn save_at(
        &mut self,
        reason: Reason,
        at: &At,
        parts: &mut Parts<'_>,
        mode: AsyncMode,
    ) -> Result<Outcome> {
        if !self.config.enabled {
            return Ok(Outcome::Disabled);
        }
        let is_last = matches!(reason, Reason::Preempted(_) | Reason::End);
        let is_again = self.is_saved(at);
        if is_again && mode != AsyncMode::Disabled {
            return Ok(Outcome::SavedBefore);
        }
        // The last chance to save waits, whatever the configuration says.
        if !is_last && !is_again && self.is_hindered()? {
            return Ok(Outcome::InFlight);
        }
        let earlier = self.wait();
        let outcome = match self.is_saved(at) {
            true => Ok(Outcome::SavedBefore),
            false => self.save_in(mode, reason, at, parts),
        };
        match (reason, earlier) {
            (Reason::Preempted(_), Err(error)) => {
                tracing::error!(%error, "the save before this one failed");
                outcome
            }
            (_, earlier) => surface(earlier, outcome),
        }
    }

    fn save_in(
        &mut self,
        mode: AsyncMode,
        reason: Reason,
        at: &At,
        parts: &mut Parts<'_>,
    ) -> Result<Outcome> {
        if self.group.is_coordinator() {
            tracing::info!(?reason, step = at.counters().step, "saving");
        }
        let (agreed, state) = self.agree(at, parts, Under::Template)?;
        self.warn_unmonitored(&agreed);
        self.tell_measured(&agreed, at);
        match mode {
            AsyncMode::Disabled => {
                let on_existing = self.config.on_existing;
                self.save_now(&agreed, &state, at, on_existing).map(Outcome::Saved)
            }
            AsyncMode::Async | AsyncMode::AsyncOverlap => {
                self.start(&agreed, &state, at, mode).map(Outcome::Started)
            }
        }
    }

    pub(super) fn is_saved(&self, at: &At) -> bool {
        self.saved_step == Some(at.counters().step)
    }

    fn is_hindered(&self) -> Result<bool> {
        let Some(Beside { pending, .. }) = &self.pending else { return Ok(false) };
        self.config.in_flight.hinders(&self.group, pending)
    }

    fn save_now(
        &mut self,
        agreed: &Agreed,
        state: &StateDict,
        at: &At,
        on_existing: OnExisting,
    ) -> Result<Checkpoint> {
        let began = Instant::now();
        let path = CheckpointPath::new(&self.directory, agreed.name.clone());
        let options = self.options(at.counters(), on_existing);
        let committed = save(&self.group, self.storage.as_ref(), &path, state, &options)?;
        self.state = agreed.state.clone();
        self.tidy(at.counters().step).after(&committed);
        self.took(at, began.elapsed());
        Ok(committed)
    }

    /// Saves beside what the run itself saves: nothing else is touched.
    pub(super) fn save_aside(&mut self, at: &At, parts: &mut Parts<'_>) -> Result<Checkpoint> {
        let (agreed, state) = self.agree(at, parts, Under::Aside)?;
        let path = CheckpointPath::new(&self.directory, agreed.name);
        let options = self.options(at.counters(), OnExisting::Number);
        save(&self.group, self.storage.as_ref(), &path, &state, &options)
    }

    fn start(
        &mut self,
        agreed: &Agreed,
        state: &StateDict,
        at: &At,
        mode: AsyncMode,
    ) -> Result<CheckpointName> {
        let path = CheckpointPath::new(&self.directory, agreed.name.clone());
        let options = self.options(at.counters(), self.config.on_existing);
        let tidy = self.tidy(at.counters().step);
        let (began, longest) = (Instant::now(), self.save_takes.clone());
        let after = Box::new(move |committed: &Checkpoint| {
            longest.note(began.elapsed());
            tidy.after(committed);
        });
        let begin = match mode {
            AsyncMode::AsyncOverlap => save_async_overlapped,
            AsyncMode::Async | AsyncMode::Disabled => save_async,
        };
        let pending = begin(&self.group, &self.storage, &path, state, &options, after)?;
        let Self { saved_step, clock, .. } = *self;
        let before = Counted { saved_step, clock, best_saved: self.state.best_saved };
        let name = pending.name().clone();
        self.pending = Some(Beside { pending, before });
        self.state = agreed.state.clone();
        self.took(at, Duration::ZERO);
        Ok(name)
    }

    fn took(&mut self, at: &At, time: Duration) {
        self.saved_step = Some(at.counters().step);
        self.clock = Instant::now();
        self.save_takes.note(time);
    }

    fn options(&self, counters: Counters, on_existing: OnExisting) -> SaveOptions {
        SaveOptions {
            step: counters.step,
            epoch: counters.epoch,
            on_existing,
            audit: self.config.audit,
            copy_unchanged: self.config.copy_unchanged,
            space_reserve: self.space_reserve,
            ignore_space: self.config.ignore_space,
            ..SaveOptions::default()
        }
    }
}

/// What became of the save before, and of the one that was due now: an error of either.
pub(crate) fn surface<T>(earlier: Result<Option<Checkpoint>>, now: Result<T>) -> Result<T> {
    match (earlier, now) {
        (Err(earlier), Ok(_)) => {
            let help = earlier.help().map(|help| format!("{help}; ")).unwrap_or_default();
            Err(earlier.with_help(format!(
                "{help}this is the save before; the one that is due now is not affected"
            )))
        }
        (Err(earlier), Err(now)) => {
            tracing::error!(error = %earlier, "the save before this one failed too");
            Err(now)
        }
        (Ok(_), now) => now,
    }
}
