//! An NCCL for ranks that are threads: its sums and broadcasts are done by whoever comes last, and
//! it fails, lags or hangs where it is told to.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::api::{Api, Comm, DataType, Progress, UniqueId, Version};
use super::errors;
use crate::device::{Device, Locked, Mark, Queue, Rings};
use crate::error::{Error, Result};

/// What goes wrong on one rank.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// Joining never ends.
    pub(super) never_joins: bool,
    /// The code that joining ends with.
    pub(super) join_code: i32,
    /// The operation (from 1) that is refused, with this code.
    pub(super) refuse: Option<(u64, i32)>,
    /// The operation after which the communicator has this error.
    pub(super) breaks: Option<(u64, i32)>,
    /// How often the state is "in progress" after each call.
    pub(super) lag: u64,
    /// The operation from which on the state is "in progress" for ever.
    pub(super) stalls: Option<u64>,
    /// The device goes on for a while after an abort has returned.
    pub(super) lingers: bool,
    /// An abort returns only when the job lets it.
    pub(super) abort_hangs: bool,
}

/// All ranks of one job.
#[derive(Default)]
pub(super) struct Job {
    joined: AtomicU64,
    meeting: Mutex<Meeting>,
    changed: Condvar,
    pub(super) aborted: AtomicU64,
    pub(super) destroyed: AtomicU64,
    /// Lets aborts return that hang.
    pub(super) is_released: AtomicBool,
}

#[derive(Default)]
struct Meeting {
    given: Vec<(u32, Vec<u8>)>,
    ended: u64,
    result: Vec<u8>,
}

/// The library of one rank.
#[derive(Clone)]
pub(super) struct FakeNccl {
    pub(super) job: Arc<Job>,
    pub(super) faults: Faults,
}

impl Api for FakeNccl {
    fn version(&self) -> Result<Version> {
        Ok(Version::OLDEST)
    }

    fn unique_id(&self) -> Result<UniqueId> {
        Ok(UniqueId(vec![7; 128]))
    }

    fn init(&self, world: u32, id: &UniqueId, rank: u32) -> Result<Box<dyn Comm>> {
        assert_eq!(id.0, vec![7; 128], "the id of the coordinator");
        if self.faults.join_code != 0 {
            return Err(failure("joining", self.faults.join_code));
        }
        self.job.joined.fetch_add(1, SeqCst);
        Ok(Box::new(FakeComm(Arc::new(Inner {
            nccl: self.clone(),
            world,
            rank,
            operations: AtomicU64::new(0),
            running: AtomicU64::new(0),
            lag: AtomicU64::new(self.faults.lag),
            is_gone: AtomicBool::new(false),
        }))))
    }
}

pub(super) fn failure(what: &str, code: i32) -> Error {
    errors::error(what, code, "fake error", "fake words")
}

struct FakeComm(Arc<Inner>);

struct Inner {
    nccl: FakeNccl,
    world: u32,
    rank: u32,
    operations: AtomicU64,
    /// Operations that the device has not ended.
    running: AtomicU64,
    lag: AtomicU64,
    is_gone: AtomicBool,
}

impl Inner {
    /// Gives the device something to do, which an abort ends.
    fn queue(self: &Arc<Self>, stream: *mut c_void, task: impl FnOnce(&Self) + Send + 'static) {
        let inner = Arc::clone(self);
        inner.running.fetch_add(1, SeqCst);
        Stream::of(stream).push(move || {
            if !inner.is_gone.load(SeqCst) {
                task(&inner);
            }
            inner.running.fetch_sub(1, SeqCst);
        });
    }

