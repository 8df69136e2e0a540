//! Saving beside training: phase "plan beside" in the foreground, the rest in a thread.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::flight::Flight;
use super::gate::{Gate, Opens};
use super::helper::Helper;
use super::{
    Assignment, Checkpoint, Course, Extras, Planned, SaveOptions, Timing, commit, help_uncommitted,
    plan, write,
};
use crate::audit::audit;
use crate::catalog::CheckpointPath;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup, Seat, guarded, panic_text};
use crate::layout::{CheckpointName, SaveId};
use crate::plan::Receipt;
use crate::report::SaveReport;
use crate::sabotage::{self, Defect};
use crate::shard::write_filled;
use crate::shown;
use crate::stage::{Copying, Share, Staging};
use crate::state::StateDict;
use crate::storage::{Directory, Storage};
use crate::sync::JoinHandle;
use crate::trace::Held;

/// What the coordinator does after the commit, before the save counts as done: retention. On the
/// other ranks it is dropped. It runs no phase, and a panic in it is logged: whatever it does, the
/// checkpoint stays committed.
pub type AfterCommit = Box<dyn FnOnce(&Checkpoint) + Send>;

/// A save that goes on beside training. Dropping it waits for it, as [`PendingSave::wait`] does,
/// and logs an error that nobody has read.
///
/// A program that ends without either (by `exit`, or a kill) leaves what a crash leaves: the
/// checkpoints that were there, and a `.partial` that the next save into the directory removes.
/// Wait before [`ProcessGroup::finish`], which ends the membership of the thread as well.
#[must_use = "dropping it waits for the save"]
pub struct PendingSave {
    path: PathBuf,
    name: CheckpointName,
    save_id: SaveId,
    gate: Arc<Gate>,
    held: Arc<Held>,
    flight: Arc<Flight>,
    /// Present until it is waited for.
    verdict: Option<Verdict>,
    /// Given back, with its handle of the group, after the thread has dropped its own.
    _seat: Seat,
}

#[expect(clippy::large_enum_variant, reason = "one per save")]
pub(super) enum Verdict {
    Coming(JoinHandle<Result<Checkpoint>>),
    Here(Result<Checkpoint>),
}

impl PendingSave {
    /// Whether waiting would end at once. Ranks see it at different times.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.verdict {
            Some(Verdict::Coming(thread)) => thread.is_finished(),
            _ => true,
        }
    }

    /// Waits until everything is copied out of the state; afterwards steady boxes may change as
    /// well. Ends at once but for [`save_async_overlapped`]. Not collective; an error that is met
    /// meanwhile comes from [`PendingSave::wait`].
    pub fn wait_copied(&self) {
        let begun = clock::now();
        self.gate.pass();
        self.held.add("copying", begun);
    }

    /// Waits for the verdict, which is the same on every rank.
    ///
    /// # Errors
    /// As [`save`](fn@crate::save::save). [`ErrorKind::InvalidInput`] for a steady tensor that was
    /// changed before [`PendingSave::wait_copied`]: nothing was committed then.
    pub fn wait(mut self) -> Result<Checkpoint> {
        self.end().unwrap_or_else(|| Err(Error::new(ErrorKind::InvalidInput, "waited for twice")))
    }

    /// Where the checkpoint will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that it will have; with [`OnExisting::Number`](crate::OnExisting::Number) it may
    /// differ from the one asked for.
    #[must_use]
    pub fn name(&self) -> &CheckpointName {
        &self.name
    }

    /// Which attempt it is.
    #[must_use]
    pub fn save_id(&self) -> SaveId {
        self.save_id
    }

    /// Another save is left out because this one goes on; warns if that seems to be for ever.
    /// Coordinator; what it has counted by the commit is in the report.
    pub(crate) fn leave_one_out(&self, patience: Duration) {
        self.flight.leave_one_out(&self.path, patience);
    }

    fn end(&mut self) -> Option<Result<Checkpoint>> {
        let verdict = match self.verdict.take()? {
            Verdict::Here(verdict) => verdict,
            Verdict::Coming(thread) => thread.join().unwrap_or_else(|panic| {
                let message = format!("the saving thread panicked: {}", panic_text(&*panic));
                Err(Error::new(ErrorKind::Panic, message).with_path(&self.path))
            }),
        };
        if sabotage::is_on(Defect::LaxBackground) {
            return Some(Ok(Checkpoint {
                path: self.path.clone(),
                name: self.name.clone(),
                save_id: self.save_id,
                tensor_bytes: 0,
                report: SaveReport::default(),
            }));
        }
        Some(verdict)
    }
}

