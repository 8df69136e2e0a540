//! Saving, from top to bottom as the protocol.
//!
//! ```text
//! phase "audit":  (if asked for) replicas are compared, see `audit`
//! phases "unchanged", "compare": what need not be written again, see `save/unchanged`
//! state (all, no I/O) → local_plan (all, pure)
//! phase "plan":   gather plans ─(coordinator) merge, balance, sweep, see that it fits,
//!                 make the attempt─ scatter; see `save/plan` for what is told again, and why
//!                 it is "plan beside" for a save beside training
//! phase "commit": write (all): piece → block sums → file → fsync → receipt
//!                 gather receipts ─(coordinator) check, seal, publish, rename─ one verdict
//! after:          (coordinator) remove what was replaced; failures are only logged
//! ```
//! Nothing returns between the two phases: a rank that fails or panics brings that to the vote.
//! [`save`] waits for both; [`save_async`] for the first, and runs the second beside training.

mod as_ranks;
mod background;
mod flight;
mod gate;
mod helper;
mod plan;
mod priority;
mod timing;
mod unchanged;
#[cfg(feature = "sabotage")]
mod unproved;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::audit::audit;
use crate::catalog::CheckpointPath;
use crate::clock;
use crate::commit::{Attempt, nobody_elses};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::{self, CheckpointName, SaveId};
use crate::manifest::{Manifest, OtherFile, SealInfo, hash16};
use crate::plan::save::MergedPlan;
use crate::plan::{LinkedComponent, OnExisting, Receipt, SaveTarget};
use crate::report::{CommitTimes, RankSave, SaveBytes, SaveReport};
use crate::sabotage;
use crate::shard::write_shards;
use crate::space::Margin;
use crate::state::StateDict;
use crate::storage::{Directory, Storage};
use crate::sweep::{Pace, RETRY_INTERVAL, log_failure};

pub(crate) use as_ranks::save_as_ranks;
pub use background::{AfterCommit, PendingSave, free_staging, save_async, save_async_overlapped};
#[cfg(fuzzing)]
pub(crate) use plan::fuzz_answer as fuzz_plan_answer;
use plan::{Assignment, Course, Planned, plan};
pub(crate) use timing::Timing;

/// How a save is to be done. The same on every rank.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// Training steps completed; stored, and decides which checkpoint is the latest.
    pub step: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// What to do if a checkpoint of that name exists. Default: refuse.
    pub on_existing: OnExisting,
    /// Whether replicas are compared first: boxes that several ranks declare equally must hold
    /// the same bytes, see [`audit`](fn@crate::audit::audit). Reads the whole state once more.
    /// Default: no.
    pub audit: bool,
    /// Warn if the storage has less than so many bytes left after this save. Default: 0, never.
    /// What does not fit at all is an error, whatever this says.
    pub space_reserve: u64,
    /// Whether a save that seems not to fit is tried all the same, with a warning: for storages
    /// that tell less than they have (compression, quotas told wrongly). Default: no.
    pub ignore_space: bool,
    /// Whether components are written again that have not changed since an earlier checkpoint of
    /// the same directory, so that no two checkpoints have a file in common. Default: no; their
    /// files are linked, which costs reading them in memory, and nothing on disk. (A fault of the
    /// disk in such a file is then a fault of each checkpoint that has it.)
    pub copy_unchanged: bool,
    /// Version of libtorch, for the record; empty without libtorch.
    pub libtorch_version: String,
}

impl SaveOptions {
    pub(crate) fn margin(&self) -> Margin {
        Margin { reserve: self.space_reserve, ignore_space: self.ignore_space }
    }
}

/// A committed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where it is.
    pub path: PathBuf,
    /// Its name; with [`OnExisting::Number`] it may differ from the one asked for.
    pub name: CheckpointName,
    /// Which attempt it came from.
    pub save_id: SaveId,
    /// Bytes of all tensors, each counted once.
    pub tensor_bytes: u64,
    /// What the save took, the same on every rank.
    pub report: SaveReport,
}

/// What the manifest says that no rank has planned or written.
struct Extras {
    attached: BTreeMap<String, Arc<[u8]>>,
    libtorch_version: String,
}

impl Extras {
    fn of(state: &StateDict, options: &SaveOptions) -> Self {
        let attached = state.attached_files().clone();
        Self { attached, libtorch_version: options.libtorch_version.clone() }
    }
}

