//! What no rank can decide alone: the clock, a signal, a predicate, a metric that improved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::metrics::mean_over_ranks;
use super::{At, Checkpointer, Reason};
use crate::autosave::Due;
use crate::error::Result;
use crate::group::Channel;
use crate::preempt::poll;

/// The longest of several times, some of which a thread measures.
#[derive(Debug, Clone, Default)]
pub(super) struct Longest(Arc<Mutex<Duration>>);

impl Longest {
    pub(super) fn note(&self, time: Duration) {
        let mut longest = self.0.lock();
        *longest = time.max(*longest);
    }

    fn get(&self) -> Duration {
        *self.0.lock()
    }
}

impl Checkpointer {
    /// Why to save now, if at all. Ranks ask one another only where they could differ.
    pub(super) fn due(&mut self, at: &At) -> Result<Option<Reason>> {
        let counted = self.triggers.due_by_count(self.before, at.counters());
        self.before = at.counters();
        if let Some(reason) = self.told()? {
            return Ok(Some(reason));
        }
        if let Some(due) = counted {
            return Ok(Some(due.into()));
        }
        self.wanted(at)
    }

    /// What follows from signals and clocks, which is asked about four times a second.
    fn told(&mut self) -> Result<Option<Reason>> {
        if !self.watch.is_active() && self.triggers.minutes.is_none() {
            return Ok(None);
        }
        let (triggers, clock) = (self.triggers, self.clock);
        let minutes_due = || triggers.due_by_clock(clock.elapsed()).is_some();
        let takes = self.save_takes.get();
        let answer = poll(&self.group, &mut self.poll, &self.watch, takes, minutes_due)?;
        self.stop = self.stop.or(answer.preempted);
        let told = answer.preempted.map(Reason::Preempted);
        Ok(told.or(answer.minutes_due.then_some(Reason::Minutes)))
    }

    /// What follows from the predicate and from metrics, which is asked at every step.
    fn wanted(&mut self, at: &At) -> Result<Option<Reason>> {
        if self.predicate.is_none() && !self.config.save_on_best {
            return Ok(None);
        }
        let mut predicate = self.predicate.take();
        // Within the vote, so that one rank's panic is every rank's error.
        let ask = || {
            let says_so = predicate.as_mut().is_some_and(|predicate| predicate(at));
            Ok((says_so, at.metrics().clone()))
        };
        let decide = |by_rank: Vec<(bool, BTreeMap<String, f64>)>| {
            let says_so = by_rank.first().is_some_and(|(says_so, _)| *says_so);
            let metrics: Vec<_> = by_rank.into_iter().map(|(_, metrics)| metrics).collect();
            let improved = || self.improves(&mean_over_ranks(&metrics)).then_some(Reason::Best);
            Ok(if says_so { Some(Reason::Predicate) } else { improved() })
        };
        let answer = self.group.phase_all(Channel::Training, "due", ask, decide);
        self.predicate = predicate;
        answer
    }

    fn improves(&self, metrics: &BTreeMap<String, f64>) -> bool {
        let Some(monitor) = self.config.monitor.as_ref().filter(|_| self.config.save_on_best)
        else {
            return false;
        };
        let better = |value: f64| {
            self.state.best_saved.is_none_or(|best| self.config.mode.is_better(value, best))
        };
        metrics.get(monitor).is_some_and(|value| value.is_finite() && better(*value))
    }
}

impl From<Due> for Reason {
    fn from(due: Due) -> Self {
        match due {
            Due::Epochs => Self::Epochs,
            Due::Steps => Self::Steps,
            Due::Minutes => Self::Minutes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpointer::{AsyncMode, CheckpointerConfig, Location, Parts};
    use crate::group::ProcessGroup;
    use crate::storage::MemoryStorage;

    /// In front of the job's end there has to be time for it.
    #[test]
    fn a_save_beside_training_is_timed_as_any_other() {
        for save_mode in [AsyncMode::Disabled, AsyncMode::Async, AsyncMode::AsyncOverlap] {
            let config = CheckpointerConfig {
                experiment: "run".to_owned(),
                location: Location::Path(Path::new("/runs").to_path_buf()),
                save_on_signal: false,
                save_every_steps: Some(1),
                save_mode,
                ..CheckpointerConfig::default()
            };
            let (group, storage) = (ProcessGroup::solo(), Arc::new(MemoryStorage::new()));
            let mut made = Checkpointer::with_storage(&group, storage, config).unwrap();
            assert_eq!(made.save_takes.get(), Duration::ZERO);
            let stepped = made.step_callback(&At::step(1), &mut Parts::new()).unwrap();
            assert!(stepped.save.is_some());
            made.wait().unwrap();
            assert!(made.save_takes.get() > Duration::ZERO, "{save_mode:?}");
        }
    }
}
