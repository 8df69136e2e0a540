//! Where the bytes of a planned piece lie in a state.

use std::cmp::Ordering;
use std::iter::Peekable;

use super::writer::refusal;
use crate::error::Result;
use crate::plan::PlannedPiece;
use crate::state::{StateDict, TensorEntry};
use crate::tensor::TensorName;

/// The byte range that a piece takes out of a held box.
pub(crate) struct Cut<'a> {
    pub(crate) tensor: &'a str,
    pub(crate) entry: &'a TensorEntry,
    pub(crate) held_bytes: u64,
    pub(crate) begin: u64,
    pub(crate) bytes: u64,
}

impl<'a> Cut<'a> {
    /// The piece lies inside its tensor (the header was made).
    pub(crate) fn new(piece: &'a PlannedPiece, state: &'a StateDict) -> Result<Self> {
        Self::of_boxes(piece, state.boxes(piece.name.as_str()))
    }

    /// As [`Cut::new`], with the boxes that the state has of the tensor.
    pub(crate) fn of_boxes(piece: &'a PlannedPiece, boxes: &'a [TensorEntry]) -> Result<Self> {
        let Some(entry) = boxes.iter().find(|b| b.slice == piece.held && b.spec == piece.spec)
        else {
            let message = format!("the state holds no box {} of {}", piece.held, piece.spec);
            return Err(refusal(message));
        };
        let element = piece.spec.dtype().size_bytes();
        let elements = piece.slice.elements();
        let whole = piece.held == piece.slice;
        let inside = whole || piece.held.intersect(&piece.slice).as_ref() == Some(&piece.slice);
        let first = || piece.held.runs_of(&piece.slice).next();
        let first = (elements > 0 && inside && !whole).then(first).flatten();
        let begin = match first {
            None if whole => 0,
            Some(run) if run.elements == elements => run.from,
            None if elements == 0 => 0,
            _ => {
                let message =
                    format!("piece {} is no contiguous part of {}", piece.slice, piece.held);
                return Err(refusal(message));
            }
        };
        Ok(Self {
            tensor: piece.name.as_str(),
            entry,
            held_bytes: piece.held.elements() * element,
            begin: begin * element,
            bytes: elements * element,
        })
    }

    /// Fills `out` with the bytes of the piece that begin at `begin`.
    ///
    /// # Errors
    /// The error of the source, with its tensor.
    pub(crate) fn fill(&self, begin: u64, out: &mut [u8]) -> Result<()> {
        let begin_in_host = usize::try_from(begin).ok();
        let from = self.host_bytes()?.zip(begin_in_host);
        let from = from.and_then(|(host, begin)| host.get(begin..)?.get(..out.len()));
        if let Some(from) = from {
            out.copy_from_slice(from);
            return Ok(());
        }
        let read = self.entry.source.read_into(self.begin + begin, out);
        read.map_err(|e| e.with_tensor(self.tensor))
    }

    /// The piece, if its box lies in host memory.
    pub(crate) fn host_bytes(&self) -> Result<Option<&'a [u8]>> {
        let Some(held) = self.entry.source.bytes() else { return Ok(None) };
        if held.len() as u64 != self.held_bytes {
            let message =
                format!("the source has {} bytes, its box {}", held.len(), self.held_bytes);
            return Err(refusal(message).with_tensor(self.tensor));
        }
        let begin = usize::try_from(self.begin).ok();
        let end = usize::try_from(self.begin + self.bytes).ok();
        Ok(begin.zip(end).and_then(|(begin, end)| held.get(begin..end)))
    }
}

/// Finds the boxes of one tensor after the other. Names in order, as those of a planned file are but
/// for a few turns, are found by going through the state once per turn.
pub(crate) struct Boxes<'a> {
    state: &'a StateDict,
    ahead: Peekable<All<'a>>,
    turns: u32,
}

/// All tensors of a state, by name.
type All<'a> = Box<dyn Iterator<Item = (&'a TensorName, &'a [TensorEntry])> + 'a>;

/// From then on every name is looked up.
const TURNS_MAX: u32 = 8;

impl<'a> Boxes<'a> {
    pub(crate) fn new(state: &'a StateDict) -> Self {
        Self { state, ahead: Self::all(state), turns: 0 }
    }

    fn all(state: &'a StateDict) -> Peekable<All<'a>> {
        let all: All<'a> = Box::new(state.tensors());
        all.peekable()
    }

    /// The boxes of `name`; empty if the state has none.
    pub(crate) fn of(&mut self, name: &TensorName) -> &'a [TensorEntry] {
        while self.turns < TURNS_MAX {
            let Some((next, boxes)) = self.ahead.peek() else { break };
            match (*next).cmp(name) {
                Ordering::Less => drop(self.ahead.next()),
                Ordering::Equal => return boxes,
                Ordering::Greater => break,
            }
        }
        if self.turns < TURNS_MAX {
            (self.ahead, self.turns) = (Self::all(self.state), self.turns + 1);
        }
        self.state.boxes(name.as_str())
    }
}
