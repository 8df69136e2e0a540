//! What no rank can decide alone: the clock, a signal, a predicate, a metric that improved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::mean_over_ranks;
use super::{At, Checkpointer, Reason};
use crate::autosave::Due;
use crate::error::Result;
use crate::group::Channel;
use crate::preempt::Preempted;

/// What a rank brings to the question.
#[derive(Serialize, Deserialize)]
struct Asked {
    preempted: Option<Preempted>,
    metrics: BTreeMap<String, f64>,
}

/// The coordinator's answer.
#[derive(Clone, Serialize, Deserialize)]
struct Answer {
    preempted: Option<Preempted>,
    save: Option<Reason>,
    /// So many steps on, ranks ask again.
    again_after: u64,
}

impl Checkpointer {
    /// Why to save now, if at all. Ranks ask one another only where they could differ, and not at
    /// every step if a moment's delay does no harm.
    pub(super) fn due(&mut self, at: &At) -> Result<Option<Reason>> {
        let counted = self.triggers.due_by_count(self.before, at.counters());
        self.before = at.counters();
        let answer = if self.has_to_ask(at) { self.ask(at)? } else { None };
        Ok(answer.or(counted.map(Reason::from)))
    }

    fn has_to_ask(&self, at: &At) -> bool {
        let at_every_step = self.predicate.is_some() || self.config.save_on_best;
        let now_and_then = self.watch.is_active() || self.triggers.minutes.is_some();
        at_every_step || (now_and_then && self.poll.due(at.counters().step))
    }

    fn ask(&mut self, at: &At) -> Result<Option<Reason>> {
        let wanted = self.predicate.as_mut().is_some_and(|predicate| predicate(at));
        let (preempted, since) = (self.watch.poll(self.save_takes), self.clock.elapsed());
        let metrics = if self.config.save_on_best { at.metrics().clone() } else { BTreeMap::new() };
        let by_clock = self.triggers.due_by_clock(since);
        let (this, poll) = (&*self, &mut self.poll.clone());
        let answer = this.group.phase_all(
            Channel::Training,
            "poll",
            || Ok(Asked { preempted, metrics }),
            |asked| {
                let preempted = asked.iter().find_map(|asked| asked.preempted);
                let metrics: Vec<_> = asked.into_iter().map(|asked| asked.metrics).collect();
                let improved = this.improves(&mean_over_ranks(&metrics));
                let save = match (preempted, by_clock) {
                    (Some(why), _) => Some(Reason::Preempted(why)),
                    (_, Some(due)) => Some(due.into()),
                    _ if wanted => Some(Reason::Predicate),
                    _ => improved.then_some(Reason::Best),
                };
                let again_after = poll.answer(at.counters().step);
                Ok(Answer { preempted, save, again_after })
            },
        )?;
        self.poll.take(at.counters().step, answer.again_after);
        self.stop = self.stop.or(answer.preempted);
        Ok(answer.save)
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
