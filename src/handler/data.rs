//! Data: a global order of samples that depends on seed and epoch alone, and its shards.

use std::ops::Range;

use tch::{Device, IndexOp, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::rank::{Rank, WorldSize};

/// Samples by index.
pub trait Dataset {
    /// How many samples there are; the same on every rank.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Input and target of the samples with these indices, each with the batch as dimension 0, on
    /// `device`.
    fn batch(&self, indices: &[i64], device: Device) -> (Tensor, Tensor);
}

/// A data set held in two tensors with the sample as dimension 0.
#[derive(Debug)]
pub struct TensorDataset {
    inputs: Tensor,
    targets: Tensor,
}

impl TensorDataset {
    /// Inputs and targets, one of each per sample.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the tensors hold different numbers of samples.
    pub fn new(inputs: Tensor, targets: Tensor) -> Result<Self> {
        let (have, want) = (inputs.size().first().copied(), targets.size().first().copied());
        if have.is_none() || have != want {
            let message = format!("{have:?} inputs and {want:?} targets");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self { inputs, targets })
    }

    /// The samples of a range, as a data set of its own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the range leaves the data.
    pub fn range(&self, range: Range<i64>) -> Result<Self> {
        let samples = i64::try_from(self.len()).unwrap_or(i64::MAX);
        let outside = || {
            let message = format!("no samples {range:?} among {samples}");
            Error::new(ErrorKind::InvalidInput, message)
        };
        if range.start < 0 || range.start > range.end || range.end > samples {
            return Err(outside());
        }
        let part = |tensor: &Tensor| {
            tensor.f_narrow(0, range.start, range.end - range.start).map_err(|_| outside())
        };
        Self::new(part(&self.inputs)?, part(&self.targets)?)
    }
}

impl Dataset for TensorDataset {
    fn len(&self) -> usize {
        self.inputs.size().first().map_or(0, |n| usize::try_from(*n).unwrap_or(0))
    }

    fn batch(&self, indices: &[i64], device: Device) -> (Tensor, Tensor) {
        let index = Tensor::from_slice(indices).to_device(self.inputs.device());
        let pick = |tensor: &Tensor| tensor.i(&index).to_device(device);
        (pick(&self.inputs), pick(&self.targets))
    }
}

/// How a data set is cut into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loader {
    /// Samples per rank and step. Default 32.
    pub batch_size: usize,
    /// Samples per step over all ranks. Default `None`: `batch_size` times world size. Set it to
    /// keep a run the same when the world size changes.
    pub global_batch_size: Option<usize>,
    /// Whether each epoch has an order of its own. Default no.
    pub shuffle: bool,
    /// Whether an incomplete last batch is left out. Default no.
    pub drop_last: bool,
}

impl Default for Loader {
    fn default() -> Self {
        Self { batch_size: 32, global_batch_size: None, shuffle: false, drop_last: false }
    }
}

impl Loader {
    pub(crate) fn global_batch(&self, world: WorldSize) -> Result<usize> {
        let size = self.global_batch_size.unwrap_or(self.batch_size.saturating_mul(world.len()));
        if size == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "a batch needs at least one sample"));
        }
        Ok(size)
    }

    /// The global batches of an epoch (counted from 0) after the first `done` samples of its order,
    /// each a list of sample indices.
    pub(crate) fn batches(
        &self,
        world: WorldSize,
        samples: usize,
        seed: u64,
        epoch: u64,
        done: usize,
    ) -> Result<Vec<Vec<i64>>> {
        let size = self.global_batch(world)?;
        let order = if self.shuffle {
            epoch_order(seed, epoch, samples)
        } else {
            (0..samples as i64).collect()
        };
        let rest = order.get(done..).unwrap_or_default();
        let batches = rest.chunks(size).filter(|b| !self.drop_last || b.len() == size);
        Ok(batches.map(<[i64]>::to_vec).collect())
    }
}

/// A permutation of `0..samples` that depends on seed and epoch alone: Fisher–Yates, driven by the
/// output stream of BLAKE3, so that it is the same on every platform and at every world size.
#[must_use]
pub fn epoch_order(seed: u64, epoch: u64, samples: usize) -> Vec<i64> {
    let mut hasher = blake3::Hasher::new_derive_key("tch-checkpoint 2026 epoch order");
    hasher.update(&seed.to_le_bytes()).update(&epoch.to_le_bytes());
    let mut stream = hasher.finalize_xof();
    let mut order: Vec<i64> = (0..samples as i64).collect();
    for i in (1..samples).rev() {
        let mut bytes = [0; 8];
        stream.fill(&mut bytes);
        // Multiply-shift maps 64 random bits to 0..=i; the bias is below 2^-32 for any data set.
        let scaled = (u128::from(u64::from_le_bytes(bytes)) * (i as u128 + 1)) >> 64;
        order.swap(i, usize::try_from(scaled).unwrap_or(i));
    }
    order
}

/// The contiguous part of a global batch that belongs to a rank; sizes differ by one at most.
#[must_use]
pub fn shard(batch: &[i64], rank: Rank, world: WorldSize) -> &[i64] {
    let (n, r, w) = (batch.len(), rank.index(), world.len());
    batch.get(n * r / w..n * (r + 1) / w).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_that_differ_by_epoch_and_seed() {
        let first = epoch_order(1, 0, 1000);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<i64>>());
        assert_eq!(first, epoch_order(1, 0, 1000));
        assert_ne!(first, epoch_order(1, 1, 1000));
        assert_ne!(first, epoch_order(2, 0, 1000));
        // Pinned: a change here would silently change every resumed run.
        assert_eq!(epoch_order(7, 3, 8), [0, 6, 7, 4, 1, 5, 3, 2]);
    }

    #[test]
    fn shards_of_any_world_size_make_up_the_batch() {
        let batch: Vec<i64> = (0..10).collect();
        for n in 1..13 {
            let world = WorldSize::new(n).unwrap();
            let joined: Vec<i64> =
                world.ranks().flat_map(|r| shard(&batch, r, world).to_vec()).collect();
            assert_eq!(joined, batch);
        }
    }

    #[test]
    fn batches_depend_on_the_global_size_only() {
        let loader = Loader { global_batch_size: Some(6), shuffle: true, ..Loader::default() };
        let one = loader.batches(WorldSize::ONE, 20, 5, 2, 0).unwrap();
        let three = loader.batches(WorldSize::new(3).unwrap(), 20, 5, 2, 0).unwrap();
        assert_eq!(one, three);
        assert_eq!(one.last().map(Vec::len), Some(2));
        assert_eq!(loader.batches(WorldSize::ONE, 20, 5, 2, 6).unwrap(), one[1..]);
        assert!(loader.batches(WorldSize::ONE, 20, 5, 2, 21).unwrap().is_empty());
        let dropping = Loader { drop_last: true, ..loader };
        assert_eq!(dropping.batches(WorldSize::ONE, 20, 5, 2, 0).unwrap().len(), 3);
    }
}
