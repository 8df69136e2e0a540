//! Starting threads. A host may refuse one (limits on processes, memory): what can go on without it
//! does, and our own tests refuse them to see that.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Runs `work` in a thread of that name, which ends before `scope` does.
///
/// # Errors
/// What the operating system says. Nothing of `work` was done then.
pub(crate) fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    asked()?;
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work)
}

/// As [`start_in`], of a thread that may outlive its caller.
///
/// # Errors
/// As [`start_in`].
pub(crate) fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    asked()?;
    Builder::new().name(name.to_owned()).spawn(work)
}

#[cfg(not(test))]
#[inline]
fn asked() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use refusing::asked;
#[cfg(test)]
pub(crate) use refusing::refusing;

#[cfg(test)]
mod refusing {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        /// How many were refused, where they are.
        static REFUSED: Cell<Option<u32>> = const { Cell::new(None) };
    }

    pub(super) fn asked() -> io::Result<()> {
        let Some(refused) = REFUSED.get() else { return Ok(()) };
        REFUSED.set(Some(refused + 1));
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Does `work`, which is refused every thread that it asks for on this one; and how many.
    pub(crate) fn refusing<T>(work: impl FnOnce() -> T) -> (T, u32) {
        REFUSED.set(Some(0));
        let done = work();
        (done, REFUSED.take().unwrap_or_default())
    }
}
