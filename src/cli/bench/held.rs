//! What one rank holds of a workload, in memory that has been touched.

use std::sync::Arc;

use clap::ValueEnum;
use serde::Serialize;

use super::content;
use super::spec::Spec;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::memory::touched;
use crate::rank::{Rank, WorldSize};
use crate::slice::Slice;
use crate::state::{LoadTargets, StateDict, TensorSink};
use crate::tensor::{Component, TensorName, TensorSpec};

/// Bytes between two signs of progress.
const PART: usize = 16 << 20;
/// Every page that a load has to fill holds a byte that it must change.
const PAGE: usize = 4096;

/// Who holds what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Layout {
    /// Each rank holds some rows of each tensor, as `torch.chunk` cuts them.
    Sharded,
    /// Every rank holds everything.
    Replicated,
}

/// One tensor of a rank, or its rows of it.
pub(super) struct Tensor {
    name: TensorName,
    spec: TensorSpec,
    slice: Slice,
    /// Where it begins in the stream of all bytes.
    at: u64,
    bytes: Arc<Vec<u8>>,
}

/// Everything that one rank holds.
pub(super) struct Held {
    seed: u64,
    tensors: Vec<Tensor>,
}

impl Held {
    /// The bytes that the spec gives this rank.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] where memory is short.
    pub(super) fn filled(spec: &Spec, layout: Layout, group: &ProcessGroup) -> Result<Self> {
        Self::made(spec, layout, group, |at, part| content::fill(spec.seed(), at, part))
    }

    /// Memory of the same size, zeroed.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] where memory is short.
    pub(super) fn empty(spec: &Spec, layout: Layout, group: &ProcessGroup) -> Result<Self> {
        Self::made(spec, layout, group, |_, _| {})
    }

    fn made(
        spec: &Spec,
        layout: Layout,
        group: &ProcessGroup,
        fill: impl Fn(u64, &mut [u8]),
    ) -> Result<Self> {
        let progress = group.progress();
        let mut tensors = Vec::new();
        for tensor in spec.tensors() {
            let rows = match layout {
                Layout::Sharded => rows_of(&tensor.spec, group.rank(), group.world_size()),
                Layout::Replicated => Some(whole(&tensor.spec)),
            };
            let Some((slice, begin)) = rows.transpose()? else { continue };
            let size = slice.elements() * tensor.spec.dtype().size_bytes();
            let at = tensor.at + begin;
            let mut bytes = touched(size).map_err(|e| e.with_tensor(tensor.name.as_str()))?;
            for (part, index) in bytes.chunks_mut(PART).zip(0..) {
                fill(at + index * PART as u64, part);
                progress.add(part.len() as u64);
            }
            let (name, spec) = (tensor.name.clone(), tensor.spec.clone());
            tensors.push(Tensor { name, spec, slice, at, bytes: Arc::new(bytes) });
        }
        Ok(Self { seed: spec.seed(), tensors })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum()
    }

    /// As a user's program would hand it over.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn state(&self) -> Result<StateDict> {
        let mut state = StateDict::new();
        for Tensor { name, spec, slice, bytes, .. } in &self.tensors {
            let (name, spec, slice) = (name.clone(), spec.clone(), slice.clone());
            // As training states are cut into files.
            let is_optimizer = name.as_str().starts_with("optim");
            let component = if is_optimizer { Component::optimizer() } else { Component::model() };
            let source: Arc<Vec<u8>> = Arc::clone(bytes);
            state.add_slice(&component, name, spec, slice, source)?;
        }
        Ok(state)
    }

    /// Its memory, tensor by tensor, as what a load fills.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] while a state made of it is alive.
    pub(super) fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        for Tensor { name, spec, slice, bytes, .. } in &mut self.tensors {
            let sink: Box<dyn TensorSink + '_> = Box::new(own(bytes)?);
            targets.add_slice(name.clone(), spec.clone(), slice.clone(), sink)?;
        }
        Ok(targets)
    }

    /// Its memory, tensor by tensor.
    ///
    /// # Errors
    /// As [`Held::targets`].
    pub(super) fn memory(&mut self) -> Result<Vec<&mut [u8]>> {
        self.tensors.iter_mut().map(|tensor| own(&mut tensor.bytes)).collect()
    }

    /// Changes a byte of each page, so that one that a load leaves out is seen.
    ///
    /// # Errors
    /// As [`Held::targets`].
    pub(super) fn spoil(&mut self) -> Result<()> {
        for memory in self.memory()? {
            let last = memory.len().saturating_sub(1);
            let pages = (0..memory.len()).step_by(PAGE).chain([last]);
            for place in pages {
                if let Some(byte) = memory.get_mut(place) {
                    *byte ^= 0xa5;
                }
            }
        }
        Ok(())
    }

    /// Whether it holds what the spec says.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], naming the tensor and the byte in this rank's part of it.
    pub(super) fn check(&self, group: &ProcessGroup) -> Result<()> {
        let progress = group.progress();
        self.tensors.iter().try_for_each(|tensor| {
            let seen = |bytes| progress.add(bytes);
            content::check(self.seed, tensor.at, &tensor.bytes, seen)
                .map_err(|e| e.with_tensor(tensor.name.as_str()))
        })
    }

    /// The least that this rank has to write so that all ranks together write everything once.
    pub(super) fn share(&self, layout: Layout, rank: Rank, world: WorldSize) -> Vec<&[u8]> {
        let all = self.tensors.iter().map(|tensor| tensor.bytes.as_slice());
        if layout == Layout::Sharded {
            return all.filter(|bytes| !bytes.is_empty()).collect();
        }
        let cut = |rank: u64| cut(self.bytes(), rank, u64::from(world.get()));
        let (begin, end) = (cut(rank.get().into()), cut(u64::from(rank.get()) + 1));
        let mut at = 0;
        let part = |bytes: &'_ [u8]| -> (usize, usize) {
            let len = bytes.len() as u64;
            let within = |place: u64| {
                usize::try_from(place.saturating_sub(at).min(len)).unwrap_or(bytes.len())
            };
            let range = (within(begin), within(end));
            at += len;
            range
        };
        let ranges: Vec<(usize, usize)> = all.clone().map(part).collect();
        let parts = all.zip(ranges).filter_map(|(bytes, (begin, end))| bytes.get(begin..end));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

