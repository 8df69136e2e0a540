//! From verified blocks to the destination: directly, or staged on the host first.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::load::{Destination, wanted_boxes};
use crate::memory::zeroed;
use crate::plan::load::{LoadPlan, ReadItem, WantedBox};
use crate::shard::{PieceAt, ShardReader};
use crate::state::{LoadTargets, TensorSink};

/// What a rank reads, and out of what.
pub(super) struct Reading<'a> {
    pub(super) reader: &'a ShardReader,
    pub(super) plan: &'a LoadPlan,
    pub(super) wanted: &'a [WantedBox],
    /// Tells peers that this rank is alive while it places.
    pub(super) progress: Progress,
}

/// This rank's bytes, verified and on the host: one buffer per wanted box, empty for what the
/// checkpoint does not hold, which stays as it is (lenient loads).
#[derive(Default)]
pub(super) struct Staged(Vec<Vec<u8>>);

impl Reading<'_> {
    /// Copies what was staged into the destination.
    pub(super) fn place(&self, staged: Staged, destination: &mut dyn Destination) -> Result<()> {
        let mut targets = self.same_targets(destination)?;
        let sinks = targets.targets_mut().values_mut().flatten();
        for (target, bytes) in sinks.zip(staged.0).filter(|(_, bytes)| !bytes.is_empty()) {
            target.sink.write_at(0, &bytes)?;
            self.progress.add(bytes.len() as u64);
        }
        Ok(())
    }

    /// The targets, which must still be those with which the plan was made.
    fn same_targets<'d>(&self, destination: &'d mut dyn Destination) -> Result<LoadTargets<'d>> {
        let targets = destination.targets()?;
        if wanted_boxes(&targets)? == self.wanted { Ok(targets) } else { Err(changed()) }
    }

    /// Reads everything straight into the destination.
    pub(super) fn direct(&self, destination: &mut dyn Destination) -> Result<()> {
        let mut targets = self.same_targets(destination)?;
        let mut sinks: Vec<&mut dyn TensorSink> = Vec::new();
        for target in targets.targets_mut().values_mut().flatten() {
            sinks.push(target.sink.as_mut());
        }
        self.verify_headers()?;
        self.fill(&mut sinks)
    }

    /// Reads everything into host buffers.
    pub(super) fn staged(&self) -> Result<Staged> {
        self.verify_headers()?;
        self.read_staged()
    }

    fn read_staged(&self) -> Result<Staged> {
        let reads = self.plan.reads.iter().flat_map(|file| &file.reads);
        let stored: BTreeSet<usize> = reads.map(|item| item.target).collect();
        let mut buffers = Vec::with_capacity(self.wanted.len());
        for (index, wanted) in self.wanted.iter().enumerate() {
            let bytes = if stored.contains(&index) { wanted.size_bytes() } else { 0 };
            buffers.push(zeroed(bytes)?);
        }
        let mut slices: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        let mut sinks: Vec<&mut dyn TensorSink> = Vec::new();
        for slice in &mut slices {
            sinks.push(slice);
        }
        self.fill(&mut sinks)?;
        Ok(Staged(buffers))
    }

    fn verify_headers(&self) -> Result<()> {
        let files = self.plan.reads.iter().map(|reads| reads.file);
        let mut indices = files.map(|file| usize::try_from(file).unwrap_or(usize::MAX));
        indices.try_for_each(|index| self.reader.verify_header(index))
    }

    /// Every planned read, in file order, one sink per wanted box.
    fn fill(&self, sinks: &mut [&mut dyn TensorSink]) -> Result<()> {
        let mut scratch = Vec::new();
        for file in &self.plan.reads {
            let index = usize::try_from(file.file).unwrap_or(usize::MAX);
            for item in &file.reads {
                let (Some(wanted), Some(sink)) =
                    (self.wanted.get(item.target), sinks.get_mut(item.target))
                else {
                    return Err(changed());
                };
                self.read(index, item, wanted, *sink, &mut scratch)
                    .map_err(|e| e.with_tensor(wanted.name().as_str()))?;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        file: usize,
        item: &ReadItem,
        wanted: &WantedBox,
        sink: &mut dyn TensorSink,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let piece = PieceAt {
            file,
            begin: item.piece_begin,
            bytes: item.piece_bytes,
            first_sum: item.first_sum,
        };
        let mut copies = item.copies(wanted).peekable();
        let first = copies.peek().copied();
        // One run that is the whole range: from the file straight into the destination.
        if let Some(run) = first.filter(|run| run.bytes == item.bytes.end - item.bytes.start) {
            let range = usize::try_from(run.to).ok().zip(usize::try_from(run.to + run.bytes).ok());
            let memory = sink.bytes_mut().zip(range);
            if let Some(out) = memory.and_then(|(bytes, (begin, end))| bytes.get_mut(begin..end)) {
                return self.reader.read_into(piece, run.from, scratch, out);
            }
        }
        self.reader.read_range(piece, item.bytes.clone(), scratch, &mut |offset, bytes| {
            let end = offset + bytes.len() as u64;
            while let Some(run) = copies.peek().copied().filter(|run| run.from < end) {
                let (from, to) = (run.from.max(offset), (run.from + run.bytes).min(end));
                let part = bytes.get(to_usize(from, offset)..to_usize(to, offset));
                sink.write_at(run.to + (from - run.from), part.ok_or_else(changed)?)?;
                if run.from + run.bytes > end {
                    break;
                }
                copies.next();
            }
            Ok(())
        })
    }
}

/// The bytes of boxes of which all lie in the checkpoint, verified, one buffer per box. Headers are
/// taken as they are: who reads many boxes checks each once.
///
/// # Errors
/// As [`ShardReader::read_range`].
pub(crate) fn read_boxes(
    reader: &ShardReader,
    plan: &LoadPlan,
    wanted: &[WantedBox],
) -> Result<Vec<Vec<u8>>> {
    let progress = Progress::default();
    let Staged(buffers) = Reading { reader, plan, wanted, progress }.read_staged()?;
    Ok(buffers)
}

fn to_usize(position: u64, start: u64) -> usize {
    usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX)
}

fn changed() -> Error {
    Error::new(ErrorKind::Mismatch, "the destination changed its tensors during the load")
}
