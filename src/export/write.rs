//! From a checkpoint to the files of an export, a few MiB at a time.

use std::collections::BTreeSet;

use crate::cast::cast;
use crate::catalog::Found;
use crate::error::Result;
use crate::export::ExportedTensor;
use crate::export::plan::{FilePlan, PlannedTensor};
use crate::load::read_boxes;
use crate::manifest::Manifest;
use crate::memory::reserve;
use crate::plan::load::{LoadPlan, LoadRules, WantedBox, plan_load};
use crate::shard::ShardReader;
use crate::slice::{Parts, Slice};
use crate::storage::WriteFile;
use crate::sweep::Pace;

/// Most bytes read at once. A cast may make four times as much of them.
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

    /// Fills `file` and makes its content durable.
    pub(super) fn write(
        &mut self,
        plan: &FilePlan,
        file: Box<dyn WriteFile>,
    ) -> Result<Vec<ExportedTensor>> {
        file.reserve(plan.len())?;
        file.write_at(0, &plan.header)?;
        let mut end = plan.header.len() as u64;
        let mut done: Vec<ExportedTensor> = plan.tensors.iter().map(exported).collect();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (index, tensor) in plan.tensors.iter().enumerate() {
            for part in Parts::of(&tensor.from, BATCH_BYTES) {
                let part_bytes = part.elements() * tensor.from.dtype().size_bytes();
                if bytes + part_bytes > BATCH_BYTES {
                    end = self.write_batch(plan, &batch, file.as_ref(), end, &mut done)?;
                    (batch, bytes) = (Vec::new(), 0);
                }
                bytes += part_bytes;
                batch.push((index, part));
            }
        }
        self.write_batch(plan, &batch, file.as_ref(), end, &mut done)?;
        file.finish()?;
        Ok(done)
    }

    /// Writes parts that follow each other in the file from `begin` on; where they end.
    fn write_batch(
        &mut self,
        plan: &FilePlan,
        batch: &[(usize, Slice)],
        file: &dyn WriteFile,
        begin: u64,
        done: &mut [ExportedTensor],
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
        let mut out = Vec::new();
        for ((index, _), bytes) in batch.iter().zip(read_boxes(&self.reader, &reads, &wanted)?) {
            let (Some(tensor), Some(done)) = (plan.tensors.get(*index), done.get_mut(*index))
            else {
                continue;
            };
            if done.cast_from.is_none() {
                reserve(&mut out, bytes.len())?;
                out.extend_from_slice(&bytes);
                continue;
            }
            let lost = cast(tensor.from.dtype(), tensor.spec.dtype(), &bytes, &mut out);
            done.overflowed += lost.map_err(|e| e.with_tensor(tensor.name.as_str()))?;
        }
        if !out.is_empty() {
            file.write_at(begin, &out)?;
        }
        self.pace.progress.add(out.len() as u64);
        Ok(begin + out.len() as u64)
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
