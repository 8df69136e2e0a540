//! The one thread that uses MPI, and how a process ends that has initialised it.
//!
//! Dropping rsmpi's `Universe` waits for all ranks in `MPI_Finalize`. It is kept here, out of
//! reach of unwinding: a rank that fails ends its job instead of hanging it.

use std::io::Write;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::environment::{self, Universe};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::Communicator;
use crossbeam_channel::{RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::group::phase;
use crate::rank::Rank;

/// Exit code of a job that has lost a rank, by whatever way.
const LOST: u8 = 5;
/// Exit code after a panic.
const PANICKED: u8 = 1;
/// Time in which a process that has dropped its group must end by itself, with its own exit code.
const DROPPED_GRACE: Duration = Duration::from_secs(2);
/// Time for the launcher to see why a rank was lost, before those that miss it end as well.
const CAUSE_FIRST: Duration = Duration::from_millis(500);

static OWNER: OnceLock<Owner> = OnceLock::new();

/// MPI as this process uses it.
pub(in crate::group) struct Owner {
    comm: OwnComm,
    /// Absent if the program has initialised MPI itself, and after the end.
    universe: Mutex<Option<Universe>>,
    finished: AtomicBool,
}

/// A communicator of our own, never freed, with the thread that may use it.
struct OwnComm {
    comm: ManuallyDrop<SimpleCommunicator>,
    thread: ThreadId,
    threading: Threading,
}

// SAFETY: MPI allows the handle on other threads only as far as its threading level says. `get`
// checks for the thread that has initialised MPI, `for_abort` for that thread or for
// MPI_THREAD_MULTIPLE; nothing else touches `comm`, and it is never dropped.
#[allow(unsafe_code)]
unsafe impl Send for OwnComm {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for OwnComm {}

impl OwnComm {
    fn is_mine(&self) -> bool {
        std::thread::current().id() == self.thread
    }

    fn get(&self) -> Option<&SimpleCommunicator> {
        self.is_mine().then_some(&*self.comm)
    }

    fn for_abort(&self) -> Option<&SimpleCommunicator> {
        (self.is_mine() || self.threading == Threading::Multiple).then_some(&*self.comm)
    }
}

/// Initialises MPI; the calling thread owns it from then on. Ends the process if that takes
/// longer than `limit`: MPI offers no way to give up.
pub(super) fn initialise(limit: Duration) -> Result<&'static Owner> {
    if OWNER.get().is_some() || environment::is_finalized() {
        let text = "this process has tried to join its MPI job before, or has left it";
        return Err(Error::new(ErrorKind::InvalidInput, text)
            .with_help("MPI can be initialised once; keep the group that from_env() gave"));
    }
    let text = format!("MPI_Init took longer than {limit:?}: a rank has not come, or hangs");
    let watchdog = Watchdog::start(limit, move || end(&text, || exit(LOST)));
    let (universe, threading) = match environment::initialize_with_threading(Threading::Multiple) {
        Some((universe, threading)) => (Some(universe), threading),
        None => (None, environment::threading_support()),
    };
    let comm = ManuallyDrop::new(SimpleCommunicator::world().duplicate());
    drop(watchdog);
    let comm = OwnComm { comm, thread: std::thread::current().id(), threading };
    let made = Owner { comm, universe: Mutex::new(universe), finished: AtomicBool::new(false) };
    let owner = OWNER.get_or_init(|| made);
    if threading < Threading::Funneled {
        let text = "this MPI allows no threads (it grants MPI_THREAD_SINGLE only)";
        return Err(Error::new(ErrorKind::Unsupported, text)
            .with_help("use an MPI with threads, or initialise it with MPI_THREAD_FUNNELED"));
    }
    owner.abort_on_panic();
    Ok(owner)
}

/// Ends the whole job with the exit code of `error`, if MPI is in use.
pub(in crate::group) fn leave(error: &Error) {
    let Some(owner) = OWNER.get().filter(|owner| owner.is_running()) else { return };
    if matches!(error.kind(), ErrorKind::PeerLost | ErrorKind::CoordinatorLost) {
        // The first exit code counts, and that of the rank which is gone says more.
        std::thread::sleep(CAUSE_FIRST);
    }
    owner.abort(error.exit_code());
}

impl Owner {
    /// The communicator of this job.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] on any thread but the one that joined, and after the end.
    pub(super) fn comm(&self) -> Result<&SimpleCommunicator> {
        let running = self.is_running();
        self.comm.get().filter(|_| running).ok_or_else(|| {
            let text = "MPI can be used only by the thread that called from_env(), until finish()";
            Error::new(ErrorKind::InvalidInput, text)
                .with_help("exchange data, and finish, on the thread that made the process group")
        })
    }

    pub(in crate::group) fn is_running(&self) -> bool {
        !self.finished.load(Ordering::Acquire) && !environment::is_finalized()
    }

    /// Whether this thread can finish.
    ///
    /// # Errors
    /// As [`Owner::comm`].
    pub(in crate::group) fn check_thread(&self) -> Result<()> {
        self.comm().map(drop)
    }

    /// Waits in `MPI_Finalize` for all ranks, at most for `limit`. A program that has
    /// initialised MPI itself does that part itself.
    pub(in crate::group) fn finalise(&self, limit: Duration) {
        self.finished.store(true, Ordering::Release);
        let text = format!("MPI_Finalize took longer than {limit:?}: a rank is gone, or hangs");
        let watchdog = Watchdog::start(limit, move || end(&text, || exit(LOST)));
        drop(self.universe.lock().take());
        drop(watchdog);
    }

    /// Called when the last handle of the group is gone without `finish()`: the process is given
    /// a moment to end by itself, with its own message and exit code, which ends the job.
    pub(in crate::group) fn dropped(&'static self, rank: Rank) {
        let text = format!(
            "rank {rank} dropped its process group without finish(), so its job is ended; call \
             ProcessGroup::finish() after success, and ProcessGroup::leave_with() on an error"
        );
        tracing::debug!("{text}");
        let end = move || end(&text, || self.abort(LOST));
        match Watchdog::start(DROPPED_GRACE, end) {
            // Runs until the process ends.
            Some(watchdog) => std::mem::forget(watchdog),
            None => self.abort(LOST),
        }
    }

    /// Ends all ranks. A thread that may not call MPI ends this one, which the launcher takes as
    /// a reason to end the others.
    fn abort(&self, code: u8) -> ! {
        match self.comm.for_abort() {
            Some(comm) if !environment::is_finalized() => comm.abort(code.into()),
            _ => exit(code),
        }
    }

    /// A panic on the owner's thread would leave the other ranks waiting. Inside a phase it is a
    /// vote; other threads may die as in any program.
    fn abort_on_panic(&'static self) {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            earlier(info);
            if self.comm.is_mine() && !phase::is_inside() && self.is_running() {
                end("this rank panicked, so its job is ended", || self.abort(PANICKED));
            }
        }));
    }
}

fn exit(code: u8) -> ! {
    std::process::exit(code.into())
}

/// Says why, then ends.
fn end(text: &str, how: impl FnOnce()) {
    // If nobody reads it, nothing can be done about it.
    drop(std::io::stdout().flush());
    drop(writeln!(std::io::stderr(), "tch-checkpoint: {text}"));
    how();
}

/// Acts unless it is dropped in time.
struct Watchdog(#[expect(dead_code, reason = "dropping it tells the thread")] Sender<()>);

impl Watchdog {
    /// None if the operating system refuses a thread; then nothing bounds the wait.
    fn start(limit: Duration, act: impl FnOnce() + Send + 'static) -> Option<Self> {
        let (alive, dropped) = crossbeam_channel::bounded::<()>(0);
        let watch = move || {
            if dropped.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                act();
            }
        };
        let thread = std::thread::Builder::new().name("tch-watchdog".into()).spawn(watch);
        thread.is_ok().then_some(Self(alive))
    }
}
