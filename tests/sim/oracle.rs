//! What was acknowledged, and whether the disk keeps it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog::{self, Order, Wanted, Which, find_checkpoints};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::manifest::CheckpointInfo;
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::storage::{Directory, EntryKind, Storage};
use tch_checkpoint::verify::verify;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup};

use crate::content::{Buffers, Sizes, loss};

pub const RUNS: &str = "jobs/runs";
const LINKS: [&str; 2] = ["latest", "best"];

/// What ranks were told of one attempt to save.
#[derive(Debug, Clone, Default)]
struct Attempt {
    name: String,
    /// Some rank was told that it is committed.
    is_acked: bool,
    /// Some rank was told, for certain, that it is not.
    refused: Option<String>,
}

/// What a rank was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Committed,
    NotCommitted,
    /// Either, or visible and not durable.
    Unknown,
}

impl Told {
    pub fn of<T>(verdict: &Result<T, Error>) -> Self {
        match verdict.as_ref().map_err(Error::kind) {
            Ok(_) => Self::Committed,
            Err(ErrorKind::OutcomeUnknown | ErrorKind::DurabilityUncertain) => Self::Unknown,
            Err(_) => Self::NotCommitted,
        }
    }
}

/// All attempts of a seed, by their steps, which are never used twice.
#[derive(Debug)]
pub struct Oracle {
    sizes: Sizes,
    /// How many the rules keep, if they let anything go; then the best by loss stays too.
    keeps: Option<usize>,
    attempts: BTreeMap<u64, Attempt>,
}

/// What breaks a promise.
pub type Violation = String;

impl Oracle {
    pub fn new(sizes: Sizes, keeps: Option<usize>) -> Self {
        Self { sizes, keeps, attempts: BTreeMap::new() }
    }

    /// Rank `rank` begins to save `step`.
    pub fn begin(&mut self, step: u64, name: &str) {
        self.attempts
            .entry(step)
            .or_insert_with(|| Attempt { name: name.into(), ..Attempt::default() });
    }

    /// A living rank was told what became of `step`.
    pub fn told(&mut self, step: u64, told: Told, why: impl FnOnce() -> String) {
        let Some(attempt) = self.attempts.get_mut(&step) else { return };
        match told {
            Told::Committed => attempt.is_acked = true,
            Told::NotCommitted => drop(attempt.refused.get_or_insert_with(why)),
            Told::Unknown => {}
        }
    }

