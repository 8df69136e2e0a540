//! A data file as it will be: its header, then its pieces. Any range of it can be filled on its
//! own, so that several threads may fill it, and in any order.

use super::header::Header;
use std::sync::OnceLock;
use std::time::Duration;

use super::cut::Cut;
use super::sums::{BLOCK, SumsContent};
use super::writer::refusal;
use crate::clock;
use crate::error::Result;

/// Copied and then hashed, while it is in the cache of the core. No less than a block.
pub(super) const STEP: usize = 128 * 1024;
const _: () = assert!(STEP >= BLOCK);

/// Where time goes while an image is filled.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FillTimes {
    pub(super) stage: Duration,
    pub(super) hash: Duration,
}

/// The sums of a range of an image.
pub(super) struct RangeSums {
    /// How many bytes at its begin belong to a block that begins before it.
    pub(super) head: usize,
    /// Whether that block ends there.
    pub(super) head_ends: bool,
    /// The sums of what is behind it.
    pub(super) part: SumsContent,
}

/// What lies where in a data file.
pub(crate) struct Image {
    name: String,
    header: Header,
    /// Where each piece ends in the file.
    ends: Vec<u64>,
    /// Of the header, once it was asked for.
    hash: OnceLock<[u8; 16]>,
}

impl Image {
    pub(crate) fn new(name: String, header: Header) -> Self {
        let mut end = header.data_start();
        let piece_ends = header.piece_bytes().iter().map(|bytes| {
            end += bytes;
            end
        });
        let ends = piece_ends.collect();
        Self { name, header, ends, hash: OnceLock::new() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// As [`Header::hash`], computed once.
    pub(super) fn header_hash(&self) -> [u8; 16] {
        *self.hash.get_or_init(|| self.header.hash())
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> u64 {
        self.header.file_len()
    }

    /// Fills `out` with the bytes that begin at `begin` in the file. `cuts` are the sources of its
    /// pieces, in file order.
    ///
    /// # Errors
    /// The error of a source, with its tensor; [`InvalidInput`](crate::ErrorKind::InvalidInput)
    /// beyond the last of `cuts`.
    pub(crate) fn fill(&self, cuts: &[Cut<'_>], begin: u64, out: &mut [u8]) -> Result<()> {
        let header = self.header.bytes();
        let from_header = usize::try_from(begin).ok().and_then(|begin| header.get(begin..));
        let from_header = from_header.unwrap_or_default();
        let (head, mut rest) = out.split_at_mut(from_header.len().min(out.len()));
        head.copy_from_slice(&from_header[..head.len()]);
        let mut at = begin + head.len() as u64;
        let mut piece = self.ends.partition_point(|end| *end <= at);
        while !rest.is_empty() {
            let (Some(end), Some(cut)) = (self.ends.get(piece), cuts.get(piece)) else {
                // What is in `out` is not of this file.
                return Err(refusal(format!("{} bytes behind the last piece", rest.len())));
            };
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            cut.fill(at - (end - cut.bytes), part)?;
            (rest, at, piece) = (after, at + len as u64, piece + 1);
        }
        Ok(())
    }

    /// Fills `out` as [`Image::fill`] does, and takes the sums of what it has filled in: from the
    /// copy, not the source, since that is what is written.
    ///
    /// # Errors
    /// As [`Image::fill`].
    pub(super) fn fill_and_sum(
        &self,
        cuts: &[Cut<'_>],
        begin: u64,
        out: &mut [u8],
    ) -> Result<(RangeSums, FillTimes)> {
        let (mut sums, mut times) = (self.begin_sums(begin, out.len()), FillTimes::default());
        let (mut at, mut skip, mut now) = (begin, sums.head, clock::now());
        for step in out.chunks_mut(STEP) {
            self.fill(cuts, at, step)?;
            let filled = clock::now();
            let behind = step.get(skip..).unwrap_or_default();
            self.sum(at + skip as u64, behind, &mut sums.part);
            let summed = clock::now();
            times.stage += filled.saturating_duration_since(now);
            times.hash += summed.saturating_duration_since(filled);
            (at, skip, now) = (at + step.len() as u64, 0, summed);
        }
        Ok((sums, times))
    }

    /// For the sums of `len` bytes from `begin` on: what belongs to a block that began before.
    fn begin_sums(&self, begin: u64, len: usize) -> RangeSums {
        let part = SumsContent::part();
        let piece = self.ends.partition_point(|end| *end <= begin);
        let bytes = self.header.piece_bytes().get(piece);
        let Some((end, bytes)) = self.ends.get(piece).zip(bytes) else {
            return RangeSums { head: 0, head_ends: false, part };
        };
        let in_block = begin.saturating_sub(end - bytes) % BLOCK as u64;
        let rest = if in_block == 0 { 0 } else { (BLOCK as u64 - in_block).min(end - begin) };
        let head = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
        RangeSums { head, head_ends: head > 0 && head as u64 == rest, part }
    }

    /// Takes the sums of `bytes`, which begin at `begin` in the file and follow those of the last
    /// call.
    fn sum(&self, begin: u64, bytes: &[u8], sums: &mut SumsContent) {
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
