//! When a handler saves by itself, and how.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{AutoSaver, Marks, name_fields};
use crate::autosave::Every;
use crate::catalog::CheckpointPath;
use crate::checkpointer::{AsyncMode, surface};
use crate::error::Result;
use crate::handler::{Model, NNHandler};
use crate::layout::CheckpointName;
use crate::plan::OnExisting;

/// Why a save is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::handler) enum Occasion {
    /// The interval says so.
    Due,
    /// Training ends here.
    Last,
    /// The job is to end: nothing is left beside which to save, and nothing may hinder it.
    Preempted,
}

impl<M: Model> NNHandler<M> {
    /// Training begins: minutes between automatic saves count from here on, unless they already do
    /// from a save or an earlier call, which may have been short.
    pub(in crate::handler) fn start_auto_save_clock(&mut self) {
        if let Some(saver) = &mut self.auto_saver {
            saver.clock.get_or_insert_with(Instant::now);
        }
    }

    /// The end of an epoch. `logs` are equal on every rank, and so is what follows from them.
    pub(in crate::handler) fn auto_save_epoch(
        &mut self,
        occasion: Occasion,
        logs: &BTreeMap<String, f64>,
    ) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        let is_last = occasion == Occasion::Last;
        let anyway = occasion == Occasion::Preempted;
        if !anyway && !self.agreed(saver, saver.due(self.epoch, self.step, is_last))? {
            return Ok(());
        }
        // Weights that a callback has put there are those of another epoch.
        let metrics = (!self.callbacks.weights_put).then_some(logs);
        self.auto_save_now(self.epoch, logs, occasion, &Marks { automatic: true, metrics })
    }

    /// The end of a training step inside an epoch; `last`: of this call.
    pub(in crate::handler) fn auto_save_step(&mut self, last: bool) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        let ends = last && saver.state.save_on_last_epoch && saver.state.interval != Every::Off;
        if !self.agreed(saver, ends || saver.due_at_step(self.step))? {
            return Ok(());
        }
        self.auto_save_in_epoch(if last { Occasion::Last } else { Occasion::Due })
    }

    /// Saves inside an epoch, due or not.
    pub(in crate::handler) fn auto_save_in_epoch(&mut self, occasion: Occasion) -> Result<()> {
        let mut logs = self.aggregate("", &self.in_epoch.sums)?;
        logs.insert("lr".to_owned(), self.lr());
        let seconds = self.in_epoch.seconds_until_now();
        logs.insert("epoch_time".to_owned(), self.coordinators(seconds)?);
        let marks = Marks { automatic: true, metrics: None };
        self.auto_save_now(self.epoch + 1, &logs, occasion, &marks)
    }

    /// Clocks differ: the coordinator's decides.
    fn agreed(&self, saver: &AutoSaver, due: bool) -> Result<bool> {
        if !saver.state.interval.asks_the_clock() {
            return Ok(due);
        }
        Ok(self.coordinators(f64::from(u8::from(due)))? > 0.0)
    }

    fn auto_save_now(
        &mut self,
        epoch: u64,
        logs: &BTreeMap<String, f64>,
        occasion: Occasion,
        marks: &Marks<'_>,
    ) -> Result<()> {
        if self.is_hindered(occasion)? {
            return Ok(());
        }
        // What failed beside training surfaces here, and hinders nothing.
        let earlier = self.wait_for_save();
        let saved = self.save_under_name(epoch, logs, occasion, marks);
        match earlier {
            Err(error) if occasion == Occasion::Preempted => {
                tracing::error!(%error, "the save before this one failed");
                saved
            }
            earlier => surface(earlier, saved),
        }
    }

    fn save_under_name(
        &mut self,
        epoch: u64,
        logs: &BTreeMap<String, f64>,
        occasion: Occasion,
        marks: &Marks<'_>,
    ) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        let numbers = name_fields(epoch, self.step, logs, self.optimizer.as_ref());
        let path = saver.path(epoch, &numbers)?;
        self.mark_automatic(Some(path.name().clone()));
        let saved = self.save_or_begin(&path, occasion, marks);
        self.mark_automatic(None);
        saved
    }

    fn save_or_begin(
        &mut self,
        path: &CheckpointPath,
        occasion: Occasion,
        marks: &Marks<'_>,
    ) -> Result<()> {
        let Some(saver) = &self.auto_saver else { return Ok(()) };
        let overwrite = saver.state.overwrite;
        let on_existing = if overwrite { OnExisting::Replace } else { OnExisting::Number };
        let after = self.after_save(saver);
        let mode = match occasion {
            Occasion::Preempted => AsyncMode::Disabled,
            Occasion::Due | Occasion::Last => saver.state.policies.mode,
        };
        let began = Instant::now();
        if mode == AsyncMode::Disabled {
            let committed = self.save_as(path, on_existing, marks)?;
            self.preemption.saved_in(began.elapsed());
            after.run(&committed);
            self.saved_itself(|saver| saver.remember((committed.name, committed.save_id)));
        } else {
            let after = Box::new(move |committed: &_| after.run(committed));
            let pending = self.begin_save(mode, path, on_existing, marks, after)?;
            self.beside.begin(pending, self.auto_saver.as_ref().and_then(|saver| saver.clock));
            self.saved_itself(|_| ());
        }
        Ok(())
    }

    /// The next one is due so long after this one.
    fn saved_itself(&mut self, note: impl FnOnce(&mut AutoSaver)) {
        if let Some(saver) = &mut self.auto_saver {
            saver.clock = Some(Instant::now());
            note(saver);
        }
    }

    fn mark_automatic(&mut self, automatic: Option<CheckpointName>) {
        if let Some(saver) = &mut self.auto_saver {
            saver.state.automatic = automatic;
        }
    }
}
