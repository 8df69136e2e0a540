//! The one place for a save beside training.

use std::sync::atomic::Ordering;

use super::ProcessGroup;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::region::Region;
use crate::sync::{AtomicBool, Mutex};

/// What a group has of it.
#[derive(Debug, Default)]
pub(super) struct Place {
    is_taken: AtomicBool,
    /// Into which the last save was staged, with its pages touched.
    kept: Mutex<Option<Region>>,
}

/// The right to use [`Channel::Background`](super::Channel::Background); given back when dropped.
///
/// Two saves there could meet each other's votes, since their threads run in any order. Whoever
/// holds it keeps the group alive, so that a thread of its own never drops the last handle (under
/// MPI that belongs to the thread that joined).
#[derive(Debug)]
pub(crate) struct Seat(ProcessGroup);

impl ProcessGroup {
    /// Takes the place, if it is free on this rank.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`]; the answer is this rank's alone, so bring it to a vote.
    pub(crate) fn take_background(&self) -> Result<Seat> {
        if self.0.background.is_taken.swap(true, Ordering::AcqRel) {
            let text = "a save that runs beside training has not been waited for";
            return Err(Error::new(ErrorKind::InvalidInput, text)
                .with_help("wait for the pending save, or drop it, before the next one"));
        }
        Ok(Seat(self.clone()))
    }

    /// The memory of the save before, if it was kept.
    pub(crate) fn take_region(&self) -> Option<Region> {
        self.0.background.kept.lock().take()
    }

    /// Keeps memory for the next save, until the group ends.
    pub(crate) fn keep_region(&self, region: Region) {
        *self.0.background.kept.lock() = Some(region);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.background.is_taken.store(false, Ordering::Release);
    }
}
