//! Phase "plan": who writes what, and where.
//!
//! A rank whose structure all have planned before sends a hash of it. If all do so, and the
//! coordinator knows that job as well, the plan is the one of before, in the files of this
//! attempt. Else the answer to every rank is to send everything, in phase "plan again".
//!
//! What has not changed since an earlier checkpoint is known by then, and left out of all plans;
//! the coordinator links its files into the attempt. Where that fails (the checkpoint is gone, or
//! files cannot have two names), all ranks plan once more, and everything is written.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::unchanged::{Unchanged, unchanged};
use super::{SaveOptions, close, help_uncommitted, target};
use crate::catalog::CheckpointPath;
use crate::commit::Attempt;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::{CheckpointName, SaveId};
use crate::plan::reuse::{PlanVote, Structure, job_of};
use crate::plan::save::{MergedPlan, local_plan, merge_plans};
use crate::plan::{LocalPlan, SavePlan};
use crate::space::Need;
use crate::state::StateDict;
use crate::storage::Storage;
use crate::sweep::Pace;

/// How a save goes on when there is a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Course {
    /// In its caller's thread.
    Here,
    /// Beside its caller, if this rank has a thread for that.
    Beside { has_thread: bool },
}

impl Course {
    /// Ranks that do not go on alike are in different phases, and are told so: phase "commit" is on
    /// different channels, so that they would wait for each other there.
    fn phase(self) -> &'static str {
        match self {
            Self::Here => "plan",
            Self::Beside { .. } => "plan beside",
        }
    }
}

/// What each rank learns in phase "plan".
pub(super) struct Assignment {
    pub(super) name: CheckpointName,
    pub(super) plan: SavePlan,
}

/// A save between its two phases.
pub(super) struct Planned {
    pub(super) assignment: Assignment,
    /// Whether every rank can save beside its caller.
    pub(super) goes_beside: bool,
    /// On the coordinator alone.
    pub(super) coordinator: Option<(Attempt, MergedPlan)>,
}

/// What the coordinator says to each rank.
#[derive(Clone, Serialize, Deserialize)]
struct Answer {
    goes_beside: bool,
    plan: Told,
}

/// What it says of the plan.
#[derive(Clone, Serialize, Deserialize)]
enum Told {
    /// What to write, in a job of that structure.
    Write { name: CheckpointName, job: Structure, plan: SavePlan },
    /// What was written in that job, in files of this save.
    AsBefore { name: CheckpointName, job: Structure, save_id: SaveId },
    /// Ranks or coordinator have not seen this job. The same for all.
    SendAll,
    /// What has not changed cannot be linked. The same for all.
    WriteAll,
}

/// What a rank brings to phase "plan".
#[derive(Serialize, Deserialize)]
struct Vote {
    plan: PlanVote,
    /// Whether it has a thread to save in, beside its caller.
    can_wait: bool,
}

/// What a rank holds on to while it votes.
#[derive(Default)]
struct Kept {
    structure: Structure,
    /// All of its plan, of which it has sent a hash.
    whole: Option<PlanVote>,
    /// What it had to write in the jobs that it knows.
    known: Vec<(Structure, SavePlan)>,
}

/// What the coordinator has made.
type Made = (Attempt, MergedPlan);

pub(super) fn plan(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    options: &SaveOptions,
    course: Course,
    state: &StateDict,
    refused: Option<&Error>,
) -> Result<Planned> {
    let same = unchanged(group, storage, path, options, state, refused);
    let same = same.map_err(help_uncommitted)?;
    let local = |same: &Unchanged| match refused {
        Some(error) => Err(error.clone()),
        None => Ok(local_plan(target(path, options), state).without(&same.components)),
    };
    // Every rank is told alike, so that all plan again, or none.
    if let Some(planned) = plan_with(group, storage, path, options, course, &local, &same)? {
        return Ok(planned);
    }
    group.earlier().forget(path.directory());
    let none = Unchanged::default();
    let again = plan_with(group, storage, path, options, course, &local, &none)?;
    again.ok_or_else(|| Error::new(ErrorKind::Disagreement, "nothing was to be linked"))
}

/// `None` if what has not changed could not be linked; the same on every rank.
fn plan_with(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    options: &SaveOptions,
    course: Course,
    local: &dyn Fn(&Unchanged) -> Result<LocalPlan>,
    same: &Unchanged,
) -> Result<Option<Planned>> {
    let (mut kept, mut made, mut sent) = (Kept::default(), None, Vec::new());
    let begin = |merged: &mut MergedPlan| begin(group, storage, path, merged, options, same);
    let can_wait = course == Course::Beside { has_thread: true };
    let vote = || Ok(Vote { plan: kept.vote(group, local(same)?), can_wait });
    let answer = group.phase(Channel::Save, course.phase(), vote, |votes: Vec<Vote>| {
        let goes_beside = votes.iter().all(|vote| vote.can_wait);
        let votes: Vec<PlanVote> = votes.into_iter().map(|vote| vote.plan).collect();
        let plans = if let Some(before) = as_before(group, &votes, &mut made, begin)? {
            before
        } else if votes.iter().all(PlanVote::is_whole) {
            merge(votes, &mut made, begin)?
        } else {
            sent = votes;
            vec![Told::SendAll; sent.len()]
        };
        Ok(plans.into_iter().map(|plan| Answer { goes_beside, plan }).collect())
    });
    let goes_beside = answer.as_ref().is_ok_and(|answer| answer.goes_beside);
    let mut answer = answer.map(|answer| answer.plan);
    if let Ok(Told::SendAll) = answer {
        // Nothing lies between the two: every rank was told the same.
        let vote = || Ok(kept.whole.take());
        answer = group.phase(Channel::Save, "plan again", vote, |votes: Vec<Option<PlanVote>>| {
            let pairs = std::mem::take(&mut sent).into_iter().zip(votes);
            merge(pairs.map(|(sent, vote)| vote.unwrap_or(sent)).collect(), &mut made, begin)
        });
    }
    if matches!(answer, Ok(Told::WriteAll)) {
        return Ok(None);
    }
    let planned = answer.and_then(|answer| kept.follow(group, answer, made.as_ref()));
    match planned {
        Ok(assignment) => Ok(Some(Planned { assignment, goes_beside, coordinator: made })),
        Err(error) => {
            close(group, made);
            Err(help_uncommitted(error))
        }
    }
}

