//! Where the training thread waits until a save has copied what it is about to change.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::stage::Watch;

#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_open: bool,
    /// From then on the tensors may change.
    is_passed: bool,
}

impl Gate {
    /// Waits until it is open, and goes through.
    pub(super) fn pass(&self) {
        let mut state = self.state.lock();
        while !state.is_open {
            self.opened.wait(&mut state);
        }
        state.is_passed = true;
    }

    pub(super) fn open(&self) {
        self.state.lock().is_open = true;
        self.opened.notify_all();
    }

    /// Whether what was copied is what it was at the call. An operation in place counts its
    /// version up when it ends, so one that ran beside the copy may show only now. Once the caller
    /// has passed it changes what it likes.
    ///
    /// # Errors
    /// As [`Watch::check`].
    pub(super) fn check(&self, watch: &Watch) -> Result<()> {
        let state = self.state.lock();
        if state.is_passed { Ok(()) } else { watch.check() }
    }
}

/// Opens the gate when it is dropped, so that no end of a save leaves it shut.
pub(super) struct Opens(pub(super) Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}
