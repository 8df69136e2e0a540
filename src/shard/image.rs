//! A data file as it will be: its header, then its pieces. Any range of it can be filled on its
//! own, so that several threads may fill it, and in any order.

use super::header::Header;
use super::sums::SumsContent;
use super::writer::Cut;
use crate::error::Result;

/// Copied together, while it is in the cache of the core.
const STEP: usize = 64 * 1024;

/// What lies where in a data file.
pub(crate) struct Image {
    name: String,
    header: Header,
    /// Where each piece ends in the file.
    ends: Vec<u64>,
}

impl Image {
    pub(crate) fn new(name: String, header: Header) -> Self {
        let mut end = header.data_start();
        let piece_ends = header.piece_bytes().iter().map(|bytes| {
            end += bytes;
            end
        });
        let ends = piece_ends.collect();
        Self { name, header, ends }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> u64 {
        self.header.file_len()
    }

    /// Fills `out` with the bytes that begin at `begin` in the file. `cuts` are the sources of its
    /// pieces, in file order.
    ///
    /// # Errors
    /// The error of a source, with its tensor.
    pub(crate) fn fill(&self, cuts: &[Cut<'_>], begin: u64, out: &mut [u8]) -> Result<()> {
        let header = self.header.bytes();
        let from_header = usize::try_from(begin).ok().and_then(|begin| header.get(begin..));
        let from_header = from_header.unwrap_or_default();
        let (head, mut rest) = out.split_at_mut(from_header.len().min(out.len()));
        head.copy_from_slice(&from_header[..head.len()]);
        let mut at = begin + head.len() as u64;
        let mut piece = self.ends.partition_point(|end| *end <= at);
        while !rest.is_empty() {
            let (Some(end), Some(cut)) = (self.ends.get(piece), cuts.get(piece)) else { break };
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            fill_part(cut, at - (end - cut.bytes), part)?;
            (rest, at, piece) = (after, at + len as u64, piece + 1);
        }
        Ok(())
    }

    /// Takes the sums of `bytes`, which begin at `begin` in the file and follow those of the last
    /// call.
    pub(super) fn sum(&self, begin: u64, bytes: &[u8], sums: &mut SumsContent) {
        let data_start = self.header.data_start();
        let skipped = data_start.saturating_sub(begin).min(bytes.len() as u64);
        let (_, mut rest) = bytes.split_at(usize::try_from(skipped).unwrap_or(bytes.len()));
        let mut at = begin + skipped;
        let mut piece = self.ends.partition_point(|end| *end <= at);
        while let Some(end) = self.ends.get(piece).filter(|_| !rest.is_empty()) {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at(len);
            sums.update(part);
            (rest, at, piece) = (after, at + len as u64, piece + 1);
            if at == *end {
                sums.end_piece();
            }
        }
    }
}

fn fill_part(cut: &Cut<'_>, begin: u64, out: &mut [u8]) -> Result<()> {
    let host = cut.host_bytes()?;
    let begin_in_host = usize::try_from(begin).ok();
    let from = host.zip(begin_in_host).and_then(|(host, begin)| host.get(begin..));
    if let Some(from) = from.and_then(|from| from.get(..out.len())) {
        for (from, to) in from.chunks(STEP).zip(out.chunks_mut(STEP)) {
            to.copy_from_slice(from);
        }
        return Ok(());
    }
    cut.entry.source.read_into(cut.begin + begin, out).map_err(|e| e.with_tensor(cut.tensor))
}
