//! What stays of the automatic checkpoints, and whether training waits for a save.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::AutoSaver;
use crate::autosave::{KeepBest, KnownFields, Mode, Retention};
use crate::checkpointer::{AsyncMode, InFlight};
use crate::error::{Error, ErrorKind, Result};

/// Part of what a checkpoint holds of an auto-saver, unless all are defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Policies {
    pub(super) retention: Retention,
    pub(super) mode: AsyncMode,
    pub(super) in_flight: InFlight,
}

impl Policies {
    pub(super) fn are_defaults(&self) -> bool {
        *self == Self::default()
    }

    /// The number that tells the best, and which way it is to go.
    pub(super) fn monitor(&self) -> Option<(String, Mode)> {
        self.retention.best.as_ref().map(|best| (best.monitor.clone(), best.mode))
    }

    /// Whether they can be carried out, whatever the metrics are.
    pub(super) fn check(&self, overwrite: bool) -> Result<()> {
        if overwrite && self.retention != Retention::default() {
            return Err(invalid("`overwrite(true)` and `keep…`: both say which ones stay")
                .with_help("`keep_last(1)` in place of `overwrite(true)` keeps the newest one"));
        }
        if self.mode == AsyncMode::Disabled && self.in_flight != InFlight::Wait {
            return Err(invalid("`in_flight`: with `mode` `Disabled` no save is ever in flight")
                .with_help("set `mode` to `Async`, or leave `in_flight` out"));
        }
        self.retention.check()
    }

    /// Whether the number that tells the best is one that the end of an epoch has.
    pub(super) fn check_monitor(&self, metrics: &[String], validates: bool) -> Result<()> {
        let Some(best) = &self.retention.best else { return Ok(()) };
        let name = best.monitor.as_str();
        let refuse = |error: Error| {
            let message = format!("`keep_best`: {}", error.message());
            let made = Error::new(error.kind(), message);
            error.help().map_or(made.clone(), |help| made.with_help(help))
        };
        KnownFields::new(metrics).check(name).map_err(refuse)?;
        if ["epoch", "step"].contains(&name) || name.starts_with("lr_group_") {
            let text = format!("`keep_best`: `{name}` is no number of an epoch's log");
            return Err(invalid(&text).with_help("choose a loss, a metric, or `lr`"));
        }
        let is_trained_with = metrics.iter().any(|metric| metric == name);
        if name.starts_with("val_") && !is_trained_with && !validates {
            let text = format!("`keep_best` looks at `{name}`, but nothing is validated");
            return Err(invalid(&text).with_help("call `set_val_loader`"));
        }
        Ok(())
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

impl AutoSaver {
    /// Which automatic checkpoints stay: the union of the rules, in place of those set before.
    /// Without any, the default, all do. What goes is removed after each automatic save, once that
    /// is committed; on disk is looked what there is, so that a resumed run goes on where the other
    /// one was. Never removed: the newest, the one that was loaded, what was saved by hand or by a
    /// callback or in another run into the directory, and what is pinned.
    ///
    /// Only saves at the end of an epoch have the numbers by which the best are found.
    ///
    /// ```
    /// # use tch_checkpoint::handler::{Mode, Model, NNHandler};
    /// # fn example<M: Model>(handler: &mut NNHandler<M>) -> tch_checkpoint::Result<()> {
    /// let saver = handler.auto_save(1, "checkpoints", "epoch{epoch:03d}")?;
    /// saver.keep_last(3)?.keep_best(2, "val_loss", Mode::Min)?.keep_every_epochs(50)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with [`AutoSaver::overwrite`], and for a pinned name that is no
    /// glob; nothing has changed then. [`NNHandler::train`](crate::NNHandler::train) refuses to
    /// keep the best by a number that no epoch has.
    pub fn keep(&mut self, retention: Retention) -> Result<&mut Self> {
        let policies = Policies { retention, ..self.state.policies.clone() };
        policies.check(self.state.overwrite)?;
        self.state.policies = policies;
        Ok(self)
    }

    /// Adds the rule that the newest `count` stay; see [`AutoSaver::keep`].
    ///
    /// # Errors
    /// As [`AutoSaver::keep`], and for 0.
    pub fn keep_last(&mut self, count: u64) -> Result<&mut Self> {
        let last = Some(positive("keep_last", count)?);
        self.keep(Retention { last, ..self.retention() })
    }

    /// Adds the rule that the best `count` stay by `monitor`, one of the logs of an epoch; also,
    /// the link `best` names the best one. NaN and infinite are never best, and of equals the
    /// older is better. See [`AutoSaver::keep`].
    ///
    /// # Errors
    /// As [`AutoSaver::keep`], and for 0.
    pub fn keep_best(&mut self, count: u64, monitor: &str, mode: Mode) -> Result<&mut Self> {
        let count = positive("keep_best", count)?;
        let best = Some(KeepBest { count, monitor: monitor.to_owned(), mode });
        self.keep(Retention { best, ..self.retention() })
    }

    /// Adds the rule that those stay whose step is a multiple; see [`AutoSaver::keep`].
    ///
    /// # Errors
    /// As [`AutoSaver::keep`], and for 0.
    pub fn keep_every_steps(&mut self, steps: u64) -> Result<&mut Self> {
        let every_steps = Some(positive("keep_every_steps", steps)?);
        self.keep(Retention { every_steps, ..self.retention() })
    }

    /// Adds the rule that of each number of completed epochs that is a multiple, the oldest stays;
    /// see [`AutoSaver::keep`].
    ///
    /// # Errors
    /// As [`AutoSaver::keep`], and for 0.
    pub fn keep_every_epochs(&mut self, epochs: u64) -> Result<&mut Self> {
        let every_epochs = Some(positive("keep_every_epochs", epochs)?);
        self.keep(Retention { every_epochs, ..self.retention() })
    }

    /// Excepts names, or globs of names, from removal; alone it removes nothing.
    ///
    /// # Errors
    /// As [`AutoSaver::keep`].
    pub fn keep_pinned<N: Into<String>>(
        &mut self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<&mut Self> {
        let mut retention = self.retention();
        retention.pinned.extend(names.into_iter().map(Into::into));
        self.keep(retention)
    }

    /// Whether automatic saves go on beside training. Default: [`AsyncMode::Disabled`]. What a
    /// signal or the end of the job's time leads to is always saved at once.
    ///
    /// At the end of each `train` all is committed. A save that fails makes `train` end with its
    /// error when the next one is due, which is made nevertheless, or else as it ends, on every
    /// rank; what was saved before is untouched.
    pub fn mode(&mut self, mode: AsyncMode) -> &mut Self {
        self.state.policies.mode = mode;
        self
    }

    /// What happens when a save is due while one is still going on; the coordinator's answer
    /// counts. Default: [`InFlight::Wait`]. The last save of a `train` waits in any case.
    pub fn in_flight(&mut self, in_flight: InFlight) -> &mut Self {
        self.state.policies.in_flight = in_flight;
        self
    }

    fn retention(&self) -> Retention {
        self.state.policies.retention.clone()
    }
}

fn positive(rule: &str, count: u64) -> Result<NonZeroU64> {
    NonZeroU64::new(count).ok_or_else(|| {
        invalid(&format!("`{rule}`: 0 would keep nothing"))
            .with_help("give 1 or more, or leave it out for no such rule")
    })
}
