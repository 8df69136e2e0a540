//! The only module that knows bincode: bounded encoding and decoding of plain data.
//!
//! Fixed-width little-endian integers, lengths as u64 (bincode 1's layout, which other crates read
//! too, should bincode have to go).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Largest encoded value, and the most memory that decoding may claim: 1 GiB.
pub(crate) const ENCODED_BYTES_MAX: usize = 1 << 30;

fn config() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<ENCODED_BYTES_MAX>()
}

/// # Errors
/// [`ErrorKind::InvalidInput`] if the value is larger than [`ENCODED_BYTES_MAX`].
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    bincode::serde::encode_to_vec(value, config())
        .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("cannot be encoded: {e}")))
}

/// Decodes a value that fills `bytes` exactly.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for anything else.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let corrupt = |what: String| Error::new(ErrorKind::Corrupt, what);
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|e| corrupt(format!("cannot be decoded: {e}")))?;
    if used != bytes.len() {
        return Err(corrupt(format!("{} bytes left over after decoding", bytes.len() - used)));
    }
    Ok(value)
}
