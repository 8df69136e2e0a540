//! Tensors of a checkpoint as what is saved: from one form, or one number of ranks, into another.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Manifest, Piece, TensorRecord, place_in};
use crate::memory::{grow, zeroed};
use crate::shard::{PieceAt, ShardReader};
use crate::slice::{Slice, boxes_of_range};
use crate::state::{StateDict, TensorSource};
use crate::tensor::{TensorName, TensorSpec};

/// Most bytes of block sums that are kept, but that those of one file always are.
const SUMS_KEPT_BYTES: u64 = 64 << 20;
/// How much of a tensor is put together at a time where pieces lie side by side: so much that of
/// each of many pieces some blocks are wanted whole. Less at first, since a rank may want no more.
const WINDOW_BYTES: RangeInclusive<u64> = 1 << 20..=8 << 20;

/// The tensors of a checkpoint that are `wanted`, whole, read and verified when asked for; no
/// values, and no second names. Headers are taken as they are.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for tensors that a state cannot hold.
pub(crate) fn stored_state(
    reader: &Arc<ShardReader>,
    manifest: &Manifest,
    wanted: &mut dyn FnMut(&TensorRecord) -> bool,
) -> Result<StateDict> {
    let (recent, window) = (Arc::new(Recent::default()), Arc::new(Mutex::default()));
    let mut state = StateDict::new();
    for tensor in manifest.tensors().iter().filter(|tensor| wanted(tensor)) {
        let source = Stored {
            reader: reader.clone(),
            recent: recent.clone(),
            window: window.clone(),
            name: tensor.name.clone(),
            spec: tensor.spec.clone(),
            pieces: Pieces::of(tensor),
        };
        let (name, spec) = (tensor.name.clone(), tensor.spec.clone());
        state.add(&tensor.component, name, spec, Arc::new(source))?;
    }
    Ok(state)
}

/// Data files whose block sums are in memory, the longest unused first, and the bytes of these.
#[derive(Default)]
struct Recent(Mutex<(VecDeque<usize>, u64)>);

impl Recent {
    fn used(&self, reader: &ShardReader, file: usize) {
        let mut recent = self.0.lock();
        let (files, bytes) = &mut *recent;
        if files.back() == Some(&file) {
            return;
        }
        match files.iter().rposition(|other| *other == file) {
            Some(place) => drop(files.remove(place)),
            None => *bytes += reader.sums_bytes(file),
        }
        files.push_back(file);
        while *bytes > SUMS_KEPT_BYTES
            && files.len() > 1
            && let Some(oldest) = files.pop_front()
        {
            *bytes -= reader.sums_bytes(oldest);
            reader.forget_sums(oldest);
        }
    }
}

/// A part of a tensor of which pieces lie side by side, as it was read last.
#[derive(Default)]
struct Window {
    of: Option<TensorName>,
    begin: u64,
    bytes: Vec<u8>,
    /// Memory for reading, used again.
    scratch: Vec<u8>,
}

impl Window {
    /// How much to take next: twice as much where the last part ended.
    fn bytes_from(&self, of: &TensorName, at: u64) -> u64 {
        let len = self.bytes.len() as u64;
        let goes_on = self.of.as_ref() == Some(of) && self.begin + len == at;
        let (least, most) = (*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
        if goes_on { len.saturating_mul(2).clamp(least, most) } else { least }
    }

    /// What it has of a tensor from `at` on.
    fn from(&self, of: &TensorName, at: u64) -> Option<&[u8]> {
        let skipped = at.checked_sub(self.begin).filter(|_| self.of.as_ref() == Some(of))?;
        self.bytes.get(usize::try_from(skipped).ok()?..).filter(|bytes| !bytes.is_empty())
    }
}

/// A whole tensor in the pieces that a checkpoint has of it.
struct Stored {
    reader: Arc<ShardReader>,
    recent: Arc<Recent>,
    /// One for all tensors, which one thread reads one after the other.
    window: Arc<Mutex<Window>>,
    name: TensorName,
    spec: TensorSpec,
    pieces: Pieces,
}

enum Pieces {
    /// Each contiguous in the tensor, with its first byte there, in order.
    InOrder(Vec<(u64, PieceAt)>),
    /// Boxes of any place.
    Boxes(Vec<Held>),
}

/// A box, in order of its first element.
struct Held {
    /// Its first element, and the end of this and all before it, in the tensor.
    first: u64,
    end_so_far: u64,
    slice: Slice,
    at: PieceAt,
}

impl Pieces {
    fn of(tensor: &TensorRecord) -> Self {
        let at = |piece: &Piece| PieceAt::of(tensor, piece);
        let in_order: Option<Vec<_>> = (tensor.pieces.iter())
            .map(|piece| Some((place_in(&tensor.spec, &piece.slice)?, at(piece))))
            .collect();
        if let Some(mut pieces) = in_order {
            pieces.sort_unstable_by_key(|(begin, _)| *begin);
            return Self::InOrder(pieces);
        }
        let full = Slice::full(tensor.spec.shape());
        let held = |piece: &Piece| {
            let (first, end_so_far) = full.extent_of(&piece.slice)?;
            Some(Held { first, end_so_far, slice: piece.slice.clone(), at: at(piece) })
        };
        let mut boxes: Vec<_> = tensor.pieces.iter().filter_map(held).collect();
        boxes.sort_unstable_by_key(|held| held.first);
        let mut end = 0;
        for held in &mut boxes {
            end = end.max(held.end_so_far);
            held.end_so_far = end;
        }
        Self::Boxes(boxes)
    }
}

/// Those that may have some of these elements.
fn near<'a>(boxes: &'a [Held], elements: &Range<u64>) -> &'a [Held] {
    let first = boxes.partition_point(|held| held.end_so_far <= elements.start);
    let end = boxes.partition_point(|held| held.first < elements.end);
    boxes.get(first..end).unwrap_or_default()
}

