//! Copying a share with several threads: memory is copied, not computed, and one core
//! does not keep it busy.

use std::thread;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Progress, guarded};
use crate::memory::stream;
use crate::rank::Rank;
use crate::shard::Cut;
use crate::sync::{self, Mutex, sized};

/// Copied at a time by one thread.
const UNIT: usize = 2 << 20;
/// What makes one more thread worth its start.
const BYTES_PER_THREAD: usize = 8 << 20;
/// More do not make memory faster.
const THREADS_MAX: usize = 8;

/// Where the bytes of a piece come from.
pub(super) enum From<'a> {
    /// Host memory, which is the whole piece.
    Memory(&'a [u8]),
    /// A source that copies by its own means. Those of a device do it on the stream of the calling
    /// thread, and those of libtorch with its threads: no other thread asks them.
    Source(Cut<'a>),
    /// Not copied now.
    Later,
}

/// Part of the data of a file, filled by one thread.
struct Unit<'a> {
    /// Where the pieces that it touches end, and their sources.
    ends: &'a [usize],
    sources: &'a [From<'a>],
    /// How much of the first of them comes before it.
    skip: usize,
    begin: usize,
    out: &'a mut [u8],
}

/// Everything that is to be copied at once.
pub(super) struct Copier<'a> {
    rank: Rank,
    progress: &'a Progress,
    /// For the calling thread.
    own: Vec<Unit<'a>>,
    /// For any thread.
    common: Vec<Unit<'a>>,
}

impl<'a> Copier<'a> {
    pub(super) fn new(rank: Rank, progress: &'a Progress) -> Self {
        Self { rank, progress, own: Vec::new(), common: Vec::new() }
    }

    /// `all_ends` and `sources` are those of the pieces, in file order; `out` is as long as all.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is longer.
    pub(super) fn add(
        &mut self,
        all_ends: &'a [usize],
        sources: &'a [From<'a>],
        out: &'a mut [u8],
    ) -> Result<()> {
        let mut begin = 0;
        for out in out.chunks_mut(sized(UNIT, 16)) {
            let end = begin + out.len();
            let first = all_ends.partition_point(|piece_end| *piece_end <= begin);
            let last = all_ends.partition_point(|piece_end| *piece_end < end);
            let (Some(ends), Some(sources)) =
                (all_ends.get(first..=last), sources.get(first..=last))
            else {
                return Err(misfit());
            };
            let piece_begin = first.checked_sub(1).and_then(|before| all_ends.get(before));
            let is_own = sources.iter().any(|from| matches!(from, From::Source(_)));
            let units = if is_own { &mut self.own } else { &mut self.common };
            let skip = begin - piece_begin.copied().unwrap_or(0);
            units.push(Unit { ends, sources, skip, begin, out });
            begin = end;
        }
        Ok(())
    }

    /// Returns when all is copied.
    ///
    /// # Errors
    /// The first error of a source; [`ErrorKind::Panic`](crate::ErrorKind::Panic) if one panicked.
    pub(super) fn run(self) -> Result<()> {
        let Self { rank, progress, own, common } = self;
        let bytes: usize = common.iter().map(|unit| unit.out.len()).sum();
        let common = Mutex::new(common.into_iter());
        let take = || common.lock().next();
        let copy = || fill(std::iter::from_fn(take), progress);
        sync::scope(|scope| {
            let helpers = (1..threads(bytes)).map_while(|_| {
                // Where there is no thread to be had, those that are there do it.
                sync::spawn_in(scope, "tch-stage", || guarded(rank, "commit", copy)).ok()
            });
            let helpers: Vec<_> = helpers.collect();
            let copied = fill(own.into_iter(), progress).and_then(|()| copy());
            let ends = helpers.into_iter().map(|helper| match helper.join() {
                Ok(end) => end,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ends.fold(copied, Result::and)
        })
    }
}

/// How many threads copy so many bytes. One in a simulation, which others would escape.
fn threads(bytes: usize) -> usize {
    if clock::is_simulated() {
        return 1;
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (bytes / sized(BYTES_PER_THREAD, 16)).min(sized(cores, 3)).clamp(1, THREADS_MAX)
}

fn fill<'a>(units: impl Iterator<Item = Unit<'a>>, progress: &Progress) -> Result<()> {
    for Unit { ends, sources, mut skip, begin, out } in units {
        let (bytes, mut rest, mut at) = (out.len() as u64, out, begin);
        for (end, from) in ends.iter().zip(sources) {
            let (part, after) = rest.split_at_mut((end - at).min(rest.len()));
            fill_part(from, skip, part)?;
            at += part.len();
            (rest, skip) = (after, 0);
        }
        progress.add(bytes);
    }
    Ok(())
}

/// Fills `part` with what follows the first `skip` bytes of a piece.
fn fill_part(from: &From<'_>, skip: usize, part: &mut [u8]) -> Result<()> {
    match from {
        From::Memory(memory) => {
            let wanted = memory.get(skip..).and_then(|memory| memory.get(..part.len()));
            stream::copy(wanted.ok_or_else(misfit)?, part);
            Ok(())
        }
        From::Source(cut) => {
            let read = cut.entry.source.read_into(cut.begin + skip as u64, part);
            read.map_err(|e| e.with_tensor(cut.tensor))
        }
        From::Later => Ok(()),
    }
}

/// Pieces are as long in their files as in memory: where that is not so, what was in a region
/// before would be written.
pub(super) fn misfit() -> Error {
    Error::new(ErrorKind::InvalidInput, "a piece is not as long as its place in a file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_is_copied_to_is_an_error() {
        let (progress, memory) = (Progress::default(), [7u8; 10]);
        let sources = [From::Memory(&memory[..6]), From::Memory(&memory[6..9])];
        let (mut fits, mut longer) = ([0; 10], [0; 11]);
        let mut copier = Copier::new(Rank::new(0), &progress);
        let refused = copier.add(&[6, 10], &sources, &mut longer).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        // The second piece is shorter than its place.
        copier.add(&[6, 10], &sources, &mut fits).unwrap();
        assert_eq!(copier.run().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
