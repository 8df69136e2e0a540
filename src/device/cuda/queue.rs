//! A stream of its own, with events as marks.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::driver::{Context, check};
use crate::device::{Mark, Queue};
use crate::error::Result;

/// libtorch's stream in programs of `tch`: the legacy default stream.
const COMPUTE: sys::CUstream = ptr::null_mut();

pub(super) struct CudaQueue {
    context: Context,
    stream: sys::CUstream,
    marks: VecDeque<(Mark, sys::CUevent)>,
    /// Events that were reached, to be used again.
    spare: Vec<sys::CUevent>,
    last: Mark,
    reached: Mark,
}

// SAFETY: streams and events may be used from any thread in which their context is current, which
// every call here sees to; this is used by one thread at a time (`&mut self`).
#[allow(unsafe_code)]
unsafe impl Send for CudaQueue {}

impl CudaQueue {
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device).
    pub(super) fn open(context: &Context) -> Result<Self> {
        let _current = context.enter()?;
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        #[allow(unsafe_code)]
        check(unsafe { sys::cuStreamCreate(&raw mut stream, flags) }, "opening a stream")?;
        let (context, last) = (*context, Mark::default());
        let (marks, spare) = (VecDeque::new(), Vec::new());
        Ok(Self { context, stream, marks, spare, last, reached: last })
    }

    /// An event after all that `stream` was given so far.
    fn record(&mut self, stream: sys::CUstream) -> Result<sys::CUevent> {
        let event = match self.spare.pop() {
            Some(event) => event,
            None => new_event()?,
        };
        // SAFETY: both are of this context.
        #[allow(unsafe_code)]
        let recorded = unsafe { sys::cuEventRecord(event, stream) };
        check(recorded, "marking a stream").inspect_err(|_| self.spare.push(event))?;
        Ok(event)
    }

    /// Makes `later` wait, on the device, for all that `earlier` was given so far.
    fn order(&mut self, earlier: sys::CUstream, later: sys::CUstream) -> Result<()> {
        let _current = self.context.enter()?;
        let event = self.record(earlier)?;
        // SAFETY: both are of this context. The event may be recorded again at once: a wait is for
        // what it marked when the wait was queued.
        #[allow(unsafe_code)]
        let ordered = unsafe { sys::cuStreamWaitEvent(later, event, 0) };
        self.spare.push(event);
        check(ordered, "ordering two streams")
    }
}

fn new_event() -> Result<sys::CUevent> {
    let mut event = ptr::null_mut();
    let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: writes one handle.
    #[allow(unsafe_code)]
    check(unsafe { sys::cuEventCreate(&raw mut event, flags) }, "making an event")?;
    Ok(event)
}

impl Queue for CudaQueue {
    fn wait_for_compute(&mut self) -> Result<()> {
        self.order(COMPUTE, self.stream)
    }

    fn hold_compute(&mut self) -> Result<()> {
        self.order(self.stream, COMPUTE)
    }

    #[allow(unsafe_code)]
    unsafe fn to_host(&mut self, from: u64, to: *mut u8, bytes: usize) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: as the caller promises.
        let queued = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream) };
        check(queued, "copying from the device")
    }

    #[allow(unsafe_code)]
    unsafe fn to_device(&mut self, from: *const u8, to: u64, bytes: usize) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: as the caller promises.
        let queued = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream) };
        check(queued, "copying to the device")
    }

    fn mark(&mut self) -> Result<Mark> {
        let _current = self.context.enter()?;
        let event = self.record(self.stream)?;
        self.last = Mark(self.last.0 + 1);
        self.marks.push_back((self.last, event));
        Ok(self.last)
    }

    fn reached(&mut self, mark: Mark) -> Result<bool> {
        if self.reached >= mark {
            return Ok(true);
        }
        let _current = self.context.enter()?;
        while let Some((next, event)) = self.marks.front().copied() {
            // SAFETY: an event of this context.
            #[allow(unsafe_code)]
            let state = unsafe { sys::cuEventQuery(event) };
            if state == CUresult::CUDA_ERROR_NOT_READY {
                break;
            }
            check(state, "waiting for a copy")?;
            self.marks.pop_front();
            self.spare.push(event);
            self.reached = next;
        }
        Ok(self.reached >= mark)
    }

    fn raw(&self) -> *mut c_void {
        self.stream.cast()
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        let marks = self.marks.drain(..).map(|(_, event)| event);
        for event in marks.chain(self.spare.drain(..)) {
            // SAFETY: used nowhere else. What is not reached yet is freed by the driver then.
            #[allow(unsafe_code)]
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
        // SAFETY: used nowhere else. The driver frees it when what is queued is done.
        #[allow(unsafe_code)]
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}
