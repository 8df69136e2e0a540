//! A data file with its block sums: what is read of it, and whether that is what was saved.

use std::ops::Range;
use std::sync::Arc;

use super::piece::PieceAt;
use super::reader::{ShardReader, to_usize};
use super::sums::sum;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{DataFile, Form, SUM_BYTES};
use crate::sabotage::{self, Defect};
use crate::storage::ReadFile;

/// A data file, open.
pub(super) struct Opened<'r> {
    reader: &'r ShardReader,
    record: &'r DataFile,
    file: Arc<dyn ReadFile>,
    sums: Arc<Vec<u8>>,
}

impl<'r> Opened<'r> {
    pub(super) fn new(reader: &'r ShardReader, index: usize, sums: Arc<Vec<u8>>) -> Result<Self> {
        let record = reader.record(index)?;
        Ok(Self { reader, record, file: reader.open(index)?, sums })
    }

    /// Whether `range` lies in the piece, and the piece and its sums in the file.
    pub(super) fn check(&self, piece: PieceAt, range: &Range<u64>) -> Result<()> {
        check_range(piece, range)?;
        let end = piece.begin.checked_add(piece.bytes);
        let last_sum = piece.first_sum.checked_add(piece.bytes.div_ceil(self.reader.block));
        let has_none = self.reader.form == Form::Plain;
        let sums_there =
            has_none || last_sum.is_some_and(|last| last <= self.sums.len() as u64 / SUM_BYTES);
        if piece.begin < self.record.data_start
            || end.is_none_or(|e| e > self.record.len)
            || !sums_there
        {
            let what = "a piece named by the manifest lies outside";
            return Err(self.reader.corrupt(&self.record.name, what).with_offset(piece.begin));
        }
        Ok(())
    }

    /// Reads at `at`, counted from the start of the file.
    pub(super) fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.reader.read_at(&*self.file, &self.record.name, at, out)
    }

    /// The same, unless it would have to wait for the device: false, and `out` is unspecified.
    pub(super) fn read_cached(&self, at: u64, out: &mut [u8]) -> Result<bool> {
        let came = self.file.read_cached(at, out).map_err(|e| self.failed(e, at))?;
        let is_all = came == out.len();
        if is_all {
            self.reader.count(came as u64);
        }
        Ok(is_all)
    }

    /// As [`ReadFile::read_direct`], by parts that take a moment.
    pub(super) fn read_direct(&self, at: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let mut have = 0;
        while have < out.len() {
            let len = self.reader.portion.lock().bytes().min(out.len() - have);
            let part = out.get_mut(have..have + len).unwrap_or_default();
            let (begun, at) = (clock::now(), at.saturating_add(have as u64));
            let Some(came) = self.file.read_direct(at, part).map_err(|e| self.failed(e, at))?
            else {
                return Ok((have > 0).then_some(have));
            };
            self.reader.count(came as u64);
            have += came;
            if came < len {
                break;
            }
            self.reader.portion.lock().took(len, clock::now().saturating_duration_since(begun));
        }
        Ok(Some(have))
    }

    fn failed(&self, error: Error, at: u64) -> Error {
        at_place(super::at_file(error, &*self.reader.dir, &self.record.name), at)
    }

    /// Fills `out` with whole blocks of a piece from `begin` (a multiple of the block size) and
    /// checks them.
    pub(super) fn read_blocks(&self, piece: PieceAt, begin: u64, out: &mut [u8]) -> Result<()> {
        self.read(piece.begin.saturating_add(begin), out)?;
        self.bad_blocks(piece, begin, out).next().map_or(Ok(()), Err)
    }

    /// The damaged ones of whole blocks of a piece that begin at `begin`. The piece was checked.
    pub(super) fn bad_blocks<'a>(
        &'a self,
        piece: PieceAt,
        begin: u64,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = Error> + 'a {
        let block = self.reader.block;
        let is_unchecked =
            self.reader.form == Form::Plain || sabotage::is_on(Defect::SumsNotCompared);
        let bytes = if is_unchecked { &[] } else { bytes };
        let first = to_usize(piece.first_sum.saturating_add(begin / block)).unwrap_or(usize::MAX);
        let sums = self.sums.as_chunks::<16>().0.get(first..).unwrap_or_default();
        let mut sums = sums.iter();
        let blocks = bytes.chunks(to_usize(block).unwrap_or(usize::MAX)).zip(0u64..);
        let bad = blocks.filter(move |(bytes, _)| sums.next() != Some(&sum(bytes)));
        bad.map(move |(bytes, number)| {
            let message = format!("checksum mismatch in a block of {} bytes", bytes.len());
            let offset = piece.begin + begin + number * block;
            self.reader.corrupt(&self.record.name, message).with_offset(offset)
        })
    }
}

/// `error` with the place of the read, unless the storage knows better.
pub(super) fn at_place(error: Error, at: u64) -> Error {
    if error.offset().is_some() { error } else { error.with_offset(at) }
}

pub(super) fn check_range(piece: PieceAt, range: &Range<u64>) -> Result<()> {
    if range.start <= range.end && range.end <= piece.bytes {
        return Ok(());
    }
    let message = format!("range {range:?} of a piece of {} bytes", piece.bytes);
    Err(Error::new(ErrorKind::InvalidInput, message))
}
