//! The header of a single-form file: that of a data file, with manifest and block sums as text.
//!
//! The manifest holds a hash of the header that contains it, taken without the manifest's text;
//! the manifest has a checksum of its own. So every byte of the header is covered.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use base64ct::{Base64, Encoding};

use super::header::{HEADER_JSON_MAX, HeaderTensor, Json, ParsedHeader, read_bytes};
use super::reader::ShardReader;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::hash16;
use crate::memory::zeroed;
use crate::storage::ReadFile;

const FORM: &str = "tch_checkpoint.form";
const MANIFEST: &str = "tch_checkpoint.manifest";
const SUMS: &str = "tch_checkpoint.sums";
/// How the manifest's text is introduced; a quote inside of a text would be escaped.
const BEFORE_MANIFEST: &[u8] = b"\"tch_checkpoint.manifest\":\"";

/// The texts of a header, base64.
#[derive(Debug, Clone)]
pub(crate) struct SingleText {
    manifest: String,
    sums: String,
}

impl SingleText {
    /// # Errors
    /// [`ErrorKind::Storage`] if memory is short.
    pub(crate) fn new(manifest: &[u8], sums: &[u8]) -> Result<Self> {
        Ok(Self { manifest: encode(manifest)?, sums: encode(sums)? })
    }

    /// Texts of the right lengths, to find out how long a header will be.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if no header could hold them.
    pub(crate) fn placeholder(manifest_bytes: u64, sums_bytes: u64) -> Result<Self> {
        let lens = [encoded_len(manifest_bytes), encoded_len(sums_bytes)];
        let total = lens[0].saturating_add(lens[1]);
        if total > HEADER_JSON_MAX {
            let message = format!(
                "the header of a single file would have {total} bytes of manifest and block sums, \
                 readers accept {HEADER_JSON_MAX}"
            );
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("save a checkpoint directory instead: it has no such limit"));
        }
        Ok(Self { manifest: text(lens[0])?, sums: text(lens[1])? })
    }
}

fn text(len: u64) -> Result<String> {
    let mut bytes = zeroed(len)?;
    bytes.fill(b'A');
    String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string()))
}

fn encode(bytes: &[u8]) -> Result<String> {
    let mut text = zeroed(encoded_len(bytes.len() as u64))?;
    let unfit = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidInput, e.to_string());
    Base64::encode(bytes, &mut text).map_err(|e| unfit(&e))?;
    String::from_utf8(text).map_err(|e| unfit(&e))
}

/// Length of the text for so many bytes.
pub(crate) const fn encoded_len(bytes: u64) -> u64 {
    bytes.div_ceil(3).saturating_mul(4)
}

/// The header of a file with these tensors, in file order, and its hash without the manifest.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is longer than readers accept.
pub(crate) fn single_header(
    tensors: Vec<HeaderTensor>,
    save_id: &SaveId,
    step: u64,
    text: SingleText,
) -> Result<(Vec<u8>, [u8; 16])> {
    let pairs = [
        ("format", "pt".to_owned()),
        (FORM, "single".to_owned()),
        (MANIFEST, text.manifest),
        ("tch_checkpoint.save_id", save_id.to_string()),
        ("tch_checkpoint.step", step.to_string()),
        (SUMS, text.sums),
    ];
    let metadata = pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let bytes = Json { metadata, tensors }.to_bytes()?;
    let hash = hash_without_manifest(&bytes)
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a header without its manifest"))?;
    Ok((bytes, hash))
}

/// How a file with these tensors, in file order, begins, for readers that know nothing of us.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is longer than readers accept.
pub(crate) fn plain_header(
    metadata: BTreeMap<String, String>,
    tensors: Vec<HeaderTensor>,
) -> Result<Vec<u8>> {
    Json { metadata, tensors }.to_bytes()
}

/// What the header of a safetensors file says, and the manifest in it, if there is one.
pub(crate) struct SingleFile {
    pub(crate) header: ParsedHeader,
    /// Hash of all of the header.
    pub(crate) whole_hash: [u8; 16],
    /// Hash of the header without the manifest, and the manifest's bytes.
    pub(crate) embedded: Option<([u8; 16], Vec<u8>)>,
}