    /// What comes out when all ranks have given theirs. The device waits for that; unless aborted,
    /// for ever.
    fn meet(&self, bytes: &mut [u8], combine: impl Fn(&[(u32, Vec<u8>)]) -> Vec<u8>) {
        let job = &self.nccl.job;
        let mut meeting = job.meeting.lock();
        meeting.given.push((self.rank, bytes.to_vec()));
        let turn = meeting.ended;
        if meeting.given.len() as u64 == u64::from(self.world) {
            meeting.given.sort_by_key(|(rank, _)| *rank);
            meeting.result = combine(&std::mem::take(&mut meeting.given));
            meeting.ended += 1;
            job.changed.notify_all();
        }
        while meeting.ended == turn && !self.is_gone.load(SeqCst) {
            job.changed.wait_for(&mut meeting, Duration::from_millis(1));
        }
        if meeting.ended == turn && self.nccl.faults.lingers {
            drop(meeting);
            std::thread::sleep(Duration::from_millis(100));
            return;
        }
        if meeting.ended != turn {
            bytes.copy_from_slice(&meeting.result);
        }
    }

    fn begin(&self) -> Result<Progress> {
        assert!(!self.is_gone.load(SeqCst), "used after it was freed");
        let number = self.operations.fetch_add(1, SeqCst) + 1;
        match self.nccl.faults.refuse {
            Some((at, code)) if at == number => Err(failure("a sum over NCCL", code)),
            _ => {
                self.lag.store(self.nccl.faults.lag, SeqCst);
                let goes_on = self.nccl.faults.lag > 0 || self.stalls();
                Ok(if goes_on { Progress::Going } else { Progress::Done })
            }
        }
    }

    fn stalls(&self) -> bool {
        self.nccl.faults.stalls.is_some_and(|at| self.operations.load(SeqCst) >= at)
    }

    fn free(&self, count: &AtomicU64) {
        assert!(!self.is_gone.swap(true, SeqCst), "freed twice");
        self.nccl.job.changed.notify_all();
        let faults = self.nccl.faults;
        while faults.abort_hangs && !self.nccl.job.is_released.load(SeqCst) {
            std::thread::yield_now();
        }
        while self.running.load(SeqCst) > 0 && !faults.lingers {
            std::thread::yield_now();
        }
        count.fetch_add(1, SeqCst);
    }
}

#[allow(unsafe_code)]
fn memory(address: u64, bytes: u64) -> &'static mut [u8] {
    let (address, bytes) = (usize::try_from(address).unwrap(), usize::try_from(bytes).unwrap());
    let begin = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the memory of a fake device is that of a vector which its owner keeps, and which
    // nobody else uses meanwhile.
    unsafe { std::slice::from_raw_parts_mut(begin, bytes) }
}

#[allow(unsafe_code)]
impl Comm for FakeComm {
    fn state(&self) -> Result<Progress> {
        let inner = &self.0;
        assert!(!inner.is_gone.load(SeqCst), "used after it was freed");
        let faults = inner.nccl.faults;
        let joined = inner.nccl.job.joined.load(SeqCst);
        if faults.never_joins || joined < u64::from(inner.world) {
            return Ok(Progress::Going);
        }
        if let Some((at, code)) = faults.breaks
            && inner.operations.load(SeqCst) >= at
        {
            return Err(failure("NCCL", code));
        }
        if inner.stalls() {
            return Ok(Progress::Going);
        }
        let less = |left: u64| left.checked_sub(1);
        match inner.lag.fetch_update(SeqCst, SeqCst, less) {
            Ok(_) => Ok(Progress::Going),
            Err(_) => Ok(Progress::Done),
        }
    }

