//! Which rank writes what: [`local_plan`] on every rank, [`merge_plans`] on the coordinator.

mod agree;
mod balance;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use smallvec::SmallVec;

use self::agree::Held;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, SaveId};
use crate::manifest::{OtherFile, hash16};
use crate::plan::cover::check_cover;
use crate::plan::{
    LinkedComponent, LocalPlan, PlannedFile, PlannedPiece, SavePlan, SaveTarget, WriteItem,
};
use crate::rank::{Rank, WorldSize};
use crate::state::{StateDict, Values};
use crate::tensor::{Component, TensorName};

/// How many declared boxes an error about coverage lists.
const LISTED_MAX: usize = 4;

/// What the coordinator decided: the plan of every rank, and what the manifest will say besides.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedPlan {
    /// Identity of the attempt.
    pub save_id: SaveId,
    /// What all ranks agreed to save.
    pub target: SaveTarget,
    /// One plan per rank, in rank order; never empty.
    pub plans: Vec<SavePlan>,
    /// Second names of tensors, by name, with the name under which the tensor is stored.
    pub aliases: Vec<(TensorName, TensorName)>,
    /// Values of the job.
    pub values: Values,
    /// Values of each rank, in rank order.
    pub rank_values: Vec<Values>,
    /// The attached files that the coordinator is to write, by name.
    pub attached: Vec<OtherFile>,
    /// Components that no rank writes, since their files are those of an earlier checkpoint.
    pub linked: Vec<LinkedComponent>,
}

/// A box as declared, with every rank that holds it.
struct DeclaredBox<'a> {
    item: &'a WriteItem,
    /// As whoever declared the tensor first spells it, so that all plans share the text.
    name: &'a TensorName,
    bytes: u64,
    ranks: SmallVec<[Rank; 4]>,
}

/// What this rank could write. Empty boxes of tensors that have elements are left out.
#[must_use]
pub fn local_plan(target: SaveTarget, state: &StateDict) -> LocalPlan {
    let items = state.tensors().flat_map(|(name, boxes)| {
        let held = boxes.iter().filter(|b| b.slice.elements() > 0 || b.spec.elements() == 0);
        held.map(|b| WriteItem {
            name: name.clone(),
            component: b.component.clone(),
            spec: b.spec.clone(),
            slice: b.slice.clone(),
        })
    });
    LocalPlan {
        target,
        items: items.collect(),
        aliases: state.aliases().iter().map(|(a, t)| (a.clone(), t.clone())).collect(),
        values: state.values.clone(),
        rank_values: state.rank_values.clone(),
        attached: attached(state),
    }
}

fn attached(state: &StateDict) -> Vec<OtherFile> {
    let file = |(name, bytes): (&String, &std::sync::Arc<[u8]>)| OtherFile {
        name: name.clone(),
        len: bytes.len() as u64,
        hash: hash16(bytes),
    };
    state.attached_files().iter().map(file).collect()
}

impl MergedPlan {
    /// What of it does not change from save to save of the same structure. What is linked is told
    /// anew each time.
    pub(crate) fn without_values(&self) -> Self {
        Self {
            save_id: self.save_id,
            target: self.target.clone(),
            plans: self.plans.clone(),
            aliases: self.aliases.clone(),
            values: Values::new(),
            rank_values: Vec::new(),
            attached: self.attached.clone(),
            linked: Vec::new(),
        }
    }

    /// The same for another save, of whose ranks `plans` say target and values alone.
    ///
    /// # Errors
    /// As [`merge_plans`], for what the plans say.
    pub(crate) fn renewed<'a>(
        &self,
        save_id: SaveId,
        plans: impl Iterator<Item = &'a LocalPlan> + Clone,
    ) -> Result<Self> {
        agree::check_job(plans.clone())?;
        let invalid = || Error::new(ErrorKind::InvalidInput, "a plan for other ranks");
        let first = plans.clone().next().ok_or_else(invalid)?;
        let world_size = u32::try_from(self.plans.len()).map_err(|_| invalid())?;
        let world_size = WorldSize::new(world_size)?;
        let ranks = world_size.ranks().zip(&self.plans);
        Ok(Self {
            save_id,
            target: first.target.clone(),
            plans: ranks.map(|(rank, plan)| plan.renewed(save_id, rank, world_size)).collect(),
            values: first.values.clone(),
            rank_values: plans.map(|plan| plan.rank_values.clone()).collect(),
            aliases: self.aliases.clone(),
            attached: self.attached.clone(),
            linked: Vec::new(),
        })
    }
}

