//! What the operating system gives.

use std::io;
use std::thread::{self, Builder, ScopedJoinHandle};

pub(crate) use crossbeam_channel::{Receiver, Sender, unbounded};
pub(crate) use parking_lot::{Condvar, Mutex, const_mutex};
pub(crate) use std::sync::atomic::AtomicBool;
pub(crate) use std::thread::{JoinHandle, scope};

pub(crate) type Scope<'scope, 'env> = &'scope thread::Scope<'scope, 'env>;

/// Starts a thread of that name.
///
/// # Errors
/// There is none to be had.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(run)
}

/// The same, ended with `scope` at the latest.
///
/// # Errors
/// There is none to be had.
pub(crate) fn spawn_in<'scope, T: Send + 'scope>(
    scope: Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, run)
}

/// Whether a model checker decides who runs.
pub(crate) const fn is_modelled() -> bool {
    false
}

/// How large something is: `real`, or, where a model checker goes through it again and again,
/// `small`.
pub(crate) const fn sized(real: usize, _small: usize) -> usize {
    real
}

/// What a clock says; a model checker tries both.
pub(crate) fn timed(by_the_clock: impl FnOnce() -> bool) -> bool {
    by_the_clock()
}
