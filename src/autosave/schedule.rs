//! When an automatic save is due.

use std::convert::Infallible;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// How often a handler saves by itself.
///
/// ```
/// use tch_checkpoint::autosave::Every;
///
/// assert_eq!(Every::try_from(5)?, Every::epochs(5)?);
/// assert_eq!(Every::try_from(0)?, Every::Off);
/// assert_eq!(Every::try_from(-1)?, Every::LastEpoch);
/// assert_eq!(Every::try_from(None)?, Every::Off);
/// let half_hourly = Every::minutes(30.0)?;
/// assert!(Every::try_from(-5).is_err());
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Every {
    /// Never.
    #[default]
    Off,
    /// After each epoch whose number, counted from 1 over all resumes, is a multiple of this.
    #[serde(rename = "EveryEpochs")]
    Epochs(NonZeroU64),
    /// Only after the last epoch of each call to `train`.
    LastEpoch,
    /// After each training step whose number, counted from 1 over all resumes, is a multiple.
    #[serde(rename = "EverySteps")]
    Steps(NonZeroU64),
    /// After the first training step that ends so long after the last automatic save of this
    /// process (before the first one: after it began to train), by the coordinator's clock.
    #[serde(rename = "EveryMilliseconds")]
    Milliseconds(NonZeroU64),
}

impl Every {
    /// Every `n` epochs, counted over all resumes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for 0; use [`Every::Off`].
    pub fn epochs(n: u64) -> Result<Self> {
        NonZeroU64::new(n).map(Self::Epochs).ok_or_else(|| refused("0 epochs"))
    }

    /// Every `n` training steps, counted over all resumes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for 0; use [`Every::Off`].
    pub fn steps(n: u64) -> Result<Self> {
        NonZeroU64::new(n).map(Self::Steps).ok_or_else(|| nothing("0 steps"))
    }

    /// Every so many minutes since the last automatic save, rounded to milliseconds.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] unless it is a positive number of at least a millisecond.
    pub fn minutes(minutes: f64) -> Result<Self> {
        let refuse = || nothing(&format!("{minutes} minutes"));
        let duration = Duration::try_from_secs_f64(minutes * 60.0).map_err(|_| refuse())?;
        let milliseconds = u64::try_from(duration.as_millis()).map_err(|_| refuse())?;
        NonZeroU64::new(milliseconds).map(Self::Milliseconds).ok_or_else(refuse)
    }

    /// Whether a save is due after `epoch`, counted from 1 over all resumes.
    ///
    /// `is_last`: it is the last epoch of this call to `train`. `save_on_last_epoch`: that one is
    /// saved too, if an interval is set at all; [`Every::LastEpoch`] does not ask it.
    #[must_use]
    pub fn due(self, epoch: u64, is_last: bool, save_on_last_epoch: bool) -> bool {
        match self {
            Self::Off => false,
            Self::LastEpoch => is_last,
            Self::Epochs(n) => is_multiple(epoch, n) || (is_last && save_on_last_epoch),
            Self::Steps(_) | Self::Milliseconds(_) => is_last && save_on_last_epoch,
        }
    }

    /// Whether a save is due after training step `step`, counted from 1 over all resumes, `since`
    /// the last automatic save or the begin of training.
    #[must_use]
    pub fn due_at_step(self, step: u64, since: Duration) -> bool {
        match self {
            Self::Steps(n) => is_multiple(step, n),
            Self::Milliseconds(n) => since >= Duration::from_millis(n.get()),
            Self::Off | Self::Epochs(_) | Self::LastEpoch => false,
        }
    }

    /// Whether ranks could answer [`Every::due_at_step`] differently, so that one must decide.
    #[must_use]
    pub fn asks_the_clock(self) -> bool {
        matches!(self, Self::Milliseconds(_))
    }
}

fn is_multiple(count: u64, of: NonZeroU64) -> bool {
    count > 0 && count.is_multiple_of(of.get())
}

