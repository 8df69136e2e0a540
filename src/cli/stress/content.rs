//! What is saved: bytes that are a function of step, saving rank, tensor and offset, so that every
//! one of them can be checked without the program that saved them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{AUTOMATIC, Manifest};
use crate::rank::{Rank, WorldSize};
use crate::slice::Slice;
use crate::state::{StateDict, TensorSource};
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// Tensors over which the content is spread.
const TENSORS: u64 = 4;
/// Name of the value that says that this command saved it, and at which step.
const STEP: &str = "stress.step";

/// One generated content: what all ranks hold together at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) step: u64,
    /// Ranks that save, or that saved it.
    pub(super) ranks: WorldSize,
    /// Bytes over all ranks and tensors.
    pub(super) bytes: u64,
}

/// A contiguous box of one tensor.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub(super) tensor: u64,
    pub(super) name: TensorName,
    pub(super) spec: TensorSpec,
    pub(super) range: Range<u64>,
}

impl Share {
    pub(super) fn slice(&self) -> Result<Slice> {
        Slice::new(vec![self.range.start], vec![self.range.end - self.range.start])
    }
}

impl Content {
    /// What `manifest` says that was saved.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] if this command did not save it.
    pub(super) fn of(manifest: &Manifest) -> Result<Self> {
        let step = manifest.step();
        if !manifest.values().int(STEP).is_ok_and(|value| value == stored(step)) {
            return Err(Error::new(ErrorKind::Mismatch, "not a checkpoint of `stress save`")
                .with_help("`tch-checkpoint verify` checks any checkpoint"));
        }
        Ok(Self { step, ranks: manifest.world_size(), bytes: manifest.tensor_bytes() })
    }

    /// The boxes that `rank` of `world` has; `world` need not be the one that saves.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for more bytes than tensors can have.
    pub(super) fn shares(&self, rank: Rank, world: WorldSize) -> Result<Vec<Share>> {
        let mut shares = Vec::new();
        for tensor in 0..TENSORS {
            let len =
                part(self.bytes, tensor, TENSORS).end - part(self.bytes, tensor, TENSORS).start;
            let range = part(len, rank.get().into(), world.get().into());
            if range.is_empty() && len > 0 {
                continue;
            }
            let spec = TensorSpec::new(Dtype::U8, vec![len])?;
            let name = TensorName::new(format!("stress.{tensor}"))?;
            shares.push(Share { tensor, name, spec, range });
        }
        Ok(shares)
    }

    /// Fills `out` with the bytes of a tensor of `len` bytes that begin at `offset`.
    pub(super) fn expected(&self, tensor: u64, len: u64, offset: u64, out: &mut [u8]) {
        let (mut offset, mut out) = (offset, out);
        while !out.is_empty() && offset < len {
            let rank = part_with(len, offset, self.ranks.get().into());
            let range = part(len, rank, self.ranks.get().into());
            let count = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(out.len());
            let (now, rest) = out.split_at_mut(count);
            fill(seed(self.step, rank, tensor), offset - range.start, now);
            (offset, out) = (range.end, rest);
        }
    }
}

/// The content of one rank, which goes from step to step as that of a model in training does: the
/// sources of a state always give the bytes of the step that it is at now.
pub(super) struct Live {
    rank: Rank,
    step: Arc<AtomicU64>,
}

impl Live {
    pub(super) fn new(rank: Rank) -> Self {
        Self { rank, step: Arc::default() }
    }

    /// Changes every byte.
    pub(super) fn become_step(&self, step: u64) {
        self.step.store(step, Ordering::SeqCst);
    }

    /// This rank's share of `content`, whose step it is at from now on. With `automatic`,
    /// retention may remove the checkpoint.
    ///
    /// # Errors
    /// As [`Content::shares`].
    pub(super) fn state(&self, content: &Content, automatic: bool) -> Result<StateDict> {
        self.become_step(content.step);
        let mut state = StateDict::new();
        for share in content.shares(self.rank, content.ranks)? {
            let slice = share.slice()?;
            let source = Generated {
                step: Arc::clone(&self.step),
                rank: self.rank,
                tensor: share.tensor,
                len: share.range.end - share.range.start,
            };
            let Share { name, spec, .. } = share;
            state.add_slice(&Component::model(), name, spec, slice, Arc::new(source))?;
        }
        state.values.set(STEP, stored(content.step));
        if automatic {
            state.values.set(AUTOMATIC, true);
        }
        Ok(state)
    }
}

