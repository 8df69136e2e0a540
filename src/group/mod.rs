//! Processes that save and load together: joining, the vote, and the exchange of gradients.
//!
//! Two planes, kept apart. The control plane is one star for every launcher: each rank has one link
//! to the coordinator, over which votes and verdicts travel. The data plane sums gradients,
//! broadcasts parameters, and gathers what each rank has a part of. Checkpoint code uses the first
//! alone.
//!
//! # How waiting ends
//! Every wait has a deadline, counted from the last sign of progress of whom it waits for, not
//! from its start: slow is not dead. A closed connection ends it at once. A rank that works for
//! long calls [`Progress::add`]; a thread of its group passes that on.
//!
//! # Variables
//! `TCH_CHECKPOINT_LAUNCHER` (`auto`, `solo`, `tcp`, `mpi`, `slurm`), `TCH_CHECKPOINT_MASTER_PORT`
//! (port of rank 0 where `MASTER_PORT` belongs to somebody else), `TCH_CHECKPOINT_IFADDR`
//! (address that rank 0 binds), `TCH_CHECKPOINT_TOKEN` (secret that admits a rank; without it
//! the job id, which is none) and `TCH_CHECKPOINT_DEADLINE_MS` (see [`Deadlines::progress`]).

mod background;
mod data;
pub(crate) mod device_plane;
mod env;
mod exchange;
mod frame;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod heartbeat;
mod inbox;
mod job;
mod launch;
mod leave;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "mpi", feature = "nccl"))]
mod peers;
mod phase;
mod port_file;
#[cfg(feature = "sabotage")]
pub(crate) mod simulated;
mod star;
mod tcp;
#[cfg(test)]
mod tests;
mod threads;
mod turn;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use self::background::Seat;
use self::data::{DataPlane, NoData};
pub(crate) use self::device_plane::DevicePlane;
pub use self::job::JobId;
use self::phase::Answers;
pub(crate) use self::phase::{guarded, panic_text};
use self::star::Star;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::reuse::PlanCache;
use crate::plan::unchanged::EarlierSaves;
use crate::rank::{LocalRank, Rank, WorldSize};
use crate::sabotage::{self, Defect};

/// Which conversation a phase belongs to. Channels are independent of one another, so that a
/// background thread can save while training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Channel {
    /// The training loop.
    Training,
    /// A save that its caller waits for.
    Save,
    /// A save that runs beside training.
    Background,
}

impl Channel {
    const ALL: [Self; 3] = [Self::Training, Self::Save, Self::Background];

    fn index(self) -> usize {
        self as usize
    }
}

/// How long to wait for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For all ranks to come together. Default 600 s. All three are kept between a millisecond
    /// and a year.
    pub join: Duration,
    /// For any sign of progress of a rank that is waited for. Default 120 s; a group made by
    /// [`ProcessGroup::from_env`] takes it from `TCH_CHECKPOINT_DEADLINE_MS`, if set.
    pub progress: Duration,
    /// For one attempt to connect, and for a coordinator of another job to go away. Default 60 s.
    pub connect: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { join: seconds(600), progress: seconds(120), connect: seconds(60) }
    }
}

impl Deadlines {
    /// The same within bounds that clocks and sockets take: a millisecond to a year.
    fn bounded(&self) -> Self {
        let bound = |time: Duration| {
            time.clamp(Duration::from_millis(1), Duration::from_secs(365 * 24 * 60 * 60))
        };
        let Self { join, progress, connect } = self;
        Self { join: bound(*join), progress: bound(*progress), connect: bound(*connect) }
    }

    /// The same, or, with that defect, as good as none.
    fn kept(self) -> Self {
        if sabotage::is_on(Defect::NoDeadline) {
            return Self { progress: Duration::MAX, ..self }.bounded();
        }
        self
    }
}

/// Tells peers that this rank works; cheap to clone and to call.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Counts `bytes` (or any other measure of work) as done.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One rank's place in its job.
#[derive(Clone, Copy, Debug)]
struct Member {
    rank: Rank,
    local_rank: LocalRank,
    world: WorldSize,
}

