//! Tensors as [`TensorSource`] and [`TensorSink`]: contiguous host memory without a copy, contiguous
//! memory of CUDA devices on queues of their own, anything else through bounded copies. Bytes go
//! through unchanged, whatever the dtype.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Kind, Tensor};

use super::convert::spec_of;
use super::ffi::{self, Form};
use super::torch_error;
use crate::device::{DeviceMemory, Uploads, cuda};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{TensorSink, TensorSource};
use crate::tensor::TensorSpec;

#[cfg(test)]
mod tests;

/// Most elements gathered or scattered at once: bounds the index tensor to 2 MiB.
const GATHER_ELEMENTS_MAX: i64 = 1 << 18;

/// A tensor to save. Holds the storage, so the variable may be dropped or moved to another
/// device meanwhile; its values must not change until they are staged. On a GPU, work that was
/// queued on the default stream before is waited for; that on another stream is not.
#[derive(Debug)]
pub struct TchSource {
    region: Region,
    is_steady: bool,
}

// SAFETY: `Tensor` is not `Sync` because handles allow mutation. This handle is a detached one
// that nobody else holds, and `TensorSource` only reads through it, which libtorch allows from
// several threads at once.
#[allow(unsafe_code)]
unsafe impl Sync for TchSource {}

impl TchSource {
    /// # Errors
    /// As [`spec_of`].
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let resolved = match ffi::describe(tensor)?.form {
            Form::Lazy => tensor.f_resolve_conj().and_then(|t| t.f_resolve_neg()),
            _ => Ok(tensor.shallow_clone()),
        };
        let resolved = resolved.map_err(|e| torch_error("resolving a lazy view", &e))?;
        Ok(Self { region: Region::new(&resolved)?, is_steady: false })
    }

    /// The same, marked as [steady](TensorSource::is_steady): it changes in the optimizer's step
    /// alone, as trainable parameters and moments do.
    #[must_use]
    pub fn steady(mut self) -> Self {
        self.is_steady = true;
        self
    }

    /// Dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.region.spec
    }
}

impl TensorSource for TchSource {
    fn bytes(&self) -> Option<&[u8]> {
        let (pointer, length) = self.region.host_memory()?;
        // SAFETY: `Region` keeps the storage alive, and the region spans exactly `length` bytes;
        // that nobody writes meanwhile is the contract of this type.
        #[allow(unsafe_code)]
        Some(unsafe { slice::from_raw_parts(pointer, length) })
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        self.region.device_memory()
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.region.check(offset, out.len())?;
        // A step that does not wait for a save may change a steady tensor meanwhile, which libtorch
        // bears and a reference does not: there is to be none.
        let bytes = if self.is_steady { None } else { self.bytes() };
        match bytes {
            Some(bytes) => bytes.read_into(offset, out),
            None => self.region.read(to_i64(offset), out),
        }
    }

    fn is_steady(&self) -> bool {
        self.is_steady
    }

    /// libtorch's count of changes in place, which all views of a tensor share. [`TchSink`] counts
    /// as well; other writes through raw pointers are not seen.
    fn version(&self) -> Option<u64> {
        let version = self.region.tensor().f_internal_version().ok()?;
        u64::try_from(version).ok()
    }
}

/// A tensor to fill, in place and without autograd. What is written is in the tensor after
/// [`flush`](TensorSink::flush), and in host memory at once. While a load runs, nobody else may use
/// the tensor.
#[derive(Debug)]
pub struct TchSink {
    region: Region,
    /// Copies to a device that may still be on their way.
    uploads: Uploads,
}

impl TchSink {
    /// # Errors
    /// As [`spec_of`]; also [`ErrorKind::Unsupported`] for a tensor in which several elements
    /// share memory (expanded), or a lazily conjugated one.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let overlaps = |(size, stride): (i64, i64)| size > 1 && stride == 0;
        let spec = spec_of(tensor)?;
        let lazy = ffi::describe(tensor)?.form == Form::Lazy;
        if lazy || tensor.size().into_iter().zip(tensor.stride()).any(overlaps) {
            let message = format!("{spec}: an expanded or lazily conjugated view cannot be filled");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_help("load into the tensor that it is a view of"));
        }
        Ok(Self { region: Region::new(tensor)?, uploads: Uploads::default() })
    }

    /// Dtype and shape.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.region.spec
    }
}

impl TensorSink for TchSink {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let (pointer, length) = self.region.host_memory()?;
        // Before the change, so that whoever finds it half done can know.
        ffi::count_change(self.region.tensor()).ok()?;
        // SAFETY: as in `TchSource::bytes`; exclusive use during a load is the contract of this
        // type.
        #[allow(unsafe_code)]
        Some(unsafe { slice::from_raw_parts_mut(pointer, length) })
    }

    fn device_memory(&mut self) -> Option<DeviceMemory> {
        self.region.device_memory()
    }

    fn count_change(&mut self) -> Result<()> {
        ffi::count_change(self.region.tensor())
    }

    fn prepare(&mut self) -> Result<()> {
        self.region.prepare()
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.region.check(offset, bytes.len())?;
        if let Some(place) = self.bytes_mut() {
            return place.write_at(offset, bytes);
        }
        if let Some(memory) = self.region.device_memory() {
            ffi::count_change(self.region.tensor())?;
            let Some(pending) = memory.write(offset, bytes)? else {
                return self.region.write(to_i64(offset), bytes);
            };
            self.uploads.add(pending);
            return Ok(());
        }
        self.region.write(to_i64(offset), bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.uploads.settle()
    }
}

