//! The thread that looks after a communicator: NCCL itself waits for ever, and a device that waits
//! for a lost rank never ends its work by itself.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};

/// Time between two looks while something is going on.
const TICK: Duration = Duration::from_millis(20);
/// Longest wait for an abort.
const ABORT_MAX: Duration = Duration::from_secs(30);

/// What is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing that anybody waits for.
    Idle,
    /// Something is, and nothing has been done of it since then.
    Busy { since: Instant },
    /// An error, which every later call gets; and, once the abort is over, whether the device is at
    /// rest.
    Broken { error: Error, at_rest: Option<bool> },
    /// It was ended in good order.
    Ended,
}

/// What the thread sees at one look.
#[derive(Debug)]
pub(super) struct Seen {
    /// Whether the device has done everything, or the error of its work.
    pub(super) done: Result<bool>,
    /// How much the device has done in all: more than at the last look is progress.
    pub(super) progress: u64,
    /// What NCCL says of the communicator.
    pub(super) nccl: Result<()>,
    /// What the control plane says of the other ranks.
    pub(super) peers: Result<()>,
}

/// What follows from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// All is done.
    Rest,
    /// Go on looking; with whether something was done since the last look.
    Look { moved: bool },
    /// Abort, with this error for all who call.
    Abort(Error),
}

/// An error of a peer says more than what NCCL makes of it, and both more than silence.
pub(super) fn judge(seen: Seen, before: u64, silent: Duration, patience: Duration) -> Next {
    if let Ok(true) = seen.done {
        return Next::Rest;
    }
    let errors = [seen.peers.err(), seen.nccl.err(), seen.done.err()];
    if let Some(error) = errors.into_iter().flatten().next() {
        return Next::Abort(error);
    }
    let moved = seen.progress > before;
    if !moved && silent >= patience {
        let message = format!("no exchange between devices has ended for {silent:.0?}");
        return Next::Abort(Error::new(ErrorKind::Deadline, message).with_help(
            "a rank is missing in it, or its network hangs; NCCL_DEBUG=INFO shows what NCCL does",
        ));
    }
    Next::Look { moved }
}

/// What the thread looks at, and what it does.
pub(super) trait Watched: Send + Sync + 'static {
    /// One look; `since` is when the last sign of progress was.
    fn look(&self, since: Instant) -> Seen;
    /// Ends all that goes on; whether the device is at rest then.
    fn abort(&self) -> bool;
}

/// Shared between the thread and those who give work.
pub(super) struct Watch {
    inner: Mutex<Inner>,
    changed: Condvar,
    patience: Duration,
}

struct Inner {
    state: State,
    /// How often work was given: a look tells nothing of what was given after it.
    given: u64,
}