/// The processes of a job, seen from one of them. A clone is the same membership.
///
/// Dropping the last clone closes the connections, which the peers take for the loss of this
/// rank; [`ProcessGroup::finish`] leaves in good order. The group of [`ProcessGroup::from_env`] over
/// TCP is kept by the process: it is left by `finish`, or by the end of the process.
#[derive(Clone)]
pub struct ProcessGroup(Arc<Inner>);

struct Inner {
    member: Member,
    deadlines: Deadlines,
    progress: Progress,
    /// Absent in a job of one rank.
    star: Option<Star>,
    data: Box<dyn DataPlane>,
    /// Between devices, once all ranks have agreed on one.
    device_plane: OnceLock<Arc<dyn DevicePlane>>,
    /// What this rank knows of plans that all have agreed on.
    plans: Mutex<PlanCache>,
    /// What it knows of checkpoints out of which saves take something over.
    earlier: Mutex<EarlierSaves>,
    /// For a save that runs beside training: the channel has room for one.
    background: background::Place,
    /// Present if MPI has to be finalised.
    #[cfg(feature = "mpi")]
    mpi: Option<&'static mpi::Owner>,
}

impl ProcessGroup {
    /// A job of this process alone; uses no network.
    #[must_use]
    pub fn solo() -> Self {
        Self::solo_with(Deadlines::default())
    }

    fn solo_with(deadlines: Deadlines) -> Self {
        let (rank, local_rank) = (Rank::COORDINATOR, LocalRank(0));
        Self::alone(Member { rank, local_rank, world: WorldSize::ONE }, deadlines)
    }

    /// The ranks of a job whose ranks are threads of this process, in rank order. Give each its
    /// own thread.
    ///
    /// # Panics
    /// If the operating system refuses a thread.
    #[must_use]
    #[expect(clippy::expect_used, clippy::needless_pass_by_value, reason = "meant for tests")]
    pub fn threads(world: WorldSize, deadlines: Deadlines) -> Vec<ProcessGroup> {
        Self::try_threads(world, &deadlines).expect("threads can be started")
    }

    /// As [`ProcessGroup::threads`].
    ///
    /// # Errors
    /// If the operating system refuses a thread.
    pub(crate) fn try_threads(world: WorldSize, deadlines: &Deadlines) -> Result<Vec<Self>> {
        threads::groups(world, &deadlines.bounded())
    }

    /// Joins a job over TCP; returns when all ranks have come together. `address` is `host:port`
    /// of rank 0, which binds it; a loopback address admits this host alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a rank outside `world` or an address that cannot be bound
    /// or resolved; [`ErrorKind::Deadline`] naming the ranks that did not come;
    /// [`ErrorKind::Disagreement`] if the coordinator refuses this rank.
    pub fn tcp(
        rank: Rank,
        local_rank: LocalRank,
        world: WorldSize,
        address: &str,
        job: JobId,
        deadlines: Deadlines,
    ) -> Result<Self> {
        let meeting = tcp::Rendezvous::at(rank, address);
        let member = Member { rank, local_rank, world };
        tcp::join(member, meeting, &job, tcp::DataPlaneChoice::Tcp, deadlines)
    }

    /// The group of this process, found by how it was started: `TCH_CHECKPOINT_LAUNCHER`, else
    /// `RANK` and `WORLD_SIZE`, else the variables of an MPI launcher, else those of a Slurm
    /// step, else a job of one. The first call joins; later calls return the same group. Under
    /// MPI the calling thread owns MPI, and the group is kept only as long as the program does.
    ///
    /// # Errors
    /// As [`ProcessGroup::tcp`]; [`ErrorKind::InvalidInput`] for variables that contradict each
    /// other, that are incomplete, or that name a launcher which this build does not support.
    pub fn from_env() -> Result<Self> {
        launch::from_env()
    }

