//! Checking whole files and naming all that is damaged.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bulk::batches::{Batch, batches};
use super::bulk::fetch::{Fetcher, Outlet};
use super::bulk::workers::{self, Message, Pace};
use super::bulk::{Failed, Part, Place, Sharing};
use super::header::{DATA_ALIGNMENT, HEADER_JSON_MAX};
use super::opened::Opened;
use super::piece::PieceAt;
use super::reader::{CHUNK_BYTES, ShardReader, sized};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{DataFile, Form, hash16_of};
use crate::memory::zeroed;
use crate::storage::ReadFile;

/// Most damaged places that [`ShardReader::verify_file`] lists per file.
pub const DAMAGE_MAX: usize = 10_000;

/// One damaged place of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Index of the damaged piece among those given; `None` outside all pieces.
    pub piece: Option<usize>,
    /// What is wrong, with path and offset.
    pub error: Error,
}

impl Damage {
    fn outside(error: Error) -> Self {
        Self { piece: None, error }
    }
}

impl ShardReader {
    /// Checks the header of a data file against its hash in the manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NotFound`] or [`ErrorKind::Storage`], with the path.
    pub fn verify_header(&self, index: usize) -> Result<()> {
        if matches!(self.form, Form::Single { .. }) {
            return self.header_with_manifest(index).map(drop);
        }
        let record = self.record(index)?;
        let fault = |what: &str| Err(self.corrupt(&record.name, what).with_offset(0));
        let any_start = self.form == Form::Plain;
        let aligned = any_start || record.data_start.is_multiple_of(DATA_ALIGNMENT);
        if !aligned || record.data_start > record.len.min(HEADER_JSON_MAX + 8) {
            return fault("its header has an impossible length");
        }
        let file = self.open(index)?;
        if self.hash_of(&*file, &record.name, record.data_start)? != record.header_hash {
            return fault("its header is not what was saved");
        }
        Ok(())
    }

    /// Checks a whole sums file against its hash in the manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NotFound`] or [`ErrorKind::Storage`], with the path.
    pub fn verify_sums_file(&self, index: usize) -> Result<()> {
        let Some(record) = self.sums_files.get(index) else {
            let message = format!("sums file {index} of {}", self.sums_files.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        let file = self.open_checked(&record.name, record.len)?;
        if self.hash_of(&*file, &record.name, record.len)? != record.hash {
            return Err(self.corrupt(&record.name, "the block sums are not what was saved"));
        }
        Ok(())
    }

    /// Checks all of a data file: length, header, and every block of `pieces`, which are all its
    /// pieces in file order. Returns every damaged place, at most [`DAMAGE_MAX`]; none means that
    /// every byte is as it was saved. `progress` is called with the bytes of each finished read.
    #[must_use]
    pub fn verify_file(
        &self,
        index: usize,
        pieces: &[PieceAt],
        progress: &mut dyn FnMut(u64),
    ) -> Vec<Damage> {
        let opened = self.record(index).and_then(|record| self.open(index).map(|_| record));
        let record = match opened {
            Ok(record) => record,
            Err(error) => return vec![Damage::outside(error)],
        };
        let mut found: Vec<_> =
            self.verify_header(index).err().into_iter().map(Damage::outside).collect();
        if !covers(record, index, pieces) {
            let what = "the pieces named by the manifest do not cover it";
            found.push(Damage::outside(self.corrupt(&record.name, what)));
            return found;
        }
        match self.opened(index) {
            Ok(opened) => self.verify_blocks(&opened, pieces, progress, &mut found),
            Err(error) => found.push(Damage::outside(error)),
        }
        self.forget_sums(index);
        // A piece outside of its file is known before the damage in front of it.
        found.sort_by_key(|damage| damage.piece);
        found.truncate(DAMAGE_MAX);
        found
    }

    /// Batch by batch on several threads; damage is listed in file order nevertheless.
    fn verify_blocks(
        &self,
        opened: &Opened<'_>,
        pieces: &[PieceAt],
        progress: &mut dyn FnMut(u64),
        found: &mut Vec<Damage>,
    ) {
        let bytes = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.bytes));
        let pace = Pace::of(bytes);
        let mut parts = Vec::with_capacity(pieces.len());
        for (item, piece) in pieces.iter().enumerate() {
            match opened.check(*piece, &(0..piece.bytes)) {
                Ok(()) => parts.push(Part::to_check(item, *piece)),
                Err(error) => found.push(Damage { piece: Some(item), error }),
            }
        }
        let batches = batches(&mut parts, pace.limit, self.block, Sharing::Alone);
        let mut damage: BTreeMap<usize, Vec<Damage>> = BTreeMap::new();
        let start = || Fetcher::new(self, pace.limit, Sharing::Alone);
        let work = |fetcher: &mut Fetcher<'_>, batch: Batch<'_, '_>, hand: &mut Hand<'_>| {
            let spans: Vec<_> = batch.parts.iter().map(Part::span).collect();
            let bytes = batch.parts.iter().map(Part::len).sum();
            let mut damage = Listed::default();
            match fetcher.fetch(batch.parts, &mut damage) {
                Ok(()) => {}
                Err(Failed { item, error }) if error.is_no_memory() => {
                    damage.0 = vec![Damage { piece: Some(item), error }];
                }
                // Part by part, to tell what cannot be read from what is damaged.
                Err(_) => damage.0 = self.damage_of(opened, &spans),
            }
            hand((batch.number, bytes, damage.0));
        };
        let mut count = 0;
        let mut on_message = |(number, bytes, list): (usize, u64, Vec<Damage>)| {
            progress(bytes);
            // No more than is shown, and what is shown is what comes first.
            count += list.len();
            damage.insert(number, list);
            let last = |damage: &BTreeMap<usize, Vec<Damage>>| {
                damage.last_key_value().map_or(0, |(_, list)| list.len())
            };
            while count - last(&damage) >= DAMAGE_MAX {
                count -= damage.pop_last().map_or(0, |(_, list)| list.len());
            }
        };
        workers::run(batches, pace.threads, &start, &work, &mut on_message);
        found.extend(damage.into_values().flatten());
    }

