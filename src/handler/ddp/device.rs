//! Gradients and parameters that stay on their devices.

use std::collections::VecDeque;
use std::sync::Arc;

use tch::{Device, Kind, Tensor, no_grad};

use super::buckets::{Bucket, ELEMENTS_MAX, IN_FLIGHT_MAX, Turn, layout, turns};
use super::{device_error, place_gradient};
use crate::device::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{DevicePlane, ProcessGroup};
use crate::rank::Rank;
use crate::torch::dtype_of;

/// The plane between devices, if all of `tensors` lie on its device.
pub(super) fn plane_of<'g>(
    group: &'g ProcessGroup,
    tensors: &[Tensor],
) -> Option<&'g Arc<dyn DevicePlane>> {
    let plane = group.device_plane()?;
    tensors.iter().all(|tensor| is_of(plane.as_ref(), tensor.device())).then_some(plane)
}

/// Whether `device` is that of the group's plane between devices.
pub(in crate::handler) fn is_joined(group: &ProcessGroup, device: Device) -> bool {
    group.device_plane().is_some_and(|plane| is_of(plane.as_ref(), device))
}

fn is_of(plane: &dyn DevicePlane, device: Device) -> bool {
    let own = plane.device().name();
    match device {
        Device::Cpu => own == "cpu",
        Device::Cuda(index) => own == format!("cuda:{index}"),
        _ => false,
    }
}

/// A bucket that is on its way. Its memory stays until it has arrived, also where an error ends
/// everything else before.
struct Travelling<'p> {
    plane: &'p dyn DevicePlane,
    flat: Tensor,
    mark: Mark,
}

impl<'p> Travelling<'p> {
    /// Adds up `flat`, which is contiguous, over all ranks.
    fn sum(plane: &'p dyn DevicePlane, flat: Tensor) -> Result<Self> {
        let (address, dtype) = (flat.data_ptr().expose_provenance() as u64, dtype_of(flat.kind())?);
        match plane.all_reduce_sum(address, flat.numel() as u64, dtype) {
            Ok(mark) => Ok(Self { plane, flat, mark }),
            Err(error) => {
                give_back(plane, &flat);
                Err(error)
            }
        }
    }

    fn arrived(&self) -> Result<&Tensor> {
        self.plane.wait(self.mark).map(|()| &self.flat)
    }
}

impl Drop for Travelling<'_> {
    fn drop(&mut self) {
        // Whoever was to know of an error has heard it.
        if self.plane.wait(self.mark).is_err() {
            give_back(self.plane, &self.flat);
        }
    }
}

/// After an error: keeps the memory for ever where the device may still write to it.
fn give_back(plane: &dyn DevicePlane, flat: &Tensor) {
    if !plane.is_at_rest() {
        std::mem::forget(flat.shallow_clone());
    }
}

/// Replaces the gradients of `parameters` by their sums over all ranks, each weighted by `weight`,
/// in elements of `kind`.
///
/// # Errors
/// [`ErrorKind::Device`]; as [`DevicePlane::wait`]. Ends the plane.
pub(super) fn average(
    plane: &dyn DevicePlane,
    parameters: &[&Tensor],
    kind: Kind,
    weight: f64,
) -> Result<()> {
    average_in_turns(plane, parameters, kind, weight).inspect_err(|error| plane.fail(error))
}

fn average_in_turns(
    plane: &dyn DevicePlane,
    parameters: &[&Tensor],
    kind: Kind,
    weight: f64,
) -> Result<()> {
    let Some(first) = parameters.first() else { return Ok(()) };
    let gradients: Vec<Tensor> = parameters.iter().map(|parameter| parameter.grad()).collect();
    let own: Vec<f32> = gradients.iter().map(|g| if g.defined() { 1.0 } else { 0.0 }).collect();
    let flags = Tensor::f_from_slice(&own).and_then(|flags| flags.f_to_device(first.device()));
    let flags = Travelling::sum(plane, flags.map_err(|e| device_error(&e))?)?;
    let sizes: Vec<usize> = parameters.iter().map(|parameter| parameter.numel()).collect();
    let buckets = layout(&sizes, ELEMENTS_MAX);
    let (mut travelling, mut somewhere) = (VecDeque::new(), Vec::new());
    for turn in turns(buckets.len(), IN_FLIGHT_MAX) {
        let (Turn::Send(number) | Turn::Take(number)) = turn;
        let bucket = buckets.get(number).ok_or_else(out_of_turn)?;
        if let Turn::Send(_) = turn {
            let flat = fill(bucket, &gradients, (kind, first.device()), weight);
            travelling.push_back(Travelling::sum(plane, flat.map_err(|e| device_error(&e))?)?);
            continue;
        }
        if somewhere.is_empty() {
            somewhere = defined_somewhere(flags.arrived()?)?;
        }
        let arrived: Travelling<'_> = travelling.pop_front().ok_or_else(out_of_turn)?;
        take_out(bucket, arrived.arrived()?, parameters, &somewhere)?;
    }
    Ok(())
}