impl Drop for PendingSave {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.end() {
            tracing::error!(%error, path = %shown::path(&self.path), "a save beside training failed");
        }
    }
}

impl fmt::Debug for PendingSave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PendingSave");
        shown.field("path", &self.path).field("is_done", &self.is_done()).finish_non_exhaustive()
    }
}

/// Starts to save `state` as checkpoint `path`, and returns once all of `state` may change: this
/// rank's share, no more, is in memory of its own. Writing, commit and `after` follow in a thread.
///
/// The memory, as large as the share, stays for the next such save, because memory that is new to
/// the process is slower than the disk: [`free_staging`] gives it back, and so does the end of the
/// group. The thread writes at a priority below that of training: where
/// both want a core, it gets a tenth.
///
/// A group has room for one such save: as long as a [`PendingSave`] exists on a rank, the next
/// one is refused on every rank.
///
/// ```
/// use std::sync::Arc;
/// use tch_checkpoint::save::{SaveOptions, save_async};
/// use tch_checkpoint::state::StateDict;
/// use tch_checkpoint::storage::{MemoryStorage, Storage};
/// use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
/// use tch_checkpoint::{CheckpointPath, ProcessGroup};
///
/// let (group, path) = (ProcessGroup::solo(), CheckpointPath::parse("runs/step1")?);
/// let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
/// let mut state = StateDict::new();
/// let spec = TensorSpec::new(Dtype::U8, vec![4])?;
/// state.add(&Component::model(), TensorName::new("weight")?, spec, Arc::new(vec![7u8; 4]))?;
///
/// let options = SaveOptions { step: 1, ..SaveOptions::default() };
/// let pending = save_async(&group, &storage, &path, &state, &options, Box::new(|_| {}))?;
/// // … training goes on, and may change the weight …
/// let saved = pending.wait()?;
/// assert_eq!((saved.name.as_str(), saved.tensor_bytes), ("step1", 4));
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// Every rank, with the same `path` and `options`, as [`save`](fn@crate::save::save); phase
/// "commit" comes from the thread, on a channel of its own.
///
/// # Errors
/// On every rank at once: those of [`save`](fn@crate::save::save) up to phase "plan beside", and
/// [`ErrorKind::InvalidInput`] while another one is pending. All later ones, failing to copy
/// included, come from [`PendingSave::wait`].
pub fn save_async(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    after: AfterCommit,
) -> Result<PendingSave> {
    start(group, storage, path, state, options, after, Copying::Now)
}

/// As [`save_async`], but boxes that are [steady](crate::state::TensorSource::is_steady) are copied
/// by the thread, while the next forward and backward pass run.
///
/// Call [`PendingSave::wait_copied`] before the optimizer's step, and before anything else that
/// changes a steady box. A source that can tell its
/// [version](crate::state::TensorSource::version) fails the save if that was forgotten. (A version
/// counts when a change ends: one change that begins before the copy and outlasts writing and fsync
/// is not noticed, and gets into the checkpoint in part.)
///
/// # Collective
/// As [`save_async`].
///
/// # Errors
/// As [`save_async`].
pub fn save_async_overlapped(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    after: AfterCommit,
) -> Result<PendingSave> {
    start(group, storage, path, state, options, after, Copying::SteadyLater)
}

/// Frees what [`save_async`] has kept: memory as large as this rank's share of the last such save,
/// whose next one is then as slow as the first. Does nothing while one is pending, which keeps its
/// memory afterwards. Not collective. The end of the group frees it as well.
pub fn free_staging(group: &ProcessGroup) {
    drop(group.take_region());
}

