//! A number that a callback watches.

use super::CallbackContext;
pub use crate::autosave::Mode;
use crate::error::{Error, ErrorKind, Result};
use crate::state::Values;

/// Which number is watched, and in which direction.
#[derive(Debug, Clone)]
pub(super) struct Monitor {
    pub(super) name: String,
    pub(super) mode: Mode,
    /// Whether it had a value in this `train`.
    seen: bool,
    warned: bool,
}

/// What an epoch says of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reading {
    /// It was not measured.
    Absent,
    /// NaN or infinite.
    NotFinite,
    /// A number.
    Value(f64),
}

impl Monitor {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), mode: Mode::Min, seen: false, warned: false }
    }

    pub(super) fn begin(&mut self) {
        (self.seen, self.warned) = (false, false);
    }

    pub(super) fn read(&mut self, context: &CallbackContext<'_>) -> Reading {
        if self.name.starts_with("val_") && !context.validated() {
            return Reading::Absent;
        }
        let reading = match context.log(&self.name) {
            None => Reading::Absent,
            Some(value) if value.is_finite() => Reading::Value(value),
            Some(_) => Reading::NotFinite,
        };
        match reading {
            Reading::Value(_) => self.seen = true,
            Reading::Absent => self.warn(context, "the monitored number is not in the logs"),
            Reading::NotFinite => self.warn(context, "the monitored number is NaN or infinite"),
        }
        reading
    }

    /// Training ends: says so if the number never had a value.
    pub(super) fn end(&mut self, context: &CallbackContext<'_>) {
        if !self.seen && !context.logs().is_empty() {
            self.warn(context, "the monitored number never had a value; is there validation data?");
        }
    }

    fn warn(&mut self, context: &CallbackContext<'_>, what: &str) {
        if !self.warned && context.is_coordinator() {
            let known: Vec<&String> = context.logs().keys().collect();
            tracing::warn!(monitor = self.name, epoch = context.epoch(), ?known, "{what}");
        }
        self.warned = true;
    }

    /// Whether `value` is better than `best` by more than `min_delta`; any number is better than
    /// none.
    pub(super) fn improves(&self, value: f64, best: Option<f64>, min_delta: f64) -> bool {
        best.is_none_or(|best| match self.mode {
            Mode::Min => value < best - min_delta,
            Mode::Max => value > best + min_delta,
        })
    }

    /// Adds what tells whether a best value was of the same number.
    pub(super) fn save(&self, values: &mut Values) {
        values.set("monitor", self.name.as_str());
        values.set("mode", self.mode.as_str());
    }

    /// Whether stored values are of the same number.
    pub(super) fn is_that_of(&self, values: &Values) -> Result<bool> {
        Ok(values.text("monitor")? == self.name && values.text("mode")? == self.mode.as_str())
    }
}

/// A best value, if there is one, and its epoch.
pub(super) fn load_best(values: &Values) -> Result<(Option<f64>, u64)> {
    let best = values.find("best").map(|_| values.float("best")).transpose()?;
    if best.is_some_and(|best| !best.is_finite()) {
        return Err(Error::new(ErrorKind::Mismatch, "value `best` is not finite"));
    }
    Ok((best, load_count(values, "best_epoch")?))
}

pub(super) fn save_best(best: Option<f64>, epoch: u64, values: &mut Values) {
    if let Some(best) = best {
        values.set("best", best);
    }
    values.set("best_epoch", count(epoch));
}

pub(super) fn load_count(values: &Values, name: &str) -> Result<u64> {
    u64::try_from(values.int(name)?)
        .map_err(|_| Error::new(ErrorKind::Mismatch, format!("value `{name}` is negative")))
}

pub(super) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn improvement_is_strict_and_beyond_the_delta() {
        let mut monitor = Monitor::new("loss");
        for (value, best, delta, improves) in [
            (5.0, None, 0.0, true),
            (-1.5, Some(-1.0), 0.0, true),
            (1.0, Some(1.0), 0.0, false),
            (0.95, Some(1.0), 0.1, false),
            (0.85, Some(1.0), 0.1, true),
            (2.0, Some(1.0), 0.0, false),
        ] {
            monitor.mode = Mode::Min;
            assert_eq!(monitor.improves(value, best, delta), improves, "{value} {best:?}");
            monitor.mode = Mode::Max;
            let negated = best.map(|b: f64| -b);
            assert_eq!(monitor.improves(-value, negated, delta), improves, "max {value}");
        }
    }
}
