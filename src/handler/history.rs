//! What training has seen: one number per epoch and series.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::state::{Value, Values};

/// Prefix of the stored series.
const PREFIX: &str = "history.";
/// Series that begin later are filled up to here; nothing else bounds what a file says.
const EPOCHS_WITHOUT_SERIES_MAX: u64 = 10_000_000;

/// One value per epoch of `loss`, `val_loss`, `epoch_time` (seconds), `lr`, and each metric and
/// its `val_` twin. NaN where an epoch had none; all series are equally long.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    series: BTreeMap<String, Vec<f64>>,
    epochs: usize,
}

impl History {
    /// No series yet, after so many epochs.
    pub(super) fn begin_after(epochs: u64) -> Self {
        Self { series: BTreeMap::new(), epochs: usize::try_from(epochs).unwrap_or(usize::MAX) }
    }

    /// Adds the numbers of one epoch; series that it lacks get NaN.
    pub fn push(&mut self, logs: &BTreeMap<String, f64>) {
        for name in logs.keys() {
            let missed = self.epochs;
            self.series.entry(name.clone()).or_insert_with(|| vec![f64::NAN; missed]);
        }
        for (name, series) in &mut self.series {
            series.push(logs.get(name).copied().unwrap_or(f64::NAN));
        }
        self.epochs += 1;
    }

    /// A series, empty if there is none of that name.
    #[must_use]
    pub fn series(&self, name: &str) -> &[f64] {
        self.series.get(name).map_or(&[], Vec::as_slice)
    }

    /// The names of all series.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.series.keys().map(String::as_str)
    }

    /// The epoch (counted from 1) with the smallest value of a series, and that value; the first of
    /// equals. NaN and infinities count for nothing.
    #[must_use]
    pub fn lowest(&self, name: &str) -> Option<(usize, f64)> {
        self.best(name, |value, best| value < best)
    }

    /// The same for the largest value.
    #[must_use]
    pub fn highest(&self, name: &str) -> Option<(usize, f64)> {
        self.best(name, |value, best| value > best)
    }

    fn best(&self, name: &str, is_better: fn(f64, f64) -> bool) -> Option<(usize, f64)> {
        let finite = (1..).zip(self.series(name).iter().copied()).filter(|(_, v)| v.is_finite());
        finite.reduce(|best, next| if is_better(next.1, best.1) { next } else { best })
    }

    /// Epochs seen.
    #[must_use]
    pub fn epochs(&self) -> usize {
        self.epochs
    }

    pub(super) fn save(&self, values: &mut Values) {
        for (name, series) in &self.series {
            values.set(format!("{PREFIX}{name}"), series.clone());
        }
    }

    /// # Errors
    /// [`ErrorKind::Mismatch`] unless every series has one number per epoch.
    pub(super) fn load(values: &Values, epochs: u64) -> Result<Self> {
        let mut series = BTreeMap::new();
        for (stored, value) in values.iter() {
            let Some(name) = stored.strip_prefix(PREFIX) else { continue };
            match value {
                Value::Floats(numbers) if numbers.len() as u64 == epochs => {
                    series.insert(name.to_owned(), numbers.clone());
                }
                _ => {
                    let message = format!("value `{stored}` is not one number for each epoch");
                    return Err(Error::new(ErrorKind::Mismatch, message));
                }
            }
        }
        if series.is_empty() && epochs > EPOCHS_WITHOUT_SERIES_MAX {
            return Err(Error::new(ErrorKind::Mismatch, "epochs without a history"));
        }
        Ok(Self { series, epochs: usize::try_from(epochs).unwrap_or(usize::MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_stay_equally_long_and_survive_a_round_trip() {
        let mut history = History::default();
        history.push(&BTreeMap::from([("loss".to_owned(), 1.0)]));
        history.push(&BTreeMap::from([("loss".to_owned(), 0.5), ("val_loss".to_owned(), 0.7)]));
        assert_eq!(history.series("loss"), [1.0, 0.5]);
        assert!(history.series("val_loss")[0].is_nan());
        assert_eq!(history.series("val_loss")[1], 0.7);
        assert_eq!(history.lowest("val_loss"), Some((2, 0.7)));
        assert_eq!(history.highest("loss"), Some((1, 1.0)));
        assert_eq!(history.lowest("accuracy"), None);
        let mut values = Values::new();
        history.save(&mut values);
        let loaded = History::load(&values, 2).unwrap();
        assert_eq!(loaded.series("loss"), history.series("loss"));
        assert_eq!(loaded.epochs(), 2);
        for epochs in [0, 1, 3, u64::MAX] {
            assert_eq!(History::load(&values, epochs).unwrap_err().kind(), ErrorKind::Mismatch);
        }
        for epochs in [0, 3, u64::MAX] {
            assert_eq!(History::load(&Values::new(), epochs).is_ok(), epochs < 4);
        }
    }
}
