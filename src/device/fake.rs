//! A device of host memory, for tests: each queue works in a thread of its own, and fails, lags or
//! hangs where it is told to.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::budget::Budget;
use super::{Device, DeviceMemory, Locked, Mark, Queue, Rings, Uploads};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{TensorSink, TensorSource};

/// What is to go wrong. Operations are counted from 1 over all queues of the device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// The operation that fails when it is queued.
    pub(crate) refuse: Option<u64>,
    /// The operation that fails when it is done, as most of a device's errors do.
    pub(crate) fail: Option<u64>,
    /// The operation that never ends.
    pub(crate) hang: Option<u64>,
    /// How long each takes.
    pub(crate) delay: Duration,
    /// No pages can be locked.
    pub(crate) no_locks: bool,
}

/// Addresses are those of host memory.
#[derive(Debug)]
pub(crate) struct FakeDevice {
    name: String,
    faults: Faults,
    shared: Arc<Shared>,
    rings: Rings,
}

#[derive(Debug, Default)]
struct Shared {
    operations: AtomicU64,
    locked: AtomicU64,
    locked_most: AtomicU64,
    /// What the computing stream still has to do, as a time at which it is done.
    computes_until: Mutex<Option<Instant>>,
}

impl FakeDevice {
    pub(crate) fn new(name: &str, faults: Faults) -> Arc<Self> {
        Self::with_budget(name, faults, &Budget::new(u64::MAX))
    }

    pub(crate) fn with_budget(name: &str, faults: Faults, budget: &Arc<Budget>) -> Arc<Self> {
        let (shared, rings) = (Arc::default(), Rings::within(budget));
        Arc::new(Self { name: name.to_owned(), faults, shared, rings })
    }

    /// The memory of `bytes`, which its caller keeps and does not touch meanwhile.
    pub(crate) fn memory(self: &Arc<Self>, bytes: &[u8]) -> DeviceMemory {
        let (address, len) = (bytes.as_ptr().addr() as u64, bytes.len() as u64);
        // Makes pointers of this address good again.
        let _ = bytes.as_ptr().expose_provenance();
        // SAFETY: whoever tests keeps the bytes, and waits for what is copied.
        #[allow(unsafe_code)]
        unsafe {
            DeviceMemory::new(self.clone(), address, len, Arc::new(()))
        }
    }

    /// The same for memory that is written to.
    pub(crate) fn memory_mut(self: &Arc<Self>, bytes: &mut [u8]) -> DeviceMemory {
        let _ = bytes.as_mut_ptr().expose_provenance();
        let (address, len) = (bytes.as_mut_ptr().addr() as u64, bytes.len() as u64);
        // SAFETY: whoever tests keeps the bytes, and waits for what is copied.
        #[allow(unsafe_code)]
        unsafe {
            DeviceMemory::new(self.clone(), address, len, Arc::new(()))
        }
    }

    /// The computing stream is busy for so long from now.
    pub(crate) fn compute_for(&self, time: Duration) {
        *self.shared.computes_until.lock() = Some(Instant::now() + time);
    }

    pub(crate) fn computes(&self) -> bool {
        self.shared.computes_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Operations that were queued so far.
    pub(crate) fn operations(&self) -> u64 {
        self.shared.operations.load(SeqCst)
    }

    /// Bytes that are page-locked, and the most that ever were.
    pub(crate) fn locked(&self) -> (u64, u64) {
        (self.shared.locked.load(SeqCst), self.shared.locked_most.load(SeqCst))
    }
}

/// A tensor on such a device, to save or to fill.
pub(crate) struct FakeTensor {
    device: Arc<FakeDevice>,
    bytes: Mutex<Vec<u8>>,
    is_steady: bool,
    uploads: Uploads,
}

impl FakeTensor {
    pub(crate) fn new(device: &Arc<FakeDevice>, bytes: Vec<u8>) -> Self {
        let (device, bytes) = (Arc::clone(device), Mutex::new(bytes));
        Self { device, bytes, is_steady: false, uploads: Uploads::default() }
    }

    pub(crate) fn steady(self) -> Self {
        Self { is_steady: true, ..self }
    }

    /// A step of training.
    pub(crate) fn fill(&self, byte: u8) {
        self.bytes.lock().fill(byte);
    }

    pub(crate) fn now(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }
}

impl TensorSource for FakeTensor {
    fn device_memory(&self) -> Option<DeviceMemory> {
        Some(self.device.memory_mut(&mut self.bytes.lock()))
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let memory = self.device.memory_mut(&mut self.bytes.lock());
        if memory.read(offset, out)? {
            return Ok(());
        }
        self.bytes.lock().read_into(offset, out)
    }

    fn is_steady(&self) -> bool {
        self.is_steady
    }
}

impl TensorSink for FakeTensor {
    fn device_memory(&mut self) -> Option<DeviceMemory> {
        Some(self.device.memory_mut(self.bytes.get_mut()))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let memory = self.device.memory_mut(self.bytes.get_mut());
        match memory.write(offset, bytes)? {
            Some(pending) => self.uploads.add(pending),
            None => self.bytes.get_mut().write_at(offset, bytes)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.uploads.settle()
    }
}

struct Unlock(Arc<Shared>, u64);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.locked.fetch_sub(self.1, SeqCst);
    }
}