    /// Whatever is damaged in these ranges of pieces or cannot be read.
    fn damage_of(
        &self,
        opened: &Opened<'_>,
        spans: &[(usize, PieceAt, Range<u64>)],
    ) -> Vec<Damage> {
        let (mut scratch, mut found) = (Vec::new(), Vec::new());
        for (item, piece, range) in spans {
            let damage = |error| Damage { piece: Some(*item), error };
            for chunk in self.chunks(*piece, range) {
                let read = sized(&mut scratch, chunk.end - chunk.start).and_then(|bytes| {
                    opened.read(piece.begin.saturating_add(chunk.start), bytes).map(|()| bytes)
                });
                match read {
                    Ok(bytes) => {
                        found.extend(opened.bad_blocks(*piece, chunk.start, bytes).map(damage));
                    }
                    Err(error) => found.push(damage(error)),
                }
            }
        }
        found
    }

    /// BLAKE3 of the first `len` bytes, first 16 bytes.
    fn hash_of(&self, file: &dyn ReadFile, name: &str, len: u64) -> Result<[u8; 16]> {
        let mut scratch = zeroed(len.min(CHUNK_BYTES))?;
        hash16_of(len, &mut scratch, |at, part| self.read_at(file, name, at, part))
    }
}

/// What a thread sends: number and bytes of a batch, and what is damaged in it.
type Hand<'h> = dyn FnMut((usize, u64, Vec<Damage>)) -> Message + 'h;

/// All that is damaged in a batch.
#[derive(Default)]
struct Listed(Vec<Damage>);

impl Outlet for Listed {
    fn place(&mut self, _: usize, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn bad(&mut self, error: Error, item: usize) -> Result<()> {
        if self.0.len() < DAMAGE_MAX {
            self.0.push(Damage { piece: Some(item), error });
        }
        Ok(())
    }
}

impl Part<'_> {
    /// A whole piece that goes nowhere.
    fn to_check(item: usize, piece: PieceAt) -> Self {
        Self { item, piece, range: 0..piece.bytes, place: Place::Steps }
    }

    fn span(&self) -> (usize, PieceAt, Range<u64>) {
        (self.item, self.piece, self.range.clone())
    }
}

/// Whether the pieces follow each other from the start of the data to the end of the file.
fn covers(record: &DataFile, index: usize, pieces: &[PieceAt]) -> bool {
    let end = pieces.iter().try_fold(record.data_start, |end, piece| {
        let follows = piece.file == index && piece.begin == end;
        end.checked_add(piece.bytes).filter(|_| follows)
    });
    end == Some(record.len)
}
