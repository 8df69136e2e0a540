//! Memory whose size comes from outside.

use crate::error::{Error, ErrorKind, Result};

/// A zeroed buffer, or an error where memory is short.
pub(crate) fn zeroed(len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let short = || Error::new(ErrorKind::Storage, format!("no memory for a buffer of {len} bytes"));
    let len = usize::try_from(len).map_err(|_| short())?;
    bytes.try_reserve_exact(len).map_err(|_| short())?;
    bytes.resize(len, 0);
    Ok(bytes)
}