/// A step as a value.
fn stored(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

/// Part `index` of `total`, cut into `count` parts that differ by one at most.
fn part(total: u64, index: u64, count: u64) -> Range<u64> {
    let begin = |index: u64| total / count * index + index.min(total % count);
    begin(index)..begin(index + 1)
}

/// The part of `total` in which `offset` lies.
fn part_with(total: u64, offset: u64, count: u64) -> u64 {
    let (small, large) = (total / count, total % count);
    let in_large = large * (small + 1);
    if offset < in_large {
        offset / (small + 1)
    } else {
        large + (offset - in_large) / small.max(1)
    }
}

fn seed(step: u64, rank: u64, tensor: u64) -> u64 {
    mix(step ^ mix(rank ^ mix(tensor)))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The bytes of a seed that begin at `offset`, word by word.
fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let word = |index: u64| mix(seed ^ index).to_le_bytes();
    let skipped = (offset % 8) as usize;
    let first = out.len().min((8 - skipped) % 8);
    let (head, rest) = out.split_at_mut(first);
    head.copy_from_slice(&word(offset / 8)[skipped..skipped + first]);
    for (index, part) in (offset.div_ceil(8)..).zip(rest.chunks_mut(8)) {
        part.copy_from_slice(&word(index)[..part.len()]);
    }
}

/// One box of a live content; takes no memory.
struct Generated {
    step: Arc<AtomicU64>,
    rank: Rank,
    tensor: u64,
    len: u64,
}

impl TensorSource for Generated {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::new(ErrorKind::InvalidInput, "a read beyond the generated content"));
        }
        let step = self.step.load(Ordering::SeqCst);
        fill(seed(step, self.rank.get().into(), self.tensor), offset, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(step: u64, ranks: u32, bytes: u64) -> Content {
        Content { step, ranks: WorldSize::new(ranks).unwrap(), bytes }
    }

    #[test]
    fn parts_cover_the_total_and_know_their_offsets() {
        for (total, count) in [(0, 3), (10, 4), (7, 8), (8, 8), (1000, 7)] {
            let mut end = 0;
            for index in 0..count {
                let range = part(total, index, count);
                assert_eq!(range.start, end);
                assert!(range.clone().all(|offset| part_with(total, offset, count) == index));
                end = range.end;
            }
            assert_eq!(end, total);
        }
        assert_eq!(part(u64::MAX, 1, 2), u64::MAX / 2 + 1..u64::MAX);
    }

    #[test]
    fn content_depends_on_step_rank_and_offset_alone() {
        let read = |step, rank, offset, len| {
            let mut out = vec![0; len];
            let live = Live::new(Rank::new(rank));
            let state = live.state(&content(step, 2, 4 * 2 * 64), false).unwrap();
            state.boxes("stress.0")[0].source.read_into(offset, &mut out).unwrap();
            out
        };
        let whole = read(1, 0, 0, 64);
        for (offset, len) in [(0, 0), (3, 10), (3, 2), (8, 8), (7, 1), (15, 49), (16, 5)] {
            let begin = usize::try_from(offset).unwrap();
            assert_eq!(read(1, 0, offset, len), whole[begin..begin + len], "{offset} + {len}");
        }
        assert_ne!(read(1, 0, 0, 64), read(2, 0, 0, 64));
        assert_ne!(read(1, 0, 0, 64), read(1, 1, 0, 64));
    }

    /// Whoever checks needs to know nothing but the content's step, ranks and bytes.
    #[test]
    fn what_is_expected_is_what_the_ranks_hold() {
        for (ranks, bytes) in [(1, 100), (3, 1001), (7, 5), (2, 0)] {
            let content = content(9, ranks, bytes);
            let mut held = std::collections::BTreeMap::<u64, Vec<u8>>::new();
            for rank in content.ranks.ranks() {
                let state = Live::new(rank).state(&content, false).unwrap();
                for share in content.shares(rank, content.ranks).unwrap() {
                    let len = usize::try_from(share.range.end - share.range.start).unwrap();
                    let mut own = vec![0; len];
                    let source = &state.boxes(share.name.as_str())[0].source;
                    source.read_into(0, &mut own).unwrap();
                    held.entry(share.tensor).or_default().extend(own);
                }
            }
            for (tensor, held) in held {
                for begin in [0, 1, 13].map(|begin: usize| begin.min(held.len())) {
                    let mut expected = vec![0; held.len() - begin];
                    content.expected(tensor, held.len() as u64, begin as u64, &mut expected);
                    assert_eq!(expected, held[begin..], "tensor {tensor} of {ranks} ranks");
                }
            }
        }
    }

    #[test]
    fn a_state_shows_the_step_that_its_content_is_at() {
        let live = Live::new(Rank::COORDINATOR);
        let (first, second) = (content(1, 1, 400), content(2, 1, 400));
        let state = live.state(&first, false).unwrap();
        let read = || {
            let mut out = vec![0; 100];
            state.boxes("stress.3")[0].source.read_into(0, &mut out).unwrap();
            out
        };
        let before = read();
        live.become_step(2);
        let mut expected = vec![0; 100];
        second.expected(3, 100, 0, &mut expected);
        assert_eq!(read(), expected);
        assert_ne!(read(), before);
    }
}
