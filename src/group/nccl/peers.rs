//! The other ranks of an exchange, as the control plane sees them.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Who has what it came for may go while others still wait for the rest of theirs, which is on its
/// way by then.
const GRACE: Duration = Duration::from_secs(1);

type Check = dyn Fn(Instant) -> Result<()> + Send + Sync;
type GiveUp = dyn Fn(&Error) + Send + Sync;

/// A check that lets a rank be gone for a while.
pub(super) struct Peers {
    check: Box<Check>,
    give_up: Box<GiveUp>,
    lost: Mutex<Option<Instant>>,
}

impl Peers {
    /// `check` says what the control plane knows of those that take part in something that began at
    /// a time; `give_up` tells them of an error.
    pub(super) fn new(
        check: impl Fn(Instant) -> Result<()> + Send + Sync + 'static,
        give_up: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Self {
        Self { check: Box::new(check), give_up: Box::new(give_up), lost: Mutex::new(None) }
    }

    /// # Errors
    /// As the check, once that has been so for a second.
    pub(super) fn check(&self, begun: Instant) -> Result<()> {
        let Err(error) = (self.check)(begun) else {
            *self.lost.lock() = None;
            return Ok(());
        };
        let lost = *self.lost.lock().get_or_insert_with(Instant::now);
        if lost.elapsed() < GRACE {
            return Ok(());
        }
        (self.give_up)(&error);
        Err(error)
    }
}
