//! The manifest as bytes: magic, format version, length, body, checksum.

use super::format::{Format, Width, unknown};
use super::{Body, FORMAT_VERSION, Form, Manifest, single};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{probe, reserved};
use crate::sabotage::{self, Defect};

/// Largest manifest in bytes: 1 GiB.
pub const MANIFEST_BYTES_MAX: u64 = codec::ENCODED_BYTES_MAX as u64;

const MAGIC: &[u8; 8] = b"TCHCKPT\n";
const MAGIC_SINGLE: &[u8; 8] = b"TCHSNGL\n";
/// Never on disk: between ranks that load files of other tools.
const MAGIC_PLAIN: &[u8; 8] = b"TCHPLAI\n";
/// Magic, version, length of the body.
pub(crate) const HEAD_BYTES: usize = 8 + 4 + 8;
const CHECKSUM_BYTES: usize = 32;

impl Manifest {
    /// Its bytes: the 8 bytes `TCHCKPT\n` (other forms have others), the version as `u32` and the length of the body as
    /// `u64` (both little-endian), the body, and the BLAKE3 of all these.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it would be larger than [`MANIFEST_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let format = self.format;
        let (magic, body) = match &self.form {
            Form::Directory => (MAGIC, format.encode(&self.body, Width::Variable)?),
            Form::Single { siblings } => {
                (MAGIC_SINGLE, format.encode(&(siblings, &self.body), Width::Fixed)?)
            }
            Form::Plain => (MAGIC_PLAIN, format.encode(&self.body, Width::Variable)?),
        };
        envelope_of(magic, format.version(), &body)
    }

    /// Reads a manifest. Nothing in `bytes` is trusted.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if a single bit is not as written, or the content breaks a rule.
    /// [`ErrorKind::Incompatible`] for an intact manifest of a newer format.
    /// [`ErrorKind::Storage`] if memory is short.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (magic, version, body) = open_envelope(bytes)?;
        if !(1..=FORMAT_VERSION).contains(&version) {
            return Err(unknown(version));
        }
        let width = if magic == MAGIC_SINGLE { Width::Fixed } else { Width::Variable };
        let times = Format::decoded_times(version, width);
        probe((body.len() as u64).saturating_mul(times))?;
        if magic == MAGIC_SINGLE {
            let (format, (siblings, body)) =
                Format::decode::<single::Content>(version, body, width)?;
            return Self::from_single(format, body, Form::Single { siblings });
        }
        let (format, body) = Format::decode::<Body>(version, body, width)?;
        if magic == MAGIC {
            Self::from_body(format, body)
        } else {
            Self::from_single(format, body, Form::Plain)
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

/// Checks what a manifest of so many bytes begins with.
///
/// # Errors
/// [`ErrorKind::Corrupt`].
pub(crate) fn check_head(start: &[u8], len: u64) -> Result<()> {
    open_head(start, len).map(drop)
}

/// Magic, version and length of the body. The envelope is the same in every version, so that a newer
/// format and damage can be told apart.
fn open_head(start: &[u8], len: u64) -> Result<(&'static [u8; 8], u32)> {
    let corrupt = |message: &str| Err(Error::new(ErrorKind::Corrupt, message));
    if len > MANIFEST_BYTES_MAX {
        return corrupt("the manifest is larger than 1 GiB");
    }
    let known = [MAGIC, MAGIC_SINGLE, MAGIC_PLAIN].into_iter();
    let mut opened = known.filter_map(|magic| Some((magic, start.strip_prefix(magic)?)));
    let Some((magic, after_magic)) = opened.next() else {
        return corrupt("not a checkpoint manifest");
    };
    let parts = after_magic
        .split_first_chunk::<4>()
        .and_then(|(version, rest)| Some((version, rest.first_chunk::<8>()?)));
    let around = (HEAD_BYTES + CHECKSUM_BYTES) as u64;
    let (Some((version, claimed)), Some(body)) = (parts, len.checked_sub(around)) else {
        return corrupt("the manifest is cut short");
    };
    let claimed = u64::from_le_bytes(*claimed);
    if claimed != body {
        return corrupt(&format!("the manifest's body has {body} bytes, not {claimed}"));
    }
    Ok((magic, u32::from_le_bytes(*version)))
}

/// Magic, version and body, under a checksum that is right.
fn open_envelope(bytes: &[u8]) -> Result<(&'static [u8; 8], u32, &[u8])> {
    let (magic, version) = open_head(bytes, bytes.len() as u64)?;
    let (covered, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    let unseen = usize::from(sabotage::is_on(Defect::SumsNotCompared));
    let (seen, _) = checksum.split_at(CHECKSUM_BYTES - unseen);
    if !blake3::hash(covered).as_bytes().starts_with(seen) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the manifest's checksum does not match its content",
        ));
    }
    Ok((magic, version, covered.get(HEAD_BYTES..).unwrap_or_default()))
}
