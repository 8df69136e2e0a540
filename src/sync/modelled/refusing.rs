//! A host may refuse threads (limits on processes, memory): outside of models, so does a test.

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
