//! A scheduler as part of a checkpoint.

use serde::{Deserialize, Serialize};

use super::config::is_rate;
use super::plateau::Seen;
use super::{Scheduler, SchedulerConfig, SchedulerUnit};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::torch::{Optimizer, join};

/// Longest JSON text that is parsed; the longest valid one is a fifth of it.
const MAX_JSON: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    config: SchedulerConfig,
    unit: SchedulerUnit,
}

/// What is counted; the last two are 0 without a plateau.
#[derive(Debug, Serialize, Deserialize)]
struct Counters {
    steps_done: u64,
    bad_epochs: u64,
    cooldown_left: u64,
}

impl Scheduler {
    /// Adds `<prefix>.config` and `<prefix>.state` (JSON), `<prefix>.base_lr` (one number per
    /// parameter group) and, with a plateau, `<prefix>.best`. The learning rates in use are the
    /// optimizer's to save.
    ///
    /// # Errors
    /// None for a scheduler that exists: its settings always have a JSON form.
    pub fn save_values(&self, prefix: &str, values: &mut Values) -> Result<()> {
        let (config, unit) = (self.config.clone(), self.unit);
        values.set(join(prefix, "config"), Value::json(&Settings { config, unit })?);
        let counters = Counters {
            steps_done: self.steps_done,
            bad_epochs: self.seen.map_or(0, |seen| seen.bad_epochs),
            cooldown_left: self.seen.map_or(0, |seen| seen.cooldown_left),
        };
        values.set(join(prefix, "state"), Value::json(&counters)?);
        values.set(join(prefix, "base_lr"), self.base_lrs.clone());
        if let Some(seen) = self.seen {
            // May be infinite, for which JSON has no form.
            values.set(join(prefix, "best"), seen.best);
        }
        Ok(())
    }

    /// The scheduler that was saved under `prefix`. Leaves the learning rates alone: loading the
    /// optimizer restores them.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Mismatch`] for values that no
    /// scheduler saves and for another number of parameter groups than the optimizer's.
    pub fn from_values(prefix: &str, values: &Values, optimizer: &Optimizer) -> Result<Self> {
        let stored = stored(prefix, values)?;
        stored.same_groups(optimizer)?;
        Ok(stored)
    }

    /// Whether [`Scheduler::load_values`] would take these values; changes nothing.
    ///
    /// # Errors
    /// As [`Scheduler::load_values`].
    pub fn check_values(&self, prefix: &str, values: &Values) -> Result<()> {
        self.fitting(prefix, values).map(drop)
    }

    /// Continues where the scheduler saved under `prefix` was, with its settings and unit; leaves
    /// the learning rates alone, as [`Scheduler::from_values`] does.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Mismatch`] for another kind of
    /// scheduler (every part of a chain counts), another number of parameter groups, or values
    /// that no scheduler saves. Nothing has changed then.
    pub fn load_values(&mut self, prefix: &str, values: &Values) -> Result<()> {
        *self = self.fitting(prefix, values)?;
        Ok(())
    }

    fn fitting(&self, prefix: &str, values: &Values) -> Result<Self> {
        let stored = stored(prefix, values)?;
        let (theirs, ours) = (stored.config.names(), self.config.names());
        if theirs != ours {
            let (theirs, ours) = (theirs.join(" then "), ours.join(" then "));
            return mismatch(format!("the checkpoint's scheduler is {theirs}, this one is {ours}"));
        }
        let (theirs, ours) = (stored.base_lrs.len(), self.base_lrs.len());
        if theirs != ours {
            return mismatch(format!("{theirs} parameter groups in the checkpoint, {ours} here"));
        }
        Ok(stored)
    }
}

/// Has no tensors.
impl Stateful for Scheduler {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        self.save_values(prefix, &mut state.values)
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, _targets: &mut LoadTargets<'a>) -> Result<()> {
        Ok(())
    }

    fn check_values(&self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        Scheduler::check_values(self, prefix, values)
    }

    fn load_values(&mut self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        Scheduler::load_values(self, prefix, values)
    }
}

fn stored(prefix: &str, values: &Values) -> Result<Scheduler> {
    let Settings { config, unit } = json(&join(prefix, "config"), values)?;
    config.validate(unit).map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
    let counters: Counters = json(&join(prefix, "state"), values)?;
    let base_lrs = values.floats(&join(prefix, "base_lr"))?;
    if !base_lrs.iter().copied().all(is_rate) {
        return mismatch(format!("`{prefix}` has a learning rate that is negative or not finite"));
    }
    let seen = config.plateau().map(|settings| {
        let Counters { bad_epochs, cooldown_left, .. } = counters;
        let seen = Seen { best: values.float(&join(prefix, "best"))?, bad_epochs, cooldown_left };
        if seen.fits(settings) {
            return Ok(seen);
        }
        mismatch(format!("`{prefix}` has counters that its settings do not allow: {counters:?}"))
    });
    let seen = seen.transpose()?;
    Ok(Scheduler { config, unit, base_lrs, steps_done: counters.steps_done, seen })
}

fn json<T: for<'de> Deserialize<'de>>(name: &str, values: &Values) -> Result<T> {
    if let Some(Value::Json(text)) = values.find(name)
        && text.len() > MAX_JSON
    {
        return mismatch(format!("value `{name}` has {} bytes", text.len()));
    }
    values.json(name)
}

fn mismatch<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Mismatch, message))
}