/// Saves `state` as checkpoint `path` and returns once it is committed for every rank.
///
/// # Collective
/// Every rank of the group calls it with the same `path` and `options`; two phases, one to three
/// more where unchanged components are looked for, and one or two more for an audit. Every rank gets
/// the same verdict.
///
/// # Durability
/// On `Ok` the checkpoint survives a power cut on a disk that honours flushes: every file and
/// directory was fsynced before the rename that commits, and the parent directory after it.
///
/// # Errors
/// The checkpoint was not committed, and everything that existed before is untouched, unless the
/// kind is [`ErrorKind::DurabilityUncertain`] (complete and visible, but a power cut may take it
/// back) or [`ErrorKind::OutcomeUnknown`] (this rank lost the coordinator after its vote; the
/// directory tells). Else: [`ErrorKind::AlreadyExists`], [`ErrorKind::Disagreement`],
/// [`ErrorKind::NoSpace`], before anything is written, [`ErrorKind::NotShared`],
/// [`ErrorKind::Storage`], [`ErrorKind::PeerLost`], [`ErrorKind::Deadline`],
/// [`ErrorKind::Panic`], each naming rank and phase.
pub fn save(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
) -> Result<Checkpoint> {
    let mut timing = Timing::begin(group, path, options.step);
    let _inside = timing.enter();
    if options.audit {
        audit(group, state).map_err(help_uncommitted)?;
    }
    let planned = timing.plan(|| plan(group, storage, path, options, Course::Here, state, None))?;
    let extras = Extras::of(state, options);
    commit(group, Channel::Save, timing, path, &extras, planned, |assignment, timing| {
        let into = |dir: &dyn Directory, progress: &(dyn Fn(u64) + Sync)| {
            write_shards(dir, &assignment.plan, group.rank(), options.step, state, progress)
        };
        let write = || write(group, storage, path, assignment, into);
        timing.write(write, |receipt| &mut receipt.times)
    })
}

/// Phase "commit": every rank writes its share, the coordinator publishes; and what comes after.
fn commit(
    group: &ProcessGroup,
    channel: Channel,
    mut timing: Timing,
    path: &CheckpointPath,
    extras: &Extras,
    planned: Planned,
    write: impl FnOnce(&Assignment, &Timing) -> Result<Receipt>,
) -> Result<Checkpoint> {
    let Planned { assignment, mut coordinator, .. } = planned;
    let vote = || {
        let receipt = write(&assignment, &timing)?;
        Ok(Vote { own: timing.vote(receipt.times), receipt })
    };
    let verdict = group.phase_all(channel, "commit", vote, |votes| match &mut coordinator {
        Some((attempt, merged)) => {
            timing.publish(|| publish(group, &timing, attempt, merged, votes, extras))
        }
        None => Err(Error::new(ErrorKind::Disagreement, "commit without a plan")),
    });
    timing.judged(&verdict);
    close(group, coordinator);
    let report = verdict.map_err(|error| verdict_error(error, path, &assignment))?;
    timing.end(&report);
    Ok(Checkpoint {
        path: path.directory().join(assignment.name.as_str()),
        name: assignment.name,
        save_id: assignment.plan.save_id,
        tensor_bytes: report.tensor_bytes,
        report,
    })
}

/// What each rank brings to phase "commit".
#[derive(serde::Serialize, serde::Deserialize)]
struct Vote {
    receipt: Receipt,
    own: RankSave,
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_commit_vote(bytes: &[u8]) {
    if let Some(Ok(vote)) = crate::fuzzing::message::<Result<Vote>>(bytes) {
        let (ranks, bytes) =
            ([RankSave::default(), vote.own], SaveBytes { tensors: 1, files: 1, linked: 0 });
        let commit = CommitTimes::default();
        let report = SaveReport::of(&ranks, bytes, vote.own.stage, commit, vote.own.write.total);
        drop((report.to_string(), report.to_json()));
    }
}

/// Every rank: its share of the tensors into the directory of the attempt.
fn write(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    assignment: &Assignment,
    write_into: impl FnOnce(&dyn Directory, &(dyn Fn(u64) + Sync)) -> Result<Receipt>,
) -> Result<Receipt> {
    let dir = open_attempt(group, storage, path, assignment)?;
    let progress = group.progress();
    let written = write_into(dir.as_ref(), &|bytes| {
        progress.add(bytes);
        sabotage::pass(group.rank(), "write", "part");
    });
    let mut receipt = written.map_err(nobody_elses)?;
    receipt.times.bytes = receipt.file_bytes();
    Ok(receipt)
}

/// The attempt was made on the coordinator's host; a network file system may need a moment.
fn open_attempt(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    assignment: &Assignment,
) -> Result<Arc<dyn Directory>> {
    let partial = layout::partial_dir(&assignment.name, &assignment.plan.save_id);
    let until = clock::now() + Pace::of(group).patience;
    loop {
        let opened = storage.open_dir(path.directory()).and_then(|dir| dir.open_dir(&partial));
        match opened {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if clock::now() >= until {
                    return Err(Error::new(
                        ErrorKind::NotShared,
                        "the directory that the coordinator made is not visible on this rank",
                    )
                    .with_path(path.directory().join(partial))
                    .with_help("is the directory on a file system that all ranks share?"));
                }
            }
            opened => return opened,
        }
        clock::sleep(RETRY_INTERVAL);
    }
}

