//! Saving in one process as many ranks would, whose state lies somewhere else: one share after the
//! other, so that no more memory is needed than for one.

use super::{
    Checkpoint, Extras, SaveOptions, Timing, Vote, help_uncommitted, publish, target, write,
};
use crate::catalog::CheckpointPath;
use crate::commit::Attempt;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::plan::save::{MergedPlan, local_plan, merge_equal_plans};
use crate::rank::Rank;
use crate::save::plan::Assignment;
use crate::shard::write_shards;
use crate::space::Need;
use crate::state::{StateDict, Values};
use crate::storage::{Directory, Storage};
use crate::sweep::{Pace, log_failure};

/// Most tensors times ranks: of each pair the plan keeps a number.
const ITEMS_MAX: usize = 20_000_000;

/// Saves `state` as a checkpoint of as many ranks as there are `rank_values`, of which each holds
/// all of it, as in data-parallel training: boxes are shared among them by bytes. `group` is solo.
///
/// # Errors
/// As [`save`](super::save()); [`ErrorKind::InvalidInput`] for too many ranks.
pub(crate) fn save_as_ranks(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    rank_values: &[Values],
    options: &SaveOptions,
) -> Result<Checkpoint> {
    let mut timing = Timing::begin(group, path, options.step);
    let _inside = timing.enter();
    let merged = timing.plan(|| merged(path, state, rank_values, options))?;
    let need = Need::of_plan(&merged, options.margin())?;
    let pace = Pace::of(group);
    let parent = storage.create_dir_all(path.directory())?;
    let (save_id, on_existing) = (merged.save_id, options.on_existing);
    let begun = Attempt::begin(parent, path.name(), save_id, on_existing, &need, &pace);
    let mut attempt = begun.map_err(help_uncommitted)?;
    let name = attempt.name().clone();
    let done = write_all(group, storage, path, state, options, &merged, &attempt, &timing)
        .and_then(|votes| {
            let extras = Extras::of(state, options);
            timing.publish(|| publish(group, &timing, &mut attempt, &merged, votes, &extras))
        });
    timing.judged(&done);
    log_failure("ending an attempt", || {
        attempt.close_copy(&pace);
        Ok(())
    });
    let report = done.map_err(help_uncommitted)?;
    timing.end(&report);
    Ok(Checkpoint {
        path: path.directory().join(name.as_str()),
        name,
        save_id,
        tensor_bytes: report.tensor_bytes,
        report,
    })
}

fn merged(
    path: &CheckpointPath,
    state: &StateDict,
    rank_values: &[Values],
    options: &SaveOptions,
) -> Result<MergedPlan> {
    let items = state.tensors().count().saturating_mul(rank_values.len());
    if items > ITEMS_MAX {
        let message = format!("{} ranks are too many for so many tensors", rank_values.len());
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let plan = local_plan(target(path, options), state);
    merge_equal_plans(SaveId::random()?, &plan, rank_values)
}

#[expect(clippy::too_many_arguments, reason = "what a save consists of")]
fn write_all(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    options: &SaveOptions,
    merged: &MergedPlan,
    attempt: &Attempt,
    timing: &Timing,
) -> Result<Vec<Vote>> {
    let of_rank = |(index, plan): (usize, &crate::plan::SavePlan)| {
        let rank = Rank::new(u32::try_from(index).unwrap_or(u32::MAX));
        let assignment = Assignment { name: attempt.name().clone(), plan: plan.clone() };
        let into = |dir: &dyn Directory, progress: &(dyn Fn(u64) + Sync)| {
            write_shards(dir, plan, rank, options.step, state, progress)
        };
        let write = || write(group, storage, path, &assignment, into);
        let receipt = timing.write(write, |receipt| &mut receipt.times)?;
        Ok(Vote { own: timing.vote(receipt.times), receipt })
    };
    merged.plans.iter().enumerate().map(of_rank).collect()
}
