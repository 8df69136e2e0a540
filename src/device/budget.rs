//! How much host memory may be page-locked: it cannot be swapped, and no other process gets it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// MiB of page-locked memory of this process; without it there is no bound.
#[cfg(any(test, feature = "torch"))]
pub(crate) const VARIABLE: &str = "TCH_CHECKPOINT_PINNED_MIB";

/// A bound, and what is taken of it.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    taken: AtomicU64,
}

/// A part of a budget; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicU64::new(0) })
    }

    /// Of the process: as the variable says: a number of MiB. What is no number bounds nothing, with a warning.
    #[cfg(any(test, feature = "torch"))]
    pub(crate) fn of_text(text: Option<&str>) -> Arc<Self> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Self::new(u64::MAX) };
        let Ok(mib) = text.parse::<u64>() else {
            tracing::warn!(value = text, "{VARIABLE} is no number of MiB; nothing is bounded");
            return Self::new(u64::MAX);
        };
        Self::new(mib.saturating_mul(1 << 20))
    }

    /// `bytes` of it, if as much is left.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Option<Lease> {
        let more = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.ok().map(|_| Lease { budget: Arc::clone(self), bytes })
    }

    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is_and_what_comes_back_is_given_again() {
        let budget = Budget::new(100);
        let most = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        let rest = budget.take(40).unwrap();
        assert!(budget.take(1).is_none());
        drop(most);
        assert!(budget.take(60).is_some());
        drop(rest);
        assert_eq!(budget.taken(), 0);
        assert!(budget.take(u64::MAX).is_none());
    }

    #[test]
    fn the_variable_is_in_mib() {
        assert_eq!(Budget::of_text(Some("3")).limit, 3 << 20);
        for nothing in [None, Some(""), Some("many"), Some("-1")] {
            assert_eq!(Budget::of_text(nothing).limit, u64::MAX);
        }
    }
}
