//! One batch after the other: reads, checks, and hands on.

use std::ops::Range;

use super::{Failed, Part, Place, Sharing};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::region::Region;
use crate::shard::opened::Opened;
use crate::shard::reader::{ShardReader, to_usize};
use crate::storage::DIRECT_ALIGNMENT;

/// Read and checked at once: few calls, and it stays in the cache of the core meanwhile.
const STEP_BYTES: u64 = 256 << 10;
/// Shorter ranges are read with their neighbours.
const STRAIGHT_BYTES_MIN: u64 = 128 << 10;
/// Less than this is read through the page cache.
const DIRECT_BYTES_MIN: u64 = 512 << 10;
const ALIGNMENT: u64 = DIRECT_ALIGNMENT as u64;

/// Takes what was read.
pub(in crate::shard) trait Outlet {
    /// Takes bytes that begin at `offset` of the piece and whose sums match, unless they have gone
    /// into memory.
    fn place(&mut self, item: usize, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Takes note of a damaged block; an error ends the batch.
    fn bad(&mut self, error: Error, item: usize) -> Result<()> {
        let _ = item;
        Err(error)
    }
}

/// Through the page cache: what is there, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Cached,
    Waiting,
}

/// Reads batches with memory of its own.
pub(in crate::shard) struct Fetcher<'r> {
    reader: &'r ShardReader,
    opened: Option<(usize, Opened<'r>)>,
    buffer: Buffer,
    first: Through,
}

impl<'r> Fetcher<'r> {
    pub(in crate::shard) fn new(reader: &'r ShardReader, limit: u64, sharing: Sharing) -> Self {
        let first = match sharing {
            Sharing::Alone => Through::Cached,
            Sharing::SameHost { .. } => Through::Waiting,
        };
        // A batch may be longer by a block, and its begin and end are not aligned.
        let limit = limit.saturating_add(reader.block).saturating_add(2 * ALIGNMENT);
        let buffer = Buffer { memory: None, limit };
        Self { reader, opened: None, buffer, first }
    }

    /// Reads the parts of one batch, in order.
    ///
    /// # Errors
    /// Of the first part that cannot be read, is damaged, or is not taken.
    pub(in crate::shard) fn fetch(
        &mut self,
        parts: &mut [Part<'_>],
        outlet: &mut dyn Outlet,
    ) -> Result<(), Failed> {
        let Some(first) = parts.first() else { return Ok(()) };
        let file = first.piece.file;
        if self.opened.as_ref().is_none_or(|(index, _)| *index != file) {
            let opened = self.reader.opened(file).map_err(|e| first.failed(e))?;
            self.opened = Some((file, opened));
        }
        let Some((_, opened)) = &self.opened else { return Ok(()) };
        for part in &*parts {
            opened.check(part.piece, &part.range).map_err(|e| part.failed(e))?;
        }
        let block = self.reader.block;
        let mut pass = Pass { opened, buffer: &mut self.buffer, block, outlet };
        pass.read(parts, self.first)
    }
}

impl Part<'_> {
    fn failed(&self, error: Error) -> Failed {
        Failed { item: self.item, error }
    }

    /// Whether it is read by itself, step by step.
    fn is_straight(&self) -> bool {
        !matches!(self.place, Place::Whole) && self.len() >= STRAIGHT_BYTES_MIN
    }
}

/// One batch, on its way.
struct Pass<'p, 'r> {
    opened: &'p Opened<'r>,
    buffer: &'p mut Buffer,
    block: u64,
    outlet: &'p mut dyn Outlet,
}

