//! The only module that knows bincode: bounded encoding and decoding of plain data.
//!
//! Fixed-width little-endian integers, lengths as u64 (bincode 1's layout, which other crates read
//! too, should bincode have to go); compact: integers and lengths in as few bytes as they need.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Growing, copied};

/// Largest encoded value, and the most memory that decoding may claim: 1 GiB.
pub(crate) const ENCODED_BYTES_MAX: usize = 1 << 30;

fn fixed() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<ENCODED_BYTES_MAX>()
}

fn compact() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<ENCODED_BYTES_MAX>()
}

/// # Errors
/// [`ErrorKind::InvalidInput`] if the value is larger than [`ENCODED_BYTES_MAX`],
/// [`ErrorKind::Storage`] if memory is short.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    encode_with(value, fixed())
}

/// As [`encode`], in few bytes. What [`decode_compact`] would refuse is refused here already.
///
/// # Errors
/// As [`encode`].
pub(crate) fn encode_compact<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let bytes = encode_with(value, compact())?;
    // A byte stands for at most eight.
    if bytes.len() > ENCODED_BYTES_MAX / 8 {
        check_claims(value, ENCODED_BYTES_MAX)?;
    }
    Ok(bytes)
}

/// Decoding counts numbers at their full width, however few bytes they take.
fn check_claims(value: &impl Serialize, max: usize) -> Result<()> {
    let invalid = |what: String| Error::new(ErrorKind::InvalidInput, what);
    let claimed = bincode::serde::encode_into_std_write(value, &mut std::io::sink(), fixed())
        .map_err(|e| invalid(format!("cannot be encoded: {e}")))?;
    if claimed > max {
        return Err(invalid(format!("{claimed} bytes when decoded, at most {max} are allowed")));
    }
    Ok(())
}

fn encode_with<T: Serialize>(value: &T, config: impl bincode::config::Config) -> Result<Vec<u8>> {
    let mut out = Growing::new(ENCODED_BYTES_MAX);
    match bincode::serde::encode_into_std_write(value, &mut out, config) {
        Ok(_) => Ok(out.bytes),
        Err(e) => Err(out.failed().unwrap_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("cannot be encoded: {e}"))
        })),
    }
}

/// Decodes with the lowest limit that all values of so many bytes keep, of which a byte stands for at
/// most eight: bincode makes room for a text of the length that is claimed before it looks whether
/// the text is there. Limits are constants, hence the steps.
macro_rules! within_its_bytes {
    ($bytes:expr, $config:expr) => {{
        let (bytes, config) = ($bytes, $config);
        let claims = bytes.len().saturating_mul(8);
        if claims <= 1 << 12 {
            decode_with(bytes, config.with_limit::<{ 1 << 12 }>())
        } else if claims <= 1 << 16 {
            decode_with(bytes, config.with_limit::<{ 1 << 16 }>())
        } else if claims <= 1 << 20 {
            decode_with(bytes, config.with_limit::<{ 1 << 20 }>())
        } else if claims <= 1 << 23 {
            decode_with(bytes, config.with_limit::<{ 1 << 23 }>())
        } else if claims <= 1 << 26 {
            decode_with(bytes, config.with_limit::<{ 1 << 26 }>())
        } else if claims <= 1 << 28 {
            decode_with(bytes, config.with_limit::<{ 1 << 28 }>())
        } else {
            decode_with(bytes, config.with_limit::<ENCODED_BYTES_MAX>())
        }
    }};
}

/// Decodes a value that fills `bytes` exactly.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for anything else.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    within_its_bytes!(bytes, bincode::config::legacy())
}

/// As [`decode`], of what [`encode_compact`] made.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_compact<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    within_its_bytes!(bytes, bincode::config::standard())
}

fn decode_with<T: DeserializeOwned>(
    bytes: &[u8],
    config: impl bincode::config::Config,
) -> Result<T> {
    let corrupt = |what: String| Error::new(ErrorKind::Corrupt, what);
    let (value, used) = bincode::serde::borrow_decode_from_slice(bytes, config)
        .map_err(|e| corrupt(format!("cannot be decoded: {e}")))?;
    if used != bytes.len() {
        return Err(corrupt(format!("{} bytes left over after decoding", bytes.len() - used)));
    }
    Ok(value)
}

/// Many bytes inside of a message. That memory is short for them is no fault of the message: it
/// is told when they are wanted, in a phase where this rank has a vote.
#[derive(Debug, Clone)]
pub(crate) struct Bytes(Result<Vec<u8>>);

impl Bytes {
    /// # Errors
    /// [`ErrorKind::Storage`] if there was no memory for them.
    pub(crate) fn get(&self) -> Result<&[u8]> {
        self.0.as_deref().map_err(Clone::clone)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Ok(bytes))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.get().map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl Visitor<'_> for Borrowed {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(copied(bytes)))
            }
        }
        deserializer.deserialize_bytes(Borrowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_is_made_for_a_length_that_is_only_claimed() {
        for bytes in [8, 600, 10_000, 100_000] {
            let mut body = vec![0; bytes];
            body[..8].copy_from_slice(&(1u64 << 29).to_le_bytes());
            let refused = decode::<String>(&body).unwrap_err();
            assert!(refused.message().contains("LimitExceeded"), "{bytes}: {refused}");
        }
        for len in [0, 100, 511, 512, 8000, 131_064, 131_065, 5_000_000] {
            let text = "a".repeat(len);
            assert_eq!(decode::<String>(&encode(&text).unwrap()).as_ref(), Ok(&text));
            let counts = vec![1u64; len];
            assert_eq!(decode_compact(&encode_compact(&counts).unwrap()), Ok(counts));
        }
    }

    #[test]
    fn nothing_is_encoded_that_decoding_would_refuse() {
        type Value = (Vec<u64>, String, Option<i32>, f64);
        // 8 + 800, 8 + 4, 1 + 4, 8.
        const CLAIMED: usize = 833;
        let value: Value = (vec![0; 100], "name".into(), Some(-1), 0.5);
        let bytes = encode_compact(&value).unwrap();
        assert!(bytes.len() < 130);
        check_claims(&value, CLAIMED).unwrap();
        let refused = check_claims(&value, CLAIMED - 1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        let just = bincode::config::standard().with_limit::<CLAIMED>();
        assert!(bincode::serde::borrow_decode_from_slice::<Value, _>(&bytes, just).is_ok());
        let less = bincode::config::standard().with_limit::<{ CLAIMED - 1 }>();
        assert!(bincode::serde::borrow_decode_from_slice::<Value, _>(&bytes, less).is_err());
    }
}