impl Watch {
    /// `patience` is for one exchange, whatever the other ranks show of being alive.
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        let inner = Mutex::new(Inner { state: State::Idle, given: 0 });
        Arc::new(Self { inner, changed: Condvar::new(), patience })
    }

    /// Whether it can still be given work.
    ///
    /// # Errors
    /// That by which it broke; [`ErrorKind::InvalidInput`] if it was ended.
    pub(super) fn check(&self) -> Result<()> {
        match &self.inner.lock().state {
            State::Idle | State::Busy { .. } => Ok(()),
            State::Broken { error, .. } => Err(error.clone()),
            State::Ended => Err(Error::new(ErrorKind::InvalidInput, "NCCL was left already")),
        }
    }

    /// As [`Watch::check`], for whoever will free what the device may be writing to: an error comes
    /// only when the abort has ended that, or cannot.
    ///
    /// # Errors
    /// As [`Watch::check`].
    pub(super) fn check_when_ended(&self) -> Result<()> {
        let begun = Instant::now();
        let mut inner = self.inner.lock();
        while matches!(inner.state, State::Broken { at_rest: None, .. }) {
            if self.changed.wait_for(&mut inner, TICK).timed_out() && begun.elapsed() > ABORT_MAX {
                tracing::error!("the abort of an exchange between devices does not end");
                break;
            }
        }
        drop(inner);
        self.check()
    }

    /// Whether nothing may still write to memory of an exchange that ended with an error.
    pub(super) fn is_at_rest(&self) -> bool {
        !matches!(self.inner.lock().state, State::Broken { at_rest: None | Some(false), .. })
    }

    /// Something goes on from now on.
    pub(super) fn begin(&self) {
        let mut inner = self.inner.lock();
        inner.given += 1;
        if inner.state == State::Idle {
            inner.state = State::Busy { since: Instant::now() };
            self.changed.notify_all();
        }
    }

    /// It failed; the thread aborts what goes on. The first error stays.
    pub(super) fn fail(&self, error: &Error) {
        let mut inner = self.inner.lock();
        if matches!(inner.state, State::Idle | State::Busy { .. }) {
            inner.state = State::Broken { error: error.clone(), at_rest: None };
            self.changed.notify_all();
        }
    }

    /// Nothing more comes; whether it was in order until now, and the communicator is there.
    pub(super) fn end(&self) -> bool {
        let mut inner = self.inner.lock();
        let in_order = matches!(inner.state, State::Idle | State::Busy { .. });
        if in_order {
            inner.state = State::Ended;
            self.changed.notify_all();
        }
        in_order
    }

    /// Looks after `watched` until it is ended, or aborted.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] if the system refuses a thread.
    pub(super) fn start(self: &Arc<Self>, watched: Arc<dyn Watched>) -> Result<JoinHandle<()>> {
        let watch = Arc::clone(self);
        let thread = std::thread::Builder::new().name("tch-nccl-watch".into());
        thread
            .spawn(move || watch.run(watched.as_ref()))
            .map_err(|e| Error::new(ErrorKind::Storage, format!("starting a thread: {e}")))
    }

    fn run(&self, watched: &dyn Watched) {
        let mut progress = 0;
        while let Some((since, given)) = self.next_busy(watched) {
            let seen = watched.look(since);
            let now = seen.progress;
            match judge(seen, progress, since.elapsed(), self.patience) {
                Next::Rest => self.rest(given),
                Next::Look { moved } => self.pause(moved),
                Next::Abort(error) => self.fail(&error),
            }
            progress = progress.max(now);
        }
    }

    /// Waits until something goes on; since when nothing was done of it, and how often work was
    /// given by then. `None` when there is nothing more to look after.
    fn next_busy(&self, watched: &dyn Watched) -> Option<(Instant, u64)> {
        let mut inner = self.inner.lock();
        loop {
            match &inner.state {
                State::Idle => self.changed.wait(&mut inner),
                State::Busy { since } => return Some((*since, inner.given)),
                State::Ended => return None,
                State::Broken { error, .. } => {
                    let error = error.clone();
                    // Not under the lock: callers are to see the error at once.
                    drop(inner);
                    tracing::error!(%error, "the exchange between devices is aborted");
                    let at_rest = Some(watched.abort());
                    self.inner.lock().state = State::Broken { error, at_rest };
                    self.changed.notify_all();
                    return None;
                }
            }
        }
    }

    /// All that was given before is done.
    fn rest(&self, given: u64) {
        let mut inner = self.inner.lock();
        if !matches!(inner.state, State::Busy { .. }) {
            return;
        }
        inner.state = match inner.given == given {
            true => State::Idle,
            false => State::Busy { since: Instant::now() },
        };
    }

    /// A tick, unless something changes before.
    fn pause(&self, moved: bool) {
        let mut inner = self.inner.lock();
        if let State::Busy { since } = &mut inner.state {
            if moved {
                *since = Instant::now();
            }
            self.changed.wait_for(&mut inner, TICK);
        }
    }
}

#[cfg(test)]
mod tests;
