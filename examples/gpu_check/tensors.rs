//! Tensors on a device as a state dict and as targets.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use tch_checkpoint::Result;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::tensor::{Component, TensorName};
use tch_checkpoint::torch::{TchSink, TchSource, spec_of};

/// Tensors by name.
pub(crate) type Named = Vec<(String, Tensor)>;

/// As what is saved; `steady` for those that may be copied after the call.
pub(crate) fn state(tensors: &Named, steady: bool) -> Result<StateDict> {
    let mut state = StateDict::new();
    for (name, tensor) in tensors {
        let source = TchSource::new(tensor)?;
        let source = Arc::new(if steady { source.steady() } else { source });
        let (model, name) = (Component::model(), TensorName::new(name.as_str())?);
        state.add(&model, name, spec_of(tensor)?, source)?;
    }
    Ok(state)
}

/// As what is filled.
pub(crate) fn targets(tensors: &Named) -> Result<LoadTargets<'static>> {
    let mut targets = LoadTargets::new();
    for (name, tensor) in tensors {
        let sink = Box::new(TchSink::new(tensor)?);
        targets.add(TensorName::new(name.as_str())?, spec_of(tensor)?, sink)?;
    }
    Ok(targets)
}

/// Random bits of `mib` MiB, as a model in bf16 with two moments in f32 has them: tensors of 32 MiB
/// and smaller.
pub(crate) fn model(mib: u64, device: Device) -> Named {
    let elements = i64::try_from(mib << 20).unwrap_or(i64::MAX) / 10;
    let (mut tensors, mut left, mut number) = (Named::new(), elements, 0);
    while left > 0 {
        // Of 8, 2 and 0.5 million elements, in turns.
        let size = [8 << 20, 2 << 20, 1 << 19][number % 3].min(left);
        let normal = |kind| Tensor::randn([size], (Kind::Float, device)).to_kind(kind);
        tensors.push((format!("layer{number}.weight"), normal(Kind::BFloat16)));
        for moment in ["exp_avg", "exp_avg_sq"] {
            tensors.push((format!("layer{number}.{moment}"), normal(Kind::Float)));
        }
        (left, number) = (left - size, number + 1);
    }
    tensors
}

/// The same shapes and kinds, on `device`, filled with ones.
pub(crate) fn ones_like(tensors: &Named, device: Device) -> Named {
    let like = |tensor: &Tensor| Tensor::ones(tensor.size(), (tensor.kind(), device));
    tensors.iter().map(|(name, tensor)| (name.clone(), like(tensor))).collect()
}

/// All bytes, on the host.
pub(crate) fn bytes(tensors: &Named) -> u64 {
    let of = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    tensors.iter().map(|(_, tensor)| of(tensor) as u64).sum()
}

/// The first whose bits differ, wherever both lie.
pub(crate) fn first_difference(left: &Named, right: &Named) -> Option<String> {
    let bits = |tensor: &Tensor| {
        let host = tensor.detach().to_device(Device::Cpu).contiguous();
        let flat = if host.dim() == 0 { host.reshape([1]) } else { host };
        flat.view_dtype(Kind::Uint8)
    };
    let same = |a: &Tensor, b: &Tensor| a.size() == b.size() && bits(a).equal(&bits(b));
    if left.len() != right.len() {
        return Some("another number of tensors".to_owned());
    }
    left.iter()
        .zip(right)
        .find_map(|((name, a), (_, b))| (!same(a, b)).then(|| format!("`{name}` differs")))
}

/// Waits until the device has done all that it was given.
pub(crate) fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(i64::try_from(index).unwrap_or(0));
    }
}
