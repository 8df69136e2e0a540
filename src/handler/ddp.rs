//! Keeping replicas equal: one broadcast at the start, averaged gradients at every step.

use tch::kind::Element;
use tch::{Kind, Tensor, no_grad};

mod buckets;
mod device;

#[cfg(feature = "nccl")]
pub use self::device::check_nccl;
pub(super) use self::device::is_joined;

use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;

/// Elements of one all-reduce: 25 MiB of f32, the usual size of a gradient bucket.
const BUCKET_ELEMENTS: usize = 25 * 1024 * 1024 / 4;
/// Bytes of one broadcast.
const BUCKET_BYTES: usize = 25 * 1024 * 1024;

pub(super) fn device_error(error: &tch::TchError) -> Error {
    Error::new(ErrorKind::Device, format!("libtorch: {error}"))
}

/// Gives every rank the coordinator's values of these tensors, bit for bit; a bucket at a time,
/// since there may be hundreds of small ones. For training loops of one's own: once, before the
/// first step.
///
/// # Collective
/// Every rank, with tensors of the same shapes and kinds in the same order.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a tensor that has no plain bytes; [`ErrorKind::Device`]; as
/// [`ProcessGroup::broadcast`].
pub fn broadcast_tensors(group: &ProcessGroup, tensors: &[Tensor]) -> Result<()> {
    if group.world_size().get() == 1 {
        return Ok(());
    }
    if let Some(plane) = device::plane_of(group, tensors) {
        return device::broadcast(plane.as_ref(), tensors);
    }
    let sizes = tensors.iter().map(|tensor| {
        crate::torch::spec_of(tensor)?;
        Ok(tensor.numel() * tensor.kind().elt_size_in_bytes())
    });
    let sizes = sizes.collect::<Result<Vec<usize>>>()?;
    let mut rest = tensors.iter().zip(sizes).peekable();
    while rest.peek().is_some() {
        let (mut bucket, mut bytes) = (Vec::new(), 0);
        while let Some(next) = rest.next_if(|(_, n)| bytes == 0 || bytes + n <= BUCKET_BYTES) {
            bytes += next.1;
            bucket.push(next);
        }
        broadcast_bucket(group, &bucket, bytes)?;
    }
    Ok(())
}

fn broadcast_bucket(group: &ProcessGroup, bucket: &[(&Tensor, usize)], bytes: usize) -> Result<()> {
    let mut all = crate::memory::zeroed(bytes as u64)?;
    let parts = |mut rest: &mut [u8], visit: &mut dyn FnMut(&Tensor, &mut [u8]) -> Result<()>| {
        for (tensor, bytes) in bucket {
            let (part, later) = std::mem::take(&mut rest).split_at_mut(*bytes);
            visit(tensor, part)?;
            rest = later;
        }
        Ok(())
    };
    parts(&mut all, &mut |tensor, part| {
        let host = tensor.detach().to_device(tch::Device::Cpu).contiguous();
        host.f_copy_data_u8(part, host.numel()).map_err(|e| device_error(&e))
    })?;
    group.broadcast(&mut all)?;
    parts(&mut all, &mut |tensor, part| {
        let values = Tensor::f_from_data_size(part, &tensor.size(), tensor.kind());
        let values = values.map_err(|e| device_error(&e))?;
        no_grad(|| tensor.shallow_clone().f_copy_(&values)).map_err(|e| device_error(&e))
    })
}

