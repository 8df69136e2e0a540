//! Where the training thread waits until a save has copied what it is about to change.

use std::sync::Arc;

use crate::error::Result;
use crate::stage::Watch;
use crate::sync::{Condvar, Mutex};

#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Default)]
struct State {
    is_open: bool,
    /// What was copied beside the caller.
    watch: Watch,
    /// What the caller found when it went through; from then on it changes what it likes.
    passed: Option<Result<()>>,
}

impl Gate {
    /// Waits until it is open, and goes through.
    pub(super) fn pass(&self) {
        let mut state = self.state.lock();
        while !state.is_open {
            self.opened.wait(&mut state);
        }
        if state.passed.is_none() {
            state.passed = Some(state.watch.check());
        }
    }

    pub(super) fn open(&self) {
        self.state.lock().is_open = true;
        self.opened.notify_all();
    }

    /// What whoever goes through is to check; before it opens.
    pub(super) fn set_watch(&self, watch: Watch) {
        self.state.lock().watch = watch;
    }

    /// Whether what was copied is what it was at the call. An operation in place counts its
    /// version up when it ends, so one that ran beside the copy may show only now, or when the
    /// caller has gone through. Once, and lets go of the sources.
    ///
    /// # Errors
    /// As [`Watch::check`].
    pub(super) fn check(&self) -> Result<()> {
        let mut state = self.state.lock();
        let watch = std::mem::take(&mut state.watch);
        state.passed.clone().unwrap_or_else(|| watch.check())
    }
}

/// Opens the gate when it is dropped, so that no end of a save leaves it shut.
pub(super) struct Opens(pub(super) Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}
