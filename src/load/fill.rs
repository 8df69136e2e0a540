//! From a plan and its sinks to ranges for the reader: who fills what, and from which thread.
//!
//! Host memory is filled from any thread. Where each range of a box is one run, the ranges get
//! parts of its memory that do not touch, and bytes go there without a copy; where ranges are
//! scattered over it, as columns of a matrix are, threads take turns. All other sinks (devices,
//! strided tensors) are filled on the calling thread, from copies of what was verified.

use std::borrow::Cow;

use parking_lot::Mutex;

use crate::error::Result;
use crate::load::place::changed;
use crate::plan::load::{LoadPlan, ReadItem, WantedBox};
use crate::shard::{Part, PieceAt, Place, ShardReader, Sharing, Takers};
use crate::slice::Slice;
use crate::state::TensorSink;

/// Ranges that are scattered are copied as a whole, so longer ones are taken apart.
const SCATTERED_BYTES_MAX: u64 = 4 << 20;

/// One range of the plan.
struct Item<'p> {
    file: usize,
    read: Cow<'p, ReadItem>,
    /// The only run, if there is one.
    run: Option<Run>,
}

/// One run that is the whole range.
#[derive(Clone, Copy)]
struct Run {
    to: usize,
    bytes: usize,
}

/// Host memory that ranges are scattered over; `None` for any other sink.
type Scattered<'s> = Option<Mutex<&'s mut [u8]>>;

/// Reads all of `plan` into `sinks`, one per wanted box, every block verified.
///
/// # Errors
/// As [`ShardReader::read_range`], with the tensor: the first in file order.
pub(super) fn fill(
    reader: &ShardReader,
    plan: &LoadPlan,
    wanted: &[WantedBox],
    sharing: Sharing,
    sinks: &mut [&mut dyn TensorSink],
) -> Result<()> {
    let items = items(plan, wanted)?;
    let (mut own, mut memories) = (Vec::new(), Vec::new());
    for sink in sinks.iter_mut() {
        // Asked twice, for one answer can only be kept or tested.
        let is_memory = sink.bytes_mut().is_some();
        let (sink, memory) = if is_memory { (None, sink.bytes_mut()) } else { (Some(sink), None) };
        own.push(sink);
        memories.push(memory);
    }
    let (scattered, parts) = places(&items, memories);
    let want = |item: usize| -> Result<(&Item<'_>, &WantedBox)> {
        let item = items.get(item).ok_or_else(changed)?;
        Ok((item, wanted.get(item.read.target).ok_or_else(changed)?))
    };
    let any = |item: usize, offset: u64, bytes: &[u8]| {
        let (item, wanted) = want(item)?;
        let Some(Some(memory)) = scattered.get(item.read.target) else { return Ok(false) };
        scatter(&item.read, wanted, offset, bytes, &mut *memory.lock()).map(|()| true)
    };
    let mut on_this_thread = |item: usize, offset: u64, bytes: &[u8]| {
        let (item, wanted) = want(item)?;
        let sink = own.get_mut(item.read.target).and_then(Option::as_mut).ok_or_else(changed)?;
        scatter(&item.read, wanted, offset, bytes, &mut **sink)
    };
    let takers = Takers { any: &any, own: &mut on_this_thread };
    reader.read_parts(parts, sharing, takers).map_err(|failed| match want(failed.item) {
        Ok((_, wanted)) => failed.error.with_tensor(wanted.name().as_str()),
        Err(_) => failed.error,
    })?;
    let sinks = own.into_iter().zip(wanted);
    let sinks = sinks.filter_map(|(sink, wanted)| Some((sink?, wanted)));
    for (sink, wanted) in sinks {
        sink.flush().map_err(|e| e.with_tensor(wanted.name().as_str()))?;
    }
    Ok(())
}

/// All ranges in file order.
fn items<'p>(plan: &'p LoadPlan, wanted: &[WantedBox]) -> Result<Vec<Item<'p>>> {
    let count = plan.reads.iter().map(|file| file.reads.len()).sum();
    let mut items = Vec::with_capacity(count);
    for file in &plan.reads {
        let index = usize::try_from(file.file).unwrap_or(usize::MAX);
        for read in &file.reads {
            let wanted = wanted.get(read.target).ok_or_else(changed)?;
            add(&mut items, index, Cow::Borrowed(read), wanted);
        }
    }
    Ok(items)
}

/// Adds a range, or its halves where it is long and scattered.
fn add<'p>(items: &mut Vec<Item<'p>>, file: usize, read: Cow<'p, ReadItem>, wanted: &WantedBox) {
    let run = only_run(&read, wanted);
    let is_long = read.bytes.end - read.bytes.start > SCATTERED_BYTES_MAX;
    if run.is_none()
        && is_long
        && let Some(halves) = halves(&read)
    {
        halves.into_iter().for_each(|half| add(items, file, Cow::Owned(half), wanted));
        return;
    }
    items.push(Item { file, read, run });
}

