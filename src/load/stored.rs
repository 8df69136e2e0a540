//! Tensors of a checkpoint as what is saved: from one form, or one number of ranks, into another.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Manifest, TensorRecord, place_in};
use crate::shard::{PieceAt, ShardReader};
use crate::slice::{Slice, boxes_of_range};
use crate::state::{StateDict, TensorSource};
use crate::tensor::TensorSpec;

/// Of how many data files block sums are kept: 1 MiB for each GiB.
const SUMS_KEPT: usize = 64;

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
    let recent = Arc::new(Recent::default());
    let mut state = StateDict::new();
    for tensor in manifest.tensors().iter().filter(|tensor| wanted(tensor)) {
        let source = Stored::new(reader.clone(), recent.clone(), tensor);
        let (name, spec) = (tensor.name.clone(), tensor.spec.clone());
        state.add(&tensor.component, name, spec, Arc::new(source))?;
    }
    Ok(state)
}

/// Data files whose block sums are in memory, the longest unused first.
#[derive(Default)]
struct Recent(Mutex<VecDeque<usize>>);

impl Recent {
    fn used(&self, reader: &ShardReader, file: usize) {
        let mut recent = self.0.lock();
        if recent.back() == Some(&file) {
            return;
        }
        recent.retain(|other| *other != file);
        recent.push_back(file);
        if recent.len() > SUMS_KEPT
            && let Some(oldest) = recent.pop_front()
        {
            reader.forget_sums(oldest);
        }
    }
}

/// A whole tensor in the pieces that a checkpoint has of it.
struct Stored {
    reader: Arc<ShardReader>,
    recent: Arc<Recent>,
    spec: TensorSpec,
    pieces: Pieces,
}

enum Pieces {
    /// Each contiguous in the tensor, with its first byte there, in order.
    InOrder(Vec<(u64, PieceAt)>),
    /// Boxes of any place.
    Boxes(Vec<(Slice, PieceAt)>),
}

impl Stored {
    fn new(reader: Arc<ShardReader>, recent: Arc<Recent>, tensor: &TensorRecord) -> Self {
        let at = |piece| PieceAt::of(tensor, piece);
        let in_order: Option<Vec<_>> = (tensor.pieces.iter())
            .map(|piece| Some((place_in(&tensor.spec, &piece.slice)?, at(piece))))
            .collect();
        let pieces = match in_order {
            Some(mut pieces) => {
                pieces.sort_unstable_by_key(|(begin, _)| *begin);
                Pieces::InOrder(pieces)
            }
            None => {
                let boxes = tensor.pieces.iter().map(|piece| (piece.slice.clone(), at(piece)));
                Pieces::Boxes(boxes.collect())
            }
        };
        Self { reader, recent, spec: tensor.spec.clone(), pieces }
    }

    fn read_in_order(&self, pieces: &[(u64, PieceAt)], offset: u64, out: &mut [u8]) -> Result<()> {
        let (mut scratch, mut rest, mut at) = (Vec::new(), out, offset);
        let first = pieces.partition_point(|(begin, piece)| begin + piece.bytes <= offset);
        for (begin, piece) in pieces.get(first..).unwrap_or_default() {
            if rest.is_empty() {
                break;
            }
            let left = piece.bytes.saturating_sub(at.saturating_sub(*begin));
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            self.reader.read_into(*piece, at.saturating_sub(*begin), &mut scratch, part)?;
            self.recent.used(&self.reader, piece.file);
            (rest, at) = (after, at + len as u64);
        }
        if rest.is_empty() { Ok(()) } else { Err(beyond()) }
    }

    /// Whole elements.
    fn read_boxes(
        &self,
        pieces: &[(Slice, PieceAt)],
        elements: Range<u64>,
        out: &mut [u8],
    ) -> Result<()> {
        let mut rest = out;
        let mut scratch = Vec::new();
        for part in boxes_of_range(self.spec.shape(), elements)? {
            let bytes = part.elements() * self.spec.dtype().size_bytes();
            let (own, after) = rest.split_at_mut_checked(to_usize(bytes)?).ok_or_else(beyond)?;
            for (held, at) in pieces {
                if let Some(common) = part.intersect(held) {
                    self.copy(held, *at, &part, &common, &mut scratch, own)?;
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
        held: &Slice,
        at: PieceAt,
        part: &Slice,
        common: &Slice,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.spec.dtype().size_bytes();
        let runs: Vec<_> = held.runs_into(part, common).collect();
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        let (begin, end) = (first.from * size, (last.from + last.elements) * size);
        let mut span = crate::memory::zeroed(end - begin)?;
        self.reader.read_into(at, begin, scratch, &mut span)?;
        self.recent.used(&self.reader, at.file);
        for run in &runs {
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
        let pieces = match &self.pieces {
            Pieces::InOrder(pieces) => return self.read_in_order(pieces, offset, out),
            Pieces::Boxes(pieces) => pieces,
        };
        let size = self.spec.dtype().size_bytes();
        let end = offset.checked_add(out.len() as u64).ok_or_else(beyond)?;
        let elements = offset / size..end.div_ceil(size);
        if offset.is_multiple_of(size) && end.is_multiple_of(size) {
            return self.read_boxes(pieces, elements, out);
        }
        let mut whole = crate::memory::zeroed((elements.end - elements.start) * size)?;
        self.read_boxes(pieces, elements, &mut whole)?;
        let begin = to_usize(offset % size)?;
        let wanted = whole.get(begin..begin + out.len()).ok_or_else(beyond)?;
        out.copy_from_slice(wanted);
        Ok(())
    }
}

fn to_usize(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::no_memory(bytes))
}

fn beyond() -> Error {
    Error::new(ErrorKind::InvalidInput, "bytes beyond the end of a tensor")
}
