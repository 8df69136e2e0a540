//! The manifest as bytes: magic, format version, length, body, checksum.

use super::{BodyV1, Form, Manifest, single};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{probe, reserved};
use crate::sabotage::{self, Defect};

/// Version of the format that this library writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Largest manifest in bytes: 1 GiB.
pub const MANIFEST_BYTES_MAX: u64 = codec::ENCODED_BYTES_MAX as u64;

const MAGIC: &[u8; 8] = b"TCHCKPT\n";
const MAGIC_SINGLE: &[u8; 8] = b"TCHSNGL\n";
/// Never on disk: between ranks that load files of other tools.
const MAGIC_PLAIN: &[u8; 8] = b"TCHPLAI\n";
/// Magic, version, length of the body.
const HEAD_BYTES: usize = 8 + 4 + 8;
const CHECKSUM_BYTES: usize = 32;
/// How many times as much memory as its bytes a parsed manifest takes, at most in practice.
const DECODED_TIMES: u64 = 4;

impl Manifest {
    /// Its bytes: the 8 bytes `TCHCKPT\n` (other forms have others), the version as `u32` and the length of the body as
    /// `u64` (both little-endian), the body, and the BLAKE3 of all these.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it would be larger than [`MANIFEST_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let (magic, body) = match &self.form {
            Form::Directory => (MAGIC, codec::encode(&self.body)?),
            Form::Single { siblings } => (MAGIC_SINGLE, codec::encode(&(siblings, &self.body))?),
            Form::Plain => (MAGIC_PLAIN, codec::encode(&self.body)?),
        };
        envelope_of(magic, FORMAT_VERSION, &body)
    }

    /// Reads a manifest. Nothing in `bytes` is trusted.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if a single bit is not as written, or the content breaks a rule.
    /// [`ErrorKind::Incompatible`] for an intact manifest of a newer format.
    /// [`ErrorKind::Storage`] if memory is short.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (magic, version, body) = open_envelope(bytes)?;
        if version != FORMAT_VERSION {
            let message = format!("format version {version}, but this library knows version 1");
            return Err(Error::new(ErrorKind::Incompatible, message)
                .with_help("load it with the version of tch-checkpoint that saved it, or newer"));
        }
        probe((body.len() as u64).saturating_mul(DECODED_TIMES))?;
        match magic {
            MAGIC => Self::from_body(codec::decode::<BodyV1>(body)?),
            MAGIC_SINGLE => {
                let (siblings, body) = codec::decode::<single::Body>(body)?;
                Self::from_single(body, Form::Single { siblings })
            }
            _ => Self::from_single(codec::decode::<BodyV1>(body)?, Form::Plain),
        }
    }
}

#[cfg(test)]
pub(super) fn envelope(version: u32, body: &[u8]) -> Result<Vec<u8>> {
    envelope_of(MAGIC, version, body)
}

fn envelope_of(magic: &[u8; 8], version: u32, body: &[u8]) -> Result<Vec<u8>> {
    let len = body.len().saturating_add(HEAD_BYTES + CHECKSUM_BYTES);
    if len as u64 > MANIFEST_BYTES_MAX {
        let message = format!("the manifest would have {len} bytes, at most 1 GiB is allowed");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let mut bytes = reserved(len as u64)?;
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(body);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    Ok(bytes)
}

/// Magic, version and body. The envelope is the same in every version, so that a newer format and
/// damage can be told apart.
fn open_envelope(bytes: &[u8]) -> Result<(&'static [u8; 8], u32, &[u8])> {
    let corrupt = |message: &str| Error::new(ErrorKind::Corrupt, message);
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(corrupt("the manifest is larger than 1 GiB"));
    }
    let known = [MAGIC, MAGIC_SINGLE, MAGIC_PLAIN].into_iter();
    let mut opened = known.filter_map(|magic| Some((magic, bytes.strip_prefix(magic)?)));
    let Some((magic, after_magic)) = opened.next() else {
        return Err(corrupt("not a checkpoint manifest"));
    };
    let parts = after_magic.split_first_chunk::<4>().and_then(|(version, rest)| {
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let (body, checksum) = rest.split_last_chunk::<CHECKSUM_BYTES>()?;
        Some((u32::from_le_bytes(*version), u64::from_le_bytes(*len), body, *checksum))
    });
    let Some((version, len, body, checksum)) = parts else {
        return Err(corrupt("the manifest is cut short"));
    };
    if len != body.len() as u64 {
        let message = format!("the manifest's body has {} bytes, not {len}", body.len());
        return Err(corrupt(&message));
    }
    let (covered, _) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    let unseen = usize::from(sabotage::is_on(Defect::SumsNotCompared));
    let (seen, _) = checksum.split_at(CHECKSUM_BYTES - unseen);
    if !blake3::hash(covered).as_bytes().starts_with(seen) {
        return Err(corrupt("the manifest's checksum does not match its content"));
    }
    Ok((magic, version, body))
}
