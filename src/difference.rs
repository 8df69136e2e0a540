//! How two checkpoints differ: tensors, values, files, and where in training they were made.

mod distance;
mod values;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::catalog::Found;
use crate::error::{Error, Result};
use crate::layout::HF_INDEX;
use crate::load::{PART_BYTES, PartReader};
use crate::manifest::{Manifest, TensorRecord};
use crate::shard::PieceAt;
use crate::slice::{Parts, Slice};
use crate::tensor::{TensorName, TensorSpec};
pub use distance::Distance;
use distance::Meter;
pub use values::ValueDifference;

/// How checkpoint `b` differs from checkpoint `a`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Difference {
    /// Tensors that differ, by name; one that is tied has each of its names.
    pub tensors: Vec<TensorDifference>,
    /// How many names of tensors stand for the same in both.
    pub equal_tensors: usize,
    /// Values that differ, by rank and name.
    pub values: Vec<ValueDifference>,
    /// Attached files, such as model code, that only one has or that differ, by name.
    pub files: Vec<String>,
    /// Steps of both, if they differ.
    pub step: Option<(u64, u64)>,
    /// Epochs of both, if they differ.
    pub epoch: Option<(u64, u64)>,
    /// How many ranks saved each, if not as many: the state may be the same all the same.
    pub world_size: Option<(u32, u32)>,
}

impl Difference {
    /// Whether both hold the same state: tensors, values, files, step and epoch. By which save, when
    /// and by how many ranks it was written is not part of it.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.tensors.is_empty()
            && self.values.is_empty()
            && self.files.is_empty()
            && self.step.is_none()
            && self.epoch.is_none()
    }
}

/// A tensor that is not the same in both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorDifference {
    /// Its name.
    pub name: TensorName,
    /// In which way.
    pub change: Change,
}

/// How a tensor differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Only the second checkpoint has it.
    Added(TensorSpec),
    /// Only the first checkpoint has it.
    Removed(TensorSpec),
    /// The shapes differ, and maybe the dtypes.
    Reshaped(TensorSpec, TensorSpec),
    /// Of equal shape the dtypes differ; how far apart the numbers are.
    Retyped(TensorSpec, TensorSpec, Distance),
    /// The bytes differ; how far apart the numbers are.
    Changed(TensorSpec, Distance),
}

/// Compares two checkpoints, of any form, world size and layout.
///
/// Tensors whose block sums tell that they are the same are not read: [`verify`](fn@crate::verify::verify)
/// tells whether what was committed is still there. What is read is verified, a few MiB at a time.
/// `progress` is called with bytes of tensors of `a` that have been compared; of those in both, that
/// is each once in the end.
///
/// Not collective: one process looks.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) with path, tensor and offset,
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for a missing file,
/// [`ErrorKind::Storage`](crate::ErrorKind::Storage).
pub fn difference(a: &Found, b: &Found, progress: &mut dyn FnMut(u64)) -> Result<Difference> {
    let (old, new) = (&a.manifest, &b.manifest);
    let mut difference = Difference {
        values: values::compare(old, new),
        files: files(old, new),
        step: unequal(old.step(), new.step()),
        epoch: unequal(old.epoch(), new.epoch()),
        world_size: unequal(old.world_size().get(), new.world_size().get()),
        ..Difference::default()
    };
    let mut pairs = Vec::new();
    for name in names(old).union(&names(new)) {
        let change = match (old.tensor(name.as_str()), new.tensor(name.as_str())) {
            (Some(x), Some(y)) if x.spec.shape() == y.spec.shape() => {
                pairs.push(Pair { name: (*name).clone(), a: x, b: y });
                continue;
            }
            (Some(x), Some(y)) => Change::Reshaped(x.spec.clone(), y.spec.clone()),
            (Some(x), None) => Change::Removed(x.spec.clone()),
            (None, Some(y)) => Change::Added(y.spec.clone()),
            (None, None) => continue,
        };
        difference.tensors.push(TensorDifference { name: (*name).clone(), change });
    }
    // In the order in which the bytes lie in the first one.
    pairs.sort_by_key(|pair| pair.a.pieces.first().map(|piece| (piece.file, piece.begin)));
    let count = pairs.len();
    let changed = Comparison::of(a, b, &pairs, progress)?;
    difference.equal_tensors = count - changed.len();
    difference.tensors.extend(changed);
    difference.tensors.sort_by(|x, y| x.name.cmp(&y.name));
    Ok(difference)
}

fn unequal<T: PartialEq>(a: T, b: T) -> Option<(T, T)> {
    (a != b).then_some((a, b))
}

fn names(manifest: &Manifest) -> BTreeSet<&TensorName> {
    let tensors = manifest.tensors().iter().map(|tensor| &tensor.name);
    tensors.chain(manifest.aliases().iter().map(|(alias, _)| alias)).collect()
}

fn files(a: &Manifest, b: &Manifest) -> Vec<String> {
    let all = |manifest: &Manifest| -> BTreeSet<(String, [u8; 16])> {
        // The index names the save that wrote it.
        let others = manifest.other_files().iter().filter(|file| file.name != HF_INDEX);
        others.map(|file| (file.name.clone(), file.hash)).collect()
    };
    let differ: BTreeSet<String> =
        all(a).symmetric_difference(&all(b)).map(|(name, _)| name.clone()).collect();
    differ.into_iter().collect()
}

