//! How long a save goes on beside training, and what is left out because of it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;
use crate::shown;

#[derive(Debug)]
pub(super) struct Flight {
    begun: Instant,
    left_out: AtomicU64,
    /// How long it had lasted when that was last warned of.
    told: Mutex<Duration>,
}

impl Flight {
    /// Begins.
    pub(super) fn begin() -> Self {
        let begun = clock::now();
        Self { begun, left_out: AtomicU64::new(0), told: Mutex::default() }
    }

    /// Another save is not made because of this one, which goes to `path`. Nobody waits for a disk
    /// that hangs then, so that only this can tell: once the save has lasted for `patience`, and
    /// then each time that it has lasted twice as long.
    pub(super) fn leave_one_out(&self, path: &Path, patience: Duration) {
        let left_out = self.left_out.fetch_add(1, Ordering::Relaxed) + 1;
        let lasted = clock::now().saturating_duration_since(self.begun);
        let mut told = self.told.lock();
        if lasted < patience.max(*told * 2) {
            return;
        }
        *told = lasted;
        tracing::warn!(
            path = %shown::path(path),
            seconds = lasted.as_secs(),
            left_out,
            "a save beside training does not end, and no other is made meanwhile: look whether its \
             storage still answers, or save less often"
        );
    }

    /// How many were left out so far.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}
