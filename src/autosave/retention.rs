//! What to keep: a pure decision over what lies on disk.

mod reasons;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::autosave::Mode;
use crate::error::Result;
use crate::globs::Globs;
use crate::layout::{CheckpointName, SaveId};
use crate::manifest::CheckpointInfo;
pub use reasons::Reason;

/// Which checkpoints of a directory stay: the union of its rules. Without any rule, all of them;
/// pins are no rule, they only except from the others.
///
/// Only checkpoints that a policy saved ([`CheckpointInfo::automatic`]) fill the counts, and only
/// they can go. Whatever the rules say, these stay: the newest committed checkpoint, those that are
/// pinned, what is not committed (an attempt may be somebody's, damage is for somebody to look at),
/// and a save that is there under several names (somebody has copied it; it counts once).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many: highest generation, then step, epoch, and time of saving.
    pub last: Option<NonZeroU64>,
    /// The best so many.
    pub best: Option<KeepBest>,
    /// Those whose step is a multiple, and not 0.
    pub every_steps: Option<NonZeroU64>,
    /// Of each number of completed epochs that is a multiple, and not 0, the one of the lowest step:
    /// the one made when that epoch ended, not those made at steps of the epoch after it. Of equal
    /// ones, as a run makes that went back, that of the highest generation.
    pub every_epochs: Option<NonZeroU64>,
    /// Names, or globs of names (`*`, `?`, `[a-z]`, `{a,b}`), that stay whatever the other rules
    /// say.
    pub pinned: Vec<String>,
}

/// The best checkpoints by one number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepBest {
    /// How many.
    pub count: NonZeroU64,
    /// Which number, as the manifest holds it.
    pub monitor: String,
    /// Which way it is to go.
    pub mode: Mode,
}

/// What a retention pass does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What goes, oldest first.
    pub remove: Vec<(CheckpointName, SaveId)>,
}

impl Retention {
    /// Whether every glob can be read.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the glob.
    pub fn check(&self) -> Result<()> {
        Pins::parse(&self.pinned).map(drop)
    }

    /// What goes of `found`. `protected` stays whatever the rules say. With a glob that cannot be
    /// read nothing goes, see [`Retention::check`].
    ///
    /// Depends on its arguments alone. What is decided stays decided as long as nothing new is
    /// saved: after a pass that was cut short, the next one removes exactly the rest.
    #[must_use]
    pub fn decide(&self, found: &[CheckpointInfo], protected: &[SaveId]) -> Decision {
        self.decide_in_line(found, None, protected)
    }

    /// As [`Retention::decide`]; with a `line` ([`CheckpointInfo::line`]), what is of another one
    /// neither fills a count nor goes.
    pub(crate) fn decide_in_line(
        &self,
        found: &[CheckpointInfo],
        line: Option<u64>,
        protected: &[SaveId],
    ) -> Decision {
        let reasons = self.reasons_in_line(found, line, protected);
        let goes = found.iter().zip(reasons).filter(|(_, reasons)| reasons.is_empty());
        let mut goes: Vec<&CheckpointInfo> = goes.map(|(info, _)| info).collect();
        goes.sort_by(|a, b| a.age_key().cmp(&b.age_key()));
        let meant =
            |info: &CheckpointInfo| Some((CheckpointName::new(&info.name).ok()?, info.save_id?));
        Decision { remove: goes.into_iter().filter_map(meant).collect() }
    }

    /// Whether anything can go.
    pub(crate) fn has_rules(&self) -> bool {
        let counts = [self.last, self.every_steps, self.every_epochs];
        self.best.is_some() || counts.iter().any(Option::is_some)
    }
}

impl KeepBest {
    /// The best one.
    #[must_use]
    pub fn one(monitor: &str, mode: Mode) -> Self {
        Self { count: NonZeroU64::MIN, monitor: monitor.to_owned(), mode }
    }

    /// The best committed checkpoint of `found`, whoever saved it.
    ///
    /// A missing, infinite or NaN number is never best. Of equal ones the first to reach it is
    /// best: the lower generation, then step, then epoch, then the one saved earlier.
    #[must_use]
    pub fn best_of<'a>(
        &self,
        found: impl IntoIterator<Item = &'a CheckpointInfo>,
    ) -> Option<&'a CheckpointInfo> {
        let committed = found.into_iter().filter(|info| info.is_committed());
        self.ranked(committed).first().copied()
    }

    /// Those with a finite number, best first.
    fn ranked<'a>(
        &self,
        found: impl Iterator<Item = &'a CheckpointInfo>,
    ) -> Vec<&'a CheckpointInfo> {
        let number = |info: &CheckpointInfo| info.finite_metric(&self.monitor);
        let mut ranked: Vec<_> =
            found.filter_map(|info| number(info).map(|number| (number, info))).collect();
        ranked.sort_by(|a, b| better_first(self.mode, *a, *b));
        ranked.into_iter().map(|(_, info)| info).collect()
    }
}

/// Of two finite numbers the better one comes first; of equal ones the one that is older.
pub(crate) fn better_first(
    mode: Mode,
    (x, a): (f64, &CheckpointInfo),
    (y, b): (f64, &CheckpointInfo),
) -> Ordering {
    if mode.is_better(x, y) {
        Ordering::Less
    } else if mode.is_better(y, x) {
        Ordering::Greater
    } else {
        a.age_key().cmp(&b.age_key())
    }
}

/// Names and globs of names.
struct Pins<'a> {
    names: &'a [String],
    globs: Globs,
}

impl<'a> Pins<'a> {
    fn parse(names: &'a [String]) -> Result<Self> {
        let globs = Globs::new("pinned", names)
            .map_err(|e| e.with_help("write a special character as itself in brackets: `[[]`"))?;
        Ok(Self { names, globs })
    }

    /// A name is also meant literally: one with braces pins itself.
    fn hold(&self, name: &CheckpointName) -> bool {
        self.names.iter().any(|n| n == name.as_str()) || self.globs.matches(name.as_str())
    }
}

/// Of each epoch that is a multiple the one of the lowest step; of several, as a run that went back
/// makes an epoch again, the one of the highest generation.
fn ends_of_epochs<'a>(
    automatic: &[&'a CheckpointInfo],
    epochs: NonZeroU64,
) -> impl Iterator<Item = &'a CheckpointInfo> {
    let key = |info: &CheckpointInfo| (info.step, Reverse(info.generation));
    let mut ends: BTreeMap<u64, &CheckpointInfo> = BTreeMap::new();
    for info in automatic.iter().filter(|info| is_multiple(info.epoch, epochs)) {
        let end = ends.entry(info.epoch).or_insert(info);
        if key(info) < key(end) {
            *end = info;
        }
    }
    ends.into_values()
}

/// All but the later ones of copies.
fn each_once<'a>(automatic: &[&'a CheckpointInfo]) -> Vec<&'a CheckpointInfo> {
    let mut seen = BTreeSet::new();
    automatic.iter().copied().filter(|info| seen.insert(info.save_id)).collect()
}

/// The save ids that several of `committed` bear.
fn copied(committed: &[&CheckpointInfo]) -> BTreeSet<SaveId> {
    let mut seen = BTreeSet::new();
    committed.iter().filter_map(|info| info.save_id).filter(|id| !seen.insert(*id)).collect()
}

fn is_multiple(count: u64, of: NonZeroU64) -> bool {
    count > 0 && count.is_multiple_of(of.get())
}

fn as_usize(count: NonZeroU64) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