/// Decides what each rank writes, so that every byte is written exactly once and replicated
/// boxes are shared among the ranks that hold them, by bytes. Same plans, same answer.
///
/// # Errors
/// [`ErrorKind::Disagreement`] if ranks differ where they must not, naming two of them and what
/// differs. [`ErrorKind::InvalidInput`] if the boxes of a tensor leave a gap or overlap without
/// being equal, or if there are no plans.
pub fn merge_plans(save_id: SaveId, plans: &[LocalPlan]) -> Result<MergedPlan> {
    let invalid = |message: &str| Error::new(ErrorKind::InvalidInput, message);
    let [first, ..] = plans else { return Err(invalid("no rank has sent a plan")) };
    let (aliases, boxes) = declared_boxes(plans)?;
    let rank_values = plans.iter().map(|p| p.rank_values.clone()).collect();
    merged(save_id, first, aliases, &boxes, rank_values)
}

/// As [`merge_plans`] of ranks that all hold what `plan` says, each with values of its own. Of each
/// box it is kept once what it is.
///
/// # Errors
/// As [`merge_plans`].
pub(crate) fn merge_equal_plans(
    save_id: SaveId,
    plan: &LocalPlan,
    rank_values: &[Values],
) -> Result<MergedPlan> {
    let (aliases, mut boxes) = declared_boxes(std::slice::from_ref(plan))?;
    for declared in &mut boxes {
        declared.ranks = (0..).map(Rank::new).take(rank_values.len()).collect();
    }
    merged(save_id, plan, aliases, &boxes, rank_values.to_vec())
}

type Aliases = Vec<(TensorName, TensorName)>;

fn declared_boxes(plans: &[LocalPlan]) -> Result<(Aliases, Vec<DeclaredBox<'_>>)> {
    let (aliases, declared) = agree::check_agreement(plans)?;
    let mut boxes = Vec::new();
    declared.each_tensor(|held| boxes_of_tensor(held, &mut boxes))?;
    check_size(&boxes)?;
    Ok((aliases, boxes))
}

fn merged(
    save_id: SaveId,
    first: &LocalPlan,
    aliases: Aliases,
    boxes: &[DeclaredBox<'_>],
    rank_values: Vec<Values>,
) -> Result<MergedPlan> {
    let too_many = |_| Error::new(ErrorKind::InvalidInput, "too many ranks");
    let world_size = WorldSize::new(u32::try_from(rank_values.len()).map_err(too_many)?)?;
    let shares = balance::share_out(boxes, world_size);
    let ranks = world_size.ranks().zip(shares);
    let plan = |(rank, parts)| rank_plan(save_id, rank, world_size, boxes, parts);
    Ok(MergedPlan {
        save_id,
        target: first.target.clone(),
        plans: ranks.map(plan).collect::<Result<_>>()?,
        aliases,
        values: first.values.clone(),
        rank_values,
        attached: first.attached.clone(),
        linked: Vec::new(),
    })
}

/// Adds the distinct boxes of one tensor, by place; they must cover it exactly.
fn boxes_of_tensor<'a>(held: &[Held<'a>], boxes: &mut Vec<DeclaredBox<'a>>) -> Result<()> {
    let Some((_, first)) = held.first().copied() else { return Ok(()) };
    let place = |(rank, item): &Held<'a>| (&item.slice, *rank);
    let mut held = Cow::Borrowed(held);
    if !held.is_sorted_by_key(place) {
        held.to_mut().sort_unstable_by_key(place);
    }
    let mut own: SmallVec<[DeclaredBox; 4]> = SmallVec::new();
    for group in held.chunk_by(|(_, a), (_, b)| a.slice == b.slice) {
        let Some((_, item)) = group.first() else { continue };
        let mut ranks: SmallVec<[Rank; 4]> = group.iter().map(|(rank, _)| *rank).collect();
        ranks.dedup();
        let bytes = item.slice.elements() * item.spec.dtype().size_bytes();
        own.push(DeclaredBox { item, name: &first.name, bytes, ranks });
    }
    if first.spec.elements() == 0 {
        // All boxes are equally empty; the largest is the whole tensor, if anybody has it.
        own.sort_by(|a, b| b.item.slice.lengths().cmp(a.item.slice.lengths()));
        own.truncate(1);
    } else {
        own.retain(|b| b.item.slice.elements() > 0);
    }
    let slices: SmallVec<[_; 4]> = own.iter().map(|b| &b.item.slice).collect();
    check_cover(first.spec.shape(), &slices).map_err(|fault| cover_error(first, &own, &fault))?;
    boxes.extend(own);
    Ok(())
}