impl Stored {
    fn read_in_order(
        &self,
        pieces: &[(u64, PieceAt)],
        scratch: &mut Vec<u8>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let (mut rest, mut at) = (out, offset);
        let first = pieces.partition_point(|(begin, piece)| begin + piece.bytes <= offset);
        for (begin, piece) in pieces.get(first..).unwrap_or_default() {
            if rest.is_empty() {
                break;
            }
            let left = piece.bytes.saturating_sub(at.saturating_sub(*begin));
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            self.reader.read_into(*piece, at.saturating_sub(*begin), scratch, part)?;
            self.recent.used(&self.reader, piece.file);
            (rest, at) = (after, at + len as u64);
        }
        if rest.is_empty() { Ok(()) } else { Err(beyond()) }
    }

    fn read_window(
        &self,
        pieces: &[Held],
        window: &mut Window,
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let (mut rest, mut at) = (out, offset);
        while !rest.is_empty() {
            if window.from(&self.name, at).is_none() {
                self.fill(window, pieces, at)?;
            }
            let have = window.from(&self.name, at).ok_or_else(beyond)?;
            let len = have.len().min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            part.copy_from_slice(have.get(..len).unwrap_or_default());
            (rest, at) = (after, at + len as u64);
        }
        Ok(())
    }

    /// Whole elements from that of byte `at` on.
    fn fill(&self, window: &mut Window, pieces: &[Held], at: u64) -> Result<()> {
        let size = self.spec.dtype().size_bytes();
        let first = at / size;
        let end = first
            .saturating_add(window.bytes_from(&self.name, at) / size)
            .min(self.spec.elements());
        let elements = first.min(end)..end;
        window.of = None;
        window.bytes.clear();
        grow(&mut window.bytes, to_usize((elements.end - elements.start) * size)?)?;
        let Window { bytes, scratch, .. } = window;
        self.read_boxes(pieces, elements, scratch, bytes)?;
        (window.of, window.begin) = (Some(self.name.clone()), first * size);
        Ok(())
    }

    /// Whole elements.
    fn read_boxes(
        &self,
        pieces: &[Held],
        elements: Range<u64>,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let pieces = near(pieces, &elements);
        let mut rest = out;
        for part in boxes_of_range(self.spec.shape(), elements)? {
            let bytes = part.elements() * self.spec.dtype().size_bytes();
            let (own, after) = rest.split_at_mut_checked(to_usize(bytes)?).ok_or_else(beyond)?;
            for held in pieces {
                if let Some(common) = part.intersect(&held.slice) {
                    self.copy(held, &part, &common, scratch, own)?;
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// What a piece has of a box that consists of whole rows or of a part of one, so that little
    /// else lies between: it is read once and cut up.
    fn copy(
        &self,
        held: &Held,
        part: &Slice,
        common: &Slice,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.spec.dtype().size_bytes();
        // One run in the piece, since the part has whole rows of what lies below.
        let (first, end) = held.slice.extent_of(common).ok_or_else(beyond)?;
        let (begin, end) = (first * size, end * size);
        let mut span = zeroed(end - begin)?;
        self.reader.read_into(held.at, begin, scratch, &mut span)?;
        self.recent.used(&self.reader, held.at.file);
        for run in held.slice.runs_into(part, common) {
            let len = to_usize(run.elements * size)?;
            let (from, to) = (to_usize(run.from * size - begin)?, to_usize(run.to * size)?);
            let from = from.checked_add(len).and_then(|end| span.get(from..end));
            let to = to.checked_add(len).and_then(|end| out.get_mut(to..end));
            let (from, to) = from.zip(to).ok_or_else(beyond)?;
            to.copy_from_slice(from);
        }
        Ok(())
    }
}

impl TensorSource for Stored {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut window = self.window.lock();
        match &self.pieces {
            Pieces::InOrder(pieces) => self.read_in_order(pieces, &mut window.scratch, offset, out),
            Pieces::Boxes(pieces) => self.read_window(pieces, &mut window, offset, out),
        }
    }
}

fn to_usize(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::no_memory(bytes))
}

fn beyond() -> Error {
    Error::new(ErrorKind::InvalidInput, "bytes beyond the end of a tensor")
}

#[cfg(test)]
mod tests;