fn nothing(interval: &str) -> Error {
    let message = format!("an auto-save interval of {interval}");
    Error::new(ErrorKind::InvalidInput, message).with_help("use `Every::Off` for no saves")
}

fn refused(interval: &str) -> Error {
    nothing(interval)
        .with_help("use N > 0 for every N epochs, 0 for off, -1 for the last epoch only")
}

/// `n > 0`: every `n` epochs; `0`: off; `-1`: the last epoch of each call to `train`.
impl TryFrom<i64> for Every {
    type Error = Error;

    fn try_from(n: i64) -> Result<Self> {
        match n {
            -1 => Ok(Self::LastEpoch),
            0 => Ok(Self::Off),
            _ => {
                let n = u64::try_from(n).map_err(|_| refused(&format!("{n} epochs")))?;
                Self::epochs(n)
            }
        }
    }
}

/// As for `i64`.
impl TryFrom<i32> for Every {
    type Error = Error;

    fn try_from(n: i32) -> Result<Self> {
        Self::try_from(i64::from(n))
    }
}

/// `None` is off; else as for `i64`.
impl TryFrom<Option<i64>> for Every {
    type Error = Error;

    fn try_from(n: Option<i64>) -> Result<Self> {
        n.map_or(Ok(Self::Off), Self::try_from)
    }
}

/// Lets an interval that is valid by its type be given where one may have to be refused.
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The epochs saved by one `train` call after `done` epochs.
    fn saved(interval: i64, done: u64, epochs: u64, save_on_last_epoch: bool) -> Vec<u64> {
        let every = Every::try_from(interval).unwrap();
        let last = done + epochs;
        (done + 1..=last).filter(|&e| every.due(e, e == last, save_on_last_epoch)).collect()
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
        assert_eq!(Every::try_from(None).unwrap(), Every::Off);
        assert_eq!(saved(-1, 0, 4, true), [4]);
        assert_eq!(saved(-1, 4, 3, false), [7]);
    }

    #[test]
    fn below_minus_one_is_refused_with_the_ways_out() {
        for n in [-2, -5, i64::MIN] {
            let error = Every::try_from(n).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&n.to_string()), "{error}");
            assert!(error.to_string().contains("-1 for the last epoch"), "{error}");
        }
    }

    #[test]
    fn steps_go_by_their_number_and_minutes_by_what_has_passed() {
        let steps = Every::steps(3).unwrap();
        let never = Duration::MAX;
        let due: Vec<u64> = (0..10).filter(|&s| steps.due_at_step(s, never)).collect();
        assert_eq!(due, [3, 6, 9]);
        assert!(!steps.due(3, false, true) && steps.due(3, true, true));
        assert!(!steps.due(3, true, false) && !steps.asks_the_clock());
        let minutes = Every::minutes(0.5).unwrap();
        assert!(!minutes.due_at_step(3, Duration::from_millis(29_999)));
        assert!(minutes.due_at_step(1, Duration::from_secs(30)) && minutes.asks_the_clock());
        assert!(!Every::epochs(3).unwrap().due_at_step(3, never));
    }

    #[test]
    fn intervals_of_nothing_are_refused() {
        for minutes in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-9] {
            assert_eq!(Every::minutes(minutes).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert!(Every::steps(0).is_err() && Every::epochs(0).is_err());
    }

    #[test]
    fn what_older_checkpoints_hold_is_understood() {
        let stored = ["\"Off\"", "{\"EveryEpochs\":5}", "\"LastEpoch\""];
        let known = [Every::Off, Every::epochs(5).unwrap(), Every::LastEpoch];
        for (text, every) in stored.into_iter().zip(known) {
            assert_eq!(serde_json::from_str::<Every>(text).unwrap(), every);
            assert_eq!(serde_json::to_string(&every).unwrap(), text);
        }
    }
}
