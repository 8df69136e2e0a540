//! What is there, and what only a device can show.

use std::sync::Arc;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_checkpoint::audit::audit as compare_replicas;
use tch_checkpoint::device::DeviceMemory;
use tch_checkpoint::group::Deadlines;
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::tensor::{Component, TensorName};
use tch_checkpoint::torch::{TchSource, cuda_devices, libtorch_version, spec_of, why_no_cuda};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result, WorldSize};

use crate::{Outcome, failed};

/// `cpu`, or `cuda:N`.
pub(crate) fn parse(text: &str) -> Result<Device, String> {
    match text.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(index)) => Ok(Device::Cuda(index)),
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        _ => Err("`cpu` or `cuda:N`".to_owned()),
    }
}

pub(crate) fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// A device that is not there would be the CPU, and all checks would say nothing.
pub(crate) fn check_there(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) if index >= cuda_devices() => {
            let why = why_no_cuda().unwrap_or_else(|| format!("{} are there", cuda_devices()));
            Err(failed(format!("no {}: {why}", name(device))))
        }
        _ => Ok(()),
    }
}

pub(crate) fn environment(device: Device) -> Result<Outcome> {
    let tensor = Tensor::ones([4 << 20], (Kind::Float, device));
    if device != Device::Cpu {
        copies_its_own_way(&TchSource::new(&tensor)?)?;
    }
    let sum = Tensor::ones([1000], (Kind::Float, device)).sum(Kind::Double).double_value(&[]);
    if (sum - 1000.0).abs() > 0.0 {
        return Ok(Outcome::Failed(format!("1000 ones on {} are {sum}", name(device))));
    }
    Ok(Outcome::Passed(json!({
        "library": env!("CARGO_PKG_VERSION"),
        "built_for_libtorch": libtorch_version(),
        "cuda_devices": cuda_devices(),
        "why_no_cuda": why_no_cuda(),
    })))
}

/// Whether copies take the way of this library: else libtorch's would be checked, unseen.
fn copies_its_own_way(source: &TchSource) -> Result<()> {
    let memory = source.device_memory();
    let memory = memory.ok_or_else(|| failed("the driver does not show this device"))?;
    let mut host = vec![0; 4 << 20];
    match memory.read(0, &mut host)? {
        true => Ok(()),
        false => Err(failed("no memory of the host can be page-locked")),
    }
}

/// Lengths around those of the blocks that are hashed.
const LENGTHS: [i64; 8] = [1, 15, 100, 4095, 4096, 4097, 100_000, 20 << 20];

/// Views of a vector of bytes, which begin at every alignment.
fn views(bytes: &Tensor) -> Result<StateDict> {
    let mut state = StateDict::new();
    for odd in 0..16 {
        for len in LENGTHS {
            let view = bytes.narrow(0, odd, len);
            let name = TensorName::new(format!("from{odd}.long{len}"))?;
            let source = Arc::new(TchSource::new(&view)?);
            state.add(&Component::model(), name, spec_of(&view)?, source)?;
        }
    }
    Ok(state)
}

/// Whether the device takes the kernel: else the bytes would be compared on the host, unseen.
fn hashes_itself(device: Device, tensor: &Tensor) -> Result<bool> {
    let memory = TchSource::new(tensor)?.device_memory();
    let hashes = |memory: DeviceMemory| memory.device().fingerprinter(1).is_some();
    Ok(device == Device::Cpu || memory.is_some_and(hashes))
}

/// Two ranks, as threads: one has its replica on the device, the other on the host. Equal ones pass,
/// and one bit of difference is found.
fn audit_pair(device: Device, flip: bool) -> Result<()> {
    let world = WorldSize::new(2)?;
    let host = Tensor::randint_low(0, 256, [(20 << 20) + 16], (Kind::Uint8, Device::Cpu));
    let there = host.copy().to_device(device);
    if !hashes_itself(device, &there)? {
        return Err(failed("the device does not hash its memory; the log says why"));
    }
    if flip {
        let byte = there.narrow(0, 16_000_003, 1);
        let _same = byte.shallow_clone().bitwise_xor_(1i64);
    }
    let states = [views(&there)?, views(&host)?];
    let groups = ProcessGroup::threads(world, Deadlines::default());
    let verdicts: Vec<Result<()>> = std::thread::scope(|scope| {
        let ranks = groups.iter().zip(&states);
        let ranks: Vec<_> = ranks
            .map(|(group, state)| scope.spawn(move || compare_replicas(group, state)))
            .collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|_| Err(failed("a panic"))))
            .collect()
    });
    verdicts.into_iter().collect::<Result<Vec<()>>>().map(drop)
}

pub(crate) fn audit(device: Device, spoil: bool) -> Result<Outcome> {
    audit_pair(device, spoil)?;
    match audit_pair(device, true) {
        Err(error) if error.kind() == ErrorKind::Disagreement => {
            Ok(Outcome::Passed(json!({ "equal": "passes", "one_bit": "is found" })))
        }
        Err(error) => Err(error),
        Ok(()) => Ok(Outcome::Failed("one bit of difference was not found".to_owned())),
    }
}

#[cfg(feature = "nccl")]
pub(crate) fn nccl(device: Device) -> Result<Outcome> {
    if device == Device::Cpu {
        return Ok(Outcome::Skipped("NCCL needs a GPU".to_owned()));
    }
    let said = tch_checkpoint::handler::check_nccl(device)?;
    Ok(Outcome::Passed(json!({ "nccl": said })))
}

#[cfg(not(feature = "nccl"))]
pub(crate) fn nccl(_: Device) -> Result<Outcome> {
    Ok(Outcome::Skipped("built without feature `nccl`".to_owned()))
}
