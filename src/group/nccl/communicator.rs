//! One communicator: joined with a deadline, given work on a queue of its own, left in good order
//! or aborted, and never waited for without an end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::api::{Api, Comm, DataType, Progress, UniqueId};
use super::peers::Peers;
use super::watchdog::{Seen, Watch, Watched};
use crate::device::{Device, Mark, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::group::DevicePlane;
use crate::rank::{Rank, WorldSize};
use crate::tensor::Dtype;

/// Between two looks at something that NCCL does beside the caller.
const PAUSE: Duration = Duration::from_micros(200);
/// Longest wait for the last words of a communicator.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an abort, and then for the device to see it.
const ABORT_MAX: Duration = if cfg!(test) { Duration::from_secs(2) } else { LEAVE_MAX };

/// Who joins.
pub(super) struct Membership {
    pub(super) rank: Rank,
    pub(super) world: WorldSize,
    pub(super) id: UniqueId,
    /// For all to come together, and for one exchange.
    pub(super) patience: Duration,
    pub(super) peers: Peers,
}

/// This rank's end.
pub(super) struct Communicator {
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
    patience: Duration,
}

/// What the thread of the watchdog sees as well.
struct Shared {
    comm: Handle,
    device: Arc<dyn Device>,
    queue: Mutex<Marked>,
    peers: Peers,
}

/// A communicator until it is freed. Its calls return soon, because it is a non-blocking one: who
/// frees it waits for those that go on, and later ones find it gone.
struct Handle {
    comm: RwLock<Option<Box<dyn Comm>>>,
    device: Arc<dyn Device>,
}

impl Handle {
    fn with<T>(&self, call: impl FnOnce(&dyn Comm) -> Result<T>) -> Result<T> {
        match &*self.comm.read() {
            Some(comm) => call(comm.as_ref()),
            None => Err(Error::new(ErrorKind::Device, "NCCL's communicator was aborted")),
        }
    }

    /// Waits until it is at rest; `go_on` says whether to wait longer.
    fn settle(&self, go_on: impl Fn() -> Result<()>) -> Result<()> {
        while self.with(|comm| comm.state())? == Progress::Going {
            go_on()?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Returns when that is done, or does not end: nobody may hang because NCCL does.
    fn abort(&self) {
        let Some(comm) = self.comm.write().take() else { return };
        let device = Arc::clone(&self.device);
        let abort = move || {
            // Else NCCL takes some memory of the first device, whichever this one is.
            let _current = device.enter()?;
            comm.abort()
        };
        match freed_within(ABORT_MAX, abort) {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::warn!(%error, "NCCL could not be aborted"),
            None => tracing::error!("NCCL's abort does not end within {ABORT_MAX:?}"),
        }
    }

    fn destroy(&self) -> Result<()> {
        self.comm.write().take().map_or(Ok(()), |comm| comm.destroy())
    }
}

struct Marked {
    queue: Box<dyn Queue>,
    /// After all that was queued so far.
    last: Mark,
    reached: u64,
}

impl Communicator {
    /// Joins the others, who do so at the same time. `patience` is for that, and later for each
    /// exchange.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], [`ErrorKind::PeerLost`], and [`ErrorKind::Deadline`] if they do not.
    pub(super) fn join(api: &dyn Api, device: &Arc<dyn Device>, with: Membership) -> Result<Self> {
        let begun = Instant::now();
        let _current = device.enter()?;
        let Membership { rank, world, id, patience, peers } = with;
        let comm = RwLock::new(Some(api.init(world.get(), &id, rank.get())?));
        let comm = Handle { comm, device: Arc::clone(device) };
        let settled = comm.settle(|| {
            peers.check(begun)?;
            in_time(begun, patience, "not all ranks have joined NCCL's communicator")
        });
        let queue = settled.and_then(|()| device.open_queue()).inspect_err(|_| comm.abort())?;
        let queue = Mutex::new(Marked { queue, last: Mark::default(), reached: 0 });
        let shared = Arc::new(Shared { comm, device: Arc::clone(device), queue, peers });
        let watch = Watch::new(patience);
        let thread = watch.start(Arc::clone(&shared) as Arc<dyn Watched>);
        let thread = thread.inspect_err(|_| shared.comm.abort())?;
        Ok(Self { shared, watch, thread: Some(thread), patience })
    }

    /// Gives it one piece of work, after all that the device computes by now.
    fn give(
        &self,
        work: impl FnOnce(&dyn Comm, *mut std::ffi::c_void) -> Result<Progress>,
    ) -> Result<Mark> {
        self.watch.check()?;
        let begun = Instant::now();
        let given = || {
            let _current = self.shared.device.enter()?;
            let mut marked = self.shared.queue.lock();
            marked.queue.wait_for_compute()?;
            let stream = marked.queue.raw();
            if self.shared.comm.with(|comm| work(comm, stream))? == Progress::Going {
                // Not on the stream yet: what is marked before that would be marked too early.
                self.shared.comm.settle(|| {
                    self.watch.check()?;
                    self.shared.peers.check(begun)?;
                    // All may be alive and say so, and yet not reach one another over NCCL.
                    in_time(begun, self.patience, "NCCL has not begun an exchange")
                })?;
            }
            marked.last = marked.queue.mark()?;
            Ok(marked.last)
        };
        match given() {
            Ok(mark) => {
                self.watch.begin();
                Ok(mark)
            }
            Err(error) => {
                // Part of it may be under way, in memory that the caller frees now.
                self.fail(&error);
                Err(error)
            }
        }
    }
}

impl DevicePlane for Communicator {
    fn device(&self) -> &Arc<dyn Device> {
        &self.shared.device
    }

    fn all_reduce_sum(&self, address: u64, count: u64, dtype: Dtype) -> Result<Mark> {
        let dtype = DataType::of(dtype)?;
        // SAFETY: the caller keeps the memory until the mark is reached.
        #[allow(unsafe_code)]
        self.give(|comm, stream| unsafe { comm.all_reduce_sum(address, count, dtype, stream) })
    }

    fn broadcast(&self, root: Rank, address: u64, bytes: u64) -> Result<Mark> {
        // SAFETY: the caller keeps the memory until the mark is reached.
        #[allow(unsafe_code)]
        self.give(|comm, stream| unsafe { comm.broadcast(root.get(), address, bytes, stream) })
    }

    fn fail(&self, error: &Error) {
        self.watch.fail(error);
        let _ = self.watch.check_when_ended();
    }

    fn is_at_rest(&self) -> bool {
        self.watch.is_at_rest()
    }

    fn wait(&self, mark: Mark) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.watch.check_when_ended()?;
            match self.shared.reached(mark) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // The next check ends this, when nothing is written any more.
                Err(error) => self.watch.fail(&error),
            }
            // Short at first: most are done within a step's time.
            match begun.elapsed() < Duration::from_millis(2) {
                true => std::thread::yield_now(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }
}

impl Shared {
    fn reached(&self, mark: Mark) -> Result<bool> {
        let mut marked = self.queue.lock();
        let reached = marked.queue.reached(mark)?;
        if reached {
            marked.reached = marked.reached.max(mark.0);
        }
        Ok(reached)
    }
}

/// What `free` answers, in a thread that is left alone if that takes longer than `bound`.
fn freed_within(
    bound: Duration,
    free: impl FnOnce() -> Result<()> + Send + 'static,
) -> Option<Result<()>> {
    let (tell, told) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new().name("tch-nccl-abort".into());
    let thread = thread.spawn(move || tell.send(free()));
    match thread {
        Ok(_) => told.recv_timeout(bound).ok(),
        Err(e) => {
            let message = format!("starting a thread: {e}");
            Some(Err(Error::new(ErrorKind::Storage, message)))
        }
    }
}

impl Watched for Shared {
    fn look(&self, since: Instant) -> Seen {
        // While somebody gives it work, that somebody looks.
        let Some(marked) = self.queue.try_lock() else {
            return Seen { done: Ok(false), progress: 0, nccl: Ok(()), peers: Ok(()) };
        };
        let (last, progress) = (marked.last, marked.reached);
        drop(marked);
        Seen {
            done: self.reached(last),
            progress,
            nccl: self.comm.with(|comm| comm.state()).map(drop),
            peers: self.peers.check(since),
        }
    }

    fn abort(&self) -> bool {
        self.comm.abort();
        // The device sees that on its own: until then it may write to memory of those who wait.
        let mut marked = self.queue.lock();
        let at_rest = marked
            .queue
            .mark()
            .and_then(|mark| crate::device::wait::wait(marked.queue.as_mut(), mark, ABORT_MAX));
        at_rest.inspect_err(|error| tracing::error!(%error, "after an aborted exchange")).is_ok()
    }
}

fn in_time(begun: Instant, patience: Duration, what: &str) -> Result<()> {
    if begun.elapsed() < patience {
        return Ok(());
    }
    let message = format!("{what} within {patience:?}");
    Err(Error::new(ErrorKind::Deadline, message)
        .with_help("NCCL_DEBUG=INFO shows what NCCL does, NCCL_SOCKET_IFNAME chooses its network"))
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let in_order = self.watch.end();
        if let Some(thread) = self.thread.take() {
            // Aborts first, if that is still to be done.
            let _ = thread.join();
        }
        if in_order {
            self.leave();
        }
    }
}

impl Communicator {
    /// In good order, as far as the others are there.
    fn leave(&self) {
        let (begun, comm) = (Instant::now(), &self.shared.comm);
        let left = self.shared.device.enter().and_then(|_current| {
            comm.with(|comm| comm.finalize())?;
            comm.settle(|| in_time(begun, LEAVE_MAX, "NCCL did not end"))?;
            comm.destroy()
        });
        if let Err(error) = left {
            tracing::debug!(%error, "NCCL is left without a goodbye");
            comm.abort();
        }
    }
}

#[cfg(test)]
mod tests;