fn cover_error(item: &WriteItem, boxes: &[DeclaredBox], fault: &str) -> Error {
    let mut holders: Vec<String> = boxes
        .iter()
        .take(LISTED_MAX)
        .flat_map(|b| b.ranks.first().map(|rank| format!("rank {rank} holds {}", b.item.slice)))
        .collect();
    if boxes.len() > LISTED_MAX {
        holders.push(format!("and {} more", boxes.len() - LISTED_MAX));
    }
    let message = format!("{}: {fault} ({})", item.spec, holders.join(", "));
    Error::new(ErrorKind::InvalidInput, message)
        .with_tensor(item.name.as_str())
        .with_help("the slices that all ranks add must cover each tensor without overlap")
}

/// Keeps every later sum of bytes within range.
fn check_size(boxes: &[DeclaredBox]) -> Result<()> {
    let total = boxes.iter().map(|b| u128::from(b.bytes)).sum::<u128>();
    if total > i64::MAX as u128 {
        let message = format!("the state has {total} bytes, more than any storage can hold");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(())
}

fn rank_plan(
    save_id: SaveId,
    rank: Rank,
    world_size: WorldSize,
    boxes: &[DeclaredBox],
    parts: Vec<balance::Part>,
) -> Result<SavePlan> {
    let mut files: BTreeMap<(&Component, u32), Vec<PlannedPiece>> = BTreeMap::new();
    let mut previous: Option<(&TensorName, u32)> = None;
    for part in parts {
        let Some(DeclaredBox { item, name, .. }) = boxes.get(part.declared) else { continue };
        // A name occurs once in a safetensors file, so further boxes go to further files.
        let nth = match previous {
            Some((before, nth)) if before == *name => nth + 1,
            _ => 0,
        };
        previous = Some((name, nth));
        let pieces = files.entry((&item.component, nth)).or_default();
        pieces.push(PlannedPiece {
            name: (*name).clone(),
            spec: item.spec.clone(),
            held: item.slice.clone(),
            slice: part
                .rows
                .map_or_else(|| Ok(item.slice.clone()), |rows| item.slice.rows(rows))?,
        });
    }
    let planned_file = |((component, nth), mut pieces): ((&Component, u32), Vec<PlannedPiece>)| {
        // Parts come by name, which stays the order of what has elements of one size.
        pieces.sort_by_key(|piece| Reverse(piece.spec.dtype().size_bytes()));
        let name = layout::data_file(component, rank, world_size, nth, &save_id);
        PlannedFile { name, component: component.clone(), pieces: pieces.into() }
    };
    let files: Vec<_> = files.into_iter().map(planned_file).collect();
    let sums_file = (!files.is_empty()).then(|| layout::sums_file(rank, world_size, &save_id));
    Ok(SavePlan { save_id, files, sums_file })
}

#[cfg(test)]
mod tests;
