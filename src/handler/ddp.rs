//! Keeping replicas equal: one broadcast at the start, averaged gradients at every step.

use tch::{Kind, Tensor, no_grad};

use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;

/// Elements of one all-reduce: 25 MiB of f32, the usual size of a gradient bucket.
const BUCKET_ELEMENTS: usize = 25 * 1024 * 1024 / 4;

pub(super) fn device_error(error: &tch::TchError) -> Error {
    Error::new(ErrorKind::Device, format!("libtorch: {error}"))
}

/// Gives every rank the coordinator's values of these tensors, bit for bit.
pub(super) fn broadcast(group: &ProcessGroup, tensors: &[Tensor]) -> Result<()> {
    if group.world_size().get() == 1 {
        return Ok(());
    }
    for tensor in tensors {
        let spec = crate::torch::spec_of(tensor)?;
        let host = tensor.detach().to_device(tch::Device::Cpu).contiguous();
        let len = usize::try_from(spec.size_bytes()).unwrap_or(usize::MAX);
        let mut bytes = crate::catalog::zeroed(len)?;
        host.f_copy_data_u8(&mut bytes, host.numel()).map_err(|e| device_error(&e))?;
        group.broadcast(&mut bytes)?;
        let shape: Vec<i64> = host.size();
        let values =
            Tensor::f_from_data_size(&bytes, &shape, host.kind()).map_err(|e| device_error(&e))?;
        no_grad(|| tensor.shallow_clone().f_copy_(&values)).map_err(|e| device_error(&e))?;
    }
    Ok(())
}

/// Replaces each gradient by the average over all samples of the step: each rank's is weighted by
/// its share `weight` of the samples (the weights of all ranks sum to 1), so that the result does
/// not depend on how the samples are spread over ranks, up to rounding.
///
/// A parameter without gradient on some rank counts as zero there; without gradient on every
/// rank it keeps none.
pub(super) fn average_gradients(
    group: &ProcessGroup,
    parameters: &[Tensor],
    weight: f64,
) -> Result<()> {
    if group.world_size().get() == 1 {
        return Ok(());
    }
    let mut begin = 0;
    while begin < parameters.len() {
        let mut elements = 0;
        let fits = |p: &&Tensor| {
            elements += p.numel();
            elements <= BUCKET_ELEMENTS
        };
        let count = parameters[begin..].iter().take_while(fits).count().max(1);
        average_bucket(group, &parameters[begin..begin + count], weight)?;
        begin += count;
    }
    Ok(())
}

/// The flat bucket: per parameter one flag (has a gradient), then its elements.
fn average_bucket(group: &ProcessGroup, parameters: &[Tensor], weight: f64) -> Result<()> {
    let mut bucket: Vec<f32> = Vec::new();
    for parameter in parameters {
        let (gradient, elements) = (parameter.grad(), parameter.numel());
        bucket.push(if gradient.defined() { 1.0 } else { 0.0 });
        let begin = bucket.len();
        bucket.resize(begin + elements, 0.0);
        if gradient.defined() {
            let flat = (gradient.to_kind(Kind::Float) * weight).to_device(tch::Device::Cpu);
            flat.f_copy_data(&mut bucket[begin..], elements).map_err(|e| device_error(&e))?;
        }
    }
    group.all_reduce_sum(&mut bucket)?;
    let mut rest = bucket.as_slice();
    for parameter in parameters {
        let (own, others) = rest.split_at(1 + parameter.numel());
        rest = others;
        if own[0] > 0.0 {
            set_gradient(parameter, &own[1..])?;
        }
    }
    Ok(())
}

fn set_gradient(parameter: &Tensor, values: &[f32]) -> Result<()> {
    if !parameter.grad().defined() {
        // tch cannot assign a gradient; a zero gradient of the right form can be made.
        (parameter * 0.0).sum(parameter.kind()).backward();
    }
    let values = Tensor::from_slice(values).reshape(parameter.size());
    no_grad(|| parameter.grad().f_copy_(&values)).map(|_| ()).map_err(|e| device_error(&e))
}
