//! Time, taken on all ranks at once: they start together, and the slowest counts.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};

/// Returns when every rank is here, and none was interrupted.
///
/// # Collective
/// Every rank.
///
/// # Errors
/// As [`ProcessGroup::phase`].
pub(super) fn together(group: &ProcessGroup) -> Result<()> {
    group.phase_all(Channel::Training, "together", interrupt::check, |_| Ok(()))
}

/// Does `work` on every rank at the same time; the time of the slowest. A failure is that of all.
///
/// # Collective
/// Every rank.
///
/// # Errors
/// That of `work` on any rank; as [`ProcessGroup::phase`].
pub(super) fn timed(
    group: &ProcessGroup,
    name: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    together(group)?;
    let local = || {
        let begin = Instant::now();
        work()?;
        Ok(begin.elapsed())
    };
    group.phase_all(Channel::Training, name, local, |times| {
        Ok(times.into_iter().max().unwrap_or_default())
    })
}

/// Does `work` on every rank; a failure is that of all.
///
/// # Collective
/// Every rank.
///
/// # Errors
/// That of `work` on any rank; as [`ProcessGroup::phase`].
pub(super) fn everywhere<T>(
    group: &ProcessGroup,
    name: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mut made = None;
    let local = || {
        made = Some(work()?);
        Ok(())
    };
    group.phase_all(Channel::Training, name, local, |_| Ok(()))?;
    made.ok_or_else(|| Error::new(ErrorKind::Disagreement, "a phase without its work"))
}

/// What every rank has, in rank order, on every rank.
///
/// # Collective
/// Every rank.
///
/// # Errors
/// As [`ProcessGroup::phase`].
pub(super) fn gathered<T>(group: &ProcessGroup, name: &str, own: T) -> Result<Vec<T>>
where
    T: Serialize + DeserializeOwned + Clone,
{
    group.phase_all(Channel::Training, name, || Ok(own), Ok)
}

/// The middle one, or the mean of the two in the middle; 0 of none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1).and_then(|below| values.get(below))) {
        (Some(upper), Some(lower)) if values.len().is_multiple_of(2) => {
            f64::midpoint(*lower, *upper)
        }
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_some_and_of_none() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([7.0]), 7.0);
        assert_eq!(median([]), 0.0);
    }
}
