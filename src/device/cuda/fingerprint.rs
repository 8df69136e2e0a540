//! Hashing replicas where they lie: a kernel that is part of this program as PTX, which the driver
//! compiles for the device.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;

use super::driver::{Context, check, number};
use super::queue::CudaQueue;
use crate::device::wait::{PATIENCE, wait};
use crate::device::{Fingerprinter, Mark, Queue};
use crate::error::{Error, ErrorKind, Result};

const PTX: &str = concat!(include_str!("fingerprint.ptx"), "\0");
/// Threads of a block: the most that the kernel takes, eight warps.
const THREADS: u32 = 256;
/// Bytes that a block of threads sums up at a time: 4 KiB for each warp.
const STEP_BYTES: u64 = 8 * 4096;
/// A stream takes about a thousand kernels; twice this many are on their way.
const LAUNCHES_MAX: usize = 256;
/// Bytes of the sums of one range.
const SUMS_BYTES: usize = 16;

/// The kernel on one device, as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    function: sys::CUfunction,
    /// How many blocks of threads the device runs at once.
    blocks: u32,
}

// SAFETY: functions may be started from any thread in which their context is current; this is only
// the handle, never dereferenced.
#[allow(unsafe_code)]
unsafe impl Send for Kernel {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Kernel {}

impl Kernel {
    /// # Errors
    /// [`ErrorKind::Device`], also of a driver that does not know this version of PTX.
    pub(super) fn load(context: Context, index: usize) -> Result<Self> {
        let device = number(index)?;
        let _current = context.enter()?;
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a text that ends with a zero, and a place for one handle. It is never unloaded.
        #[allow(unsafe_code)]
        let loaded = unsafe { sys::cuModuleLoadData(&raw mut module, PTX.as_ptr().cast()) };
        check(loaded, "compiling the kernel that hashes replicas")?;
        // SAFETY: a module of this context, a text that ends with a zero, a place for one handle.
        #[allow(unsafe_code)]
        let found =
            unsafe { sys::cuModuleGetFunction(&raw mut function, module, c"fingerprint".as_ptr()) };
        check(found, "finding the kernel that hashes replicas")?;
        Ok(Self { function, blocks: blocks_at_once(function, device)? })
    }
}

fn blocks_at_once(function: sys::CUfunction, device: sys::CUdevice) -> Result<u32> {
    let (mut of_each, mut processors) = (0, 0);
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    // SAFETY: writes one number.
    #[allow(unsafe_code)]
    let told = unsafe { sys::cuDeviceGetAttribute(&raw mut processors, attribute, device) };
    check(told, "counting multiprocessors")?;
    // SAFETY: a function of the current context; writes one number.
    #[allow(unsafe_code)]
    let told = unsafe {
        sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
            &raw mut of_each,
            function,
            THREADS.cast_signed(),
            0,
        )
    };
    check(told, "asking for a kernel's occupancy")?;
    Ok(of_each.max(1).saturating_mul(processors.max(1)).unsigned_abs())
}

/// How many blocks of threads sum up so many bytes.
fn grid(bytes: u64, at_once: u32) -> u32 {
    let (steps, at_once) = (bytes.div_ceil(STEP_BYTES), at_once.max(1));
    u32::try_from(steps).map_or(at_once, |steps| steps.clamp(1, at_once))
}

/// A stream of its own, and the sums of all ranges in the device's memory.
pub(super) struct CudaFingerprinter {
    context: Context,
    queue: CudaQueue,
    kernel: Kernel,
    sums: sys::CUdeviceptr,
    announced: usize,
    queued: usize,
    /// After the last but some that were queued.
    earlier: Mark,
    /// Something may still be running.
    is_busy: bool,
}

impl CudaFingerprinter {
    /// # Errors
    /// [`ErrorKind::Device`], also if the device has no memory for the sums.
    pub(super) fn open(context: Context, kernel: Kernel, ranges: usize) -> Result<Self> {
        let mut queue = CudaQueue::open(&context)?;
        queue.wait_for_compute()?;
        let _current = context.enter()?;
        let mut sums = 0;
        let bytes = ranges.max(1).saturating_mul(SUMS_BYTES);
        // SAFETY: writes one address.
        #[allow(unsafe_code)]
        let taken = unsafe { sys::cuMemAlloc_v2(&raw mut sums, bytes) };
        check(taken, "taking device memory for hashes")?;
        let (announced, queued, earlier) = (ranges, 0, Mark::default());
        let opened =
            Self { context, queue, kernel, sums, announced, queued, earlier, is_busy: true };
        // SAFETY: memory of this length, just taken.
        #[allow(unsafe_code)]
        let cleared = unsafe { sys::cuMemsetD32Async(sums, 0, bytes / 4, opened.stream()) };
        check(cleared, "clearing device memory for hashes")?;
        Ok(opened)
    }

    fn stream(&self) -> sys::CUstream {
        self.queue.raw().cast()
    }

    fn finish(&mut self) -> Result<()> {
        let mark = self.queue.mark()?;
        wait(&mut self.queue, mark, PATIENCE)?;
        self.is_busy = false;
        Ok(())
    }
}

