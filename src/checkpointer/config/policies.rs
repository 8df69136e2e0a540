//! What settings mean to the engine.

use std::num::NonZeroU64;
use std::time::Duration;

use super::CheckpointerConfig;
use crate::autosave::{KeepBest, Retention, Triggers};
use crate::error::{Error, ErrorKind, Result};

impl CheckpointerConfig {
    /// What stays after a save; `None` if everything does. Pins alone remove nothing. Where
    /// anything is removed at all, the best by `monitor` stays, also without `keep_best`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] by the name of the field, as [`CheckpointerConfig::check`].
    pub fn retention(&self) -> Result<Option<Retention>> {
        let without_rules = Retention { pinned: self.keep_pinned.clone(), ..Retention::default() };
        let best = rule("keep_best", self.keep_best)?;
        let rules = Retention {
            last: rule("keep_last", self.keep_last)?,
            best: best.map(|count| self.best_rule(count)).transpose()?,
            every_steps: rule("keep_every_steps", self.keep_every_steps)?,
            every_epochs: rule("keep_every_epochs", self.keep_every_epochs)?,
            ..without_rules.clone()
        };
        if rules == without_rules {
            return Ok(None);
        }
        let the_best = self.monitor.as_ref().map(|monitor| KeepBest::one(monitor, self.mode));
        Ok(Some(Retention { best: rules.best.or(the_best), ..rules }))
    }

    fn best_rule(&self, count: NonZeroU64) -> Result<KeepBest> {
        let monitor = self.monitor.clone().ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "`keep_best` without `monitor`")
                .with_help("set `monitor`")
        })?;
        Ok(KeepBest { count, monitor, mode: self.mode })
    }

    /// The rules by which saves are due while training; each counts by itself.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an interval of nothing.
    pub fn triggers(&self) -> Result<Triggers> {
        Ok(Triggers {
            epochs: rule("save_every_epochs", self.save_every_epochs)?,
            steps: rule("save_every_steps", self.save_every_steps)?,
            minutes: self.save_every_minutes.map(minutes).transpose()?,
        })
    }
}

fn minutes(minutes: f64) -> Result<Duration> {
    let duration = Duration::try_from_secs_f64(minutes * 60.0).ok();
    duration.filter(|duration| *duration >= Duration::from_millis(1)).ok_or_else(|| {
        let message = format!("`save_every_minutes` is {minutes}");
        Error::new(ErrorKind::InvalidInput, message)
    })
}

fn rule(field: &str, count: Option<u64>) -> Result<Option<NonZeroU64>> {
    let nothing = || Error::new(ErrorKind::InvalidInput, format!("`{field}` is 0"));
    count.map(|count| NonZeroU64::new(count).ok_or_else(nothing)).transpose()
}