fn out_of_turn() -> Error {
    Error::new(ErrorKind::Device, "a bucket of gradients is out of its turn")
}

/// Which parameters have a gradient on some rank.
fn defined_somewhere(flags: &Tensor) -> Result<Vec<bool>> {
    let host = flags.f_to_device(Device::Cpu).and_then(Vec::<f32>::try_from);
    let flags = host.map_err(|e| device_error(&e))?;
    Ok(flags.into_iter().map(|count| count > 0.0).collect())
}

/// The gradients of a bucket side by side; zeros for those that are not there.
fn fill(
    bucket: &Bucket,
    gradients: &[Tensor],
    options: (Kind, Device),
    weight: f64,
) -> Result<Tensor, tch::TchError> {
    let length = |elements: usize| i64::try_from(elements).unwrap_or(i64::MAX);
    let mut flat = Tensor::f_zeros([length(bucket.elements)], options)?;
    for member in &bucket.members {
        let Some(gradient) = gradients.get(member.index).filter(|g| g.defined()) else { continue };
        let mut place = flat.f_narrow(0, length(member.begin), length(member.elements))?;
        no_grad(|| place.f_copy_(&gradient.f_reshape([-1])?))?;
    }
    no_grad(|| flat.f_mul_scalar_(weight))
}

fn take_out(
    bucket: &Bucket,
    flat: &Tensor,
    parameters: &[&Tensor],
    somewhere: &[bool],
) -> Result<()> {
    for member in &bucket.members {
        let is_defined = somewhere.get(member.index).copied().unwrap_or(false);
        let Some(parameter) = parameters.get(member.index).filter(|_| is_defined) else { continue };
        let length = |elements: usize| i64::try_from(elements).unwrap_or(i64::MAX);
        let values = flat.f_narrow(0, length(member.begin), length(member.elements));
        place_gradient(parameter, &values.map_err(|e| device_error(&e))?)?;
    }
    Ok(())
}

/// Gives all ranks the coordinator's values, bit for bit.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a tensor without plain bytes; as [`DevicePlane::wait`], which end
/// the plane.
pub(super) fn broadcast(plane: &dyn DevicePlane, tensors: &[Tensor]) -> Result<()> {
    // First all, so that no rank is missing in the middle.
    tensors.iter().try_for_each(|tensor| crate::torch::spec_of(tensor).map(drop))?;
    broadcast_each(plane, tensors).inspect_err(|error| plane.fail(error))
}

fn broadcast_each(plane: &dyn DevicePlane, tensors: &[Tensor]) -> Result<()> {
    for tensor in tensors.iter().filter(|tensor| tensor.numel() > 0) {
        let packed = tensor.detach().f_contiguous().map_err(|e| device_error(&e))?;
        let bytes = packed.numel() * packed.kind().elt_size_in_bytes();
        let address = packed.data_ptr().expose_provenance() as u64;
        // A save beside this must not take it for unchanged.
        crate::torch::count_change(tensor)?;
        let mark = plane.broadcast(Rank::COORDINATOR, address, bytes as u64)?;
        let travelling = Travelling { plane, flat: packed, mark };
        let arrived = travelling.arrived()?;
        if arrived.data_ptr() != tensor.data_ptr() {
            let copied = no_grad(|| tensor.shallow_clone().f_copy_(arrived));
            copied.map_err(|e| device_error(&e))?;
        }
    }
    Ok(())
}

/// Tries NCCL on this rank's `device` alone: loads it, joins a communicator of one rank, adds up and
/// broadcasts. What of it worked, in words, with NCCL's version in the log.
///
/// # Errors
/// [`ErrorKind::NotFound`] without NCCL, with all places that were looked at;
/// [`ErrorKind::Device`] with NCCL's or the driver's own words; [`ErrorKind::Mismatch`] if numbers
/// came out changed.
#[cfg(feature = "nccl")]
pub fn check_nccl(device: Device) -> Result<String> {
    let Device::Cuda(index) = device else {
        return Err(Error::new(ErrorKind::InvalidInput, "NCCL is for CUDA devices"));
    };
    let group = ProcessGroup::solo();
    group.use_nccl(crate::device::cuda::device(index))?;
    let plane = group.device_plane().ok_or_else(out_of_turn)?;
    let numbers =
        Tensor::f_randn([1 << 20], (Kind::Float, device)).map_err(|e| device_error(&e))?;
    let summed = Travelling::sum(plane.as_ref(), numbers.copy())?;
    let same = summed.arrived()?.equal(&numbers);
    let copy = [numbers.copy()];
    broadcast(plane.as_ref(), &copy)?;
    let both = same && copy.iter().all(|copy| copy.equal(&numbers));
    if !both {
        return Err(Error::new(ErrorKind::Mismatch, "numbers came out of NCCL changed"));
    }
    Ok("one rank joined, added up and broadcast".to_owned())
}

#[cfg(test)]
mod tests;
