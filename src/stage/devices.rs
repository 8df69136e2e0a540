//! What of a share lies on devices, copied straight into the region.

use super::{Staged, copy};
use crate::device::Device;
use crate::device::direct::{Part, Queues};
use crate::error::Result;
use crate::group::Progress;
use crate::shard::Cut;

/// What is to be copied, and the queues on which it is.
#[derive(Default)]
pub(super) struct Devices {
    queues: Queues,
    parts: Vec<Part>,
    /// Whether the region is page-locked, once that was tried.
    is_locked: Option<bool>,
}

impl Devices {
    /// `cut` is copied later: as it is now, or after all that its device was given by now.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device).
    pub(super) fn expect(&mut self, cut: &Cut<'_>) -> Result<()> {
        match cut.entry.source.device_memory() {
            Some(memory) => self.queues.open(memory.device()),
            None => Ok(()),
        }
    }

    /// Takes over a piece, by the numbers of its file and of itself, if it lies on a device and the
    /// region can be page-locked for it.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device).
    pub(super) fn take(
        &mut self,
        staged: &mut Staged,
        cut: &Cut<'_>,
        (file, piece): (usize, usize),
    ) -> Result<bool> {
        let Some(memory) = cut.entry.source.device_memory() else { return Ok(false) };
        self.queues.open(memory.device())?;
        let device = memory.device().as_ref();
        if !*self.is_locked.get_or_insert_with(|| lock(staged, device)) {
            return Ok(false);
        }
        let to = staged.place_of(file, piece).ok_or_else(copy::misfit)?;
        if to.len() as u64 != cut.bytes {
            return Err(copy::misfit());
        }
        self.parts.push(Part { from: memory, offset: cut.begin, to });
        Ok(true)
    }

    /// Copies what was taken over.
    ///
    /// # Errors
    /// As [`Queues::fill`].
    pub(super) fn copy(&mut self, staged: Staged, progress: &Progress) -> Result<Staged> {
        let parts = std::mem::take(&mut self.parts);
        if parts.is_empty() {
            return Ok(staged);
        }
        let Staged { files, region } = staged;
        let region = self.queues.fill(region, &parts, progress)?;
        Ok(Staged { files, region })
    }
}

/// Locks the region; where that cannot be, the copies take the way through a ring.
fn lock(staged: &mut Staged, device: &dyn Device) -> bool {
    let locked = staged.region.lock(device, device.rings().budget());
    locked.unwrap_or_else(|error| {
        tracing::warn!(%error, "memory for a save cannot be page-locked; it is copied in parts");
        false
    })
}
