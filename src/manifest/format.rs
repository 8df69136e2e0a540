//! What distinguishes the versions of the format: the size of a block, and how a body is encoded.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::BLOCK_BYTES;
use crate::codec;
use crate::error::{Error, ErrorKind, Result};

/// Version of the format that this library writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 2;
/// The block of version 1.
const BLOCK_BYTES_V1: u64 = 64 * 1024;
/// The blocks that a body of version 2 may state.
const BLOCKS_KNOWN: [u64; 2] = [BLOCK_BYTES, BLOCK_BYTES_V1];

/// The version of a manifest, and what its body says of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    version: u32,
    block_bytes: u64,
}

/// How numbers are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// As few bytes as they need: most are small.
    Variable,
    /// Always the same, so that the length of a manifest does not depend on what it says: a file
    /// that holds its own manifest has to know it before there are positions.
    Fixed,
}

impl Format {
    /// What is written today.
    pub(super) const NEWEST: Self = Self { version: FORMAT_VERSION, block_bytes: BLOCK_BYTES };
    const V1: Self = Self { version: 1, block_bytes: BLOCK_BYTES_V1 };

    pub(super) fn version(self) -> u32 {
        self.version
    }

    pub(super) fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    /// How many block sums a piece of so many bytes has.
    pub(super) fn sums_of(self, piece_bytes: u64) -> u64 {
        piece_bytes.div_ceil(self.block_bytes)
    }

    /// How many times as much memory as its bytes a parsed body takes, at most in practice.
    pub(super) fn decoded_times(version: u32, width: Width) -> u64 {
        if version == 1 || width == Width::Fixed { 4 } else { 32 }
    }

    /// # Errors
    /// As [`codec::encode`].
    pub(super) fn encode(self, body: &impl Serialize, width: Width) -> Result<Vec<u8>> {
        match (self.version, width) {
            (1, _) => codec::encode(body),
            (_, Width::Fixed) => codec::encode(&(self.block_bytes, body)),
            (_, Width::Variable) => codec::encode_compact(&(self.block_bytes, body)),
        }
    }

    /// # Errors
    /// [`ErrorKind::Incompatible`] for a version that is not known, [`ErrorKind::Corrupt`] for
    /// bytes that are no body.
    pub(super) fn decode<T: DeserializeOwned>(
        version: u32,
        bytes: &[u8],
        width: Width,
    ) -> Result<(Self, T)> {
        let (block_bytes, body) = match (version, width) {
            (1, _) => return Ok((Self::V1, codec::decode(bytes)?)),
            (FORMAT_VERSION, Width::Fixed) => codec::decode(bytes)?,
            (FORMAT_VERSION, Width::Variable) => codec::decode_compact(bytes)?,
            _ => return Err(unknown(version)),
        };
        if !BLOCKS_KNOWN.contains(&block_bytes) {
            let message = format!("blocks of {block_bytes} bytes, which no version writes");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok((Self { version, block_bytes }, body))
    }
}

pub(super) fn unknown(version: u32) -> Error {
    let message = format!("format version {version}, but this library knows versions 1 and 2");
    Error::new(ErrorKind::Incompatible, message)
        .with_help("load it with the version of tch-checkpoint that saved it, or newer")
}

#[cfg(test)]
mod tests;