fn only_run(read: &ReadItem, wanted: &WantedBox) -> Option<Run> {
    let len = read.bytes.end - read.bytes.start;
    let to = if read.common == read.source && read.common == *wanted.slice() {
        0
    } else {
        read.copies(wanted).next().filter(|run| run.bytes == len)?.to
    };
    Some(Run { to: usize::try_from(to).ok()?, bytes: usize::try_from(len).ok()? })
}

/// The same range in two, along its outermost dimension; `None` if it has one element.
fn halves(read: &ReadItem) -> Option<[ReadItem; 2]> {
    let dimension = read.common.split_dimension()?;
    let rows = *read.common.lengths().get(dimension)?;
    let half = |rows| {
        let common = read.common.rows(rows).ok()?;
        let bytes = extent(&read.source, &common, read.element_bytes);
        Some(ReadItem { bytes, common, ..read.clone() })
    };
    Some([half(0..rows / 2)?, half(rows / 2..rows)?])
}

/// From the first to the last byte of `part` in a buffer that holds `source`.
fn extent(source: &Slice, part: &Slice, element_bytes: u64) -> std::ops::Range<u64> {
    let (mut stride, mut begin, mut last) = (element_bytes, 0, 0);
    let offsets = part.offsets().iter().zip(source.offsets());
    let lengths = part.lengths().iter().zip(source.lengths());
    for ((at, origin), (length, whole)) in offsets.zip(lengths).rev() {
        begin += (at - origin) * stride;
        last += length.saturating_sub(1) * stride;
        stride *= whole;
    }
    begin..begin + last + element_bytes
}

/// Gives each range its place: a part of the memory of its sink where no other range goes, else
/// whoever has the sink.
fn places<'s>(
    items: &[Item<'_>],
    mut memories: Vec<Option<&'s mut [u8]>>,
) -> (Vec<Scattered<'s>>, Vec<Part<'s>>) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    let key =
        |index: &usize| items.get(*index).map(|item| (item.read.target, item.run.map(|r| r.to)));
    order.sort_by_key(key);
    let mut parts = Vec::with_capacity(items.len());
    let same_target = |a: &usize, b: &usize| key(a).map(|k| k.0) == key(b).map(|k| k.0);
    for group in order.chunk_by(same_target) {
        let of_group = || group.iter().filter_map(|index| Some((*index, items.get(*index)?)));
        let target = of_group().next().map_or(usize::MAX, |(_, item)| item.read.target);
        let memory = memories.get_mut(target).filter(|memory| {
            let have = memory.as_ref().map_or(0, |memory| memory.len());
            are_apart(of_group().map(|(_, item)| item.run), have)
        });
        let (mut rest, mut begin) = (memory.and_then(Option::take), 0);
        for (index, item) in of_group() {
            let place = match (&mut rest, item.run) {
                (Some(rest), Some(run)) => {
                    let (_, after) = std::mem::take(rest).split_at_mut(run.to - begin);
                    let (own, after) = after.split_at_mut(run.bytes);
                    (*rest, begin) = (after, run.to + run.bytes);
                    Place::Memory(own)
                }
                (_, Some(_)) => Place::Steps,
                (_, None) => Place::Whole,
            };
            parts.push(part(index, item, place));
        }
    }
    (memories.into_iter().map(|memory| memory.map(Mutex::new)).collect(), parts)
}

/// Whether runs that are in order each have a place of their own in so much memory.
fn are_apart(runs: impl Iterator<Item = Option<Run>>, have: usize) -> bool {
    let mut end = 0;
    runs.into_iter().all(|run| {
        let Some(run) = run.filter(|run| run.to >= end) else { return false };
        end = run.to.saturating_add(run.bytes);
        end <= have
    })
}

fn part<'s>(index: usize, item: &Item<'_>, place: Place<'s>) -> Part<'s> {
    let piece = PieceAt {
        file: item.file,
        begin: item.read.piece_begin,
        bytes: item.read.piece_bytes,
        first_sum: item.read.first_sum,
    };
    Part { item: index, piece, range: item.read.bytes.clone(), place }
}

/// Copies what `read` wants of `bytes`, which begin at `offset` of its piece, to where it goes.
fn scatter(
    read: &ReadItem,
    wanted: &WantedBox,
    offset: u64,
    bytes: &[u8],
    sink: &mut dyn TensorSink,
) -> Result<()> {
    let end = offset + bytes.len() as u64;
    let runs = read.copies(wanted).skip_while(|run| run.from + run.bytes <= offset);
    for run in runs.take_while(|run| run.from < end) {
        let (from, to) = (run.from.max(offset), (run.from + run.bytes).min(end));
        let part = bytes.get(to_usize(from - offset)..to_usize(to - offset));
        sink.write_at(run.to + (from - run.from), part.ok_or_else(changed)?)?;
    }
    Ok(())
}

fn to_usize(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