    /// Looks at everything on a disk that nobody uses.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check(&self, storage: &Arc<dyn Storage>) -> Result<Vec<CheckpointInfo>, Violation> {
        self.check_verdicts()?;
        let listed = match find_checkpoints(storage.as_ref(), Path::new(RUNS), &Order::default()) {
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|e| format!("the directory cannot be listed: {e}"))?,
        };
        let visible: Vec<_> = listed.into_iter().filter(CheckpointInfo::is_committed).collect();
        if let Ok(parent) = storage.open_dir(Path::new(RUNS)) {
            check_entries(parent.as_ref(), &visible)?;
            self.check_links(parent.as_ref(), &visible)?;
        }
        visible.iter().try_for_each(|info| self.check_one(storage.as_ref(), info))?;
        self.check_kept(&visible)?;
        Ok(visible)
    }

    fn check_verdicts(&self) -> Result<(), Violation> {
        for (step, attempt) in &self.attempts {
            if let (true, Some(why)) = (attempt.is_acked, &attempt.refused) {
                return Err(format!("step {step} is committed for one rank, for another: {why}"));
            }
        }
        Ok(())
    }

    /// A visible checkpoint is one that was saved, complete, with the bytes of its step.
    fn check_one(&self, storage: &dyn Storage, info: &CheckpointInfo) -> Result<(), Violation> {
        let CheckpointInfo { name, step, .. } = info;
        let Some(attempt) = self.attempts.get(step).filter(|attempt| attempt.name == *name) else {
            return Err(format!("`{name}` says step {step}, which nobody saved there"));
        };
        if let Some(why) = &attempt.refused {
            return Err(format!("step {step} is visible, and ranks were told: {why}"));
        }
        let at = CheckpointName::new(name).map_err(|e| e.to_string())?;
        let wanted = Wanted::new(RUNS, Which::Named(at));
        let found = catalog::find(storage, &wanted).map_err(|e| format!("`{name}`: {e}"))?;
        let verified = verify(&found, &mut |_| {}).map_err(|e| format!("`{name}`: {e}"))?;
        if let Some(damage) = verified.damage.first() {
            return Err(format!("`{name}` of step {step} is damaged: {damage}"));
        }
        if let Some(file) = verified.foreign.first() {
            return Err(format!("`{file}` lies in `{name}`"));
        }
        let mut buffers = Buffers::of(self.sizes, 0, 1);
        let (group, rules) = (ProcessGroup::solo(), LoadRules::default());
        let mut targets = buffers.targets();
        let loaded = load(&group, storage, &wanted, &mut targets, &rules, Atomicity::InPlace);
        drop(targets);
        let loaded = loaded.map_err(|e| format!("`{name}` cannot be loaded: {e}"))?;
        buffers.check(&loaded.manifest)
    }

    /// What was acknowledged is there, unless another took its name, or the rules let it go.
    fn check_kept(&self, visible: &[CheckpointInfo]) -> Result<(), Violation> {
        let acked = || self.attempts.iter().filter(|(_, attempt)| attempt.is_acked);
        for (step, attempt) in acked() {
            let is_there = visible.iter().any(|info| info.step == *step);
            let is_replaced =
                visible.iter().any(|info| info.name == attempt.name && info.step > *step);
            let newer = visible.iter().filter(|info| info.step > *step).count();
            let may_go = self.keeps.is_some_and(|keeps| newer >= keeps);
            if !is_there && !is_replaced && !may_go {
                return Err(format!("step {step} was acknowledged, and is lost"));
            }
        }
        self.check_best(visible)
    }

    /// The best of what was acknowledged stays, unless another took its name; what was removed when
    /// there was a better one does not come back when that is gone.
    fn check_best(&self, visible: &[CheckpointInfo]) -> Result<(), Violation> {
        let may_be = |attempt: &Attempt| attempt.refused.is_none();
        for (step, attempt) in self.attempts.iter().filter(|(_, attempt)| attempt.is_acked) {
            let is_there = visible.iter().any(|info| info.step == *step);
            let mut later = self.attempts.range(step + 1..);
            let was_replaced = later.any(|(_, other)| other.name == attempt.name && may_be(other));
            let was_beaten = self.attempts.iter().any(|(other, attempt)| {
                other != step && may_be(attempt) && loss(*other) <= loss(*step)
            });
            if !is_there && !was_replaced && !was_beaten {
                return Err(format!("step {step}, the best one, is lost"));
            }
        }
        Ok(())
    }

    /// A link leads to a checkpoint, or there is none.
    fn check_links(
        &self,
        parent: &dyn Directory,
        visible: &[CheckpointInfo],
    ) -> Result<(), Violation> {
        for link in LINKS {
            match parent.read_link(link) {
                Ok(name) if !visible.iter().any(|info| info.name == name) => {
                    return Err(format!("`{link}` leads to `{name}`, which is not there"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What must hold once a job has ended that met no fault.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_tidy(&self, storage: &Arc<dyn Storage>, last: u64) -> Result<(), Violation> {
        let visible = self.check(storage)?;
        let parent = storage.open_dir(Path::new(RUNS)).map_err(|e| e.to_string())?;
        for entry in parent.list().map_err(|e| e.to_string())? {
            if entry.name.starts_with('.') && entry.name != ".tch-checkpoint.lock" {
                return Err(format!("`{}` was left behind", entry.name));
            }
        }
        let latest = parent.read_link("latest").map_err(|e| format!("`latest`: {e}"))?;
        if !visible.iter().any(|info| info.name == latest && info.step == last) {
            return Err(format!("`latest` leads to `{latest}`, not to step {last}"));
        }
        Ok(())
    }
}

/// Whatever has the name of a checkpoint is a whole one.
fn check_entries(parent: &dyn Directory, visible: &[CheckpointInfo]) -> Result<(), Violation> {
    for entry in parent.list().map_err(|e| e.to_string())? {
        let is_visible = entry.kind == EntryKind::Directory && !entry.name.starts_with('.');
        if is_visible && !visible.iter().any(|info| info.name == entry.name) {
            return Err(format!("`{}` is visible, and is no checkpoint", entry.name));
        }
    }
    Ok(())
}
