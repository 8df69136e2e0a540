//! Each byte is read and verified once in the job, and given to all ranks from there.
//!
//! The broadcasts are collective: a rank that cannot place what it gets takes part to the end, and
//! brings its error to the vote that follows. Whatever could keep a rank from taking part is done
//! before the vote that precedes them.

use super::Destination;
use super::place::{Reading, Staged, changed};
use crate::device::DeviceMemory;
use crate::error::Result;
use crate::group::{DevicePlane, ProcessGroup};
use crate::memory::zeroed;
use crate::plan::load::{LoadPlan, Owner, Owners};
use crate::state::{LoadTargets, TensorSink};

/// Bytes of one broadcast by way of the hosts.
const PART_BYTES: usize = 8 << 20;

/// What this rank reads, and who reads the rest.
pub(super) struct Once {
    pub(super) owners: Owners,
    /// This rank's part of the plan.
    pub(super) own: LoadPlan,
}

impl Once {
    /// Reads and verifies this rank's part, on the host.
    ///
    /// # Errors
    /// As [`Reading::staged`].
    pub(super) fn stage(
        &self,
        reading: &Reading<'_>,
        destination: &mut dyn Destination,
    ) -> Result<Staged> {
        let mut staged = reading.of(&self.own).staged()?;
        staged.room = zeroed(PART_BYTES as u64)?;
        reading.prepare_targets(destination)?;
        Ok(staged)
    }

    /// Gives all ranks what each has read. Collective; to the end on every rank that is there.
    ///
    /// # Errors
    /// Those of the exchange, on every rank; those of a sink, on its own.
    pub(super) fn place(
        &self,
        reading: &Reading<'_>,
        group: &ProcessGroup,
        staged: Staged,
        destination: &mut dyn Destination,
    ) -> Result<()> {
        let Staged { buffers, mut room } = staged;
        let mut targets = reading.same_targets(destination)?;
        let mut failed = Ok(());
        let sinks = targets.targets_mut().values_mut().flatten().map(|target| &mut target.sink);
        let mut sinks: Vec<_> = sinks.collect();
        for (index, (sink, wanted)) in sinks.iter_mut().zip(reading.wanted).enumerate() {
            let Some(owner) = self.owners.of(index) else { continue };
            let own = buffers.get(index).filter(|_| owner.rank == group.rank());
            let spread = Spread { group, owner, bytes: wanted.size_bytes() };
            let placed = match group.device_plane().filter(|_| owner.is_on_device) {
                Some(plane) => spread.by_device(plane.as_ref(), own, sink.as_mut()),
                None => spread.by_host(&mut room, own, sink.as_mut()),
            }?;
            failed = failed.and(placed.map_err(|e| e.with_tensor(wanted.name().as_str())));
            reading.progress.add(wanted.size_bytes());
        }
        for (sink, wanted) in sinks.iter_mut().zip(reading.wanted) {
            failed = failed.and(sink.flush().map_err(|e| e.with_tensor(wanted.name().as_str())));
        }
        failed
    }
}

/// One box on its way from one rank to all.
struct Spread<'a> {
    group: &'a ProcessGroup,
    owner: Owner,
    bytes: u64,
}

impl Spread<'_> {
    /// Part by part; inside, what became of it on this rank.
    fn by_host(
        &self,
        room: &mut [u8],
        own: Option<&Vec<u8>>,
        sink: &mut dyn TensorSink,
    ) -> Result<Result<()>> {
        let (mut placed, mut offset) = (Ok(()), 0u64);
        while offset < self.bytes {
            let len = usize::try_from(self.bytes - offset).unwrap_or(PART_BYTES).min(room.len());
            let (part, _) = room.split_at_mut(len);
            let begin = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(own) = own.and_then(|own| own.get(begin..begin.saturating_add(len))) {
                part.copy_from_slice(own);
            }
            self.group.broadcast(part)?;
            if placed.is_ok() {
                placed = sink.write_at(offset, part);
            }
            offset += len as u64;
        }
        Ok(placed)
    }

    /// The owner's first to its own device.
    fn by_device(
        &self,
        plane: &dyn DevicePlane,
        own: Option<&Vec<u8>>,
        sink: &mut dyn TensorSink,
    ) -> Result<Result<()>> {
        let placed = match own {
            Some(own) => sink.write_at(0, own).and_then(|()| sink.flush()),
            None => sink.count_change(),
        };
        // All ranks have said that they have it there.
        let memory = sink.device_memory().ok_or_else(changed)?;
        let mark = plane.broadcast(self.owner.rank, memory.address(), self.bytes)?;
        plane.wait(mark)?;
        Ok(placed)
    }
}

/// Which targets lie on the device of the group's data plane, in the order of plans; empty if it
/// has none.
pub(super) fn on_device(group: &ProcessGroup, targets: &mut LoadTargets<'_>) -> Vec<bool> {
    let Some(plane) = group.device_plane() else { return Vec::new() };
    let targets = targets.targets_mut().values_mut().flatten();
    let is_there = |memory: DeviceMemory| memory.device().name() == plane.device().name();
    targets.map(|target| target.sink.device_memory().is_some_and(is_there)).collect()
}
