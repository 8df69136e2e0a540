//! In which epochs an automatic save is due.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// How often a handler saves by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Interval {
    /// Never.
    #[default]
    Off,
    /// After each epoch whose number, counted from 1 over all resumes, is a multiple of this.
    EveryEpochs(NonZeroU64),
    /// Only after the last epoch of each call to `train`.
    LastEpoch,
}

impl Interval {
    /// `n > 0`: every `n` epochs; `0`: off; `-1`: the last epoch of each call to `train`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] below -1.
    pub fn from_epochs(n: i64) -> Result<Self> {
        match n {
            -1 => return Ok(Self::LastEpoch),
            0 => return Ok(Self::Off),
            _ => {}
        }
        u64::try_from(n).ok().and_then(NonZeroU64::new).map(Self::EveryEpochs).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("an auto-save interval of {n} epochs"))
                .with_help("use N > 0 for every N epochs, 0 for off, -1 for the last epoch only")
        })
    }

    /// Whether a save is due after `epoch`, counted from 1 over all resumes.
    ///
    /// `is_last`: it is the last epoch of this call to `train`. `save_on_last_epoch`: that one is
    /// saved too, if an interval is set at all; [`Interval::LastEpoch`] does not ask it.
    #[must_use]
    pub fn due(self, epoch: u64, is_last: bool, save_on_last_epoch: bool) -> bool {
        match self {
            Self::Off => false,
            Self::EveryEpochs(n) => {
                (epoch > 0 && epoch.is_multiple_of(n.get())) || (is_last && save_on_last_epoch)
            }
            Self::LastEpoch => is_last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The epochs saved by one `train` call after `done` epochs.
    fn saved(interval: i64, done: u64, epochs: u64, save_on_last_epoch: bool) -> Vec<u64> {
        let interval = Interval::from_epochs(interval).unwrap();
        let last = done + epochs;
        (done + 1..=last).filter(|&e| interval.due(e, e == last, save_on_last_epoch)).collect()
    }

    #[test]
    fn every_n_counts_over_resumes_and_adds_the_last_epoch() {
        assert_eq!(saved(5, 0, 7, true), [5, 7]);
        assert_eq!(saved(5, 7, 4, true), [10, 11]);
        assert_eq!(saved(5, 0, 7, false), [5]);
        assert_eq!(saved(5, 7, 4, false), [10]);
        assert_eq!(saved(5, 0, 5, true), [5]);
        assert_eq!(saved(1, 0, 3, false), [1, 2, 3]);
        assert!(saved(i64::MAX, 0, 3, false).is_empty());
    }

    #[test]
    fn off_never_saves_and_minus_one_saves_the_last_epoch_only() {
        assert!(saved(0, 0, 4, true).is_empty());
        assert_eq!(saved(-1, 0, 4, true), [4]);
        assert_eq!(saved(-1, 4, 3, false), [7]);
    }

    #[test]
    fn below_minus_one_is_refused_with_the_ways_out() {
        for n in [-2, -5, i64::MIN] {
            let error = Interval::from_epochs(n).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&n.to_string()), "{error}");
            assert!(error.to_string().contains("-1 for the last epoch"), "{error}");
        }
    }
}
