//! From a checkpoint to the files of an export, a few MiB at a time.

use std::collections::BTreeSet;

use crate::cast::cast;
use crate::catalog::Found;
use crate::error::Result;
use crate::export::ExportedTensor;
use crate::export::plan::{FilePlan, PlannedTensor};
use crate::load::read_boxes;
use crate::manifest::Manifest;
use crate::plan::load::{LoadPlan, LoadRules, WantedBox, plan_load};
use crate::shard::{Out, ShardReader, write_stream};
use crate::slice::Slice;
use crate::storage::WriteFile;
use crate::sweep::Pace;

/// Most bytes read at once. A cast may make four times as much of one of their tensors.
const BATCH_BYTES: u64 = 8 << 20;

/// Reads tensors of one checkpoint, in order, and writes them.
pub(super) struct Writer<'f> {
    manifest: &'f Manifest,
    reader: ShardReader,
    /// Data files whose headers were verified.
    verified: BTreeSet<u32>,
    pace: &'f Pace,
}

impl<'f> Writer<'f> {
    pub(super) fn open(found: &'f Found, pace: &'f Pace) -> Result<Self> {
        let progress = pace.progress.clone();
        let reader = ShardReader::of(found.dir.clone(), &found.manifest);
        let reader = reader.on_read(move |bytes| progress.add(bytes));
        reader.check_lengths()?;
        Ok(Self { manifest: &found.manifest, reader, verified: BTreeSet::new(), pace })
    }

    /// Fills `file` and makes its content durable. What is read next is read while another thread
    /// writes.
    pub(super) fn write(
        &mut self,
        plan: &FilePlan,
        file: Box<dyn WriteFile>,
    ) -> Result<Vec<ExportedTensor>> {
        file.reserve(plan.len())?;
        let mut done: Vec<ExportedTensor> = plan.tensors.iter().map(exported).collect();
        let progress = self.pace.progress.clone();
        let mut fill = |out: &mut Out<'_>| self.fill(plan, &mut done, out);
        write_stream(file.as_ref(), plan.len(), &|bytes| progress.add(bytes), &mut fill)?;
        file.finish()?;
        Ok(done)
    }

    /// All of a file, in order.
    fn fill(
        &mut self,
        plan: &FilePlan,
        done: &mut [ExportedTensor],
        out: &mut Out<'_>,
    ) -> Result<()> {
        let mut end = out.put(0, &plan.header)?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (index, tensor) in plan.tensors.iter().enumerate() {
            for part in Parts::of(tensor, BATCH_BYTES) {
                let part_bytes = part.elements() * tensor.from.dtype().size_bytes();
                if bytes + part_bytes > BATCH_BYTES {
                    end = self.put_batch(plan, &batch, done, out, end)?;
                    (batch, bytes) = (Vec::new(), 0);
                }
                bytes += part_bytes;
                batch.push((index, part));
            }
        }
        self.put_batch(plan, &batch, done, out, end).map(drop)
    }

    /// Puts parts that follow each other in the file at `begin`; where they end.
    fn put_batch(
        &mut self,
        plan: &FilePlan,
        batch: &[(usize, Slice)],
        done: &mut [ExportedTensor],
        out: &mut Out<'_>,
        begin: u64,
    ) -> Result<u64> {
        let parts =
            batch.iter().filter_map(|(index, part)| Some((plan.tensors.get(*index)?, part)));
        let wanted = parts.map(|(tensor, part)| {
            WantedBox::new(tensor.stored.clone(), tensor.from.clone(), part.clone())
        });
        let wanted = wanted.collect::<Result<Vec<_>>>()?;
        let rules = LoadRules { strict: false, components: Some(Vec::new()) };
        let (reads, _) = plan_load(self.manifest, &wanted, &rules);
        self.verify_headers(&reads)?;
        let (mut end, mut scratch) = (begin, Vec::new());
        for ((index, _), bytes) in batch.iter().zip(read_boxes(&self.reader, &reads, &wanted)?) {
            let (Some(tensor), Some(done)) = (plan.tensors.get(*index), done.get_mut(*index))
            else {
                continue;
            };
            if done.cast_from.is_none() {
                end = out.put(end, &bytes)?;
                continue;
            }
            scratch.clear();
            let lost = cast(tensor.from.dtype(), tensor.spec.dtype(), &bytes, &mut scratch);
            done.overflowed += lost.map_err(|e| e.with_tensor(tensor.name.as_str()))?;
            end = out.put(end, &scratch)?;
        }
        Ok(end)
    }

    fn verify_headers(&mut self, reads: &LoadPlan) -> Result<()> {
        for file in reads.reads.iter().map(|reads| reads.file) {
            if self.verified.insert(file) {
                self.reader.verify_header(usize::try_from(file).unwrap_or(usize::MAX))?;
            }
        }
        Ok(())
    }
}

fn exported(tensor: &PlannedTensor) -> ExportedTensor {
    let (from, to) = (tensor.from.dtype(), tensor.spec.dtype());
    ExportedTensor {
        name: tensor.name.clone(),
        stored: tensor.stored.clone(),
        spec: tensor.spec.clone(),
        cast_from: (from != to).then_some(from),
        overflowed: 0,
    }
}

/// The boxes of at most so many bytes that make up a tensor, in row-major order; each is
/// contiguous in it.
struct Parts {
    /// What is left, the next one last.
    rest: Vec<Slice>,
    elements_max: u64,
}

impl Parts {
    fn of(tensor: &PlannedTensor, bytes_max: u64) -> Self {
        let rest = match tensor.from.elements() {
            0 => Vec::new(),
            _ => vec![Slice::full(tensor.from.shape())],
        };
        Self { rest, elements_max: bytes_max / tensor.from.dtype().size_bytes() }
    }
}

impl Iterator for Parts {
    type Item = Slice;

    fn next(&mut self) -> Option<Slice> {
        loop {
            let part = self.rest.pop()?;
            let length = part.split_dimension().and_then(|d| part.lengths().get(d).copied());
            let Some(length) = length.filter(|_| part.elements() > self.elements_max) else {
                return Some(part);
            };
            let rows = (self.elements_max / (part.elements() / length)).max(1);
            let (head, tail) = (part.rows(0..rows).ok()?, part.rows(rows..length).ok()?);
            self.rest.extend([tail, head]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, TensorName, TensorSpec};

    #[test]
    fn parts_are_small_contiguous_and_in_order() {
        for (shape, max) in [
            (vec![7, 5, 3], 16),
            (vec![2, 1000], 64),
            (vec![9], 1000),
            (vec![], 4),
            (vec![3, 0], 4),
        ] {
            let spec = TensorSpec::new(Dtype::F32, shape.clone()).unwrap();
            let name = TensorName::new("t").unwrap();
            let (stored, from) = (name.clone(), spec.clone());
            let tensor = PlannedTensor { name, stored, from, spec: spec.clone() };
            let mut end = 0;
            for part in Parts::of(&tensor, max) {
                assert!(part.elements() * 4 <= max, "{shape:?}: {part}");
                let runs: Vec<_> = Slice::full(&shape).runs_of(&part).collect();
                assert_eq!((runs.len(), runs[0].from), (1, end), "{shape:?}: {part}");
                end += part.elements();
            }
            assert_eq!(end, spec.elements(), "{shape:?}");
        }
    }
}
