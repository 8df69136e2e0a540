//! Memory whose size comes from outside.

use crate::error::{Error, ErrorKind, Result};

/// An empty buffer with room for `len` bytes, or an error where memory is short.
pub(crate) fn reserved(len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let short = || Error::new(ErrorKind::Storage, format!("no memory for a buffer of {len} bytes"));
    let len = usize::try_from(len).map_err(|_| short())?;
    bytes.try_reserve_exact(len).map_err(|_| short())?;
    Ok(bytes)
}

/// A zeroed buffer, or an error where memory is short.
pub(crate) fn zeroed(len: u64) -> Result<Vec<u8>> {
    let mut bytes = reserved(len)?;
    // It fits: the buffer was made.
    bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
    Ok(bytes)
}
