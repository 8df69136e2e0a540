//! Saving into files, from top to bottom as the protocol; see [`crate::save`] for its rules.

use std::time::Duration;

use crate::audit::audit;
use crate::catalog::CheckpointPath;
use crate::clock;
use crate::codec::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::{self, CheckpointName, SaveId};
use crate::manifest::{SUM_BYTES, SealInfo, sums_of};
use crate::memory::reserved;
use crate::plan::save::{MergedPlan, local_plan, merge_plans};
use crate::plan::{LocalPlan, OnExisting, WriteTimes};
use crate::rank::Rank;
use crate::report::{CommitTimes, RankSave, SaveBytes, SaveReport};
use crate::sabotage::{self, Defect};
use crate::save::{Checkpoint, SaveOptions, Timing, help_uncommitted, target, unix_ms};
use crate::shard::{RangePiece, write_ranges};
use crate::single::attempt::Attempt;
use crate::single::plan::{Content, FileLayout};
use crate::single::seams::check_seams;
use crate::space::Margin;
use crate::state::StateDict;
use crate::storage::{Storage, WriteFile};
use crate::sweep::{Pace, RETRY_INTERVAL};
use crate::tensor::Component;

/// What a rank writes into one file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Share {
    name: CheckpointName,
    pieces: Vec<RangePiece>,
}

/// What each rank learns in phase "plan file" or "plan files".
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Assignment {
    save_id: SaveId,
    shares: Vec<Share>,
}

/// What a rank brings to phase "commit": per file the block sums of its pieces.
pub(super) type Receipt = Vec<Bytes>;

/// The components of a plan, for each of which there is a file; `None` stands for all in one.
type Spread = fn(&MergedPlan) -> Vec<Option<Component>>;

/// Saves `state` as one safetensors file, with all values, and returns once it is committed for
/// every rank. The name is taken as it is; no extension is added.
///
/// # Collective
/// Every rank of the group, with the same `path` and `options`; two phases. Every rank writes its
/// share of the bytes into the one file, which the storage must allow
/// ([`Directory::open_for_writing`](crate::storage::Directory::open_for_writing)).
///
/// # Durability
/// As [`save`](fn@crate::save::save): a crash leaves the old file or the new one.
///
/// # Errors
/// As [`save`](fn@crate::save::save); [`ErrorKind::InvalidInput`], before anything is written, if
/// manifest and block sums do not fit into a header of 100 MB (about 250 GB of tensors, less if
/// they are sharded along inner dimensions). [`ErrorKind::AlreadyExists`] also with
/// [`OnExisting::Replace`] if the name is taken by something that is no such file.
pub fn save_single_file(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
) -> Result<Checkpoint> {
    save_files(group, storage, path, state, options, "plan file", |_| vec![None])
}

/// Saves `state` as one file per component, `{stem}_{component}.safetensors`, all of one save. The
/// values travel in the `model` file, which is committed last and names the others.
///
/// # Collective
/// As [`save_single_file`].
///
/// # Errors
/// As [`save_single_file`]. Several renames are not atomic, so that nothing is ever replaced:
/// [`ErrorKind::AlreadyExists`] if any of the files exists, whatever `options.on_existing`. A
/// crash in the middle may leave files of components without a `model` file that names them; they
/// are no checkpoint, and can be removed.
pub fn save_multi_files(
    group: &ProcessGroup,
    storage: &dyn Storage,
    stem: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
) -> Result<Checkpoint> {
    let options = SaveOptions { on_existing: OnExisting::Refuse, ..options.clone() };
    save_files(group, storage, stem, state, &options, "plan files", by_component)
}

/// The first phase is called otherwise for each way of saving, so that ranks which save in different
/// ways are told so.
fn save_files(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    phase: &str,
    spread: Spread,
) -> Result<Checkpoint> {
    let mut timing = Timing::begin(group, path, options.step);
    let _inside = timing.enter();
    if options.audit {
        audit(group, state).map_err(help_uncommitted)?;
    }
    let mut coordinator: Option<Coordinator> = None;
    let local = || Ok(local_plan(target(path, options), state));
    let begin = |plans: Vec<LocalPlan>| {
        let merged = merge_plans(SaveId::random()?, &plans)?;
        let begun = make_files(group, storage, path, state, options, merged, spread)?;
        let answers = begun.assignments();
        coordinator = Some(begun);
        Ok(answers)
    };
    let assignment = timing.plan(|| group.phase(Channel::Save, phase, local, begin));
    let close = |coordinator: Option<Coordinator>| {
        if let Some(coordinator) = coordinator {
            coordinator.close(&Pace::of(group));
        }
    };
    let assignment = match assignment {
        Ok(assignment) => assignment,
        Err(error) => {
            close(coordinator);
            return Err(help_uncommitted(error));
        }
    };
    let vote = || {
        let write = || write(group, storage, path, &assignment, state);
        let (receipt, times) = timing.write(write, |(_, times)| times)?;
        Ok((receipt, timing.vote(times)))
    };
    let verdict = group.phase_all(Channel::Save, "commit", vote, |votes| match &mut coordinator {
        Some(coordinator) => {
            let (receipts, ranks): (Vec<Receipt>, Vec<RankSave>) = votes.into_iter().unzip();
            timing.publish(|| coordinator.commit(&receipts, &ranks, &timing, &Pace::of(group)))
        }
        None => Err(Error::new(ErrorKind::Disagreement, "commit without a plan")),
    });
    timing.judged(&verdict);
    close(coordinator);
    let (name, report) = verdict.map_err(|e| verdict_error(e, path, &assignment))?;
    timing.end(&report);
    let (path, save_id) = (path.directory().join(name.as_str()), assignment.save_id);
    Ok(Checkpoint { path, name, save_id, tensor_bytes: report.tensor_bytes, report })
}

