//! Loading a checkpoint of the run, and going on from it.

use std::path::{Path, PathBuf};

use super::look::{Asked, Looked, wanted_by_all};
use super::{Checkpointer, Parts, Resume, TrainerState};
use crate::autosave::Counters;
use crate::catalog::{self, CheckpointPath, Order, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::{CheckpointName, SaveId};
use crate::lineage::Lineage;
use crate::load::{Atomicity, Destination, Loaded, load};
use crate::manifest::{CheckpointInfo, Manifest};
use crate::plan::load::{LoadReport, LoadRules};
use crate::rank::Rank;
use crate::shown;
use crate::state::{LoadTargets, Values};
use crate::storage::{LocalStorage, Storage};

/// What a run goes on from.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// Where the checkpoint lies.
    pub path: PathBuf,
    /// Which save it is.
    pub save_id: SaveId,
    /// How far training had come, and what the checkpointer itself kept.
    pub state: TrainerState,
    /// Damaged checkpoints that were passed over.
    pub passed_over: Vec<String>,
    /// Checkpoints of the directory that are newer than this one (damaged ones too, if it is known
    /// where they stand), newest first, at most 100. From
    /// the next save on they count as older than what is saved then.
    pub abandoned: Vec<String>,
    /// Names on one side only, always empty unless the configuration is lenient; and what the load
    /// took.
    pub report: LoadReport,
}

impl Checkpointer {
    /// Goes on as the configuration says: `resume`, `resume_if_any`, `resume_fall_back`. `None`
    /// means that the run begins anew; which of them is also logged.
    ///
    /// # Collective
    /// Every rank. The world size may differ from the one that saved.
    ///
    /// # Errors
    /// As [`Checkpointer::load`].
    pub fn resume(&mut self, parts: &mut Parts<'_>) -> Result<Option<Resumed>> {
        let resumed = match self.config.resume.clone() {
            Resume::Fresh => None,
            _ if !self.config.enabled => None,
            resume => match self.load_if_any(&resume, parts)? {
                None if !self.config.resume_if_any => return Err(self.nothing_there()),
                found => found,
            },
        };
        if resumed.is_none() && self.group.is_coordinator() {
            tracing::info!(directory = %shown::path(&self.directory), "training begins anew");
        }
        Ok(resumed)
    }

    /// Loads one checkpoint into `parts`, verified before anything changes. If what comes after
    /// that fails, a copy to a device or a part that does not take its values, the parts are half
    /// changed: then nothing is saved until a load succeeds that finds all it looks for
    /// ([`ErrorKind::Poisoned`]).
    ///
    /// # Collective
    /// Every rank, with the same `which`.
    ///
    /// # Errors
    /// On every rank: [`ErrorKind::NotFound`] listing what there is; [`ErrorKind::Corrupt`] for a
    /// damaged one, and for the newest one if a damaged one may be newer, unless the configuration
    /// says to fall back, and the same for the best; [`ErrorKind::InvalidInput`] for
    /// [`Resume::Fresh`], and for the best without a monitored metric; as
    /// [`load`](fn@crate::load::load).
    pub fn load(&mut self, which: &Resume, parts: &mut Parts<'_>) -> Result<Resumed> {
        self.load_if_any(which, parts)?.ok_or_else(|| self.nothing_there())
    }

