//! Being told to end: by a signal, or by the end of the job's time.
//!
//! A signal is noted, not obeyed: its handler changes a number and returns. Training goes on to
//! the end of the step, where all ranks ask one another (`agree`), and what they agree on is
//! the same step on every rank. A second signal is obeyed at once (`signals`).

mod agree;
mod signals;
mod time_limit;

use std::fmt;
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGTERM, SIGUSR1};

pub(crate) use self::agree::{Poll, poll};
use self::signals::Hold;
use self::time_limit::TimeLimit;
use crate::error::Result;

/// Exit code of a job that has saved and wants to be started again: `EX_TEMPFAIL` of
/// `sysexits.h`, which Slurm and Kubernetes can be told to take as a reason to do so.
pub const REQUEUE_EXIT_CODE: u8 = 75;

/// Why a job is to save and end.
///
/// As the value of `main` it is [`REQUEUE_EXIT_CODE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Preempted {
    /// A signal (its number) told so.
    Signal(i32),
    /// The job's time ends soon.
    TimeLimit,
}

impl Preempted {
    /// The exit code that asks for another start: [`REQUEUE_EXIT_CODE`]. Leave with
    /// [`ProcessGroup::finish`](crate::ProcessGroup::finish) first.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        REQUEUE_EXIT_CODE
    }
}

impl fmt::Display for Preempted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(SIGUSR1) => f.write_str("SIGUSR1"),
            Self::Signal(SIGTERM) => f.write_str("SIGTERM"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::TimeLimit => f.write_str("the job's time ends soon"),
        }
    }
}

impl From<Preempted> for ExitCode {
    fn from(preempted: Preempted) -> Self {
        preempted.exit_code().into()
    }
}

impl Termination for Preempted {
    fn report(self) -> ExitCode {
        self.into()
    }
}

/// What this process watches. A clone watches on; when the last one of the process is gone,
/// signals do what they do by default.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    signals: Option<Arc<Hold>>,
    time_limit: Option<TimeLimit>,
    is_active: bool,
}

impl Watch {
    /// Begins to watch: SIGUSR1 and SIGTERM if `signals`; the job's end if `time_limit` says how
    /// long before it. The end is `TCH_CHECKPOINT_END_TIME`, else `SLURM_JOB_END_TIME`, in seconds
    /// since 1970; without either there is none, and one that has passed already is taken for a
    /// left-over, with a warning.
    ///
    /// The signals belong to the process: all its watches see the first one, also those that begin
    /// later. One that comes more than a second after it ends the process at once, as the signal
    /// does by default. Another handler that the program has installed before is called as well; it
    /// does not keep the process from being ended so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a variable that is no time,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where the system refuses the
    /// signals; on this rank alone.
    pub fn begin(signals: bool, time_limit: Option<Duration>) -> Result<Self> {
        let is_active = signals || time_limit.is_some();
        let time_limit = time_limit.map(TimeLimit::from_env).transpose()?.flatten();
        let signals = signals.then(Hold::begin).transpose()?.map(Arc::new);
        Ok(Self { signals, time_limit, is_active })
    }

    /// Whether anything is watched, so that ranks have to ask one another. Follows from what
    /// [`Watch::begin`] was given, never from variables, which ranks may not share.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// Whether this process has been told to end; once it was, it stays so. `save_takes`: how
    /// long a save is expected to take. Time is up when less is left than twice that, or than
    /// what [`Watch::begin`] was given.
    #[must_use]
    pub fn poll(&self, save_takes: Duration) -> Option<Preempted> {
        let signal = self.signals.as_ref().and_then(|_| signals::first()).map(Preempted::Signal);
        let ends = || self.time_limit.is_some_and(|limit| limit.is_near(save_takes));
        signal.or_else(|| ends().then_some(Preempted::TimeLimit))
    }

    /// All ranks are about to save and end.
    fn agreed(&self) {
        if self.signals.is_some() {
            signals::expect_late();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_watched_unless_it_is_asked_for() {
        for watch in [Watch::default(), Watch::begin(false, None).unwrap()] {
            assert!(!watch.is_active());
            assert_eq!(watch.poll(Duration::MAX), None);
        }
        // Whether there is an end to wait for is not known to other ranks.
        assert!(Watch::begin(false, Some(Duration::ZERO)).unwrap().is_active());
    }

    #[test]
    fn every_reason_asks_for_another_start_and_says_why() {
        for (reason, words) in [
            (Preempted::Signal(SIGUSR1), "SIGUSR1"),
            (Preempted::Signal(SIGTERM), "SIGTERM"),
            (Preempted::Signal(2), "signal 2"),
            (Preempted::TimeLimit, "the job's time ends soon"),
        ] {
            assert_eq!(reason.exit_code(), 75);
            assert_eq!(reason.to_string(), words);
        }
    }
}