/// Phase "commit", coordinator: believe nothing, then publish.
fn publish(
    group: &ProcessGroup,
    timing: &Timing,
    attempt: &mut Attempt,
    merged: &MergedPlan,
    votes: Vec<Vote>,
    extras: &Extras,
) -> Result<SaveReport> {
    let (pace, mut steps) = (Pace::of(group), timing.steps());
    let (receipts, ranks): (Vec<Receipt>, Vec<RankSave>) =
        votes.into_iter().map(|vote| (vote.receipt, vote.own)).unzip();
    attempt.check_visible(&receipts, &pace)?;
    let checks = steps.end("checks");
    let files = receipts.iter().map(Receipt::file_bytes).sum();
    let mut others = Vec::new();
    if let Some(index) = crate::hf_index::index_of(merged)? {
        attempt.write_file(layout::HF_INDEX, &index)?;
        let len = index.len() as u64;
        others.push(OtherFile { name: layout::HF_INDEX.to_owned(), len, hash: hash16(&index) });
    }
    attempt.write_attached(&extras.attached, &pace)?;
    others.extend(merged.attached.iter().cloned());
    let info = SealInfo {
        created_unix_ms: unix_ms(),
        library_version: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch_version: extras.libtorch_version.clone(),
    };
    #[cfg(feature = "sabotage")]
    let receipts = unproved::complete(merged, receipts);
    let manifest = Manifest::seal(merged, receipts, others, info)?;
    let seal = steps.end("seal");
    let recorded = attempt.publish(&manifest, &pace)?;
    let publish = steps.end_at("publish", recorded);
    let commit = CommitTimes { checks, seal, publish, rename: steps.end("rename") };
    let linked = merged.linked.iter().map(LinkedComponent::bytes).sum();
    let bytes = SaveBytes { tensors: manifest.tensor_bytes(), files, linked };
    let (directory, name) = (attempt.directory().to_path_buf(), attempt.name().to_string());
    group.earlier().committed(&directory, &name, Arc::new(manifest));
    Ok(timing.report(&ranks, bytes, commit))
}

/// After the verdict, coordinator: what is left of the attempt, or of what it replaced.
fn close(group: &ProcessGroup, coordinator: Option<(Attempt, MergedPlan)>) {
    let Some((attempt, _)) = coordinator else { return };
    log_failure("ending an attempt", || {
        attempt.close(&Pace::of(group));
        Ok(())
    });
}

pub(crate) fn target(path: &CheckpointPath, options: &SaveOptions) -> SaveTarget {
    SaveTarget {
        directory: path.directory().to_string_lossy().into_owned(),
        name: path.name().to_string(),
        step: options.step,
        epoch: options.epoch,
        on_existing: options.on_existing,
        space_reserve: options.space_reserve,
        ignore_space: options.ignore_space,
        copy_unchanged: options.copy_unchanged,
        libtorch_version: options.libtorch_version.clone(),
    }
}

pub(crate) fn unix_ms() -> u64 {
    u64::try_from(clock::unix_time().as_millis()).unwrap_or(u64::MAX)
}

fn verdict_error(error: Error, path: &CheckpointPath, assignment: &Assignment) -> Error {
    let save_id = assignment.plan.save_id;
    match error.kind() {
        ErrorKind::CoordinatorLost => {
            error.with_kind(ErrorKind::OutcomeUnknown).with_help(format!(
                "if `{}` holds save {save_id}, it was committed; older checkpoints are untouched",
                path.directory().join(assignment.name.as_str()).display()
            ))
        }
        _ => help_uncommitted(error),
    }
}

pub(crate) fn help_uncommitted(error: Error) -> Error {
    const SAFE: &str = "nothing was committed; older checkpoints are untouched";
    let known = matches!(
        error.kind(),
        ErrorKind::DurabilityUncertain | ErrorKind::OutcomeUnknown | ErrorKind::Superseded
    );
    match error.help().map(str::to_owned) {
        _ if known => error,
        Some(help) if help.contains("nothing was") => error,
        Some(help) => error.with_help(format!("{help}; {SAFE}")),
        None => error.with_help(SAFE),
    }
}

#[cfg(test)]
mod tests;