impl Fingerprinter for CudaFingerprinter {
    #[allow(unsafe_code)]
    unsafe fn queue(&mut self, mut address: u64, mut bytes: u64) -> Result<()> {
        if self.queued >= self.announced {
            let message = format!("more than the {} announced ranges", self.announced);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let _current = self.context.enter()?;
        let mut to = self.sums + (self.queued * SUMS_BYTES) as u64;
        let mut arguments: [*mut c_void; 3] =
            [(&raw mut address).cast(), (&raw mut bytes).cast(), (&raw mut to).cast()];
        let (blocks, stream) = (grid(bytes, self.kernel.blocks), self.stream());
        let (function, none) = (self.kernel.function, ptr::null_mut());
        self.is_busy = true;
        // SAFETY: these are the kernel's three parameters, which the driver copies; it reads the
        // range, which the caller keeps, and adds to sums of its own.
        let launched = unsafe {
            let arguments = arguments.as_mut_ptr();
            sys::cuLaunchKernel(function, blocks, 1, 1, THREADS, 1, 1, 0, stream, arguments, none)
        };
        check(launched, "starting the kernel that hashes replicas")?;
        self.queued += 1;
        if self.queued.is_multiple_of(LAUNCHES_MAX) {
            let mark = self.queue.mark()?;
            wait(&mut self.queue, std::mem::replace(&mut self.earlier, mark), PATIENCE)?;
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<[u64; 2]>> {
        // First the kernels: a copy to memory that is not page-locked may keep its caller waiting,
        // however long they take.
        self.finish()?;
        let mut sums = vec![[0u64; 2]; self.queued];
        self.is_busy = true;
        // SAFETY: as long as the sums on the device, and never given back if the copy may still run.
        #[allow(unsafe_code)]
        let copied = unsafe {
            self.queue.to_host(self.sums, sums.as_mut_ptr().cast(), self.queued * SUMS_BYTES)
        };
        if let Err(error) = copied.and_then(|()| self.finish()) {
            std::mem::forget(sums);
            return Err(error);
        }
        Ok(sums)
    }
}

impl Drop for CudaFingerprinter {
    fn drop(&mut self) {
        // What still runs adds to this memory.
        if self.is_busy && self.finish().is_err() {
            return;
        }
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: taken by this, and nothing uses it any more.
        #[allow(unsafe_code)]
        let freed = unsafe { sys::cuMemFree_v2(self.sums) };
        if let Err(error) = check(freed, "giving back device memory") {
            tracing::debug!(%error, "hashes stay in device memory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::sums_of;

    #[test]
    fn a_range_gets_a_block_of_threads_for_every_eight_blocks_and_no_more_than_run_at_once() {
        let grids = [0, 1, STEP_BYTES, STEP_BYTES + 1, 1 << 40].map(|bytes| grid(bytes, 396));
        assert_eq!(grids, [1, 1, 1, 2, 396]);
        assert_eq!(grid(u64::MAX, 0), 1);
    }

    #[test]
    fn the_kernel_ends_with_a_zero_as_the_driver_wants_it() {
        assert_eq!(PTX.find('\0'), Some(PTX.len() - 1));
    }

    /// Only where there is a device.
    #[test]
    fn a_device_sums_up_what_the_host_does_at_every_alignment() {
        let Ok(device) = crate::device::cuda::device(0) else {
            eprintln!("no CUDA device: not tested");
            return;
        };
        let bytes: Vec<u8> = (0..=250).cycle().take(9_000_016).collect();
        let context = Context::primary(0).unwrap();
        let _current = context.enter().unwrap();
        let mut memory = 0;
        // SAFETY: writes one address; freed by nobody.
        #[allow(unsafe_code)]
        check(unsafe { sys::cuMemAlloc_v2(&raw mut memory, bytes.len()) }, "memory").unwrap();
        let mut queue = device.open_queue().unwrap();
        // SAFETY: both are that long, and waited for.
        #[allow(unsafe_code)]
        unsafe { queue.to_device(bytes.as_ptr(), memory, bytes.len()) }.unwrap();
        let mark = queue.mark().unwrap();
        wait(queue.as_mut(), mark, PATIENCE).unwrap();
        let lengths = [1, 100, 4095, 4096, 4097, 100_000, 9_000_000];
        let ranges: Vec<_> =
            (0..16).flat_map(|odd| lengths.map(|len| (odd, len)).into_iter()).collect();
        let mut fingerprinter = device.fingerprinter(ranges.len()).expect("a kernel");
        for (odd, len) in &ranges {
            // SAFETY: inside the memory, which is never freed.
            #[allow(unsafe_code)]
            unsafe { fingerprinter.queue(memory + *odd as u64, *len as u64) }.unwrap();
        }
        let sums = fingerprinter.collect().unwrap();
        assert_eq!(sums.len(), ranges.len());
        for ((odd, len), sums) in ranges.into_iter().zip(sums) {
            assert_eq!(sums, sums_of(&bytes[odd..odd + len]), "{len} bytes from {odd} on");
        }
    }
}