/// Where part `index` of `count` begins.
fn cut(total: u64, index: u64, count: u64) -> u64 {
    let place = u128::from(total) * u128::from(index) / u128::from(count.max(1));
    u64::try_from(place).unwrap_or(total)
}

fn own(bytes: &mut Arc<Vec<u8>>) -> Result<&mut [u8]> {
    Arc::get_mut(bytes).map(Vec::as_mut_slice).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "memory that is being saved cannot be loaded into")
    })
}

fn whole(spec: &TensorSpec) -> Result<(Slice, u64)> {
    Ok((Slice::full(spec.shape()), 0))
}

/// The rows of a rank and the byte at which they begin; `None` if it has none. What has no rows at
/// all is the coordinator's.
fn rows_of(spec: &TensorSpec, rank: Rank, world: WorldSize) -> Option<Result<(Slice, u64)>> {
    let shape = spec.shape();
    let (rows, inner) = match shape.split_first() {
        Some((&rows, inner)) if spec.elements() > 0 => (rows, inner),
        _ => return rank.is_coordinator().then(|| whole(spec)),
    };
    let per_rank = rows.div_ceil(world.get().into());
    let begin = rows.min(per_rank.saturating_mul(rank.get().into()));
    let end = rows.min(begin.saturating_add(per_rank));
    if begin == end {
        return None;
    }
    let row_bytes = spec.size_bytes() / rows;
    let offsets = std::iter::once(begin).chain(inner.iter().map(|_| 0)).collect();
    let lengths = std::iter::once(end - begin).chain(inner.iter().copied()).collect();
    Some(Slice::new(offsets, lengths).map(|slice| (slice, begin * row_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn rows(shape: &[u64], world: u32) -> Vec<Option<(u64, u64)>> {
        let spec = TensorSpec::new(Dtype::F32, shape).unwrap();
        let world = WorldSize::new(world).unwrap();
        let of = |rank| rows_of(&spec, rank, world).map(|rows| rows.unwrap());
        let first = |(slice, at): (Slice, u64)| (slice.lengths().first().copied().unwrap_or(1), at);
        world.ranks().map(|rank| of(rank).map(first)).collect()
    }

    #[test]
    fn rows_are_cut_as_chunk_does_it() {
        assert_eq!(rows(&[10, 2], 4), [Some((3, 0)), Some((3, 24)), Some((3, 48)), Some((1, 72))]);
        assert_eq!(rows(&[4], 3), [Some((2, 0)), Some((2, 8)), None]);
        assert_eq!(rows(&[], 2), [Some((1, 0)), None]);
        assert_eq!(rows(&[0, 7], 2), [Some((0, 0)), None]);
        assert_eq!(rows(&[7, 0], 2), [Some((7, 0)), None]);
        assert_eq!(rows(&[7], 1), [Some((7, 0))]);
    }

    #[test]
    fn the_shares_of_replicas_are_everything_once() {
        let spec = super::super::workloads::spec("small-7").unwrap();
        let held = Held::filled(&spec, Layout::Replicated, &ProcessGroup::solo()).unwrap();
        let world = WorldSize::new(3).unwrap();
        let share = |rank| held.share(Layout::Replicated, rank, world).concat();
        let shares: Vec<Vec<u8>> = world.ranks().map(share).collect();
        assert!(shares.iter().all(|share| share.len().abs_diff(7 * 4096 / 3) <= 1));
        let whole: Vec<u8> = held.tensors.iter().flat_map(|t| t.bytes.to_vec()).collect();
        assert!(shares.concat() == whole);
    }

    /// The bytes of another program for the same spec.
    #[test]
    fn content_is_a_function_of_the_spec() {
        let spec = super::super::workloads::spec("small-7").unwrap();
        let held = Held::filled(&spec, Layout::Replicated, &ProcessGroup::solo()).unwrap();
        let whole: Vec<u8> = held.tensors.iter().flat_map(|t| t.bytes.to_vec()).collect();
        let begin = [0x9b, 0xc9, 0xcd, 0x36, 0x82, 0x82, 0x86, 0x64, 0x18, 0xb4, 0x2c, 0xeb];
        assert_eq!(whole[..12], begin);
        assert_eq!(
            blake3::hash(&whole).to_hex().as_str(),
            "f451b325825078163f63b395fb2becbe1eb5d8d15bbd8bd1f81ab9954f07653c"
        );
    }

    #[test]
    fn what_a_load_leaves_out_is_found() {
        let spec = super::super::workloads::spec("small-2").unwrap();
        let group = ProcessGroup::solo();
        let mut held = Held::filled(&spec, Layout::Sharded, &group).unwrap();
        assert!(held.check(&group).is_ok());
        held.spoil().unwrap();
        assert_eq!(held.check(&group).unwrap_err().kind(), ErrorKind::Corrupt);
        let again = held.memory().unwrap();
        for memory in again {
            memory[0] ^= 0xa5;
        }
        assert!(held.check(&group).is_err(), "the last byte of a tensor counts as well");
    }
}