/// Coordinator: the plan of before, if this job has one that all know.
fn as_before(
    group: &ProcessGroup,
    votes: &[PlanVote],
    made: &mut Option<Made>,
    begin: impl FnOnce(&mut MergedPlan) -> Result<Option<Attempt>>,
) -> Result<Option<Vec<Told>>> {
    let job = job_of(votes);
    if !votes.iter().all(|vote| vote.known.contains(&job)) {
        return Ok(None);
    }
    let plans = votes.iter().map(|vote| &vote.plan);
    let renew = |before: &MergedPlan| before.renewed(SaveId::random()?, plans);
    let Some(mut merged) = group.plans().merged(&job).map(renew).transpose()? else {
        return Ok(None);
    };
    let save_id = merged.save_id;
    let Some(attempt) = begin(&mut merged)? else {
        return Ok(Some(vec![Told::WriteAll; votes.len()]));
    };
    let name = attempt.name().clone();
    *made = Some((attempt, merged));
    Ok(Some(vec![Told::AsBefore { name, job, save_id }; votes.len()]))
}

/// Coordinator: a plan out of all that the ranks hold.
fn merge(
    votes: Vec<PlanVote>,
    made: &mut Option<Made>,
    begin: impl FnOnce(&mut MergedPlan) -> Result<Option<Attempt>>,
) -> Result<Vec<Told>> {
    let (job, ranks) = (job_of(&votes), votes.len());
    let plans: Vec<LocalPlan> = votes.into_iter().map(|vote| vote.plan).collect();
    let mut merged = merge_plans(SaveId::random()?, &plans)?;
    drop(plans);
    let Some(attempt) = begin(&mut merged)? else { return Ok(vec![Told::WriteAll; ranks]) };
    let answer = |plan: &SavePlan| {
        let (name, plan) = (attempt.name().clone(), plan.clone());
        Told::Write { name, job, plan }
    };
    let answers = merged.plans.iter().map(answer).collect();
    *made = Some((attempt, merged));
    Ok(answers)
}

/// Coordinator: the directory of checkpoints, swept, with space for this one, and in it the
/// attempt with what has not changed; `None` if that cannot be linked.
fn begin(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    merged: &mut MergedPlan,
    options: &SaveOptions,
    same: &Unchanged,
) -> Result<Option<Attempt>> {
    let (need, pace) = (Need::of_plan(merged, options.margin())?, Pace::of(group));
    let parent = storage.create_dir_all(path.directory())?;
    let (save_id, on_existing) = (merged.save_id, options.on_existing);
    let attempt = Attempt::begin(parent, path.name(), save_id, on_existing, &need, &pace)?;
    for (from, part) in same.checkpoints.iter().zip(&same.components) {
        if let Err(error) = attempt.link(from, part, &pace) {
            tracing::info!(%error, component = %part.component, "cannot be linked; all is written");
            // A file that has as many names as it can have is followed by one that has one.
            let is_full = error.os_code() == Some(Errno::MLINK.raw_os_error());
            if error.kind() == ErrorKind::Unsupported && !is_full {
                group.earlier().refused(path.directory());
            }
            attempt.close(&pace);
            return Ok(None);
        }
    }
    merged.linked.clone_from(&same.components);
    Ok(Some(attempt))
}

impl Kept {
    /// The vote of this rank, as short as it can be.
    fn vote(&mut self, group: &ProcessGroup, plan: LocalPlan) -> PlanVote {
        let vote = PlanVote::whole(plan);
        self.structure = vote.structure;
        self.known = group.plans().known(&vote.structure);
        if self.known.is_empty() {
            return vote;
        }
        let jobs = self.known.iter().map(|(job, _)| *job).collect();
        let (short, whole) = vote.shortened(jobs);
        self.whole = Some(whole);
        short
    }

    /// What this rank is to do, remembered for the next time, since all have been told.
    fn follow(self, group: &ProcessGroup, answer: Told, made: Option<&Made>) -> Result<Assignment> {
        let mut plans = group.plans();
        let (name, job, plan) = match answer {
            Told::Write { name, job, plan } => (name, job, plan),
            Told::AsBefore { name, job, save_id } => {
                plans.count_reuse();
                let (rank, world_size) = (group.rank(), group.world_size());
                let before = self.known.iter().find(|(known, _)| *known == job);
                let plan = before.map(|(_, plan)| plan.renewed(save_id, rank, world_size));
                // Without one it is for phase "commit" to find out that nothing was written.
                let none = || SavePlan { save_id, files: Vec::new(), sums_file: None };
                (name, job, plan.unwrap_or_else(none))
            }
            Told::SendAll | Told::WriteAll => {
                let message = "the coordinator asked for all of the plan twice";
                return Err(Error::new(ErrorKind::Disagreement, message));
            }
        };
        plans.keep_own(job, self.structure, &plan);
        if let Some((_, merged)) = made {
            plans.keep_merged(job, merged);
        }
        Ok(Assignment { name, plan })
    }
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_answer(bytes: &[u8]) {
    drop(crate::fuzzing::message::<Result<Answer>>(bytes));
}

#[cfg(test)]
mod tests;
