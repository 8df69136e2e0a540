//! Checking whole files and naming all that is damaged.

use std::sync::Arc;

use super::header::{DATA_ALIGNMENT, HEADER_JSON_MAX};
use super::reader::{CHUNK_BYTES, PieceAt, ShardReader, sized};
use super::sums::truncated;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{DataFile, Form};
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
        match self.load_sums(index) {
            Ok(sums) => self.verify_blocks(&sums, pieces, progress, &mut found),
            Err(error) => found.push(Damage::outside(error)),
        }
        found
    }

    fn verify_blocks(
        &self,
        sums: &Arc<Vec<u8>>,
        pieces: &[PieceAt],
        progress: &mut dyn FnMut(u64),
        found: &mut Vec<Damage>,
    ) {
        let mut scratch = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            let whole = 0..piece.bytes;
            let damage = |error| Damage { piece: Some(number), error };
            let source = match self.source_with(*piece, &whole, Arc::clone(sums)) {
                Ok(source) => source,
                Err(error) => {
                    found.push(damage(error));
                    continue;
                }
            };
            for chunk in self.chunks(*piece, &whole) {
                let bytes = sized(&mut scratch, chunk.end - chunk.start);
                let bad = bytes.and_then(|bytes| source.bad_blocks(chunk.start, bytes));
                found.extend(bad.unwrap_or_else(|error| vec![error]).into_iter().map(damage));
                if found.len() >= DAMAGE_MAX {
                    return found.truncate(DAMAGE_MAX);
                }
                progress(chunk.end - chunk.start);
            }
        }
    }

    /// BLAKE3 of the first `len` bytes, first 16 bytes.
    fn hash_of(&self, file: &dyn ReadFile, name: &str, len: u64) -> Result<[u8; 16]> {
        let (mut hasher, mut scratch, mut offset) = (blake3::Hasher::new(), Vec::new(), 0);
        while offset < len {
            let bytes = sized(&mut scratch, (len - offset).min(CHUNK_BYTES))?;
            self.read_at(file, name, offset, bytes)?;
            hasher.update(bytes);
            offset += bytes.len() as u64;
        }
        Ok(truncated(&hasher.finalize()))
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
