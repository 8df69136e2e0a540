//! Reading byte ranges of pieces, every touched block checked against its sum.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::opened::{Opened, at_place, check_range};
use super::pacing::Portion;
use super::piece::PieceAt;
use super::sums::sums_header;
use super::{at_file, file_path};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{
    BLOCK_BYTES, DataFile, Form, Manifest, OtherFile, SUM_BYTES, SUMS_HEADER_BYTES, hash16,
};
use crate::memory::buffers::BUFFER_BYTES;
use crate::memory::{grow, zeroed};
use crate::storage::{Directory, ReadFile};

/// Most bytes read and held at once, per call.
pub(super) const CHUNK_BYTES: u64 = 4 << 20;
/// A checkpoint may have more files than a process may open.
const OPEN_FILES_MAX: usize = 64;

/// Reads the data files of one checkpoint. Usable from several threads at once.
pub struct ShardReader {
    pub(super) dir: Arc<dyn Directory>,
    files: Vec<DataFile>,
    pub(super) sums_files: Vec<OtherFile>,
    pub(super) form: Form,
    /// Bytes of a block.
    pub(super) block: u64,
    /// Block sums per data file, loaded when first needed.
    sums: Vec<Mutex<Option<Arc<Vec<u8>>>>>,
    open: Mutex<OpenFiles>,
    bytes_read: AtomicU64,
    on_read: Option<Box<OnRead>>,
    /// Of what is read past the page cache.
    pub(super) portion: Mutex<Portion>,
}

/// Called with the bytes of each finished read.
type OnRead = dyn Fn(u64) + Send + Sync;

/// Open data files by index, the longest open first.
#[derive(Default)]
struct OpenFiles(VecDeque<(usize, Arc<dyn ReadFile>)>);

impl std::fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(index, _)| index)).finish()
    }
}

