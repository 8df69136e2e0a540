//! Which parts are read together: pure.

use std::ops::Range;

use super::{Part, Place, Sharing};

/// One in so many bytes of a batch may be a gap between parts, which is read over.
const GAP_SHARE: u64 = 64;

/// Parts of one file that lie next to each other.
pub(in crate::shard) struct Batch<'p, 'a> {
    /// Batches are taken in the order of their numbers.
    pub(in crate::shard) number: usize,
    pub(in crate::shard) parts: &'p mut [Part<'a>],
}

impl Part<'_> {
    /// Bytes wanted.
    pub(in crate::shard) fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// The whole blocks that it touches, counted from the start of the file.
    pub(in crate::shard) fn in_file(&self, block: u64) -> Range<u64> {
        let blocks = self.piece.blocks(&self.range, block);
        let begin = self.piece.begin;
        begin.saturating_add(blocks.start)..begin.saturating_add(blocks.end)
    }

    /// Forgets what comes before `to`: it has arrived.
    pub(in crate::shard) fn advance(&mut self, to: u64) {
        let step = to.saturating_sub(self.range.start);
        self.range.start = to;
        if let Place::Memory(out) = &mut self.place {
            let step = usize::try_from(step).unwrap_or(usize::MAX).min(out.len());
            *out = std::mem::take(out).split_at_mut(step).1;
        }
    }
}

/// The batches of `parts`, none over more than `limit` bytes of a file and a block. Parts are cut at
/// blocks of `block` bytes.
pub(in crate::shard) fn batches<'p, 'a>(
    parts: &'p mut Vec<Part<'a>>,
    limit: u64,
    block: u64,
    sharing: Sharing,
) -> Vec<Batch<'p, 'a>> {
    cut(parts, limit, block);
    parts.sort_by_key(|part| {
        let at = part.in_file(block);
        (part.piece.file, at.start, at.end, part.item)
    });
    let mut batches = Vec::new();
    let mut rest = parts.as_mut_slice();
    while !rest.is_empty() {
        let (parts, after) = rest.split_at_mut(neighbours(rest, limit, block));
        batches.push(Batch { number: 0, parts });
        rest = after;
    }
    let begin = own_place(batches.len(), sharing);
    batches.rotate_left(begin);
    for (number, batch) in batches.iter_mut().enumerate() {
        batch.number = number;
    }
    batches
}

/// The batch at which a rank begins.
fn own_place(batches: usize, sharing: Sharing) -> usize {
    let Sharing::SameHost { rank, ranks } = sharing else { return 0 };
    let place = batches as u64 * u64::from(rank) / u64::from(ranks.max(1));
    usize::try_from(place).unwrap_or(0).min(batches)
}

/// Cuts parts at the first ends of blocks in each `limit` bytes of a file, so that batches are
/// filled whatever the lengths of tensors are.
fn cut(parts: &mut Vec<Part<'_>>, limit: u64, block: u64) {
    if parts.iter().all(|part| part.first_cut(limit, block).is_none()) {
        return;
    }
    for mut part in std::mem::take(parts) {
        while let Some(end) = part.first_cut(limit, block) {
            let (front, range) = (part.split_memory(end), part.range.start..end);
            parts.push(Part { item: part.item, piece: part.piece, range, place: front });
            part.range.start = end;
        }
        parts.push(part);
    }
}

impl<'a> Part<'a> {
    /// Where it is to be cut, counted from the start of the piece.
    fn first_cut(&self, limit: u64, block: u64) -> Option<u64> {
        let at = self.in_file(block);
        let line = (at.start / limit).saturating_add(1).saturating_mul(limit);
        if matches!(self.place, Place::Whole) && at.end - at.start <= limit {
            return None;
        }
        let cut = line.saturating_sub(self.piece.begin).checked_next_multiple_of(block)?;
        (cut > self.range.start && cut < self.range.end).then_some(cut)
    }

    /// The place of what comes before `end`; what is left is the place of the rest.
    fn split_memory(&mut self, end: u64) -> Place<'a> {
        match &mut self.place {
            Place::Steps => Place::Steps,
            Place::Whole => Place::Whole,
            Place::Memory(out) => {
                let len = usize::try_from(end.saturating_sub(self.range.start));
                let len = len.unwrap_or(usize::MAX).min(out.len());
                let (front, rest) = std::mem::take(out).split_at_mut(len);
                *out = rest;
                Place::Memory(front)
            }
        }
    }
}

/// How many of `parts`, at least one, make a batch.
fn neighbours(parts: &[Part<'_>], limit: u64, block: u64) -> usize {
    let Some(first) = parts.first() else { return 0 };
    let (file, longest) = (first.piece.file, limit.saturating_add(block));
    let mut span = first.in_file(block);
    let mut gaps = 0;
    let joins = |part: &&Part<'_>| {
        let at = part.in_file(block);
        let gap = at.start.saturating_sub(span.end);
        let end = span.end.max(at.end);
        let len = end - span.start;
        let is_elsewhere = part.piece.file != file || at.start / limit != span.start / limit;
        if is_elsewhere || len > longest || (gaps + gap) * GAP_SHARE > len {
            return false;
        }
        gaps += gap;
        span.end = end;
        true
    };
    1 + parts.iter().skip(1).take_while(joins).count()
}