fn start(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    after: AfterCommit,
    copying: Copying,
) -> Result<PendingSave> {
    let mut timing = Timing::begin(group, path, options.step);
    let inside = timing.enter();
    let seat = group.take_background();
    if options.audit {
        audit(group, state).map_err(help_uncommitted)?;
    }
    let refused = seat.as_ref().err().cloned();
    let helper = if refused.is_none() { Helper::start() } else { None };
    let refused = refused.as_ref();
    let course = Course::Beside { has_thread: helper.is_some() };
    let planned =
        timing.plan(|| plan(group, storage.as_ref(), path, options, course, state, refused))?;
    // An error here was this rank's vote, so that phase "plan beside" has failed.
    let seat = seat?;
    // From here on what a rank meets goes to the vote.
    let stage = || {
        let share = share(group, &planned.assignment, options.step);
        Staging::begin(share, state, copying, group.take_region(), &group.progress())
    };
    let staging = guarded(group.rank(), "commit", || timing.stage(stage));
    let gate = Arc::new(Gate::default());
    if copying == Copying::Now {
        gate.open();
    }
    let goes_beside = planned.goes_beside;
    let Assignment { name, plan } = &planned.assignment;
    let (name, save_id) = (name.clone(), plan.save_id);
    let (held, flight) = timing.go_beside();
    drop(inside);
    let job = Job {
        group: group.clone(),
        storage: Arc::clone(storage),
        path: path.clone(),
        step: options.step,
        extras: Extras::of(state, options),
        timing,
        planned,
        staging,
        gate: Arc::clone(&gate),
        after,
    };
    let path = path.directory().join(name.as_str());
    // Where one rank has no thread, all save now: what each waits for is then the same.
    let verdict = match helper.filter(|_| goes_beside) {
        Some(helper) => helper.run(job),
        None => Verdict::Here(job.run_here()),
    };
    let verdict = Some(verdict);
    Ok(PendingSave { path, name, save_id, gate, held, flight, verdict, _seat: seat })
}

fn share<'a>(group: &ProcessGroup, assignment: &'a Assignment, step: u64) -> Share<'a> {
    Share { plan: &assignment.plan, rank: group.rank(), step }
}

/// What the thread needs, all its own.
pub(super) struct Job {
    group: ProcessGroup,
    storage: Arc<dyn Storage>,
    path: CheckpointPath,
    step: u64,
    extras: Extras,
    timing: Timing,
    planned: Planned,
    staging: Result<Staging>,
    gate: Arc<Gate>,
    after: AfterCommit,
}

impl Job {
    /// While the caller waits.
    pub(super) fn run_here(mut self) -> Result<Checkpoint> {
        self.timing.hold_on();
        self.run(|| ())
    }

    /// `calm_down` is called when nobody waits for copies any more.
    pub(super) fn run(self, calm_down: impl FnOnce()) -> Result<Checkpoint> {
        let Self { group, storage, path, step, extras, timing, planned, staging, gate, after } =
            self;
        let _inside = timing.enter();
        let opens = Opens(Arc::clone(&gate));
        let write_share = |assignment: &Assignment, timing: &Timing| -> Result<Receipt> {
            let (staging, share) = (staging?, share(&group, assignment, step));
            let (staged, watch) = timing.stage(|| staging.finish(share, &group.progress()))?;
            gate.set_watch(watch);
            drop(opens);
            calm_down();
            let images = staged.images(share)?;
            let files = staged.files(&images);
            let alive = group.progress();
            let into = |dir: &dyn Directory, progress: &(dyn Fn(u64) + Sync)| {
                write_filled(dir, &assignment.plan, &files, progress, &alive)
            };
            let write = || write(&group, storage.as_ref(), &path, assignment, into);
            let receipt = timing.write(write, |receipt| &mut receipt.times)?;
            gate.check()?;
            group.keep_region(staged.into_region());
            Ok(receipt)
        };
        let channel = Channel::Background;
        let saved = commit(&group, channel, timing, &path, &extras, planned, write_share)?;
        if group.is_coordinator() {
            let done = guarded(group.rank(), "after", || {
                after(&saved);
                Ok(())
            });
            if let Err(error) = done {
                tracing::error!(%error, "what follows a commit failed; the checkpoint is there");
            }
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