impl Pass<'_, '_> {
    fn read(&mut self, parts: &mut [Part<'_>], first: Through) -> Result<(), Failed> {
        let (mut through, mut rest) = (first, parts);
        while let Some(part) = rest.first_mut() {
            let (count, came) = if part.is_straight() {
                (1, self.straight(part, through)?)
            } else {
                let count = self.packable(rest);
                (count, self.packed(rest.get_mut(..count).unwrap_or_default(), through)?)
            };
            if came {
                rest = rest.split_at_mut(count).1;
            } else if self.past_cache(rest)? {
                return Ok(());
            } else {
                through = Through::Waiting;
            }
        }
        Ok(())
    }

    /// Fills `out` from the file; false if that would have to wait and is not to.
    fn fill(opened: &Opened<'_>, through: Through, at: u64, out: &mut [u8]) -> Result<bool> {
        match through {
            Through::Waiting => opened.read(at, out).map(|()| true),
            Through::Cached => opened.read_cached(at, out),
        }
    }

    /// A long part by itself. What has come when it returns false, the part has forgotten.
    fn straight(&mut self, part: &mut Part<'_>, through: Through) -> Result<bool, Failed> {
        while part.len() > 0 {
            match self.step(part, through) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(part.failed(error)),
            }
        }
        Ok(true)
    }

    /// The next bytes of a part: whole blocks straight to where they go, others by the buffer.
    fn step(&mut self, part: &mut Part<'_>, through: Through) -> Result<bool> {
        let blocks = part.piece.blocks(&part.range, self.block);
        let at = part.piece.begin.saturating_add(blocks.start);
        let ends_whole = part.range.end == blocks.end;
        let whole_end =
            if ends_whole { blocks.end } else { part.range.end - part.range.end % self.block };
        let is_whole = blocks.start == part.range.start && blocks.start < whole_end;
        let step = if is_whole { self.step_bytes() } else { self.block };
        let end =
            blocks.start.saturating_add(step).min(if is_whole { whole_end } else { blocks.end });
        let len = to_usize(end - blocks.start)?;
        if let Place::Memory(out) = &mut part.place
            && is_whole
            && let Some(out) = out.get_mut(..len)
        {
            if !Self::fill(self.opened, through, at, out)? {
                return Ok(false);
            }
            for error in self.opened.bad_blocks(part.piece, blocks.start, out) {
                self.outlet.bad(error, part.item)?;
            }
            part.advance(end);
            return Ok(true);
        }
        let bytes = self.buffer.first(len)?;
        if !Self::fill(self.opened, through, at, bytes)? {
            return Ok(false);
        }
        deliver(self.opened, self.outlet, part, blocks.start, bytes)?;
        Ok(true)
    }

    /// How many of `parts`, at least one, are read together.
    fn packable(&self, parts: &[Part<'_>]) -> usize {
        let Some(first) = parts.first() else { return 0 };
        let begin = first.in_file(self.block).start;
        let fits = |part: &&Part<'_>| {
            !part.is_straight() && part.in_file(self.block).end.saturating_sub(begin) <= STEP_BYTES
        };
        1 + parts.iter().skip(1).take_while(fits).count()
    }

    /// Parts that lie next to each other, in one read.
    fn packed(&mut self, parts: &mut [Part<'_>], through: Through) -> Result<bool, Failed> {
        let span = self.span(parts);
        let read = |buffer: &'_ mut Buffer| -> Result<bool> {
            let bytes = buffer.first(to_usize(span.end - span.start)?)?;
            Self::fill(self.opened, through, span.start, bytes)
        };
        let came = read(self.buffer).map_err(|error| self.blamed(parts, error))?;
        if came {
            self.hand_out(parts, span.start)?;
        }
        Ok(came)
    }

    /// All `parts` in one read from the device; false if that is not possible or not worth it.
    fn past_cache(&mut self, parts: &mut [Part<'_>]) -> Result<bool, Failed> {
        let span = self.span(parts);
        if span.end - span.start < DIRECT_BYTES_MIN {
            return Ok(false);
        }
        let begin = span.start - span.start % ALIGNMENT;
        let read = |buffer: &'_ mut Buffer| -> Result<bool> {
            let len = (span.end - begin).next_multiple_of(ALIGNMENT);
            let came = self.opened.read_direct(begin, buffer.first(to_usize(len)?)?)?;
            // A file that is too short is left to a read that says so.
            Ok(came.is_some_and(|came| came as u64 >= span.end - begin))
        };
        let came = read(self.buffer).map_err(|error| self.blamed(parts, error))?;
        if came {
            self.hand_out(parts, begin)?;
        }
        Ok(came)
    }

