//! Many ranges of the files of one checkpoint at once.
//!
//! Ranges become [batches](batches) of neighbours, each one read or a few, and a few threads take
//! batches in file order. What is in the page cache is taken from there, by steps that stay in the
//! cache of the core until they are checked, and where possible straight into their destination.
//! The rest of a batch is read from the device into an aligned buffer, past the page cache, checked
//! and copied out. Where the storage cannot read past the cache, or a little is wanted, or other
//! ranks on this host want the same ([`Sharing`]), it is read through the cache instead.
//!
//! The threads and their buffers together stay below 40 MiB, whatever the size of the checkpoint.

pub(super) mod batches;
pub(super) mod fetch;
pub(super) mod workers;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use self::batches::{Batch, batches};
use self::fetch::{Fetcher, Outlet};
use self::workers::{Message, Pace};
use super::piece::PieceAt;
use super::reader::ShardReader;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::copied;

/// Most bytes that are handed to the calling thread at once.
const HANDED_BYTES: usize = 1 << 20;

/// Whether other ranks read the same bytes at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// No other rank on this host: what is not in the page cache is read past it.
    #[default]
    Alone,
    /// Some rank on this host may: everything goes through the page cache, so that the device gives
    /// each byte once, and each rank begins at its own place, so that together they read all of it
    /// at once.
    SameHost {
        /// This one.
        rank: u32,
        /// How many there are.
        ranks: u32,
    },
}

/// One range of a piece, and where it goes.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// The caller's number for it.
    pub(crate) item: usize,
    pub(crate) piece: PieceAt,
    /// Counted from the start of the piece.
    pub(crate) range: Range<u64>,
    pub(crate) place: Place<'a>,
}

/// Where the bytes of a part go.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// Into memory as long as the range.
    Memory(&'a mut [u8]),
    /// To the caller, in any number of steps.
    Steps,
    /// To the caller, together as far as they fit into a buffer: it skips to each step anew.
    Whole,
}

/// What went wrong first, in the order of the batches.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) item: usize,
    pub(crate) error: Error,
}

/// Who takes bytes that do not go into memory.
pub(crate) struct Takers<'t> {
    /// Asked on any thread.
    pub(crate) any: &'t Any<'t>,
    /// Asked on the calling thread for what `any` did not take.
    pub(crate) own: &'t mut Own<'t>,
}

/// Takes, for an item, bytes whose sums match and the first of which is so far into the piece.
/// False: not taken, this is for the calling thread.
type Any<'t> = dyn Fn(usize, u64, &[u8]) -> Result<bool> + Sync + 't;
/// The same on the calling thread.
type Own<'t> = dyn FnMut(usize, u64, &[u8]) -> Result<()> + 't;

impl ShardReader {
    /// Reads and checks all `parts`, which may overlap and come in any order.
    ///
    /// # Errors
    /// That of the first part in file order (from the place of this rank on) that cannot be read,
    /// is damaged or is not taken, however many threads there are. What was to be filled is
    /// unspecified then.
    pub(crate) fn read_parts(
        &self,
        mut parts: Vec<Part<'_>>,
        sharing: Sharing,
        takers: Takers<'_>,
    ) -> Result<(), Failed> {
        parts.retain(|part| part.len() > 0);
        let wanted = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.len()));
        let pace = Pace::of(wanted);
        let batches = batches(&mut parts, pace.limit, self.block, sharing);
        let first = First::default();
        let (any, own) = (takers.any, takers.own);
        let work = |fetcher: &mut Fetcher<'_>, batch: Batch<'_, '_>, hand: &mut Hand<'_>| {
            let number = batch.number;
            if first.is_before(number) {
                return;
            }
            let mut outlet = Distributor { any, hand, number };
            if let Err(failed) = fetcher.fetch(batch.parts, &mut outlet) {
                first.note(number, failed);
            }
        };
        let mut on_message = |bytes: Handed| {
            if first.is_before(bytes.number) {
                return;
            }
            if let Err(error) = own(bytes.item, bytes.offset, &bytes.bytes) {
                first.note(bytes.number, Failed { item: bytes.item, error });
            }
        };
        let start = || Fetcher::new(self, pace.limit, sharing);
        workers::run(batches, pace.threads, &start, &work, &mut on_message);
        first.failed.into_inner().map_or(Ok(()), |(_, failed)| Err(failed))
    }
}

type Hand<'h> = dyn FnMut(Handed) -> Message + 'h;

/// Bytes for the calling thread.
struct Handed {
    number: usize,
    item: usize,
    offset: u64,
    bytes: Vec<u8>,
}

struct Distributor<'d, 'h> {
    any: &'d Any<'d>,
    hand: &'d mut Hand<'h>,
    number: usize,
}

impl Outlet for Distributor<'_, '_> {
    fn place(&mut self, item: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if (self.any)(item, offset, bytes)? {
            return Ok(());
        }
        let mut offset = offset;
        for step in bytes.chunks(HANDED_BYTES) {
            let handed = Handed { number: self.number, item, offset, bytes: copied(step)? };
            if let Message::NobodyListens = (self.hand)(handed) {
                // The panic of who listened is what is told; this ends the other batches.
                return Err(Error::new(ErrorKind::Panic, "nobody takes what was read"));
            }
            offset += step.len() as u64;
        }
        Ok(())
    }
}

/// The first failure of several threads. Batches are taken in order, so once one has failed, those
/// before it are all taken, and come to their end.
#[derive(Default)]
struct First {
    /// One more than the number of the batch that failed first; 0 for none.
    number: AtomicUsize,
    failed: Mutex<Option<(usize, Failed)>>,
}

impl First {
    /// Whether a batch before this one has failed.
    fn is_before(&self, number: usize) -> bool {
        let failed = self.number.load(Ordering::Acquire);
        failed > 0 && failed - 1 < number
    }

    fn note(&self, number: usize, failed: Failed) {
        let mut first = self.failed.lock();
        if first.as_ref().is_none_or(|(before, _)| number < *before) {
            *first = Some((number, failed));
            self.number.store(number.saturating_add(1), Ordering::Release);
        }
    }
}
