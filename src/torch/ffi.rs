//! Safe wrappers of the C++ shim (`shim/shim.cpp`).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, ErrorKind, Result};

const MESSAGE_BYTES: usize = 1024;

/// How a tensor keeps its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Strided storage that can be copied byte by byte.
    Dense,
    /// No tensor at all.
    Undefined,
    /// COO or compressed sparse.
    Sparse,
    /// Integers with scale and zero point.
    Quantised,
    /// No plain storage: mkldnn, meta, nested.
    Opaque,
    /// Dense, but its bytes are still to be conjugated or negated.
    Lazy,
}

/// What the shim tells about a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Description {
    pub(super) form: Form,
    /// Equal for two handles of one variable, even when it is empty or was moved to a device.
    pub(super) identity: u64,
}

#[repr(C)]
#[derive(Default)]
struct RawDescription {
    form: i32,
    identity: u64,
}

/// What was in force on a thread before autocast was turned on.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct AutocastBefore {
    cuda: i32,
    enabled: i32,
    dtype: i32,
}

unsafe extern "C" {
    fn tch_checkpoint_describe(
        tensor: *const C_tensor,
        out: *mut RawDescription,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_add(
        tensor: *mut C_tensor,
        other: *const C_tensor,
        alpha: f64,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_addcmul(
        tensor: *mut C_tensor,
        a: *const C_tensor,
        b: *const C_tensor,
        value: f64,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_addcdiv(
        tensor: *mut C_tensor,
        a: *const C_tensor,
        b: *const C_tensor,
        value: f64,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_count_change(
        tensor: *const C_tensor,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_read(
        tensor: *const C_tensor,
        offset: usize,
        out: *mut u8,
        size: usize,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_clear_grad(
        tensor: *mut C_tensor,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_autocast_enter(
        cuda: bool,
        bfloat16: bool,
        previous: *mut AutocastBefore,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_autocast_leave(
        previous: *const AutocastBefore,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_get_rng(
        cuda_index: c_int,
        out: *mut u8,
        capacity: usize,
        length: *mut usize,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_set_rng(
        cuda_index: c_int,
        bytes: *const u8,
        length: usize,
        only_check: bool,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn tch_checkpoint_version() -> *const c_char;
}

/// Calls a function of the shim, and makes an error of its message.
fn call(doing: &str, function: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    let mut message = [0u8; MESSAGE_BYTES];
    if function(message.as_mut_ptr().cast(), message.len()) == 0 {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
    let first = text.lines().next().unwrap_or_default();
    Err(Error::new(ErrorKind::Device, format!("{doing}: {first}")))
}

pub(super) fn version() -> String {
    // SAFETY: a constant of the shim that ends with a zero byte.
    #[allow(unsafe_code)]
    let text = unsafe { CStr::from_ptr(tch_checkpoint_version()) };
    text.to_string_lossy().into_owned()
}

pub(super) fn describe(tensor: &Tensor) -> Result<Description> {
    let mut raw = RawDescription::default();
    // SAFETY: `tensor` is a live handle of torch-sys, `raw` outlives the call.
    call("inspecting a tensor", |message, size| unsafe {
        tch_checkpoint_describe(tensor.as_ptr(), &raw mut raw, message, size)
    })?;
    let form = match raw.form {
        0 => Form::Dense,
        1 => Form::Undefined,
        2 => Form::Sparse,
        3 => Form::Quantised,
        5 => Form::Lazy,
        _ => Form::Opaque,
    };
    Ok(Description { form, identity: raw.identity })
}

/// `tensor += alpha * other`, in place and without autograd.
pub(super) fn add(tensor: &mut Tensor, other: &Tensor, alpha: f64) -> Result<()> {
    // SAFETY: both are live handles of torch-sys; libtorch checks shapes and dtypes itself.
    call("adding in place", |message, size| unsafe {
        tch_checkpoint_add(tensor.as_mut_ptr(), other.as_ptr(), alpha, message, size)
    })
}

/// `tensor += value * a * b`, in place and without autograd.
pub(super) fn addcmul(tensor: &mut Tensor, a: &Tensor, b: &Tensor, value: f64) -> Result<()> {
    // SAFETY: as in `add`.
    call("multiplying and adding in place", |message, size| unsafe {
        let target = tensor.as_mut_ptr();
        tch_checkpoint_addcmul(target, a.as_ptr(), b.as_ptr(), value, message, size)
    })
}

/// `tensor += value * a / b`, in place and without autograd.
pub(super) fn addcdiv(tensor: &mut Tensor, a: &Tensor, b: &Tensor, value: f64) -> Result<()> {
    // SAFETY: as in `add`.
    call("dividing and adding in place", |message, size| unsafe {
        let target = tensor.as_mut_ptr();
        tch_checkpoint_addcdiv(target, a.as_ptr(), b.as_ptr(), value, message, size)
    })
}

/// Counts a change in place that libtorch does not see, for this tensor and all views of it.
pub(crate) fn count_change(tensor: &Tensor) -> Result<()> {
    // SAFETY: `tensor` is a live handle of torch-sys; the count is atomic.
    call("counting a change", |message, size| unsafe {
        tch_checkpoint_count_change(tensor.as_ptr(), message, size)
    })
}

/// Copies the bytes of a contiguous tensor in host memory that begin at `offset`, on this thread,
/// without a reference to them: somebody else may change them meanwhile.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the tensor is another one, or has fewer bytes.
pub(super) fn read_host(tensor: &Tensor, offset: i64, out: &mut [u8]) -> Result<()> {
    let held = tensor.numel().saturating_mul(tensor.kind().elt_size_in_bytes());
    let begin = usize::try_from(offset).ok();
    let fits = begin.and_then(|begin| begin.checked_add(out.len())).is_some_and(|end| end <= held);
    let (Some(begin), true) = (begin, fits && is_host(tensor)) else {
        let message = format!("no {} bytes of host memory at {offset}", out.len());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    };
    if out.is_empty() {
        return Ok(());
    }
    // SAFETY: `tensor` is a live handle of torch-sys, contiguous on the host, and the range was
    // checked against its bytes; `out` is ours.
    call("copying a tensor", |message, size| unsafe {
        let (out, len) = (out.as_mut_ptr(), out.len());
        tch_checkpoint_read(tensor.as_ptr(), begin, out, len, message, size)
    })
}

fn is_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.is_contiguous()
}

/// Makes the gradient undefined and frees it.
pub(super) fn clear_grad(tensor: &mut Tensor) -> Result<()> {
    // SAFETY: `tensor` is a live handle of torch-sys.
    call("clearing a gradient", |message, size| unsafe {
        tch_checkpoint_clear_grad(tensor.as_mut_ptr(), message, size)
    })
}

/// Turns autocast on for this thread, on CUDA or the CPU, to bfloat16 or half.
pub(super) fn autocast_enter(cuda: bool, bfloat16: bool) -> Result<AutocastBefore> {
    let mut before = AutocastBefore::default();
    // SAFETY: `before` outlives the call.
    call("turning autocast on", |message, size| unsafe {
        tch_checkpoint_autocast_enter(cuda, bfloat16, &raw mut before, message, size)
    })?;
    Ok(before)
}

/// Puts back what [`autocast_enter`] found; on the thread that called it.
pub(super) fn autocast_leave(before: &AutocastBefore) -> Result<()> {
    // SAFETY: `before` outlives the call, and holds what `autocast_enter` wrote.
    call("turning autocast off", |message, size| unsafe {
        tch_checkpoint_autocast_leave(before, message, size)
    })
}

/// State of the default generator of the CPU (`None`) or of a CUDA device.
pub(super) fn rng_state(cuda_index: Option<u16>) -> Result<Vec<u8>> {
    let device = cuda_index.map_or(-1, c_int::from);
    let mut bytes = Vec::new();
    let mut length = 0;
    // The first round only learns the length; it is constant for a device.
    for _ in 0..2 {
        bytes.resize(length, 0u8);
        let (out, capacity) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the shim writes at most `capacity` bytes to `out`, and the length.
        call("reading the random state", |message, size| unsafe {
            tch_checkpoint_get_rng(device, out, capacity, &raw mut length, message, size)
        })?;
    }
    Ok(bytes)
}

/// Sets what [`rng_state`] gave; or, if `only_check`, finds out whether that would work.
pub(super) fn set_rng_state(cuda_index: Option<u16>, bytes: &[u8], only_check: bool) -> Result<()> {
    let device = cuda_index.map_or(-1, c_int::from);
    let (data, length) = (bytes.as_ptr(), bytes.len());
    // SAFETY: the shim reads exactly `length` bytes, and libtorch validates them.
    call("setting the random state", |message, size| unsafe {
        tch_checkpoint_set_rng(device, data, length, only_check, message, size)
    })
}
