//! Which device a rank trains on, and that no other rank does.

use tch::Device;

use crate::device::cuda::device_id;
use crate::device::placement::{self, Place, SHARE_VARIABLE, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::ddp::is_joined;
use crate::handler::{Model, NNHandler};
use crate::torch;

/// Where this rank computes, as all ranks have agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) device: Device,
    pub(super) one_gpu_each: bool,
}

impl<M: Model> NNHandler<M> {
    /// Whether every rank has a GPU of its own, as all ranks found when this handler was made: what
    /// NCCL asks for. Any rank; the same on all.
    #[must_use]
    pub fn one_gpu_each(&self) -> bool {
        self.one_gpu_each
    }
}

/// Phase "devices": the device of this rank, once all ranks know that each of them has a GPU of its
/// own, or none has one. With feature `nccl`, GPUs then exchange gradients over NCCL (phases "nccl"
/// and "nccl joined").
///
/// # Collective
/// Every rank.
///
/// # Errors
/// As [`device_of_rank`] and [`placement::judge`], on every rank.
pub(super) fn agree_on_device(group: &ProcessGroup, explicit: Option<Device>) -> Result<Placed> {
    agree_on_mapped(group, explicit, &[])
}

/// As [`agree_on_device`], with other devices in place of some.
pub(super) fn agree_on_mapped(
    group: &ProcessGroup,
    explicit: Option<Device>,
    map: &[(Device, Device)],
) -> Result<Placed> {
    let mut device = Device::Cpu;
    let own = || {
        let found = device_of_rank(explicit, group.local_rank().0)?;
        device = match mapped(found, map) {
            Some(other) => device_of_rank(Some(other), 0)?,
            None => found,
        };
        Ok(Place { is_joined: is_joined(group, device), ..place(device) })
    };
    let decide = |places: Vec<Place>| placement::judge(&places);
    let placement = group.phase_all(Channel::Training, "devices", own, decide)?;
    if placement.is_shared && group.is_coordinator() {
        tracing::warn!("ranks share a GPU ({SHARE_VARIABLE}=1): slower, and without NCCL");
    }
    #[cfg(feature = "nccl")]
    if let (Device::Cuda(index), true) = (device, placement.one_gpu_each)
        && group.world_size().get() > 1
    {
        group.use_nccl(crate::device::cuda::device(index))?;
    }
    Ok(Placed { device, one_gpu_each: placement.one_gpu_each })
}

/// What stands in place of `device`: once, so that pairs may swap two.
fn mapped(device: Device, map: &[(Device, Device)]) -> Option<Device> {
    map.iter().find(|(from, _)| *from == device).map(|(_, to)| *to)
}

/// The device of this rank for a training loop of one's own, once all ranks know that each of them
/// has a GPU of its own, or none has one: `explicit`, else `cuda:(local rank mod visible devices)`,
/// else the CPU. With feature `nccl`, [`average_gradients`](crate::handler::average_gradients) and
/// [`broadcast_tensors`](crate::handler::broadcast_tensors) then go from GPU to GPU.
///
/// ```
/// use tch_checkpoint::{ProcessGroup, handler::choose_device};
///
/// let group = ProcessGroup::solo();
/// let device = choose_device(&group, Some(tch::Device::Cpu))?;
/// assert_eq!(device, tch::Device::Cpu);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// Every rank, before the first step: phase "devices", and those of NCCL.
///
/// # Errors
/// The same on every rank: [`ErrorKind::InvalidInput`] for a CUDA device beyond those that there
/// are, and for one that another rank has as well, unless `TCH_CHECKPOINT_SHARE_GPU` is 1 on all
/// ranks; [`ErrorKind::Device`] where some ranks are on GPUs and others on CPUs, and with NCCL's own
/// words; [`ErrorKind::NotFound`] without NCCL, with all places that were looked at.
pub fn choose_device(group: &ProcessGroup, explicit: Option<Device>) -> Result<Device> {
    Ok(agree_on_device(group, explicit)?.device)
}

