//! The header of a data file: safetensors, padded so that the data begins on a page.

mod raw;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use self::raw::{RawHeader, RawTensor};
use self::text::{HeaderText, header_text};

use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::hash16;
use crate::memory::{Growing, probe, zeroed};
use crate::plan::PlannedFile;
use crate::rank::Rank;
use crate::shown::short;
use crate::storage::ReadFile;
use crate::tensor::{Dtype, TensorName, TensorSpec};

/// Longest JSON part of a header that safetensors readers accept, padding included.
pub const HEADER_JSON_MAX: u64 = 100_000_000;
/// The data of a file begins at a multiple of this, so that direct I/O works.
pub const DATA_ALIGNMENT: u64 = 4096;

/// A header beyond this is looked at before there is memory for all of it.
const READ_AT_ONCE: u64 = 1 << 20;
/// How many times as much memory as its JSON a parsed header takes, at most in practice.
const PARSED_TIMES: u64 = 4;
const METADATA: &str = "__metadata__";
/// Bytes of the length in front of the JSON.
const PREFIX_BYTES: usize = 8;
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == DATA_ALIGNMENT);

/// The header of a data file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    bytes: Vec<u8>,
    piece_bytes: Vec<u64>,
    data_bytes: u64,
}

impl Header {
    /// The header of a planned file; the same input gives the same bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a piece outside its tensor, two pieces of one tensor, sizes
    /// that overflow, or a JSON part of more than [`HEADER_JSON_MAX`] bytes.
    pub fn of(file: &PlannedFile, save_id: &SaveId, rank: Rank, step: u64) -> Result<Self> {
        let HeaderText { out, piece_bytes, data_bytes } = header_text(file, save_id, rank, step)?;
        let bytes = padded(out, file.pieces.len())?;
        Ok(Self { bytes, piece_bytes, data_bytes })
    }

    /// How the file begins: length, JSON, padding.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the data begins; a multiple of [`DATA_ALIGNMENT`].
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Length of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.data_start() + self.data_bytes
    }

    /// Bytes of each piece, in file order.
    #[must_use]
    pub fn piece_bytes(&self) -> &[u64] {
        &self.piece_bytes
    }

    /// BLAKE3 of the header, first 16 bytes.
    #[must_use]
    pub fn hash(&self) -> [u8; 16] {
        hash16(&self.bytes)
    }
}

fn write_json(out: &mut Growing, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(|e| out.failed().unwrap_or_else(|| no_json(&e)))
}

fn no_json(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("the header has no JSON form: {error}"))
}

/// One tensor of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Its name.
    pub name: TensorName,
    /// Dtype, and the shape of the part that is in this file.
    pub spec: TensorSpec,
    /// First byte, counted from the start of the data.
    pub begin: u64,
    /// End, counted from the start of the data.
    pub end: u64,
}

/// The header of an existing safetensors file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedHeader {
    /// Its tensors in file order, without gap or overlap, covering all data.
    pub tensors: Vec<HeaderTensor>,
    /// Its free text.
    pub metadata: BTreeMap<String, String>,
    /// Where its data begins in the file.
    pub data_start: u64,
}

impl ParsedHeader {
    /// Where the data begins, from the first eight bytes of a file of `file_len` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the header is longer than [`HEADER_JSON_MAX`] or the file.
    pub fn data_start(prefix: [u8; 8], file_len: u64) -> Result<u64> {
        let json_bytes = u64::from_le_bytes(prefix);
        if json_bytes > HEADER_JSON_MAX {
            return Err(corrupt(format!(
                "header of {json_bytes} bytes, at most {HEADER_JSON_MAX} are allowed"
            )));
        }
        let data_start = PREFIX_BYTES as u64 + json_bytes;
        if data_start > file_len {
            return Err(corrupt(format!("header of {data_start} bytes in {file_len} bytes")));
        }
        Ok(data_start)
    }

    /// Parses a header that nobody vouches for. `bytes` begin where the file begins and hold at
    /// least the whole header; `file_len` is the length of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for anything malformed (duplicate keys, holes, overlaps, sizes that
    /// do not match, data that ends before or after the file);
    /// [`ErrorKind::Incompatible`] for an unknown dtype.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Self> {
        let prefix = bytes.first_chunk().ok_or_else(|| corrupt("shorter than 8 bytes".into()))?;
        let data_start = Self::data_start(*prefix, file_len)?;
        let json = usize::try_from(data_start).ok().and_then(|end| bytes.get(PREFIX_BYTES..end));
        let json = json.ok_or_else(|| corrupt("the header is cut off".into()))?;
        check_first(json.first())?;
        probe((json.len() as u64).saturating_mul(PARSED_TIMES))?;
        let mut raw: RawHeader = serde_json::from_slice(json)
            .map_err(|e| corrupt(format!("the header is malformed: {}", short(&e.to_string()))))?;
        let mut tensors = std::mem::take(&mut raw.tensors)
            .into_iter()
            .map(check_tensor)
            .collect::<Result<Vec<HeaderTensor>>>()?;
        tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
        check_coverage(&tensors, file_len - data_start)?;
        Ok(Self { tensors, metadata: raw.metadata()?, data_start })
    }
}

