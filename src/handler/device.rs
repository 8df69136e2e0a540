//! Which device a rank trains on.

use tch::Device;

use crate::error::{Error, ErrorKind, Result};

/// The explicit device, else this rank's CUDA device; the CPU where there is no CUDA at all.
pub(super) fn device_of_rank(explicit: Option<Device>, local_rank: u32) -> Result<Device> {
    let visible = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    choose(explicit, local_rank, usize::try_from(visible).unwrap_or(0))
}

/// The rule, for `visible` CUDA devices. Where a launcher shows each rank one GPU, all ranks find
/// it under index 0.
fn choose(explicit: Option<Device>, local_rank: u32, visible: usize) -> Result<Device> {
    Ok(match explicit {
        Some(Device::Cuda(index)) if visible == 0 => {
            tracing::warn!(index, "no CUDA device here; using the CPU");
            Device::Cpu
        }
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
}
