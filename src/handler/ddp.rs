//! Keeping replicas equal: one broadcast at the start, averaged gradients at every step.

use tch::kind::Element;
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
        let mut bytes = crate::memory::zeroed(spec.size_bytes())?;
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
    let complex = |p: &&Tensor| matches!(p.kind(), Kind::ComplexFloat | Kind::ComplexDouble);
    if let Some(parameter) = parameters.iter().find(complex) {
        let message = format!("gradients of kind {:?} over several ranks", parameter.kind());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    // Double precision keeps its own: one bucket after the other, the same on every rank.
    let (double, single): (Vec<&Tensor>, Vec<&Tensor>) =
        parameters.iter().partition(|p| p.kind() == Kind::Double);
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
    if !parameter.grad().defined() {
        // tch cannot assign a gradient; a zero gradient of the right form can be made.
        (parameter * 0.0).sum(parameter.kind()).backward();
    }
    let values = Tensor::from_slice(values).reshape(parameter.size());
    no_grad(|| parameter.grad().f_copy_(&values)).map(|_| ()).map_err(|e| device_error(&e))
}