/// First phase, coordinator: the files, hidden.
fn make_files(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    mut merged: MergedPlan,
    spread: Spread,
) -> Result<Coordinator> {
    // There is no directory to put them in: what is attached travels among the values.
    for (name, bytes) in state.attached_files() {
        merged.values.set(name.as_str(), bytes.to_vec());
    }
    let info = SealInfo {
        created_unix_ms: unix_ms(),
        library_version: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch_version: options.libtorch_version.clone(),
    };
    let (files, pace) = (spread(&merged), Pace::of(group));
    Coordinator::begin(storage, path, merged, info, files, options.margin(), &pace)
}

/// What the coordinator knows between the phases.
pub(super) struct Coordinator {
    attempt: Attempt,
    merged: MergedPlan,
    info: SealInfo,
    /// Per file, in the order of the attempt's: the component that it holds, if not all.
    files: Vec<(Option<Component>, FileLayout)>,
}

impl Coordinator {
    /// Lays out one file per entry of `components`, and makes them, hidden, if they fit
    /// with that margin.
    pub(super) fn begin(
        storage: &dyn Storage,
        path: &CheckpointPath,
        merged: MergedPlan,
        info: SealInfo,
        components: Vec<Option<Component>>,
        margin: Margin,
        pace: &Pace,
    ) -> Result<Self> {
        let siblings = siblings(components.iter());
        let (mut files, mut names) = (Vec::new(), Vec::new());
        for only in components {
            let layout = FileLayout::of(content(&merged, &info, &siblings, only.as_ref()))?;
            let name = match &only {
                None => path.name().clone(),
                Some(component) => layout::component_file(path.name(), component)?,
            };
            names.push((name, layout.len));
            files.push((only, layout));
        }
        let parent = storage.create_dir_all(path.directory())?;
        let on_existing = merged.target.on_existing;
        let save_id = merged.save_id;
        let attempt = Attempt::begin(parent, &names, save_id, on_existing, margin, pace)?;
        Ok(Self { attempt, merged, info, files })
    }

    /// After the verdict: what is left of the attempt, or of what it replaced.
    pub(super) fn close(self, pace: &Pace) {
        self.attempt.close(pace);
    }

    pub(super) fn assignments(&self) -> Vec<Assignment> {
        let names = self.attempt.names();
        let of_rank = |rank: usize| {
            let shares = names.iter().zip(&self.files).map(|(name, (_, layout))| Share {
                name: name.clone(),
                pieces: layout.share(rank),
            });
            Assignment { save_id: self.merged.save_id, shares: shares.collect() }
        };
        (0..self.merged.plans.len()).map(of_rank).collect()
    }

    /// Believe nothing, then publish.
    pub(super) fn commit(
        &mut self,
        receipts: &[Receipt],
        ranks: &[RankSave],
        timing: &Timing,
        pace: &Pace,
    ) -> Result<(CheckpointName, SaveReport)> {
        let mut steps = timing.steps();
        let siblings = siblings(self.files.iter().map(|(only, _)| only));
        let names = self.attempt.names();
        let (mut headers, mut bytes) = (Vec::new(), SaveBytes { tensors: 0, files: 0, linked: 0 });
        for (index, ((only, layout), name)) in self.files.iter().zip(&names).enumerate() {
            let sums = sums_in_file_order(layout, index, receipts)?;
            let partial = layout::partial_dir(name, &self.merged.save_id);
            let file = self.attempt.parent().open_file(&partial)?;
            check_seams(file.as_ref(), &layout.pieces, &sums, pace)?;
            let content = content(&self.merged, &self.info, &siblings, only.as_ref());
            headers.push(layout.header(content, &sums)?);
            bytes.tensors += layout.len - layout.data_start;
            bytes.files += layout.len;
        }
        let checks = steps.end("checks");
        let recorded = self.attempt.publish(&headers, pace)?;
        let publish = steps.end_at("publish", recorded);
        let times =
            CommitTimes { checks, publish, rename: steps.end("rename"), seal: Duration::ZERO };
        let name = names.into_iter().next();
        let name = name.ok_or_else(|| Error::new(ErrorKind::Disagreement, "no file was made"))?;
        Ok((name, timing.report(ranks, bytes, times)))
    }
}