    /// Whether there is such a checkpoint: its manifest parses and its files have the lengths that
    /// it states. Content is verified by the load itself.
    ///
    /// False also where [`Checkpointer::load`] would refuse for damage, so it is not what decides
    /// whether to begin anew: [`Checkpointer::resume`] tells nothing there from something damaged.
    ///
    /// # Collective
    /// Every rank, with the same `which`.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`]; [`ErrorKind::InvalidInput`] for the best without a monitored metric;
    /// as [`ProcessGroup::phase`].
    pub fn has_checkpoint(&self, which: &Resume) -> Result<bool> {
        match self.is_there(which) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(false),
            found => found,
        }
    }

    /// What the directory holds, newest first; partial and damaged ones too.
    ///
    /// # Collective
    /// Every rank: the coordinator looks and tells the others.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`]; as [`ProcessGroup::phase`].
    pub fn find_checkpoints(&self) -> Result<Vec<CheckpointInfo>> {
        let storage = self.storage.as_ref();
        catalog::find_checkpoints_on(&self.group, storage, &self.directory, &Order::Latest)
    }

    /// `None` if there is no checkpoint at all.
    fn load_if_any(&mut self, which: &Resume, parts: &mut Parts<'_>) -> Result<Option<Resumed>> {
        self.wait()?;
        if let Resume::Path(path) = which {
            let loaded = self.load_from(&wanted_by_all(&self.group, path)?, parts)?;
            let looked = self.look(Asked::again(which, loaded.0.save_id));
            // The parts are those of what was loaded; the run is not.
            self.poisoned |= looked.is_err();
            return Ok(Some(self.take_up(&loaded, looked?)));
        }
        let fall_back = self.falls_back(which);
        let (mut damaged, mut passed_over) = (Vec::new(), Vec::new());
        loop {
            let mut looked = self.look(Asked::of(which, fall_back, &damaged))?;
            let Some(chosen) = looked.chosen.clone() else { return Ok(None) };
            let path = CheckpointPath::new(&self.directory, CheckpointName::new(&chosen.name)?);
            // The verdict is the same on every rank, so all of them fall back, or none.
            match self.load_from(&Wanted::from(path), parts) {
                Err(error) if fall_back && error.kind() == ErrorKind::Corrupt => {
                    if self.group.is_coordinator() {
                        let name = &chosen.name;
                        tracing::warn!(%error, name, "damaged; the one before it is tried");
                    }
                    damaged.extend(chosen.save_id);
                    passed_over.push(chosen.name);
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    return Err(help_damaged(error, which));
                }
                loaded => {
                    looked.passed_over.extend(passed_over);
                    self.passed_over = damaged;
                    return Ok(Some(self.take_up(&loaded?, looked)));
                }
            }
        }
    }

    fn nothing_there(&self) -> Error {
        Error::new(ErrorKind::NotFound, "there is no checkpoint to resume from")
            .with_path(&self.directory)
            .with_help("`resume_if_any` begins anew instead; nothing was changed")
    }

    fn load_from(
        &mut self,
        wanted: &Wanted,
        parts: &mut Parts<'_>,
    ) -> Result<(Loaded, TrainerState)> {
        let rules = LoadRules { strict: self.config.resume_strict, ..LoadRules::default() };
        let mut whole = Whole::new(parts, self.config.resume_data, self.group.rank());
        let loaded = load_parts(&self.group, self.storage.as_ref(), wanted, &rules, &mut whole);
        self.poisoned = match &loaded {
            // What a lenient load did not find is still as the one before it left it.
            Ok((loaded, _)) => self.poisoned && !loaded.report.missing.is_empty(),
            Err(_) => self.poisoned || whole.is_touched,
        };
        loaded
    }

    /// The run goes on from what was loaded.
    fn take_up(&mut self, (loaded, state): &(Loaded, TrainerState), looked: Looked) -> Resumed {
        let Looked { chosen, fresh, passed_over, abandoned } = looked;
        let is_own = chosen.is_some();
        self.lineage = match is_own {
            true => Lineage::of(&loaded.manifest).followed(fresh, !abandoned.is_empty()),
            false => fresh,
        };
        if !passed_over.is_empty() && self.group.is_coordinator() {
            tracing::warn!(
                damaged = passed_over.join(", "),
                "damaged checkpoints were passed over"
            );
        }
        if !abandoned.is_empty() && self.group.is_coordinator() {
            tracing::warn!(
                step = state.step,
                newer = abandoned.join(", "),
                "resuming from an older checkpoint: newer ones count as older from the next save on"
            );
        }
        let experiment = self.config.experiment.clone();
        self.state = TrainerState { experiment, ..state.clone() };
        self.before = self.state.counters();
        if let Some(events) = &self.events {
            events.go_on_with(state.step.saturating_add(1));
            events.loaded(state.step, &loaded.report.times);
        }
        (self.saved_step, self.resumed) = match is_own {
            true => (Some(state.step), Some(loaded.save_id)),
            false => (None, None),
        };
        if self.group.is_coordinator() {
            let Counters { step, epoch } = self.before;
            let times = &loaded.report.times;
            tracing::info!(path = %shown::path(&loaded.path), step, epoch, "resumed {times}");
        }
        Resumed {
            path: loaded.path.clone(),
            save_id: loaded.save_id,
            state: self.state.clone(),
            passed_over,
            abandoned,
            report: loaded.report.clone(),
        }
    }
}

