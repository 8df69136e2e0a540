//! Why a checkpoint stays.

use std::collections::BTreeSet;

use super::{Pins, Retention, as_usize, copied, each_once, ends_of_epochs, is_multiple};
use crate::layout::{CheckpointName, SaveId};
use crate::manifest::CheckpointInfo;

/// Why a checkpoint stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// There are no rules, or one of their globs cannot be read.
    NoRules,
    /// It is an attempt, or damaged.
    NotCommitted,
    /// No policy has saved it.
    NotAutomatic,
    /// It does not go back to the fresh start in question.
    OtherLine,
    /// It is the newest committed one.
    Newest,
    /// [`Retention::last`].
    Last,
    /// [`Retention::best`].
    Best,
    /// [`Retention::every_steps`].
    EverySteps,
    /// [`Retention::every_epochs`].
    EveryEpochs,
    /// It is pinned, or by [`Retention::pinned`].
    Pinned,
    /// It is there under several names.
    Copied,
    /// It is protected from the rules.
    Protected,
    /// `latest` or `best` names it.
    Linked,
}

impl Retention {
    /// Why each of `found` stays, in the same order: what has no reason is what
    /// [`Retention::decide`] removes.
    #[must_use]
    pub fn reasons(&self, found: &[CheckpointInfo], protected: &[SaveId]) -> Vec<BTreeSet<Reason>> {
        self.reasons_in_line(found, None, protected)
    }

    pub(super) fn reasons_in_line(
        &self,
        found: &[CheckpointInfo],
        line: Option<u64>,
        protected: &[SaveId],
    ) -> Vec<BTreeSet<Reason>> {
        let (true, Ok(pins)) = (self.has_rules(), Pins::parse(&self.pinned)) else {
            return vec![BTreeSet::from([Reason::NoRules]); found.len()];
        };
        let mut committed: Vec<_> = found.iter().filter(|info| info.is_committed()).collect();
        committed.sort_by(|a, b| a.age_key().cmp(&b.age_key()));
        let is_own = |info: &CheckpointInfo| line.is_none_or(|line| info.line == line);
        let automatic: Vec<_> =
            committed.iter().copied().filter(|info| info.automatic && is_own(info)).collect();
        let by_rules = self.by_rules(&each_once(&automatic));
        let (newest, copied) =
            (committed.last().map(|info| info.name.as_str()), copied(&committed));
        let reasons = |info: &CheckpointInfo| {
            let name = CheckpointName::new(&info.name).ok();
            let (Some(name), Some(save_id), true) = (name, info.save_id, info.is_committed())
            else {
                return BTreeSet::from([Reason::NotCommitted]);
            };
            let is_kept = |rule: Reason| by_rules.contains(&(name.as_str(), rule));
            let rules = [Reason::Last, Reason::Best, Reason::EverySteps, Reason::EveryEpochs];
            let others = [
                (Reason::NotAutomatic, !info.automatic),
                (Reason::OtherLine, !is_own(info)),
                (Reason::Newest, newest == Some(name.as_str())),
                (Reason::Pinned, info.pinned || pins.hold(&name)),
                (Reason::Copied, copied.contains(&save_id)),
                (Reason::Protected, protected.contains(&save_id)),
            ];
            let others = others.into_iter().filter_map(|(why, is_so)| is_so.then_some(why));
            rules.into_iter().filter(|rule| is_kept(*rule)).chain(others).collect()
        };
        found.iter().map(reasons).collect()
    }

    /// The names that each rule keeps of `automatic`, which is sorted, oldest first.
    fn by_rules<'a>(&self, automatic: &[&'a CheckpointInfo]) -> BTreeSet<(&'a str, Reason)> {
        let mut kept: BTreeSet<(&str, Reason)> = BTreeSet::new();
        let mut keep = |rule: Reason, all: &mut dyn Iterator<Item = &'a CheckpointInfo>| {
            kept.extend(all.map(|info| (info.name.as_str(), rule)));
        };
        if let Some(count) = self.last {
            keep(Reason::Last, &mut automatic.iter().rev().take(as_usize(count)).copied());
        }
        if let Some(best) = &self.best {
            let ranked = best.ranked(automatic.iter().copied());
            keep(Reason::Best, &mut ranked.into_iter().take(as_usize(best.count)));
        }
        if let Some(steps) = self.every_steps {
            let is_kept = |info: &&CheckpointInfo| is_multiple(info.step, steps);
            keep(Reason::EverySteps, &mut automatic.iter().copied().filter(is_kept));
        }
        if let Some(epochs) = self.every_epochs {
            keep(Reason::EveryEpochs, &mut ends_of_epochs(automatic, epochs));
        }
        kept
    }
}