fn place(device: Device) -> Place {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let unit = match device {
        Device::Cpu => Unit::Cpu { why: torch::why_no_cuda() },
        Device::Cuda(index) => {
            let id = device_id(index).inspect_err(|error| {
                tracing::debug!(%error, "nobody can say whether ranks share this GPU");
            });
            Unit::Cuda { index, visible: torch::cuda_devices(), id: id.ok() }
        }
        _ => Unit::Other,
    };
    let may_share = std::env::var(SHARE_VARIABLE).is_ok_and(|value| value == "1");
    Place { host, unit, may_share, is_joined: false }
}

/// The explicit device, else this rank's CUDA device; the CPU where there is no CUDA at all.
pub(super) fn device_of_rank(explicit: Option<Device>, local_rank: u32) -> Result<Device> {
    let visible = torch::cuda_devices();
    if let (Some(Device::Cuda(index)), Some(reason)) = (explicit, torch::why_no_cuda()) {
        tracing::warn!(index, reason, "no CUDA device here; using the CPU");
    }
    choose(explicit, local_rank, visible)
}

/// The rule, for `visible` CUDA devices. Where a launcher shows each rank one GPU, all ranks find
/// it under index 0.
fn choose(explicit: Option<Device>, local_rank: u32, visible: usize) -> Result<Device> {
    Ok(match explicit {
        Some(Device::Cuda(_)) if visible == 0 => Device::Cpu,
        Some(Device::Cuda(index)) if index >= visible => {
            let message = format!("CUDA device {index} of {visible}");
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("devices are counted from 0 among those that this process sees"));
        }
        Some(device) => device,
        None if visible > 0 => Device::Cuda(local_rank as usize % visible),
        None => Device::Cpu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Deadlines;
    use crate::rank::WorldSize;

    #[test]
    fn a_map_is_followed_once() {
        let (cpu, cuda) = (Device::Cpu, Device::Cuda);
        let swap = [(cuda(0), cuda(1)), (cuda(1), cuda(0)), (cuda(3), cpu)];
        assert_eq!(mapped(cuda(0), &swap), Some(cuda(1)));
        assert_eq!(mapped(cuda(1), &swap), Some(cuda(0)));
        assert_eq!(mapped(cuda(3), &swap), Some(cpu));
        assert_eq!(mapped(cuda(2), &swap), None);
        let group = ProcessGroup::solo();
        let placed = agree_on_mapped(&group, Some(cpu), &[(cpu, cpu)]).unwrap();
        assert_eq!(placed.device, cpu);
    }

    #[test]
    fn ranks_spread_over_the_devices_that_they_see() {
        let (cpu, cuda) = (Device::Cpu, Device::Cuda);
        for (explicit, local_rank, visible, chosen) in [
            (None, 0, 0, cpu),
            (None, 3, 0, cpu),
            (None, 0, 1, cuda(0)),
            (None, 3, 1, cuda(0)),
            (None, 1, 4, cuda(1)),
            (None, 5, 4, cuda(1)),
            (Some(cpu), 1, 4, cpu),
            (Some(cuda(2)), 0, 4, cuda(2)),
            (Some(cuda(2)), 0, 0, cpu),
        ] {
            let found = choose(explicit, local_rank, visible).unwrap();
            assert_eq!(found, chosen, "{explicit:?}, local rank {local_rank} of {visible}");
        }
        assert_eq!(choose(Some(cuda(4)), 0, 4).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn ranks_on_the_cpu_agree_and_are_told_that_there_is_no_gpu_for_each() {
        let groups = ProcessGroup::threads(WorldSize::new(2).unwrap(), Deadlines::default());
        let agreed: Vec<_> = std::thread::scope(|scope| {
            let agree = |group| move || agree_on_device(&group, Some(Device::Cpu));
            let ranks: Vec<_> = groups.into_iter().map(|group| scope.spawn(agree(group))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let placed = Placed { device: Device::Cpu, one_gpu_each: false };
        assert_eq!(agreed, [Ok(placed), Ok(placed)]);
    }
}
