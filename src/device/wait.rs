//! Waiting for a mark: never for ever, and without a core at full load.

use std::time::{Duration, Instant};

use super::{Mark, Queue};
use crate::error::{Error, ErrorKind, Result};

/// A device that does nothing for so long is taken for dead. One copy is a few milliseconds; what
/// the computing stream was given before may be minutes, for as long as the deadline of the group
/// lets a rank be silent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
/// Asked without a pause: a copy of a slot takes about as long.
const SPIN: Duration = Duration::from_micros(200);
const PAUSE_MIN: Duration = Duration::from_micros(20);
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// What to do next while a mark is not reached.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Yield,
    Sleep(Duration),
    GiveUp,
}

/// After having waited for `waited`.
fn next(waited: Duration, patience: Duration) -> Next {
    if waited >= patience {
        return Next::GiveUp;
    }
    if waited < SPIN {
        return Next::Yield;
    }
    // A twentieth of the time waited is lost at most.
    Next::Sleep((waited / 20).clamp(PAUSE_MIN, PAUSE_MAX))
}

/// Returns when the device has done all up to `mark`.
///
/// # Errors
/// [`ErrorKind::Device`] as [`Queue::reached`]; [`ErrorKind::Deadline`] after `patience`: what is
/// queued may then still touch host memory at any time.
pub(crate) fn wait(queue: &mut dyn Queue, mark: Mark, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    while !queue.reached(mark)? {
        match next(begun.elapsed(), patience) {
            Next::Yield => std::thread::yield_now(),
            Next::Sleep(pause) => std::thread::sleep(pause),
            Next::GiveUp => {
                let message = format!("the device has not ended a copy within {patience:?}");
                return Err(Error::new(ErrorKind::Deadline, message)
                    .with_help("`nvidia-smi` and the kernel's log (Xid) tell its state"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_spins_then_sleeps_longer_and_longer_and_gives_up() {
        let after = |us| next(Duration::from_micros(us), PATIENCE);
        assert_eq!(after(0), Next::Yield);
        assert_eq!(after(200), Next::Sleep(PAUSE_MIN));
        assert_eq!(after(2_000), Next::Sleep(Duration::from_micros(100)));
        assert_eq!(after(10_000_000), Next::Sleep(PAUSE_MAX));
        assert_eq!(after(600_000_000), Next::GiveUp);
        assert_eq!(next(Duration::ZERO, Duration::ZERO), Next::GiveUp);
    }
}