/// A tensor that both have in the same shape.
struct Pair<'m> {
    name: TensorName,
    a: &'m TensorRecord,
    b: &'m TensorRecord,
}

impl Pair<'_> {
    fn has_same_dtype(&self) -> bool {
        self.a.spec == self.b.spec
    }

    /// The spec of which an element takes more bytes.
    fn wider(&self) -> &TensorSpec {
        let size = |spec: &TensorSpec| spec.dtype().size_bytes();
        if size(&self.a.spec) >= size(&self.b.spec) { &self.a.spec } else { &self.b.spec }
    }
}

/// Reads what has to be read of both, in batches that fit into memory.
struct Comparison<'c, 'm> {
    a: PartReader<'m>,
    b: PartReader<'m>,
    pairs: &'c [Pair<'m>],
    meters: Vec<Meter>,
    batch: Vec<(usize, Slice)>,
    batch_bytes: u64,
    progress: &'c mut dyn FnMut(u64),
}

impl<'c, 'm> Comparison<'c, 'm> {
    fn of(
        a: &'m Found,
        b: &'m Found,
        pairs: &'c [Pair<'m>],
        progress: &'c mut dyn FnMut(u64),
    ) -> Result<Vec<TensorDifference>> {
        let (a, b) = (PartReader::open(a)?, PartReader::open(b)?);
        let meters = pairs.iter().map(|_| Meter::default()).collect();
        let (batch, batch_bytes) = (Vec::new(), 0);
        let mut all = Self { a, b, pairs, meters, batch, batch_bytes, progress };
        for (index, pair) in pairs.iter().enumerate() {
            all.add(index, pair)?;
        }
        all.flush()?;
        let changed = all.pairs.iter().zip(all.meters).filter_map(|(pair, meter)| {
            let distance = meter.distance();
            let (old, new) = (pair.a.spec.clone(), pair.b.spec.clone());
            let change = match pair.has_same_dtype() {
                false => Change::Retyped(old, new, distance),
                true if meter.has_other_bytes() => Change::Changed(old, distance),
                true => return None,
            };
            Some(TensorDifference { name: pair.name.clone(), change })
        });
        Ok(changed.collect())
    }

    fn add(&mut self, index: usize, pair: &Pair<'m>) -> Result<()> {
        if pair.has_same_dtype() && self.has_same_sums(pair)? {
            (self.progress)(pair.a.spec.size_bytes());
            return Ok(());
        }
        let bytes_of = pair.wider().dtype().size_bytes();
        for part in Parts::of(pair.wider()).of_at_most(PART_BYTES) {
            let bytes = part.elements() * bytes_of;
            if self.batch_bytes + bytes > PART_BYTES {
                self.flush()?;
            }
            self.batch_bytes += bytes;
            self.batch.push((index, part));
        }
        Ok(())
    }

    /// Whether both are cut in the same way and every block has the same sum in both.
    fn has_same_sums(&mut self, pair: &Pair<'_>) -> Result<bool> {
        let (x, y) = (&pair.a.pieces, &pair.b.pieces);
        if x.len() != y.len() || x.iter().zip(y).any(|(x, y)| x.slice != y.slice) {
            return Ok(false);
        }
        for (x, y) in x.iter().zip(y) {
            let (at, other) = (PieceAt::of(pair.a, x), PieceAt::of(pair.b, y));
            if !self.a.shards().has_same_sums(at, self.b.shards(), other)? {
                return Ok(false);
            }
            self.a.used([x.file].into_iter());
            self.b.used([y.file].into_iter());
        }
        Ok(true)
    }

    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let pairs = self.pairs;
        let of = |side: fn(&Pair<'m>) -> &'m TensorRecord| -> Vec<(&TensorRecord, Slice)> {
            let pairs = batch.iter().filter_map(|(index, part)| Some((pairs.get(*index)?, part)));
            pairs.map(|(pair, part)| (side(pair), part.clone())).collect()
        };
        let read = |reader: &mut PartReader<'m>, boxes: &[(&TensorRecord, Slice)]| {
            reader.read(boxes).map_err(|e| with_tensor(e, boxes))
        };
        let old = read(&mut self.a, &of(|pair| pair.a))?;
        let new = read(&mut self.b, &of(|pair| pair.b))?;
        for ((index, _), (x, y)) in batch.iter().zip(old.iter().zip(&new)) {
            if let (Some(pair), Some(meter)) = (pairs.get(*index), self.meters.get_mut(*index)) {
                meter.take((pair.a.spec.dtype(), x), (pair.b.spec.dtype(), y));
                (self.progress)(x.len() as u64);
            }
        }
        Ok(())
    }
}

/// Of several that are read at once the reader names the one itself, if it can.
fn with_tensor(error: Error, boxes: &[(&TensorRecord, Slice)]) -> Error {
    match boxes {
        [(tensor, _)] => error.with_tensor(tensor.name.as_str()),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