/// What to do about damage that only the load could find.
fn help_damaged(error: Error, which: &Resume) -> Error {
    match which {
        Resume::Latest | Resume::Best => error
            .with_help("`resume_fall_back` takes the one before it instead; nothing was changed"),
        _ => error.with_help("name another one; nothing was changed"),
    }
}

/// Loads what lies at `path`, wherever that is, strictly.
pub(super) fn load_path(
    group: &ProcessGroup,
    path: &Path,
    parts: &mut Parts<'_>,
) -> Result<Resumed> {
    let wanted = wanted_by_all(group, path)?;
    let rules = LoadRules::default();
    let mut whole = Whole::new(parts, true, group.rank());
    let (loaded, state) = load_parts(group, &LocalStorage::new(), &wanted, &rules, &mut whole)?;
    Ok(Resumed {
        path: loaded.path,
        save_id: loaded.save_id,
        state,
        passed_over: Vec::new(),
        abandoned: Vec::new(),
        report: loaded.report,
    })
}

fn load_parts(
    group: &ProcessGroup,
    storage: &dyn Storage,
    wanted: &Wanted,
    rules: &LoadRules,
    whole: &mut Whole<'_, '_>,
) -> Result<(Loaded, TrainerState)> {
    let loaded = load(group, storage, wanted, whole, rules, Atomicity::Atomic)?;
    let state = whole
        .state
        .take()
        .ok_or_else(|| Error::new(ErrorKind::Disagreement, "a load passed without values"))?;
    Ok((loaded, state))
}

/// All parts as what a load fills.
pub(super) struct Whole<'a, 'b> {
    parts: &'a mut Parts<'b>,
    with_data: bool,
    rank: Rank,
    state: Option<TrainerState>,
    is_touched: bool,
}

impl<'a, 'b> Whole<'a, 'b> {
    pub(super) fn new(parts: &'a mut Parts<'b>, with_data: bool, rank: Rank) -> Self {
        Self { parts, with_data, rank, state: None, is_touched: false }
    }

    /// Whether a load has begun to change them.
    pub(super) fn is_touched(&self) -> bool {
        self.is_touched
    }
}

impl Destination for Whole<'_, '_> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let none = Values::new();
        let own = manifest.rank_values(self.rank).unwrap_or(&none);
        self.parts.prepare(manifest.values(), own, self.with_data)
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.parts.targets(self.with_data)
    }

    fn begin_change(&mut self) {
        self.is_touched = true;
    }

    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        TrainerState::load(manifest)?;
        let none = Values::new();
        let own = rank_values.unwrap_or(&none);
        self.parts.check_values(manifest.values(), own, self.with_data)
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        let none = Values::new();
        let own = rank_values.unwrap_or(&none);
        self.parts.load_values(manifest.values(), own, self.with_data)?;
        self.state = Some(TrainerState::load(manifest)?);
        Ok(())
    }
}
