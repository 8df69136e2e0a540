//! Whether a state has the bytes of pieces of a checkpoint, by their block sums.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::manifest::{BLOCK_BYTES, SUM_BYTES};
use crate::memory::zeroed;
use crate::plan::unchanged::LinkedPiece;
use crate::plan::{LinkedComponent, PlannedPiece};
use crate::shard::{Cut, PieceAt, ShardReader, sum};
use crate::state::StateDict;
use crate::storage::Directory;

/// Bytes that are compared at once by one thread.
const CHUNK_BYTES: u64 = 64 * BLOCK_BYTES;
/// Below so many bytes one thread does it all.
const ALONE_BYTES: u64 = 8 << 20;
/// Most threads: beyond them memory is the limit.
const THREADS_MAX: usize = 8;

/// How much of each piece is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    FirstBlocks,
    Whole,
}

/// Whether `state` has the bytes of all these pieces of `part`, whose sums lie in `dir`. False as
/// well if it does not hold one, or if the sums cannot be read.
///
/// # Errors
/// Those of reading the state, naming the tensor; [`ErrorKind::Panic`] if a source panicked.
pub(super) fn are_same(
    dir: &Arc<dyn Directory>,
    part: &LinkedComponent,
    pieces: &[&LinkedPiece<'_>],
    state: &StateDict,
    depth: Depth,
    progress: &Progress,
) -> Result<bool> {
    let planned = |piece: &&LinkedPiece<'_>| {
        let boxes = state.boxes(piece.tensor.name.as_str());
        piece.planned(boxes).map(|planned| (planned, PieceAt::of(piece.tensor, piece.piece)))
    };
    let Some(planned) = pieces.iter().map(planned).collect::<Option<Vec<_>>>() else {
        return Ok(false);
    };
    let reader = ShardReader::new(dir.clone(), &part.data_files, &part.sums_files);
    for depth in [Depth::FirstBlocks, depth] {
        let Some(spots) = spots(&planned, &reader, state, depth) else { return Ok(false) };
        if !all_same(&spots, progress)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A part of a piece in a state, and the sums that it should have.
struct Spot<'a> {
    cut: Cut<'a>,
    begin: u64,
    bytes: u64,
    sums: Arc<Vec<u8>>,
    /// Where in `sums` its own begin, in bytes.
    first: usize,
}

/// `None` if the pieces cannot be compared.
fn spots<'a>(
    planned: &'a [(PlannedPiece, PieceAt)],
    reader: &ShardReader,
    state: &'a StateDict,
    depth: Depth,
) -> Option<Vec<Spot<'a>>> {
    let mut spots = Vec::new();
    for (piece, at) in planned {
        let sums = reader.sums(at.file).ok()?;
        let end = if depth == Depth::Whole { at.bytes } else { at.bytes.min(BLOCK_BYTES) };
        let mut begin = 0;
        while begin < end {
            let bytes = CHUNK_BYTES.min(end - begin);
            let first = at.first_sum.checked_add(begin / BLOCK_BYTES)?.checked_mul(SUM_BYTES)?;
            let (first, sums) = (usize::try_from(first).ok()?, Arc::clone(&sums));
            spots.push(Spot { cut: Cut::new(piece, state).ok()?, begin, bytes, sums, first });
            begin += bytes;
        }
    }
    Some(spots)
}

fn all_same(spots: &[Spot<'_>], progress: &Progress) -> Result<bool> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let bytes: u64 = spots.iter().map(|spot| spot.bytes).sum();
    let threads = if bytes < ALONE_BYTES { 1 } else { cores.min(THREADS_MAX).min(spots.len()) };
    let (next, differs) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<()> {
        let mut buffer = Vec::new();
        while !differs.load(Ordering::Relaxed) {
            let Some(spot) = spots.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let same = spot.is_same(&mut buffer);
            if !matches!(same, Ok(true)) {
                // Also after an error: what the other threads find does not count any more.
                differs.store(true, Ordering::Relaxed);
            }
            same?;
            progress.add(spot.bytes);
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        // This thread works too, so that one that cannot be started is no error.
        let spawn = |_| thread::Builder::new().name("compare".to_owned()).spawn_scoped(scope, work);
        let helpers: Vec<_> = (1..threads).map_while(|n| spawn(n).ok()).collect();
        let mut done = work();
        for helper in helpers {
            done = done.and(helper.join().unwrap_or_else(|_| Err(panicked())));
        }
        done
    })?;
    Ok(!differs.into_inner())
}

fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "a thread that read tensors panicked")
}

impl Spot<'_> {
    fn is_same(&self, buffer: &mut Vec<u8>) -> Result<bool> {
        let len = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let begin = usize::try_from(self.begin).unwrap_or(usize::MAX);
        let host = self.cut.host_bytes()?.and_then(|host| host.get(begin..)?.get(..len));
        let bytes = match host {
            Some(bytes) => bytes,
            None => {
                if buffer.len() < len {
                    *buffer = zeroed(self.bytes.max(CHUNK_BYTES))?;
                }
                let part = buffer.get_mut(..len).unwrap_or_default();
                self.cut.fill(self.begin, part)?;
                part
            }
        };
        let sums = self.sums.get(self.first..).unwrap_or_default().as_chunks::<16>().0;
        let mut sums = sums.iter();
        let block = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
        Ok(bytes.len() == len && bytes.chunks(block).all(|block| sums.next() == Some(&sum(block))))
    }
}