/// Reads and parses the header of a safetensors file that nobody vouches for.
///
/// # Errors
/// As [`ParsedHeader::parse`] and [`ReadFile::read_at`].
pub fn read_header(file: &dyn ReadFile) -> Result<ParsedHeader> {
    ParsedHeader::parse(&read_bytes(file)?, file.len())
}

/// Reads the length and as many bytes after it. No memory is taken for what does not begin as a
/// header does: a file of nothing may have any length.
///
/// # Errors
/// As [`ParsedHeader::data_start`] and [`ReadFile::read_at`].
pub(super) fn read_bytes(file: &dyn ReadFile) -> Result<Vec<u8>> {
    let mut prefix = [0; PREFIX_BYTES];
    file.read_at(0, &mut prefix)?;
    let data_start = ParsedHeader::data_start(prefix, file.len())?;
    if data_start > READ_AT_ONCE {
        let mut first = [0; 1];
        file.read_at(PREFIX_BYTES as u64, &mut first)?;
        check_first(first.first())?;
    }
    let mut bytes = zeroed(data_start)?;
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn check_first(first: Option<&u8>) -> Result<()> {
    if first == Some(&b'{') { Ok(()) } else { Err(corrupt("the header is no JSON object".into())) }
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn check_tensor((name, raw): (String, RawTensor)) -> Result<HeaderTensor> {
    let name = TensorName::new(name).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
    let dtype = Dtype::parse(&raw.dtype).ok_or_else(|| {
        let message = format!("unknown dtype `{}`", short(&raw.dtype));
        Error::new(ErrorKind::Incompatible, message).with_tensor(name.as_str())
    })?;
    let spec = TensorSpec::new(dtype, raw.shape.0)
        .map_err(|e| e.with_kind(ErrorKind::Corrupt).with_tensor(name.as_str()))?;
    let [begin, end] = raw.data_offsets;
    if end.checked_sub(begin) != Some(spec.size_bytes()) {
        let message = format!("bytes {begin}..{end} do not hold {spec}");
        return Err(corrupt(message).with_tensor(name.as_str()));
    }
    Ok(HeaderTensor { name, spec, begin, end })
}

/// Sorted tensors must follow each other without gap or overlap and end with the file.
fn check_coverage(tensors: &[HeaderTensor], data_bytes: u64) -> Result<()> {
    let mut end = 0;
    for tensor in tensors {
        if tensor.begin != end {
            let message = format!("begins at byte {} of the data, expected {end}", tensor.begin);
            return Err(corrupt(message).with_tensor(tensor.name.as_str()));
        }
        end = tensor.end;
    }
    if end != data_bytes {
        return Err(corrupt(format!("the tensors need {end} bytes, the file has {data_bytes}")));
    }
    Ok(())
}

/// Fills a header up to a page and puts its length in front.
fn padded(mut out: Growing, tensors: usize) -> Result<Vec<u8>> {
    let padding = out.bytes.len().next_multiple_of(PAGE) - out.bytes.len();
    out.put([b' '; PAGE].get(..padding).unwrap_or_default())?;
    let mut bytes = out.bytes;
    let json_bytes = (bytes.len() - PREFIX_BYTES) as u64;
    if json_bytes > HEADER_JSON_MAX {
        let message = format!(
            "{tensors} tensors need a header of {json_bytes} bytes, readers accept {HEADER_JSON_MAX}"
        );
        let help = "spread the tensors over more ranks or components";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_help(help));
    }
    bytes[..PREFIX_BYTES].copy_from_slice(&json_bytes.to_le_bytes());
    Ok(bytes)
}

/// What is serialized: metadata first, tensors in file order.
pub(super) struct Json {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<HeaderTensor>,
}

impl Json {
    /// How the file begins: length, JSON, padding.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Growing::new(usize::MAX);
        out.put(&[0; PREFIX_BYTES])?;
        write_json(&mut out, self)?;
        padded(out, self.tensors.len())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            dtype: &'static str,
            shape: &'a [u64],
            data_offsets: [u64; 2],
        }
        let mut map = serializer.serialize_map(Some(self.tensors.len() + 1))?;
        map.serialize_entry(METADATA, &self.metadata)?;
        for tensor in &self.tensors {
            let (dtype, shape) = (tensor.spec.dtype().as_str(), tensor.spec.shape());
            let entry = Entry { dtype, shape, data_offsets: [tensor.begin, tensor.end] };
            map.serialize_entry(tensor.name.as_str(), &entry)?;
        }
        map.end()
    }
}