impl Drop for TchSink {
    /// Whoever uses the tensor next finds all of it there, or knows of an error.
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!(%error, "a tensor was not filled");
        }
    }
}

/// The bytes of a tensor in row-major order.
#[derive(Debug)]
struct Region {
    spec: TensorSpec,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Contiguous: one dimension of bytes, on the host or a device.
    Flat(Tensor),
    /// Strided: viewed as integers of the same width, so that every dtype can be gathered.
    Strided(Tensor),
}

impl Region {
    fn new(tensor: &Tensor) -> Result<Self> {
        let spec = spec_of(tensor)?;
        let view = || {
            // An own handle without autograd; it also stays with this storage when the variable
            // is given another one.
            let detached = tensor.f_detach()?;
            if detached.is_contiguous() {
                let elements = to_i64(spec.elements());
                let flat = detached.f_as_strided([elements], [1], None)?;
                return Ok(Place::Flat(flat.f_view_dtype(Kind::Uint8)?));
            }
            Ok(Place::Strided(detached.f_view_dtype(word_of(&spec))?))
        };
        let place = view().map_err(|e| torch_error("viewing a tensor as bytes", &e))?;
        Ok(Self { spec, place })
    }

    fn tensor(&self) -> &Tensor {
        match &self.place {
            Place::Flat(tensor) | Place::Strided(tensor) => tensor,
        }
    }

    fn check(&self, offset: u64, length: usize) -> Result<()> {
        let size = self.spec.size_bytes();
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > size) {
            let message = format!("the tensor holds {size} bytes, not {offset} + {length}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(())
    }

    /// Address and length, if it is contiguous memory of the host.
    fn host_memory(&self) -> Option<(*mut u8, usize)> {
        let Place::Flat(flat) = &self.place else { return None };
        if flat.device() != Device::Cpu {
            return None;
        }
        let length = usize::try_from(self.spec.size_bytes()).ok()?;
        if length == 0 {
            return Some((std::ptr::NonNull::dangling().as_ptr(), 0));
        }
        Some((flat.data_ptr().cast(), length))
    }

    /// The whole of it, if it is contiguous memory of a CUDA device.
    fn device_memory(&self) -> Option<DeviceMemory> {
        match &self.place {
            Place::Flat(flat) => flat_memory(flat),
            Place::Strided(_) => None,
        }
    }

    fn read(&self, offset: i64, out: &mut [u8]) -> Result<()> {
        let words = match &self.place {
            Place::Flat(flat) => return read_flat(flat, offset, out),
            Place::Strided(words) => words,
        };
        for (part, begin) in parts(out.len(), offset, self.width()) {
            let gathered = gather(words, &begin.elements)?;
            let Some(place) = out.get_mut(part) else { continue };
            read_flat(&gathered, begin.skip, place)?;
        }
        Ok(())
    }

    /// Takes what a write takes, and gives it back to libtorch, which keeps it for the next who asks
    /// for as much.
    fn prepare(&self) -> Result<()> {
        let Place::Strided(words) = &self.place else { return Ok(()) };
        let elements = 0..to_i64(words.numel() as u64).min(GATHER_ELEMENTS_MAX);
        let gathered = gather(words, &elements)?;
        let scattering = index(words, &elements);
        drop((gathered, scattering.map_err(|e| torch_error("filling a strided tensor", &e))?));
        Ok(())
    }

    fn write(&mut self, offset: i64, bytes: &[u8]) -> Result<()> {
        let width = self.width();
        let words = match &mut self.place {
            Place::Flat(flat) => return write_flat(flat, offset, bytes),
            Place::Strided(words) => words,
        };
        for (part, begin) in parts(bytes.len(), offset, width) {
            // Gathering first keeps the rest of an element that is written only in part.
            let gathered = gather(words, &begin.elements)?;
            let Some(source) = bytes.get(part) else { continue };
            write_flat(&gathered, begin.skip, source)?;
            scatter(words, &begin.elements, &gathered)?;
        }
        Ok(())
    }

    fn width(&self) -> i64 {
        to_i64(self.spec.dtype().size_bytes())
    }
}

/// Where a part of a byte range lies: the elements that it touches, and how many bytes of the
/// first one come before it.
struct Span {
    elements: std::ops::Range<i64>,
    skip: i64,
}

/// Cuts `length` bytes that begin at byte `offset` into parts of bounded size.
fn parts(
    length: usize,
    offset: i64,
    width: i64,
) -> impl Iterator<Item = (std::ops::Range<usize>, Span)> {
    let step = usize::try_from(GATHER_ELEMENTS_MAX * width).unwrap_or(usize::MAX);
    (0..length).step_by(step).map(move |begin| {
        let end = begin.saturating_add(step).min(length);
        let (first, last) = (offset + to_i64(begin as u64), offset + to_i64(end as u64));
        let elements = first / width..(last + width - 1) / width;
        (begin..end, Span { elements, skip: first % width })
    })
}

fn index(words: &Tensor, elements: &std::ops::Range<i64>) -> Result<Tensor, tch::TchError> {
    Tensor::f_arange_start(elements.start, elements.end, (Kind::Int64, words.device()))
}

/// The elements of a strided tensor as one dimension of bytes on its device.
fn gather(words: &Tensor, elements: &std::ops::Range<i64>) -> Result<Tensor> {
    let gathered = index(words, elements)
        .and_then(|index| words.f_take(&index))
        .and_then(|taken| taken.f_view_dtype(Kind::Uint8));
    gathered.map_err(|e| torch_error("gathering a strided tensor", &e))
}

fn scatter(words: &mut Tensor, elements: &std::ops::Range<i64>, bytes: &Tensor) -> Result<()> {
    let put = |words: &mut Tensor| {
        let source = bytes.f_view_dtype(words.f_kind()?)?;
        words.f_put_(&index(words, elements)?, &source, false)
    };
    let _same = put(words).map_err(|e| torch_error("filling a strided tensor", &e))?;
    Ok(())
}

/// A tensor of which nothing is used but that it is there.
struct Kept(#[allow(dead_code, reason = "held, not read")] Tensor);

// SAFETY: dropping it is all that is ever done with it, which libtorch allows from any thread.
#[allow(unsafe_code)]
unsafe impl Sync for Kept {}

/// A dimension of bytes on a CUDA device. One that the driver does not show is left to libtorch.
fn flat_memory(flat: &Tensor) -> Option<DeviceMemory> {
    let Device::Cuda(index) = flat.device() else { return None };
    let bytes = u64::try_from(flat.numel()).ok().filter(|bytes| *bytes > 0)?;
    let device = cuda::device(index).inspect_err(|error| {
        static IS_SAID: AtomicBool = AtomicBool::new(false);
        if !IS_SAID.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "copies of devices are left to libtorch: slower, and not beside training");
        }
    });
    let address = flat.data_ptr().addr() as u64;
    let kept = Arc::new(Kept(flat.shallow_clone()));
    // SAFETY: the bytes of a tensor on this device, whose storage `kept` holds; that nobody else
    // uses them meanwhile is the contract of the two types above.
    #[allow(unsafe_code)]
    Some(unsafe { DeviceMemory::new(device.ok()?, address, bytes, kept) })
}