    /// Number of this process in its job.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.0.member.rank
    }

    /// How many processes the job has.
    #[must_use]
    pub fn world_size(&self) -> WorldSize {
        self.0.member.world
    }

    /// Number of this process on its host.
    #[must_use]
    pub fn local_rank(&self) -> LocalRank {
        self.0.member.local_rank
    }

    /// Whether this process merges plans, counts votes and commits.
    #[must_use]
    pub fn is_coordinator(&self) -> bool {
        self.rank().is_coordinator()
    }

    /// How long this group waits.
    #[must_use]
    pub fn deadlines(&self) -> &Deadlines {
        &self.0.deadlines
    }

    /// The handle by which long work keeps this rank from being taken for dead.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.0.progress.clone()
    }

    /// Runs one phase: `local` on every rank, then, if all succeeded, `decide` on the coordinator
    /// with the values in rank order, which gives one answer per rank. Panics in either count as
    /// errors. A phase runs to its verdict even if `local` fails on this rank.
    ///
    /// # Collective
    /// Every rank, with the same `name`, in the same order on that channel. Not from inside
    /// `local` or `decide`.
    ///
    /// # Errors
    /// The same on every rank that can be reached: what failed (with rank and phase, all failures
    /// in [`Error::failures`]); [`ErrorKind::Panic`]; [`ErrorKind::Disagreement`] if ranks are in
    /// different phases; [`ErrorKind::PeerLost`] at once when a connection closes, and from then
    /// on; [`ErrorKind::Deadline`] naming the ranks that made no progress. A rank that loses the
    /// coordinator gets [`ErrorKind::CoordinatorLost`], and cannot know the verdict.
    pub fn phase<T, R>(
        &self,
        channel: Channel,
        name: &str,
        local: impl FnOnce() -> Result<T>,
        decide: impl FnOnce(Vec<T>) -> Result<Vec<R>>,
    ) -> Result<R>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        phase::run(self, channel, name, local, |values| decide(values).map(Answers::Each))
    }

    /// A phase with one answer for all ranks; see [`ProcessGroup::phase`].
    ///
    /// # Errors
    /// As [`ProcessGroup::phase`].
    pub fn phase_all<T, R>(
        &self,
        channel: Channel,
        name: &str,
        local: impl FnOnce() -> Result<T>,
        decide: impl FnOnce(Vec<T>) -> Result<R>,
    ) -> Result<R>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + Clone,
    {
        phase::run(self, channel, name, local, |values| decide(values).map(Answers::Same))
    }

    /// Runs `work` on the coordinator alone, in a phase called `name`; every rank gets what came of
    /// it, also if that is an error or a panic. For what one rank must do while the others wait:
    /// a download, a look at a directory.
    ///
    /// ```
    /// # use tch_checkpoint::ProcessGroup;
    /// let group = ProcessGroup::solo();
    /// let files = group.on_coordinator("list", || Ok(vec!["a", "b"].len()))?;
    /// assert_eq!(files, 2);
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank, with the same `name`. `work` is not called on the others.
    ///
    /// # Errors
    /// That of `work`, on every rank; else as [`ProcessGroup::phase`].
    pub fn on_coordinator<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Clone,
    {
        self.phase_all(Channel::Training, name, || Ok(()), |_| work())
    }

    fn alone(member: Member, deadlines: Deadlines) -> Self {
        Self::assemble(member, deadlines, Progress::default(), None, Box::new(NoData))
    }

    fn assemble(
        member: Member,
        deadlines: Deadlines,
        progress: Progress,
        star: Option<Star>,
        data: Box<dyn DataPlane>,
    ) -> Self {
        Self(Arc::new(Inner {
            member,
            deadlines,
            progress,
            star,
            data,
            device_plane: OnceLock::new(),
            plans: Mutex::default(),
            earlier: Mutex::default(),
            background: background::Place::default(),
            #[cfg(feature = "mpi")]
            mpi: None,
        }))
    }

    /// What this rank remembers of the plans of earlier saves.
    pub(crate) fn plans(&self) -> MutexGuard<'_, PlanCache> {
        self.0.plans.lock()
    }

    /// What this rank remembers of earlier saves, to write again only what has changed.
    pub(crate) fn earlier(&self) -> MutexGuard<'_, EarlierSaves> {
        self.0.earlier.lock()
    }

    fn star(&self) -> Option<&Star> {
        self.0.star.as_ref()
    }
}

impl fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProcessGroup").field(&self.0.member).finish()
    }
}

/// A rank is one of its world.
fn check_member(member: Member) -> Result<()> {
    if member.rank.get() < member.world.get() {
        return Ok(());
    }
    let text = format!("rank {} in a job of {} ranks", member.rank, member.world);
    Err(Error::new(ErrorKind::InvalidInput, text))
}
