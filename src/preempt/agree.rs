//! How ranks that are told at different moments come to end at the same step.
//!
//! They ask one another in a phase, which is too dear for every step. So each answer also says
//! after how many steps to ask again: the coordinator's number, and with it the step, is the same
//! on every rank.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Preempted, Watch};
use crate::error::Result;
use crate::group::{Channel, ProcessGroup};

const PHASE: &str = "poll";
/// How often to ask.
const PERIOD: Duration = Duration::from_millis(250);
/// Most steps between two questions.
const STEPS_MAX: u32 = 1000;
/// By how much the number of steps may grow at a time: the first steps tell little about the next.
const GROWTH: u32 = 2;

/// When ranks ask one another next. One per training loop and rank; its clock counts only on the
/// coordinator.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Poll {
    /// Steps that go by without a question before the next one.
    left: u32,
    /// Steps from the last question to the next.
    steps: u32,
    asked: Option<Instant>,
}

impl Poll {
    /// Counts a step; whether ranks ask one another after it. The first step asks.
    fn is_due(&mut self) -> bool {
        let is_due = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_due
    }

    /// Coordinator: after how many steps to ask again, so that it happens about every [`PERIOD`]
    /// if steps take what they took since the last question.
    fn answer(&self, now: Instant) -> u32 {
        let Some(asked) = self.asked else { return 1 };
        let most = self.steps.saturating_mul(GROWTH).clamp(1, STEPS_MAX);
        let took = now.saturating_duration_since(asked).as_nanos();
        let steps = PERIOD.as_nanos() * u128::from(self.steps) / took.max(1);
        u32::try_from(steps).unwrap_or(u32::MAX).clamp(1, most)
    }

    /// Takes the coordinator's answer.
    fn take(&mut self, ask_again_after: u32, now: Instant) {
        self.steps = ask_again_after;
        self.left = ask_again_after.saturating_sub(1);
        self.asked = Some(now);
    }
}

/// What the ranks agree on after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PollAnswer {
    /// Why all ranks are to save and end now, if they are.
    pub(crate) preempted: Option<Preempted>,
    /// Whether minutes have passed, by the coordinator's clock.
    pub(crate) minutes_due: bool,
    ask_again_after: u32,
}

/// After a step (or whatever else the loop counts): asks the other ranks, if it is time to, whether
/// any was told to end, and the coordinator alone whether minutes have passed. Nothing and `false`
/// for a step without a question.
///
/// # Collective
/// Every rank, after every step, with a [`Poll`] that has seen the same steps.
///
/// # Errors
/// As [`ProcessGroup::phase`].
pub(crate) fn poll(
    group: &ProcessGroup,
    poll: &mut Poll,
    watch: &Watch,
    save_takes: Duration,
    minutes_due: impl FnOnce() -> bool,
) -> Result<PollAnswer> {
    if !poll.is_due() {
        return Ok(PollAnswer::default());
    }
    let schedule = *poll;
    let local = || Ok(watch.poll(save_takes));
    let decide = |told: Vec<Option<Preempted>>| {
        let preempted = told.into_iter().flatten().min_by_key(|reason| match reason {
            Preempted::Signal(_) => 0,
            Preempted::TimeLimit => 1,
        });
        let ask_again_after = schedule.answer(Instant::now());
        Ok(PollAnswer { preempted, minutes_due: minutes_due(), ask_again_after })
    };
    let answer = group.phase_all(Channel::Training, PHASE, local, decide)?;
    poll.take(answer.ask_again_after, Instant::now());
    if answer.preempted.is_some() {
        watch.agreed();
    }
    Ok(answer)
}

#[cfg(test)]
mod tests;