/// The components of a plan; `model`, whose file holds the values, first, and always.
pub(super) fn by_component(merged: &MergedPlan) -> Vec<Option<Component>> {
    let planned = merged.plans.iter().flat_map(|plan| &plan.files);
    let mut components: Vec<_> = planned.map(|file| file.component.clone()).collect();
    components.sort();
    components.dedup();
    components.retain(|component| *component != Component::model());
    components.insert(0, Component::model());
    components.into_iter().map(Some).collect()
}

fn siblings<'a>(components: impl Iterator<Item = &'a Option<Component>>) -> Vec<Component> {
    components.skip(1).flatten().cloned().collect()
}

fn content<'a>(
    merged: &'a MergedPlan,
    info: &'a SealInfo,
    siblings: &'a [Component],
    only: Option<&'a Component>,
) -> Content<'a> {
    let has_values = only.is_none_or(|component| *component == Component::model());
    let siblings = if has_values { siblings } else { &[] };
    Content { merged, info, only, siblings, has_values }
}

/// Every rank: its bytes into the files that the coordinator made.
pub(super) fn write(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    assignment: &Assignment,
    state: &StateDict,
) -> Result<(Receipt, WriteTimes)> {
    let progress = group.progress();
    let (mut receipt, mut times) = (Receipt::new(), WriteTimes::default());
    for share in &assignment.shares {
        if share.pieces.is_empty() {
            receipt.push(Vec::new().into());
            continue;
        }
        let file = open_partial(group, storage, path, assignment, share)?;
        let sums = write_ranges(file.as_ref(), &share.pieces, state, &|bytes| {
            progress.add(bytes);
            sabotage::pass(group.rank(), "write", "part");
        })?;
        let written = clock::now();
        sabotage::finished(Defect::DataNotSynced, || file.finish())?;
        times.fsync += clock::now().saturating_duration_since(written);
        times.bytes += share.pieces.iter().map(|placed| placed.piece.size_bytes()).sum::<u64>();
        receipt.push(sums.into());
    }
    Ok((receipt, times))
}

/// The file was made on the coordinator's host; a network file system may need a moment.
fn open_partial(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    assignment: &Assignment,
    share: &Share,
) -> Result<Box<dyn WriteFile>> {
    let partial = layout::partial_dir(&share.name, &assignment.save_id);
    let until = clock::now() + Pace::of(group).patience;
    loop {
        let dir = storage.open_dir(path.directory());
        match dir.and_then(|dir| dir.open_for_writing(&partial)) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if clock::now() >= until {
                    return Err(not_shared(
                        "the file that the coordinator made is not visible on this rank",
                    )
                    .with_path(path.directory().join(partial)));
                }
            }
            opened => return opened,
        }
        clock::sleep(RETRY_INTERVAL);
    }
}

fn not_shared(message: &str) -> Error {
    Error::new(ErrorKind::NotShared, message)
        .with_help("is the directory on a file system that all ranks share?")
}

/// Puts the sums of all ranks into the order of the pieces of file number `file`.
fn sums_in_file_order<'a>(
    layout: &FileLayout,
    file: usize,
    receipts: &'a [Receipt],
) -> Result<Vec<u8>> {
    let of_rank = |receipt: &'a Receipt| receipt.get(file).map_or(Ok(&[][..]), Bytes::get);
    let mut rest: Vec<&[u8]> = receipts.iter().map(of_rank).collect::<Result<_>>()?;
    let mut sums = reserved(rest.iter().map(|own| own.len() as u64).sum())?;
    let wrong = |rank: usize| {
        let message = "the block sums reported are not those of the bytes planned";
        let rank = Rank::new(u32::try_from(rank).unwrap_or(u32::MAX));
        Error::new(ErrorKind::Disagreement, message).at_rank(rank)
    };
    for (rank, placed) in &layout.pieces {
        let len = usize::try_from(sums_of(placed.piece.size_bytes()) * SUM_BYTES);
        let own = rest.get_mut(*rank).zip(len.ok());
        let (own, len) = own.ok_or_else(|| wrong(*rank))?;
        sums.extend_from_slice(own.split_off(..len).ok_or_else(|| wrong(*rank))?);
    }
    match rest.iter().position(|own| !own.is_empty()) {
        Some(rank) => Err(wrong(rank)),
        None => Ok(sums),
    }
}

fn verdict_error(error: Error, path: &CheckpointPath, assignment: &Assignment) -> Error {
    let name = assignment.shares.first().map_or_else(|| path.name(), |share| &share.name);
    match error.kind() {
        ErrorKind::CoordinatorLost => {
            error.with_kind(ErrorKind::OutcomeUnknown).with_help(format!(
                "if `{}` holds save {}, it was committed; older files are untouched",
                path.directory().join(name.as_str()).display(),
                assignment.save_id
            ))
        }
        _ => help_uncommitted(error),
    }
}
