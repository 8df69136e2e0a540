//! The other ranks of an exchange, as the control plane sees them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Result;

/// Who has what it came for may go while others still wait for the rest of theirs, which is on its
/// way by then.
const GRACE: Duration = Duration::from_secs(1);

/// What the control plane says of those that take part in something that began at a time.
pub(super) type PeerCheck = Arc<dyn Fn(Instant) -> Result<()> + Send + Sync>;

/// A check that lets a rank be gone for a while.
pub(super) struct Peers {
    check: PeerCheck,
    lost: Mutex<Option<Instant>>,
}

impl Peers {
    pub(super) fn new(check: PeerCheck) -> Self {
        Self { check, lost: Mutex::new(None) }
    }

    /// # Errors
    /// As the check, once that has been so for a second.
    pub(super) fn check(&self, begun: Instant) -> Result<()> {
        let Err(error) = (self.check)(begun) else {
            *self.lost.lock() = None;
            return Ok(());
        };
        let lost = *self.lost.lock().get_or_insert_with(Instant::now);
        if lost.elapsed() < GRACE { Ok(()) } else { Err(error) }
    }
}