/// Replaces each gradient by the average over all samples of the step: each rank's is weighted by
/// its share `weight` of the samples (the weights of all ranks sum to 1), so that the result does
/// not depend on how the samples are spread over ranks, up to rounding.
///
/// A parameter without gradient on some rank counts as zero there; without gradient on every
/// rank it keeps none. In a group that uses NCCL, parameters on its device stay there; else they go
/// by way of the hosts. Either way all are in place when this returns.
///
/// # Collective
/// Every rank, with the same parameters in the same order, after the backward pass.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for complex parameters; [`ErrorKind::Device`]; as
/// [`ProcessGroup::all_reduce_sum`].
pub fn average_gradients(group: &ProcessGroup, parameters: &[Tensor], weight: f64) -> Result<()> {
    if group.world_size().get() == 1 {
        return Ok(());
    }
    let complex = |p: &&Tensor| matches!(p.kind(), Kind::ComplexFloat | Kind::ComplexDouble);
    if let Some(parameter) = parameters.iter().find(complex) {
        let message = format!("gradients of kind {:?} over several ranks", parameter.kind());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    // Double precision keeps its own: one bucket after the other, the same on every rank.
    let (double, single): (Vec<&Tensor>, Vec<&Tensor>) =
        parameters.iter().partition(|p| p.kind() == Kind::Double);
    if let Some(plane) = device::plane_of(group, parameters) {
        device::average(plane.as_ref(), &single, Kind::Float, weight)?;
        return device::average(plane.as_ref(), &double, Kind::Double, weight);
    }
    average_in_buckets::<f32>(group, &single, weight)?;
    average_in_buckets::<f64>(group, &double, weight)
}

/// An element type in which gradients are summed.
trait Summed: Element + Copy + From<f32> + PartialOrd {
    fn all_reduce(group: &ProcessGroup, values: &mut [Self]) -> Result<()>;
}

impl Summed for f32 {
    fn all_reduce(group: &ProcessGroup, values: &mut [Self]) -> Result<()> {
        group.all_reduce_sum(values)
    }
}

impl Summed for f64 {
    fn all_reduce(group: &ProcessGroup, values: &mut [Self]) -> Result<()> {
        group.all_reduce_sum_f64(values)
    }
}

fn average_in_buckets<T: Summed>(
    group: &ProcessGroup,
    parameters: &[&Tensor],
    weight: f64,
) -> Result<()> {
    let mut rest = parameters;
    while !rest.is_empty() {
        let mut elements = 0;
        let fits = |p: &&&Tensor| {
            elements += p.numel();
            elements <= BUCKET_ELEMENTS
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (bucket, later) = rest.split_at(count);
        average_bucket::<T>(group, bucket, weight)?;
        rest = later;
    }
    Ok(())
}

/// The flat bucket: per parameter one flag (has a gradient), then its elements.
fn average_bucket<T: Summed>(
    group: &ProcessGroup,
    parameters: &[&Tensor],
    weight: f64,
) -> Result<()> {
    let zero = T::from(0.0);
    let mut bucket: Vec<T> = Vec::new();
    for parameter in parameters {
        let (gradient, elements) = (parameter.grad(), parameter.numel());
        bucket.push(T::from(if gradient.defined() { 1.0 } else { 0.0 }));
        let begin = bucket.len();
        bucket.resize(begin + elements, zero);
        if gradient.defined() {
            let flat = (gradient.to_kind(T::KIND) * weight).to_device(tch::Device::Cpu);
            flat.f_copy_data(&mut bucket[begin..], elements).map_err(|e| device_error(&e))?;
        }
    }
    T::all_reduce(group, &mut bucket)?;
    let mut rest = bucket.as_slice();
    for parameter in parameters {
        let (own, others) = rest.split_at(1 + parameter.numel());
        rest = others;
        if own[0] > zero {
            set_gradient(parameter, &own[1..])?;
        }
    }
    Ok(())
}

fn set_gradient<T: Summed>(parameter: &Tensor, values: &[T]) -> Result<()> {
    place_gradient(parameter, &Tensor::from_slice(values))
}

/// Makes `values` the gradient, whatever their shape, kind and device.
fn place_gradient(parameter: &Tensor, values: &Tensor) -> Result<()> {
    if !parameter.grad().defined() {
        // tch cannot assign a gradient; a zero gradient of the right form can be made.
        (parameter * 0.0).sum(parameter.kind()).backward();
    }
    let placed = values.f_reshape(parameter.size());
    let placed = placed.and_then(|values| no_grad(|| parameter.grad().f_copy_(&values)));
    placed.map(drop).map_err(|e| device_error(&e))
}