impl std::fmt::Debug for ShardReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardReader")
            .field("dir", &self.dir)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl ShardReader {
    /// A reader of these files in `dir`, whose blocks have [`BLOCK_BYTES`]; opens nothing yet.
    #[must_use]
    pub fn new(dir: Arc<dyn Directory>, files: &[DataFile], sums_files: &[OtherFile]) -> Self {
        Self {
            dir,
            files: files.to_vec(),
            sums_files: sums_files.to_vec(),
            form: Form::Directory,
            block: BLOCK_BYTES,
            sums: files.iter().map(|_| Mutex::new(None)).collect(),
            open: Mutex::default(),
            bytes_read: AtomicU64::new(0),
            on_read: None,
            portion: Mutex::new(Portion::up_to(BUFFER_BYTES)),
        }
    }

    /// A reader of the files of `manifest`, whatever its form, in the directory where they lie.
    #[must_use]
    pub fn of(dir: Arc<dyn Directory>, manifest: &Manifest) -> Self {
        let form = manifest.form().clone();
        // What has no sums can be read byte by byte.
        let block = if form == Form::Plain { 1 } else { manifest.block_bytes() };
        Self { form, block, ..Self::new(dir, manifest.data_files(), manifest.sums_files()) }
    }

    /// Calls `on_read` with the bytes of each finished read, from the thread that reads.
    #[must_use]
    pub fn on_read(mut self, on_read: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.on_read = Some(Box::new(on_read));
        self
    }

    /// Takes every file to be as long as it is, so that what is left of a damaged one is read.
    pub(crate) fn with_lengths_found(mut self) -> Self {
        let data = self.files.iter_mut().map(|file| (&file.name, &mut file.len));
        let sums = self.sums_files.iter_mut().map(|file| (&file.name, &mut file.len));
        for (name, len) in data.chain(sums) {
            *len = self.dir.open_file(name).map_or(*len, |found| found.len());
        }
        self
    }

    /// Bytes over which one sum is taken.
    pub(crate) const fn block_bytes(&self) -> u64 {
        self.block
    }

    /// Bytes read so far: data, headers and sums.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Checks that every file is there with the length that the manifest states.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Corrupt`] or [`ErrorKind::Storage`], with the path.
    pub fn check_lengths(&self) -> Result<()> {
        for index in 0..self.files.len() {
            // It stays open for what reads it next, if there are not too many.
            self.open(index)?;
        }
        for file in &self.sums_files {
            self.open_checked(&file.name, file.len)?;
        }
        Ok(())
    }

    /// Reads `range` of a piece (bytes counted from its start) and hands it to `visit` in
    /// ascending parts, each with its offset in the piece, after its blocks were checked.
    /// Blocks that the range touches only in part are read whole. `scratch` is reused memory.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with path and offset for a damaged block or file,
    /// [`ErrorKind::NotFound`] for a missing file, [`ErrorKind::InvalidInput`] for a range outside
    /// the piece, [`ErrorKind::Storage`], and the error of `visit`.
    pub fn read_range(
        &self,
        piece: PieceAt,
        range: Range<u64>,
        scratch: &mut Vec<u8>,
        visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return check_range(piece, &range);
        }
        let opened = self.opened(piece.file)?;
        opened.check(piece, &range)?;
        for chunk in self.chunks(piece, &range) {
            let bytes = sized(scratch, chunk.end - chunk.start)?;
            opened.read_blocks(piece, chunk.start, bytes)?;
            let wanted = chunk.start.max(range.start)..chunk.end.min(range.end);
            let part = to_usize(wanted.start - chunk.start)?..to_usize(wanted.end - chunk.start)?;
            visit(wanted.start, &bytes[part])?;
        }
        Ok(())
    }

    /// Fills `out` with the bytes of a piece from `begin` on. Where whole blocks are wanted they
    /// go straight into `out`; after an error its content is unspecified.
    ///
    /// # Errors
    /// As [`ShardReader::read_range`].
    pub fn read_into(
        &self,
        piece: PieceAt,
        begin: u64,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let range = begin..begin.saturating_add(out.len() as u64);
        let whole_end = range.end % self.block == 0 || range.end == piece.bytes;
        if !range.is_empty() && range.start % self.block == 0 && whole_end {
            let opened = self.opened(piece.file)?;
            opened.check(piece, &range)?;
            let mut rest = out;
            for chunk in self.chunks(piece, &range) {
                let (part, after) = rest.split_at_mut(to_usize(chunk.end - chunk.start)?);
                opened.read_blocks(piece, chunk.start, part)?;
                rest = after;
            }
            return Ok(());
        }
        let mut rest = out;
        self.read_range(piece, range, scratch, &mut |_, bytes| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            part.copy_from_slice(bytes);
            rest = after;
            Ok(())
        })
    }

    pub(super) fn record(&self, index: usize) -> Result<&DataFile> {
        self.files.get(index).ok_or_else(|| {
            let message = format!("data file {index} of {}", self.files.len());
            Error::new(ErrorKind::InvalidInput, message)
        })
    }

    pub(super) fn corrupt(&self, name: &str, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, message).with_path(file_path(&*self.dir, name))
    }

    pub(super) fn open(&self, index: usize) -> Result<Arc<dyn ReadFile>> {
        if let Some((_, file)) = self.open.lock().0.iter().find(|(i, _)| *i == index) {
            return Ok(Arc::clone(file));
        }
        let record = self.record(index)?;
        let file = self.open_checked(&record.name, record.len)?;
        let mut open = self.open.lock();
        if open.0.len() >= OPEN_FILES_MAX {
            open.0.pop_front();
        }
        open.0.push_back((index, Arc::clone(&file)));
        Ok(file)
    }

    pub(super) fn open_checked(&self, name: &str, len: u64) -> Result<Arc<dyn ReadFile>> {
        let file = self.dir.open_file(name).map_err(|e| at_file(e, &*self.dir, name))?;
        let have = file.len();
        if have == len {
            return Ok(file);
        }
        let how = if have < len { "truncated" } else { "extended" };
        Err(self.corrupt(name, format!("{how}: {have} bytes, the manifest says {len}")))
    }

    pub(super) fn read_at(
        &self,
        file: &dyn ReadFile,
        name: &str,
        at: u64,
        out: &mut [u8],
    ) -> Result<()> {
        file.read_at(at, out).map_err(|e| at_place(at_file(e, &*self.dir, name), at))?;
        self.count(out.len() as u64);
        Ok(())
    }

    /// Counts bytes that were read.
    pub(super) fn count(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        if let Some(on_read) = &self.on_read {
            on_read(bytes);
        }
    }

    /// The block sums of a data file, loaded once.
    pub(crate) fn sums(&self, index: usize) -> Result<Arc<Vec<u8>>> {
        let Some(slot) = self.sums.get(index) else {
            return Err(self.record(index).err().unwrap_or_else(no_sums));
        };
        let mut loaded = slot.lock();
        if let Some(sums) = &*loaded {
            return Ok(Arc::clone(sums));
        }
        let sums = self.load_sums(index)?;
        *loaded = Some(Arc::clone(&sums));
        Ok(sums)
    }

    /// Whether two pieces have the same block sums: these are of what was committed, nothing is
    /// read of the data. False where there are none, or of blocks of another size.
    ///
    /// # Errors
    /// Those of reading the sums.
    pub(crate) fn has_same_sums(
        &self,
        piece: PieceAt,
        other: &ShardReader,
        other_piece: PieceAt,
    ) -> Result<bool> {
        if self.block != other.block || piece.bytes != other_piece.bytes {
            return Ok(false);
        }
        let (all, others) = (self.sums(piece.file)?, other.sums(other_piece.file)?);
        let of = |sums: &Vec<u8>, piece: PieceAt| -> Option<Range<usize>> {
            let count = piece.bytes.div_ceil(self.block);
            let end = piece.first_sum.checked_add(count)?.checked_mul(SUM_BYTES)?;
            let range = to_usize(piece.first_sum * SUM_BYTES).ok()?..to_usize(end).ok()?;
            (range.end <= sums.len()).then_some(range)
        };
        let sums = of(&all, piece).and_then(|range| all.get(range));
        Ok(sums.is_some() && sums == of(&others, other_piece).and_then(|range| others.get(range)))
    }

    /// Bytes of the block sums of a data file.
    pub(crate) fn sums_bytes(&self, index: usize) -> u64 {
        self.files.get(index).map_or(0, |file| file.sums_count.saturating_mul(SUM_BYTES))
    }

    /// Gives back the memory of sums that are not needed again.
    pub(crate) fn forget_sums(&self, index: usize) {
        if let Some(slot) = self.sums.get(index) {
            *slot.lock() = None;
        }
    }

    fn load_sums(&self, index: usize) -> Result<Arc<Vec<u8>>> {
        let record = self.record(index)?;
        match self.form {
            Form::Directory => {}
            Form::Single { .. } => return self.sums_in_header(index),
            Form::Plain => return Ok(Arc::default()),
        }
        let other = usize::try_from(record.sums_file).ok().and_then(|i| self.sums_files.get(i));
        let other = other.ok_or_else(no_sums)?;
        let file = self.open_checked(&other.name, other.len)?;
        let bytes = record.sums_count.checked_mul(SUM_BYTES);
        let end = bytes.and_then(|bytes| record.sums_begin.checked_add(bytes));
        let within = record.sums_begin >= SUMS_HEADER_BYTES && end.is_some_and(|e| e <= other.len);
        let Some(bytes) = bytes.filter(|_| within) else {
            return Err(self.corrupt(&other.name, "the sums named by the manifest are outside"));
        };
        let mut header = sums_header(&record.save_id);
        self.read_at(&*file, &other.name, 0, &mut header)?;
        if header != sums_header(&record.save_id) {
            let what = "it does not begin as a sums file of this save";
            return Err(self.corrupt(&other.name, what).with_offset(0));
        }
        let mut sums = zeroed(bytes)?;
        self.read_at(&*file, &other.name, record.sums_begin, &mut sums)?;
        if hash16(&sums) != record.sums_hash {
            let what = format!("the block sums of `{}` are not what was saved", record.name);
            return Err(self.corrupt(&other.name, what).with_offset(record.sums_begin));
        }
        Ok(Arc::new(sums))
    }

    /// A data file, opened, with its block sums.
    pub(super) fn opened(&self, index: usize) -> Result<Opened<'_>> {
        Opened::new(self, index, self.sums(index)?)
    }

    /// The whole blocks that `range` of a piece touches, in parts of at most [`CHUNK_BYTES`].
    pub(super) fn chunks(
        &self,
        piece: PieceAt,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + use<> {
        let blocks = piece.blocks(range, self.block);
        let count = blocks.end.saturating_sub(blocks.start).div_ceil(CHUNK_BYTES);
        (0..count).map(move |i| {
            let start = blocks.start + i * CHUNK_BYTES;
            start..blocks.end.min(start + CHUNK_BYTES)
        })
    }
}

pub(super) fn sized(scratch: &mut Vec<u8>, len: u64) -> Result<&mut [u8]> {
    let len = to_usize(len)?;
    if scratch.len() < len {
        grow(scratch, len)?;
    }
    Ok(&mut scratch[..len])
}

pub(super) fn to_usize(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|e| Error::new(ErrorKind::Unsupported, e.to_string()))
}

pub(super) fn no_sums() -> Error {
    Error::new(ErrorKind::Corrupt, "the manifest names no sums file for a data file")
}
