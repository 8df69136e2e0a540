//! The same under a model checker, for threads that it runs; for all others what the operating
//! system gives.
//!
//! A lock belongs to the checker if it was made by a thread of it. Threads of a model are run by
//! one thread of the system, one at a time: a static lock is free whenever it is asked for.

mod channel;
mod lock;
mod refusing;
mod threads;

use std::cell::Cell;

use shuttle::rand::{Rng, thread_rng};

pub(crate) use self::channel::{Receiver, Sender, unbounded};
pub(crate) use self::lock::{AtomicBool, Condvar, Mutex, const_mutex};
pub(crate) use self::refusing::refusing;
pub(crate) use self::threads::{JoinHandle, Scope, scope, spawn, spawn_in};

pub(crate) fn is_modelled() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

pub(crate) fn sized(real: usize, small: usize) -> usize {
    if is_modelled() { small } else { real }
}

pub(crate) fn timed(by_the_clock: impl FnOnce() -> bool) -> bool {
    if is_modelled() { chance(2) } else { by_the_clock() }
}

/// Once in so many times, as the checker likes.
pub(crate) fn chance(times: u32) -> bool {
    thread_rng().gen_ratio(1, times)
}

/// A way in which what is used here can fail to keep its word: proof that a model would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Nobody who waits is woken.
    LostNotify,
    /// One message in eight never arrives.
    LostMessage,
    /// The end of a channel is not noticed on the other side.
    LostEnd,
    /// A swap reads and writes, and others come between.
    TornSwap,
    /// Joining a thread does not wait for it.
    EarlyJoin,
}

thread_local! {
    static FLAW: Cell<Option<Flaw>> = const { Cell::new(None) };
}

fn has(flaw: Flaw) -> bool {
    FLAW.get() == Some(flaw)
}

/// Runs `body` on this thread with a flaw.
pub(crate) fn flawed<R>(flaw: Flaw, body: impl FnOnce() -> R) -> R {
    struct Mended;
    impl Drop for Mended {
        fn drop(&mut self) {
            FLAW.set(None);
        }
    }
    let _mended = Mended;
    FLAW.set(Some(flaw));
    body()
}
