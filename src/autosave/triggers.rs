//! When a save is due, by several rules at once.

use std::num::NonZeroU64;
use std::time::Duration;

/// How far training has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Training steps completed, over all resumes.
    pub step: u64,
    /// Epochs completed, over all resumes.
    pub epoch: u64,
}

/// Rules by which saves are due; any of them will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Triggers {
    /// After each epoch whose number is a multiple.
    pub epochs: Option<NonZeroU64>,
    /// After each training step whose number is a multiple.
    pub steps: Option<NonZeroU64>,
    /// So long after the last save.
    pub minutes: Option<Duration>,
}

/// The rule that a save follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// A multiple of epochs was completed.
    Epochs,
    /// A multiple of steps was completed.
    Steps,
    /// The time since the last save is up.
    Minutes,
}

impl Triggers {
    /// What is due by counting, having come from `before` to `now`: the same on every rank. A
    /// multiple that was passed counts, so that nothing is missed by who asks only now and then.
    #[must_use]
    pub fn due_by_count(&self, before: Counters, now: Counters) -> Option<Due> {
        let passed = |n: Option<NonZeroU64>, before: u64, now: u64| {
            n.is_some_and(|n| now / n.get() > before / n.get())
        };
        if passed(self.epochs, before.epoch, now.epoch) {
            return Some(Due::Epochs);
        }
        passed(self.steps, before.step, now.step).then_some(Due::Steps)
    }

    /// What is due by the clock, so long after the last save. Clocks differ: one rank must decide.
    #[must_use]
    pub fn due_by_clock(&self, since: Duration) -> Option<Due> {
        self.minutes.filter(|minutes| since >= *minutes).map(|_| Due::Minutes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(n: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(n)
    }

    fn at(step: u64, epoch: u64) -> Counters {
        Counters { step, epoch }
    }

    #[test]
    fn every_rule_counts_and_nothing_is_due_without_one() {
        let both = Triggers { epochs: every(2), steps: every(10), minutes: None };
        assert_eq!(both.due_by_count(at(9, 1), at(10, 1)), Some(Due::Steps));
        assert_eq!(both.due_by_count(at(10, 1), at(11, 1)), None);
        assert_eq!(both.due_by_count(at(11, 1), at(12, 2)), Some(Due::Epochs));
        assert_eq!(Triggers::default().due_by_count(at(0, 0), at(100, 100)), None);
        let timed = Triggers { minutes: Some(Duration::from_secs(30)), ..Triggers::default() };
        assert_eq!(timed.due_by_clock(Duration::from_millis(29_999)), None);
        assert_eq!(timed.due_by_clock(Duration::from_secs(30)), Some(Due::Minutes));
        assert_eq!(both.due_by_clock(Duration::MAX), None);
    }

    #[test]
    fn who_asks_every_seventh_step_misses_no_multiple_of_ten() {
        let tens = Triggers { steps: every(10), ..Triggers::default() };
        let asked: Vec<u64> = (0..10).map(|i| i * 7).collect();
        let due =
            asked.windows(2).filter(|w| tens.due_by_count(at(w[0], 0), at(w[1], 0)).is_some());
        assert_eq!(due.map(|w| w[1]).collect::<Vec<_>>(), [14, 21, 35, 42, 56, 63]);
    }

    #[test]
    fn nothing_is_due_at_the_point_that_was_resumed_or_behind_it() {
        let tens = Triggers { steps: every(10), epochs: every(1), ..Triggers::default() };
        assert_eq!(tens.due_by_count(at(20, 2), at(20, 2)), None);
        assert_eq!(tens.due_by_count(at(20, 2), at(10, 1)), None);
    }
}
