//! Plans that are made once: a job that saves the same tensors again tells so with a hash.
//!
//! What a plan depends on is the structure of all ranks: their boxes, aliases and attached files.
//! Target, step and values are none of it, and are told each time.

use serde::{Deserialize, Serialize};

use super::save::MergedPlan;
use super::{LocalPlan, PlannedFile, SavePlan, WriteItem};
use crate::layout::{self, SaveId};
use crate::rank::{Rank, WorldSize};

/// How many structures a group remembers: a loop that saves the same in several ways has few.
const KEPT_MAX: usize = 4;
/// Hashed at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// A hash of what a rank, or all of them, save; equal for nothing else.
pub(crate) type Structure = [u8; 32];

/// What each rank brings to phase "plan".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanVote {
    /// Of this rank.
    pub(crate) structure: Structure,
    /// The jobs of which this rank knows what it has to write; then `plan` is without structure.
    pub(crate) known: Vec<Structure>,
    pub(crate) plan: LocalPlan,
}

impl PlanVote {
    /// All of `plan`.
    pub(crate) fn whole(plan: LocalPlan) -> Self {
        Self { structure: structure_of(&plan), known: Vec::new(), plan }
    }

    /// Whether it says all of its plan.
    pub(crate) fn is_whole(&self) -> bool {
        self.known.is_empty()
    }

    /// The same in a few bytes, for a rank that knows these jobs, and all of it.
    pub(crate) fn shortened(self, known: Vec<Structure>) -> (Self, Self) {
        let plan = self.plan.without_structure();
        (Self { structure: self.structure, known, plan }, self)
    }
}

impl LocalPlan {
    /// What is told each time.
    fn without_structure(&self) -> Self {
        Self {
            target: self.target.clone(),
            items: Vec::new(),
            aliases: Vec::new(),
            values: self.values.clone(),
            rank_values: self.rank_values.clone(),
            attached: Vec::new(),
        }
    }
}

/// The structure of a whole job.
pub(crate) fn job_of(votes: &[PlanVote]) -> Structure {
    let mut hasher = blake3::Hasher::new_derive_key("tch-checkpoint 2026 structure of a job");
    for vote in votes {
        hasher.update(&vote.structure);
    }
    *hasher.finalize().as_bytes()
}

/// The structure of one rank's plan. Every list and text is preceded by its length, so that no
/// two plans are hashed alike.
pub(crate) fn structure_of(plan: &LocalPlan) -> Structure {
    let mut bytes = Hashed {
        hasher: blake3::Hasher::new_derive_key("tch-checkpoint 2026 structure of a rank"),
        buffer: Vec::with_capacity(BUFFER_BYTES),
    };
    bytes.number(plan.items.len() as u64);
    plan.items.iter().for_each(|item| bytes.item(item));
    bytes.number(plan.aliases.len() as u64);
    for (alias, target) in &plan.aliases {
        bytes.text(alias.as_str());
        bytes.text(target.as_str());
    }
    bytes.number(plan.attached.len() as u64);
    for file in &plan.attached {
        bytes.text(&file.name);
        bytes.number(file.len);
        bytes.put(&file.hash);
    }
    bytes.hasher.update(&bytes.buffer);
    *bytes.hasher.finalize().as_bytes()
}

struct Hashed {
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
}

impl Hashed {
    fn put(&mut self, bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.put(text.as_bytes());
    }

    fn numbers(&mut self, numbers: &[u64]) {
        self.number(numbers.len() as u64);
        numbers.iter().for_each(|number| self.number(*number));
    }

    fn item(&mut self, item: &WriteItem) {
        self.text(item.name.as_str());
        self.text(item.component.as_str());
        self.text(item.spec.dtype().as_str());
        self.numbers(item.spec.shape());
        self.numbers(item.slice.offsets());
        self.numbers(item.slice.lengths());
    }
}

/// What a group remembers of its plans, the longest unused first. Filled on each rank when all
/// have agreed; should ranks remember different things, they send everything once more.
#[derive(Debug, Default)]
pub(crate) struct PlanCache {
    own: Vec<Own>,
    /// On the coordinator.
    merged: Vec<(Structure, MergedPlan)>,
    reused: u64,
}

/// What this rank has to write in a job of that structure.
#[derive(Debug)]
struct Own {
    job: Structure,
    structure: Structure,
    plan: SavePlan,
}

impl PlanCache {
    /// The jobs in which this rank had that structure, and its plan in each.
    pub(crate) fn known(&self, structure: &Structure) -> Vec<(Structure, SavePlan)> {
        let own = self.own.iter().filter(|own| own.structure == *structure);
        own.map(|own| (own.job, own.plan.clone())).collect()
    }

    /// What the ranks had to write in that job.
    pub(crate) fn merged(&self, job: &Structure) -> Option<&MergedPlan> {
        self.merged.iter().find(|(known, _)| known == job).map(|(_, merged)| merged)
    }

    /// All have agreed on `plan` for a job, on this rank of that structure.
    pub(crate) fn keep_own(&mut self, job: Structure, structure: Structure, plan: &SavePlan) {
        self.own.retain(|own| own.job != job);
        self.own.push(Own { job, structure, plan: plan.clone() });
        self.own.drain(..self.own.len().saturating_sub(KEPT_MAX));
    }

    /// As [`PlanCache::keep_own`], on the coordinator. Values are not kept.
    pub(crate) fn keep_merged(&mut self, job: Structure, merged: &MergedPlan) {
        self.merged.retain(|(known, _)| *known != job);
        self.merged.push((job, merged.without_values()));
        self.merged.drain(..self.merged.len().saturating_sub(KEPT_MAX));
    }

    /// A plan was made from what is kept.
    pub(crate) fn count_reuse(&mut self) {
        self.reused += 1;
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.merged.is_empty()
    }

    /// How often that was so.
    #[cfg(test)]
    pub(crate) fn reused(&self) -> u64 {
        self.reused
    }
}

impl SavePlan {
    /// The same pieces in the files of another attempt.
    pub(crate) fn renewed(&self, save_id: SaveId, rank: Rank, world_size: WorldSize) -> Self {
        let before = std::iter::once(None).chain(self.files.iter().map(Some));
        let mut nth = 0;
        let renewed = |(file, before): (&PlannedFile, Option<&PlannedFile>)| {
            let follows = before.is_some_and(|before| before.component == file.component);
            nth = if follows { nth + 1 } else { 0 };
            let name = layout::data_file(&file.component, rank, world_size, nth, &save_id);
            PlannedFile { name, ..file.clone() }
        };
        let files = self.files.iter().zip(before).map(renewed).collect();
        let sums_file =
            self.sums_file.as_ref().map(|_| layout::sums_file(rank, world_size, &save_id));
        Self { save_id, files, sums_file }
    }
}

#[cfg(test)]
mod tests;
