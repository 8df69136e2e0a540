//! From a checkpoint to the files of an export, a few MiB at a time.

use std::collections::BTreeSet;

use crate::cast::cast;
use crate::catalog::Found;
use crate::error::Result;
use crate::export::ExportedTensor;
use crate::export::plan::{FilePlan, PlannedTensor};
use crate::load::{read_boxes, read_boxes_into};
use crate::manifest::Manifest;
use crate::plan::load::{LoadPlan, LoadRules, WantedBox, plan_load};
use crate::shard::{Out, ShardReader, write_stream};
use crate::slice::{Parts, Slice};
use crate::storage::WriteFile;
use crate::sweep::Pace;

/// Most bytes that are read at once to be cast. A cast may make four times as much of a part.
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
        let mut done: Vec<ExportedTensor> =
            plan.tensors.iter().map(PlannedTensor::exported).collect();
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
        let mut batch = Batch::default();
        for (index, tensor) in plan.tensors.iter().enumerate() {
            let is_cast = tensor.from.dtype() != tensor.spec.dtype();
            if batch.is_cast != is_cast {
                end = self.put(plan, &mut batch, done, out, end)?;
                batch.is_cast = is_cast;
            }
            let mut parts = Parts::of(&tensor.from);
            while !parts.is_done() {
                // What is cast takes a detour; all else is read to where it is written from. No
                // element lies across two buffers: larger ones come first.
                let max = if is_cast { BATCH_BYTES } else { out.ready(end)? };
                match parts.next_within(max - batch.bytes) {
                    Some(part) => batch.push(index, part, tensor),
                    None => end = self.put(plan, &mut batch, done, out, end)?,
                }
            }
        }
        self.put(plan, &mut batch, done, out, end).map(drop)
    }

    /// Puts a batch at `begin`; where it ends. The batch is empty then.
    fn put(
        &mut self,
        plan: &FilePlan,
        batch: &mut Batch,
        done: &mut [ExportedTensor],
        out: &mut Out<'_>,
        begin: u64,
    ) -> Result<u64> {
        let Batch { parts, bytes, is_cast } = std::mem::take(batch);
        batch.is_cast = is_cast;
        if parts.is_empty() {
            return Ok(begin);
        }
        let of_part = |(index, part): &(usize, Slice)| {
            let tensor = plan.tensors.get(*index)?;
            Some(WantedBox::new(tensor.stored.clone(), tensor.from.clone(), part.clone()))
        };
        let wanted = parts.iter().filter_map(of_part).collect::<Result<Vec<_>>>()?;
        let rules =
            LoadRules { strict: false, components: Some(Vec::new()), ..LoadRules::default() };
        let (reads, _) = plan_load(self.manifest, &wanted, &rules);
        self.verify_headers(&reads)?;
        if !is_cast {
            let room = out.room(begin, bytes)?;
            read_boxes_into(&self.reader, &reads, &wanted, room)?;
            return Ok(begin + bytes);
        }
        let (mut end, mut scratch) = (begin, Vec::new());
        for ((index, _), bytes) in parts.iter().zip(read_boxes(&self.reader, &reads, &wanted)?) {
            let (Some(tensor), Some(done)) = (plan.tensors.get(*index), done.get_mut(*index))
            else {
                continue;
            };
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

/// Parts of tensors that follow each other in the file, and are read at once.
#[derive(Default)]
struct Batch {
    /// Each with the number of its tensor.
    parts: Vec<(usize, Slice)>,
    /// In the checkpoint.
    bytes: u64,
    is_cast: bool,
}

impl Batch {
    fn push(&mut self, index: usize, part: Slice, tensor: &PlannedTensor) {
        self.bytes += part.elements() * tensor.from.dtype().size_bytes();
        self.parts.push((index, part));
    }
}