fn read_flat(flat: &Tensor, offset: i64, out: &mut [u8]) -> Result<()> {
    if flat.device() == Device::Cpu {
        return ffi::read_host(flat, offset, out);
    }
    if let Some(memory) = flat_memory(flat)
        && memory.read(offset.unsigned_abs(), out)?
    {
        return Ok(());
    }
    let mut copy =
        || blob_mut(out)?.f_copy_(&flat.f_narrow(0, offset, to_i64(out.len() as u64))?);
    copy().map_err(|e| torch_error("copying from the device", &e))
}

fn write_flat(flat: &Tensor, offset: i64, bytes: &[u8]) -> Result<()> {
    let copy = || flat.f_narrow(0, offset, to_i64(bytes.len() as u64))?.f_copy_(&blob(bytes)?);
    copy().map_err(|e| torch_error("copying to the device", &e))
}

/// Host memory as a tensor of bytes, for one copy out of it.
fn blob(bytes: &[u8]) -> Result<Tensor, tch::TchError> {
    blob_at(bytes.as_ptr(), bytes.len())
}

/// The same, for one copy into it.
fn blob_mut(bytes: &mut [u8]) -> Result<Tensor, tch::TchError> {
    blob_at(bytes.as_mut_ptr(), bytes.len())
}

fn blob_at(begin: *const u8, length: usize) -> Result<Tensor, tch::TchError> {
    let size = [to_i64(length as u64)];
    // SAFETY: who copies holds the bytes, mutably where it copies into them, until the copy has
    // returned, and drops the tensor then; copies from and to pageable memory are synchronous.
    #[allow(unsafe_code)]
    unsafe {
        Tensor::f_from_blob(begin, &size, &[1], Kind::Uint8, Device::Cpu)
    }
}

/// An integer kind as wide as the elements: moves the bits of any dtype.
fn word_of(spec: &TensorSpec) -> Kind {
    match spec.dtype().size_bytes() {
        1 => Kind::Uint8,
        2 => Kind::Int16,
        4 => Kind::Int,
        _ => Kind::Int64,
    }
}

/// Exact: a [`TensorSpec`] bounds every size in bytes to `i64::MAX`.
fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
