//! From verified blocks to the destination: directly, or staged on the host first.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::load::Destination;
use crate::load::fill::fill;
use crate::memory::zeroed;
use crate::plan::load::{LoadPlan, WantedBox};
use crate::shard::{ShardReader, Sharing};
use crate::state::{LoadTargets, TensorSink};

/// What a rank reads, and out of what.
pub(super) struct Reading<'a> {
    pub(super) reader: &'a ShardReader,
    pub(super) plan: &'a LoadPlan,
    pub(super) wanted: &'a [WantedBox],
    /// Whether other ranks read the same.
    pub(super) sharing: Sharing,
    /// Tells peers that this rank is alive while it places.
    pub(super) progress: Progress,
}

/// This rank's bytes, verified and on the host: one buffer per wanted box, empty for what the
/// checkpoint does not hold, which stays as it is (lenient loads).
#[derive(Default)]
pub(super) struct Staged {
    pub(super) buffers: Vec<Vec<u8>>,
    /// For what comes from other ranks; empty if nothing does.
    pub(super) room: Vec<u8>,
}

impl<'a> Reading<'a> {
    /// The same of a part of the plan.
    pub(super) fn of<'b>(&self, plan: &'b LoadPlan) -> Reading<'b>
    where
        'a: 'b,
    {
        let Self { reader, wanted, sharing, .. } = *self;
        Reading { reader, plan, wanted, sharing, progress: self.progress.clone() }
    }

    /// Copies what was staged into the destination.
    pub(super) fn place(&self, staged: Staged, destination: &mut dyn Destination) -> Result<()> {
        let mut targets = self.same_targets(destination)?;
        let mut written = Vec::with_capacity(self.wanted.len());
        let sinks = targets.targets_mut().values_mut().flatten().zip(self.wanted);
        for ((target, wanted), bytes) in sinks.zip(staged.buffers).filter(|(_, b)| !b.is_empty()) {
            let place = |e: Error| e.with_tensor(wanted.name().as_str());
            target.sink.write_at(0, &bytes).map_err(place)?;
            self.progress.add(bytes.len() as u64);
            written.push((target, wanted));
        }
        // Copies to a device go on while the next ones are begun.
        for (target, wanted) in written {
            target.sink.flush().map_err(|e| e.with_tensor(wanted.name().as_str()))?;
        }
        Ok(())
    }

    /// Whether the targets are still those of the plan, and have all that writing takes: asked
    /// before a vote, so that no rank finds out after it.
    pub(super) fn prepare_targets(&self, destination: &mut dyn Destination) -> Result<()> {
        let mut targets = self.same_targets(destination)?;
        let sinks = targets.targets_mut().values_mut().flatten().zip(self.wanted);
        for (target, wanted) in sinks {
            target.sink.prepare().map_err(|e| e.with_tensor(wanted.name().as_str()))?;
        }
        Ok(())
    }

    /// The targets, which must still be those with which the plan was made.
    pub(super) fn same_targets<'d>(
        &self,
        destination: &'d mut dyn Destination,
    ) -> Result<LoadTargets<'d>> {
        let targets = destination.targets()?;
        let lists = targets.targets().iter();
        let mut boxes =
            lists.flat_map(|(name, list)| list.iter().map(move |target| (name, target)));
        let same = |wanted: &WantedBox| {
            boxes.next().is_some_and(|(name, target)| {
                wanted.name() == name
                    && *wanted.slice() == target.slice
                    && *wanted.spec() == target.spec
            })
        };
        let are_same = self.wanted.iter().all(same) && boxes.next().is_none();
        if are_same { Ok(targets) } else { Err(changed()) }
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

    /// As [`Reading::staged`], for a destination that can take it.
    pub(super) fn staged_for(&self, destination: &mut dyn Destination) -> Result<Staged> {
        let staged = self.staged()?;
        self.prepare_targets(destination)?;
        Ok(staged)
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
        Ok(Staged { buffers, room: Vec::new() })
    }

    fn verify_headers(&self) -> Result<()> {
        let files = self.plan.reads.iter().map(|reads| reads.file);
        let mut indices = files.map(|file| usize::try_from(file).unwrap_or(usize::MAX));
        indices.try_for_each(|index| self.reader.verify_header(index))
    }

    /// Every planned read, one sink per wanted box.
    fn fill(&self, sinks: &mut [&mut dyn TensorSink]) -> Result<()> {
        fill(self.reader, self.plan, self.wanted, self.sharing, sinks)
    }
}

/// The wanted boxes in the order in which `targets` lists them, which is how plans number them.
pub(super) fn wanted_boxes(targets: &LoadTargets<'_>) -> Result<Vec<WantedBox>> {
    let lists = targets.targets().iter();
    let boxes = lists.flat_map(|(name, list)| list.iter().map(move |target| (name, target)));
    boxes.map(|(name, t)| WantedBox::new(name.clone(), t.spec.clone(), t.slice.clone())).collect()
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
    let (sharing, progress) = (Sharing::Alone, Progress::default());
    let Staged { buffers, .. } =
        Reading { reader, plan, wanted, sharing, progress }.read_staged()?;
    Ok(buffers)
}

/// As [`read_boxes`], one box after the other into `out`, which is as long as all of them.
///
/// # Errors
/// As [`ShardReader::read_range`]; the content of `out` is unspecified then.
pub(crate) fn read_boxes_into(
    reader: &ShardReader,
    plan: &LoadPlan,
    wanted: &[WantedBox],
    out: &mut [u8],
) -> Result<()> {
    let (mut slices, mut rest) = (Vec::with_capacity(wanted.len()), out);
    for wanted in wanted {
        let len = usize::try_from(wanted.size_bytes()).unwrap_or(usize::MAX);
        let (own, after) = rest.split_at_mut_checked(len).ok_or_else(changed)?;
        slices.push(own);
        rest = after;
    }
    let mut sinks: Vec<&mut dyn TensorSink> = Vec::with_capacity(wanted.len());
    for slice in &mut slices {
        sinks.push(slice);
    }
    let (sharing, progress) = (Sharing::Alone, Progress::default());
    Reading { reader, plan, wanted, sharing, progress }.fill(&mut sinks)
}

pub(super) fn changed() -> Error {
    Error::new(ErrorKind::Mismatch, "the destination changed its tensors during the load")
}