    unsafe fn all_reduce_sum(
        &self,
        address: u64,
        count: u64,
        dtype: DataType,
        stream: *mut c_void,
    ) -> Result<Progress> {
        assert_eq!(dtype, DataType::F32, "all that the fake can add");
        let progress = self.0.begin()?;
        self.0.queue(stream, move |inner| {
            inner.meet(memory(address, count * 4), |all| {
                let mut sums = vec![0f32; usize::try_from(count).unwrap()];
                for (_, bytes) in all {
                    let values = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
                bytemuck::cast_slice(&sums).to_vec()
            });
        });
        Ok(progress)
    }

    unsafe fn broadcast(
        &self,
        root: u32,
        address: u64,
        bytes: u64,
        stream: *mut c_void,
    ) -> Result<Progress> {
        let progress = self.0.begin()?;
        self.0.queue(stream, move |inner| {
            inner.meet(memory(address, bytes), |all| {
                all.iter().find(|(rank, _)| *rank == root).map(|(_, b)| b.clone()).unwrap()
            });
        });
        Ok(progress)
    }

    fn finalize(&self) -> Result<Progress> {
        Ok(Progress::Done)
    }

    fn destroy(&self) -> Result<()> {
        self.0.free(&self.0.nccl.job.destroyed);
        Ok(())
    }

    fn abort(&self) -> Result<()> {
        self.0.free(&self.0.nccl.job.aborted);
        Ok(())
    }
}

/// A device of which only streams are used.
#[derive(Debug)]
pub(super) struct StreamDevice(Rings);

impl StreamDevice {
    pub(super) fn shared() -> Arc<dyn Device> {
        Arc::new(Self(Rings::new(0)))
    }
}

impl Device for StreamDevice {
    fn name(&self) -> &'static str {
        "stream:0"
    }

    fn rings(&self) -> &Rings {
        &self.0
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>> {
        let stream = Arc::new(Stream::default());
        let own = Arc::clone(&stream);
        std::thread::spawn(move || own.run());
        Ok(Box::new(StreamQueue(stream)))
    }

    #[allow(unsafe_code)]
    unsafe fn lock_pages(&self, _: *mut u8, _: usize) -> Result<Locked> {
        Ok(Box::new(()))
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// Does what it is given, in order, in a thread.
#[derive(Default)]
struct Stream {
    tasks: Mutex<(VecDeque<Task>, bool)>,
    changed: Condvar,
    queued: AtomicU64,
    done: AtomicU64,
}

impl Stream {
    #[allow(unsafe_code)]
    fn of<'a>(raw: *mut c_void) -> &'a Self {
        // SAFETY: the handle of a `StreamQueue`, which lives as long as the communicator.
        unsafe { &*raw.cast::<Self>() }
    }

    fn push(&self, task: impl FnOnce() + Send + 'static) {
        self.queued.fetch_add(1, SeqCst);
        self.tasks.lock().0.push_back(Box::new(task));
        self.changed.notify_all();
    }

    fn run(&self) {
        loop {
            let mut tasks = self.tasks.lock();
            while tasks.0.is_empty() && !tasks.1 {
                self.changed.wait(&mut tasks);
            }
            let Some(task) = tasks.0.pop_front() else { return };
            drop(tasks);
            task();
            self.done.fetch_add(1, SeqCst);
        }
    }
}

struct StreamQueue(Arc<Stream>);

impl Queue for StreamQueue {
    fn wait_for_compute(&mut self) -> Result<()> {
        Ok(())
    }

    fn hold_compute(&mut self) -> Result<()> {
        Ok(())
    }

    #[allow(unsafe_code)]
    unsafe fn to_host(&mut self, _: u64, _: *mut u8, _: usize) -> Result<()> {
        Err(failure("copying", 4))
    }

    #[allow(unsafe_code)]
    unsafe fn to_device(&mut self, _: *const u8, _: u64, _: usize) -> Result<()> {
        Err(failure("copying", 4))
    }

    fn mark(&mut self) -> Result<Mark> {
        Ok(Mark(self.0.queued.load(SeqCst)))
    }

    fn reached(&mut self, mark: Mark) -> Result<bool> {
        Ok(self.0.done.load(SeqCst) >= mark.0)
    }

    fn raw(&self) -> *mut c_void {
        Arc::as_ptr(&self.0).cast_mut().cast()
    }
}

impl Drop for StreamQueue {
    fn drop(&mut self) {
        self.0.tasks.lock().1 = true;
        self.0.changed.notify_all();
    }
}
