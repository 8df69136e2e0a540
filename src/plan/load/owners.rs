//! Which rank reads what, where every byte is read by one rank alone.

use super::{LoadPlan, WantedBox};
use crate::rank::{Rank, WorldSize};

/// The rank that reads each wanted box, in their order; `None` for a box that is not stored. The
/// same on every rank that wants the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owners(Vec<Option<Owner>>);

/// Who reads a box, and how the others get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) rank: Rank,
    /// From device to device, not by way of the hosts.
    pub(crate) is_on_device: bool,
}

impl Owners {
    /// Boxes on devices, as `on_device` says, are shared out over all ranks by bytes, in order; all
    /// others are the coordinator's.
    pub(crate) fn new(
        plan: &LoadPlan,
        wanted: &[WantedBox],
        on_device: &[bool],
        world: WorldSize,
    ) -> Self {
        let mut owners: Vec<Option<Owner>> = vec![None; wanted.len()];
        let host = Owner { rank: Rank::COORDINATOR, is_on_device: false };
        for item in plan.reads.iter().flat_map(|file| &file.reads) {
            if let Some(owner) = owners.get_mut(item.target) {
                *owner = Some(host);
            }
        }
        let on_device = on_device.iter().copied().chain(std::iter::repeat(false));
        let boxes = owners.iter_mut().zip(wanted).zip(on_device);
        let shared = boxes.filter(|((owner, _), on_device)| owner.is_some() && *on_device);
        let shared: Vec<_> = shared.map(|(both, _)| both).collect();
        let total: u128 = shared.iter().map(|(_, wanted)| u128::from(wanted.size_bytes())).sum();
        let mut before = 0u128;
        for (owner, wanted) in shared {
            // Where its middle lies among all bytes.
            let middle = before + u128::from(wanted.size_bytes()) / 2;
            let share = middle * u128::from(world.get()) / total.max(1);
            let rank = u32::try_from(share).unwrap_or(u32::MAX).min(world.get() - 1);
            *owner = Some(Owner { rank: Rank::new(rank), is_on_device: true });
            before += u128::from(wanted.size_bytes());
        }
        Self(owners)
    }

    /// Who reads box number `target`.
    pub(crate) fn of(&self, target: usize) -> Option<Owner> {
        self.0.get(target).copied().flatten()
    }

    /// What of `plan` is read by `rank`.
    pub(crate) fn part_of(&self, plan: &LoadPlan, rank: Rank) -> LoadPlan {
        plan.only(|target| self.of(target).is_some_and(|owner| owner.rank == rank))
    }
}