impl Device for FakeDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn rings(&self) -> &Rings {
        &self.rings
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>> {
        let work = Arc::new(Work::default());
        let (own, faults) = (Arc::clone(&work), self.faults);
        let thread = std::thread::spawn(move || own.run(faults));
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(FakeQueue { work, shared, faults, queued: 0, thread: Some(thread) }))
    }

    #[allow(unsafe_code)]
    unsafe fn lock_pages(&self, begin: *mut u8, bytes: usize) -> Result<Locked> {
        let page = rustix::param::page_size();
        // A page of which only a part is locked makes copies of its other part fail.
        assert_eq!((begin.align_offset(page), bytes % page), (0, 0), "whole pages");
        if self.faults.no_locks {
            return Err(Error::new(ErrorKind::Device, "fake: pages cannot be locked"));
        }
        let now = self.shared.locked.fetch_add(bytes as u64, SeqCst) + bytes as u64;
        self.shared.locked_most.fetch_max(now, SeqCst);
        Ok(Box::new(Unlock(Arc::clone(&self.shared), bytes as u64)))
    }
}

/// What a stream takes before who gives it more has to wait.
const QUEUED_MAX: usize = 1000;

enum Task {
    Copy { number: u64, from: u64, to: u64, bytes: usize },
    Until(Instant),
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    done: u64,
    failed: bool,
    ends: bool,
}

impl Work {
    fn run(&self, faults: Faults) {
        loop {
            let mut state = self.state.lock();
            while state.tasks.is_empty() && !state.ends {
                self.changed.wait(&mut state);
            }
            let Some(task) = state.tasks.pop_front() else { return };
            let hangs = matches!(task, Task::Copy { number, .. } if faults.hang == Some(number));
            if hangs {
                while !state.ends {
                    self.changed.wait(&mut state);
                }
                return;
            }
            drop(state);
            let failed = task.run(faults);
            let mut state = self.state.lock();
            state.done += 1;
            state.failed |= failed;
        }
    }
}

impl Task {
    fn run(self, faults: Faults) -> bool {
        match self {
            Self::Until(time) => {
                std::thread::sleep(time.saturating_duration_since(Instant::now()));
                false
            }
            Self::Copy { number, from, to, bytes } => {
                std::thread::sleep(faults.delay);
                let fails = faults.fail == Some(number);
                if !fails {
                    copy(from, to, bytes);
                }
                fails
            }
        }
    }
}

#[allow(unsafe_code)]
fn copy(from: u64, to: u64, bytes: usize) {
    let from = std::ptr::with_exposed_provenance::<u8>(usize::try_from(from).unwrap());
    let to = std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(to).unwrap());
    // SAFETY: whoever queued it keeps both ranges and uses neither until a mark is reached; as on a
    // device, they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
}

struct FakeQueue {
    work: Arc<Work>,
    shared: Arc<Shared>,
    faults: Faults,
    queued: u64,
    thread: Option<JoinHandle<()>>,
}

impl FakeQueue {
    fn push(&mut self, task: Task) {
        self.queued += 1;
        let mut state = self.work.state.lock();
        assert!(state.tasks.len() < QUEUED_MAX, "a driver would keep its caller waiting");
        state.tasks.push_back(task);
        drop(state);
        self.work.changed.notify_all();
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let number = self.shared.operations.fetch_add(1, SeqCst) + 1;
        if self.faults.refuse == Some(number) {
            return Err(Error::new(ErrorKind::Device, "fake: refused"));
        }
        self.push(Task::Copy { number, from, to, bytes });
        Ok(())
    }
}

impl Queue for FakeQueue {
    fn wait_for_compute(&mut self) -> Result<()> {
        let until = *self.shared.computes_until.lock();
        if let Some(until) = until {
            self.push(Task::Until(until));
        }
        Ok(())
    }

    fn hold_compute(&mut self) -> Result<()> {
        Ok(())
    }

    #[allow(unsafe_code)]
    unsafe fn to_host(&mut self, from: u64, to: *mut u8, bytes: usize) -> Result<()> {
        self.copy(from, to.expose_provenance() as u64, bytes)
    }

    #[allow(unsafe_code)]
    unsafe fn to_device(&mut self, from: *const u8, to: u64, bytes: usize) -> Result<()> {
        self.copy(from.expose_provenance() as u64, to, bytes)
    }

    fn mark(&mut self) -> Result<Mark> {
        Ok(Mark(self.queued))
    }

    fn reached(&mut self, mark: Mark) -> Result<bool> {
        let state = self.work.state.lock();
        if state.failed {
            return Err(Error::new(ErrorKind::Device, "fake: a copy failed"));
        }
        Ok(state.done >= mark.0)
    }

    fn raw(&self) -> *mut c_void {
        std::ptr::null_mut()
    }
}

impl Drop for FakeQueue {
    fn drop(&mut self) {
        self.work.state.lock().ends = true;
        self.work.changed.notify_all();
        // What is queued is done first, unless it hangs.
        self.thread.take().map(JoinHandle::join);
    }
}