/// Reads the header of a file that nobody vouches for.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a malformed header, and for one that was made by this library and
/// lacks what it needs; as [`ReadFile::read_at`].
pub(crate) fn read_single(file: &dyn ReadFile) -> Result<SingleFile> {
    let bytes = read_bytes(file)?;
    let header = ParsedHeader::parse(&bytes, file.len()).map_err(|e| match e.kind() {
        // This library wrote no dtype that it does not know.
        ErrorKind::Incompatible if manifest_text(&bytes).is_some() => {
            e.with_kind(ErrorKind::Corrupt)
        }
        _ => e,
    })?;
    let metadata = &header.metadata;
    let embedded = match metadata.get(MANIFEST) {
        Some(text) => {
            let manifest = decode(text, "manifest")?;
            let hash = hash_without_manifest(&bytes).ok_or_else(|| damaged("its manifest"))?;
            Some((hash, manifest))
        }
        None if metadata.contains_key(FORM) || metadata.contains_key(SUMS) => {
            return Err(damaged("the name of its manifest"));
        }
        None => None,
    };
    Ok(SingleFile { whole_hash: hash16(&bytes), header, embedded })
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what} in the header is damaged"))
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>> {
    let mut bytes = zeroed((text.len() / 4 * 3) as u64)?;
    let unfit = |_| damaged(&format!("the text of the {what}"));
    let len = Base64::decode(text, &mut bytes).map_err(unfit)?.len();
    bytes.truncate(len);
    Ok(bytes)
}

fn hash_without_manifest(header: &[u8]) -> Option<[u8; 16]> {
    let text = manifest_text(header)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(header.get(..text.start)?);
    hasher.update(header.get(text.end..)?);
    let mut short = [0; 16];
    short.copy_from_slice(hasher.finalize().as_bytes().get(..16)?);
    Some(short)
}

/// Where the text of the manifest lies in a header.
fn manifest_text(header: &[u8]) -> Option<Range<usize>> {
    let len = BEFORE_MANIFEST.len();
    let start = header.windows(len).position(|window| window == BEFORE_MANIFEST)? + len;
    let end = start + header.get(start..)?.iter().position(|byte| *byte == b'"')?;
    Some(start..end)
}

impl ShardReader {
    /// The header of a file that holds its own manifest, if it is what was saved.
    pub(super) fn header_with_manifest(&self, index: usize) -> Result<BTreeMap<String, String>> {
        let record = self.record(index)?;
        let corrupt = |what: &str| self.corrupt(&record.name, what).with_offset(0);
        let file = self.open(index)?;
        let mut bytes = zeroed(record.data_start.min(record.len))?;
        self.read_at(&*file, &record.name, 0, &mut bytes)?;
        if hash_without_manifest(&bytes) != Some(record.header_hash) {
            return Err(corrupt("its header is not what was saved"));
        }
        let parsed =
            ParsedHeader::parse(&bytes, record.len).map_err(|e| self.in_header(index, e))?;
        Ok(parsed.metadata)
    }

    fn in_header(&self, index: usize, error: Error) -> Error {
        let name = self.record(index).map_or("", |record| &record.name);
        error.with_path(super::file_path(&*self.dir, name)).with_offset(0)
    }

    /// The block sums in the header of a file.
    pub(super) fn sums_in_header(&self, index: usize) -> Result<Arc<Vec<u8>>> {
        let record = self.record(index)?;
        let metadata = self.header_with_manifest(index)?;
        let sums = decode(metadata.get(SUMS).map_or("", String::as_str), "block sums");
        let sums = sums.map_err(|e| self.in_header(index, e))?;
        if hash16(&sums) != record.sums_hash {
            return Err(self.corrupt(&record.name, "its block sums are not what was saved"));
        }
        Ok(Arc::new(sums))
    }
}