    /// Hands on what each part wants of the buffer, which holds the file from `begin` on.
    fn hand_out(&mut self, parts: &mut [Part<'_>], begin: u64) -> Result<(), Failed> {
        for part in parts {
            let step = if let Place::Whole = part.place { u64::MAX } else { self.step_bytes() };
            while part.len() > 0 {
                let blocks = part.piece.blocks(&part.range, self.block);
                let end = blocks.end.min(blocks.start.saturating_add(step));
                let skip = part.piece.begin.saturating_add(blocks.start).saturating_sub(begin);
                let bytes = self.buffer.part(skip, end - blocks.start);
                let handed = bytes
                    .and_then(|bytes| deliver(self.opened, self.outlet, part, blocks.start, bytes));
                handed.map_err(|error| part.failed(error))?;
            }
        }
        Ok(())
    }

    /// Whole blocks that are read and checked at once.
    fn step_bytes(&self) -> u64 {
        STEP_BYTES.next_multiple_of(self.block)
    }

    /// From the first to the last byte that is missing. Parts may overlap, so that a first one that
    /// has come in part may begin behind the next.
    fn span(&self, parts: &[Part<'_>]) -> Range<u64> {
        let spans = parts.iter().map(|part| part.in_file(self.block));
        let join = |a: Range<u64>, b: Range<u64>| a.start.min(b.start)..a.end.max(b.end);
        spans.reduce(join).unwrap_or_default()
    }

    /// The part that a failed read belongs to: that in which it failed, as far as is known.
    fn blamed(&self, parts: &[Part<'_>], error: Error) -> Failed {
        let at = error.offset().unwrap_or(0);
        let reaches = |part: &&Part<'_>| part.in_file(self.block).end > at;
        let item = parts.iter().find(reaches).or(parts.first()).map_or(0, |part| part.item);
        Failed { item, error }
    }
}

/// Checks whole blocks of a piece and hands on what `part` wants of them, which it then forgets.
fn deliver(
    opened: &Opened<'_>,
    outlet: &mut dyn Outlet,
    part: &mut Part<'_>,
    begin: u64,
    bytes: &[u8],
) -> Result<()> {
    for error in opened.bad_blocks(part.piece, begin, bytes) {
        outlet.bad(error, part.item)?;
    }
    let end = part.range.end.min(begin.saturating_add(bytes.len() as u64));
    let wanted = to_usize(part.range.start.saturating_sub(begin))?..to_usize(end - begin)?;
    let wanted = bytes.get(wanted).unwrap_or_default();
    match &mut part.place {
        Place::Memory(out) => {
            if let Some(out) = out.get_mut(..wanted.len()) {
                out.copy_from_slice(wanted);
            }
        }
        Place::Steps | Place::Whole => outlet.place(part.item, part.range.start, wanted)?,
    }
    part.advance(end);
    Ok(())
}

/// Memory that is used again for every read, and begins at a multiple of [`DIRECT_ALIGNMENT`].
struct Buffer {
    memory: Option<Region>,
    limit: u64,
}

impl Buffer {
    /// So many bytes from its begin.
    fn first(&mut self, len: usize) -> Result<&mut [u8]> {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes().len() < len) {
            // Never both at once.
            self.memory = None;
            self.memory = Some(Region::new(self.limit.max(len as u64))?);
        }
        let memory = self.memory.as_mut().and_then(|memory| memory.bytes_mut().get_mut(..len));
        memory.ok_or_else(outside)
    }

    /// Some of what was read.
    fn part(&self, skip: u64, len: u64) -> Result<&[u8]> {
        let begin = to_usize(skip)?;
        let end = begin.saturating_add(to_usize(len)?);
        let memory = self.memory.as_ref().and_then(|memory| memory.bytes().get(begin..end));
        memory.ok_or_else(outside)
    }
}

fn outside() -> Error {
    Error::new(ErrorKind::InvalidInput, "a part of a batch lies outside of what was read")
}
