//! Loading a checkpoint of the run, and going on from it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::choose::{Question, choose};
use super::lineage::{Lineage, top_of};
use super::{Checkpointer, Parts, Resume, TrainerState};
use crate::catalog::{self, CheckpointPath, Order, Wanted, pointer};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::{self, CheckpointName, SaveId};
use crate::load::{Atomicity, Destination, Loaded, load};
use crate::manifest::{CheckpointInfo, CheckpointState, Manifest};
use crate::plan::load::{LoadReport, LoadRules};
use crate::rank::Rank;
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
    /// Damaged checkpoints that were passed over, in the order in which they were tried.
    pub passed_over: Vec<String>,
    /// Checkpoints of the directory that are newer than this one. From the next save on they count
    /// as older than what is saved then.
    pub abandoned: Vec<String>,
    /// Names on one side only; always empty unless the configuration is lenient.
    pub report: LoadReport,
}

/// What a rank asks for in phase "look".
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Asked {
    resume: Resume,
    fall_back: bool,
    damaged: Vec<SaveId>,
    loaded: Option<SaveId>,
}

impl Asked {
    fn of(resume: &Resume) -> Self {
        Self { resume: resume.clone(), fall_back: false, damaged: Vec::new(), loaded: None }
    }
}

/// The coordinator's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Looked {
    chosen: Option<CheckpointInfo>,
    abandoned: Vec<String>,
    /// Where a run stands that begins anew beside all of them.
    fresh: Lineage,
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
        let config = &self.config;
        if !config.enabled || config.resume == Resume::Fresh {
            tracing::info!(directory = %self.directory.display(), "training begins anew");
            return Ok(None);
        }
        let (resume, if_any) = (config.resume.clone(), config.resume_if_any);
        let fall_back = config.resume_fall_back;
        self.load_as(&resume, if_any, fall_back, parts)
    }

    /// Loads one checkpoint into `parts`, verified before anything changes.
    ///
    /// # Collective
    /// Every rank, with the same `which`.
    ///
    /// # Errors
    /// On every rank: [`ErrorKind::NotFound`] listing what there is; [`ErrorKind::Corrupt`] for a
    /// damaged one, and for the newest one if a damaged one may be newer, unless the configuration
    /// says to fall back; [`ErrorKind::InvalidInput`] for [`Resume::Fresh`], and for the best
    /// without a monitored metric; as [`load`](fn@crate::load::load).
    pub fn load(&mut self, which: &Resume, parts: &mut Parts<'_>) -> Result<Resumed> {
        let fall_back = self.config.resume_fall_back;
        let nothing = || {
            Error::new(ErrorKind::NotFound, "there is no checkpoint yet")
                .with_path(&self.directory)
                .with_help("begin anew, or check the location and the name of the experiment")
        };
        let nothing = nothing();
        self.load_as(which, false, fall_back, parts)?.ok_or(nothing)
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
        let found = match which {
            Resume::Fresh => return Ok(false),
            Resume::Path(path) => {
                let wanted = Wanted::parse(path)?;
                self.group.on_coordinator("look", || {
                    let found = catalog::find(self.storage.as_ref(), &wanted)?;
                    Ok(found.fault_of_files()?.is_none())
                })
            }
            _ => self.look(Asked::of(which)).map(|looked| looked.chosen.is_some()),
        };
        match found {
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

    fn load_as(
        &mut self,
        which: &Resume,
        if_any: bool,
        fall_back: bool,
        parts: &mut Parts<'_>,
    ) -> Result<Option<Resumed>> {
        self.wait()?;
        if let Resume::Path(path) = which {
            let loaded = self.load_from(&Wanted::parse(path)?, parts)?;
            let asked = Asked { loaded: Some(loaded.0.save_id), ..Asked::of(which) };
            let looked = self.look(asked)?;
            return self.take_up(&loaded, looked, Vec::new()).map(Some);
        }
        // Of one step there is none before it.
        let fall_back = fall_back && matches!(which, Resume::Latest | Resume::Best);
        let (mut unusable, mut passed_over) = (Vec::new(), Vec::new());
        loop {
            let damaged = unusable.clone();
            let looked = self.look(Asked { fall_back, damaged, ..Asked::of(which) })?;
            let Some(chosen) = looked.chosen.clone() else {
                return self.nothing_there(if_any).map(|()| None);
            };
            let path = CheckpointPath::new(&self.directory, CheckpointName::new(&chosen.name)?);
            // The verdict is the same on every rank, so all of them fall back, or none.
            match self.load_from(&Wanted::from(path), parts) {
                Err(error) if fall_back && error.kind() == ErrorKind::Corrupt => {
                    tracing::warn!(%error, name = chosen.name, "damaged; the one before it is tried");
                    unusable.extend(chosen.save_id);
                    passed_over.push(chosen.name);
                }
                loaded => return self.take_up(&loaded?, looked, passed_over).map(Some),
            }
        }
    }

    fn nothing_there(&self, if_any: bool) -> Result<()> {
        if if_any {
            let directory = self.directory.display();
            tracing::info!(%directory, "no checkpoint to resume from: training begins anew");
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, "there is no checkpoint to resume from")
            .with_path(&self.directory)
            .with_help("`resume_if_any` begins anew instead; nothing was changed"))
    }

    /// Phase "look": the coordinator lists and chooses.
    fn look(&self, asked: Asked) -> Result<Looked> {
        self.group.phase_all(Channel::Save, "look", || Ok(asked), |asked| self.answer(&asked))
    }

    fn answer(&self, asked: &[Asked]) -> Result<Looked> {
        let Some(ours) = asked.first() else {
            return Err(Error::new(ErrorKind::Disagreement, "no rank asked for anything"));
        };
        if let Some((theirs, rank)) = asked.iter().zip(0..).find(|(theirs, _)| *theirs != ours) {
            let message = format!("ranks resume differently: {theirs:?}, the coordinator {ours:?}");
            return Err(Error::new(ErrorKind::Disagreement, message).at_rank(Rank::new(rank)));
        }
        let parent = self.storage.open_dir(&self.directory)?;
        let progress = self.group.progress();
        let found = catalog::list(parent.as_ref(), &mut || progress.add(1))?;
        let latest =
            pointer::read(parent.as_ref(), layout::LATEST)?.and_then(std::result::Result::ok);
        let question = Question {
            resume: &ours.resume,
            monitor: self.monitor(),
            damaged: &ours.damaged,
            fall_back: ours.fall_back,
            loaded: ours.loaded,
            latest: latest.as_ref().map(CheckpointName::as_str),
        };
        let chosen = choose(&found, &question).map_err(|e| e.with_path(&self.directory))?;
        Ok(Looked {
            chosen: chosen.cloned(),
            abandoned: chosen.map_or_else(Vec::new, |chosen| newer_than(&found, chosen)),
            fresh: Lineage::fresh(top_of(&found))?,
        })
    }

    fn load_from(&self, wanted: &Wanted, parts: &mut Parts<'_>) -> Result<(Loaded, TrainerState)> {
        let rules = LoadRules { strict: self.config.resume_strict, ..LoadRules::default() };
        let destination = Whole { parts, with_data: self.config.resume_data, state: None };
        load_parts(&self.group, self.storage.as_ref(), wanted, &rules, destination)
    }

    /// The run goes on from what was loaded.
    fn take_up(
        &mut self,
        (loaded, state): &(Loaded, TrainerState),
        looked: Looked,
        passed_over: Vec<String>,
    ) -> Result<Resumed> {
        let own = is_in(&loaded.path, &self.directory);
        let abandoned = looked.abandoned;
        let lineage = Lineage::of(&loaded.manifest);
        self.lineage = match own {
            true if abandoned.is_empty() => lineage,
            true => Lineage { generation: looked.fresh.generation, ..lineage },
            false => looked.fresh,
        };
        if !abandoned.is_empty() {
            tracing::warn!(
                step = state.step,
                newer = abandoned.join(", "),
                "resuming from an older checkpoint: newer ones count as older from the next save on"
            );
        }
        let experiment = self.config.experiment.clone();
        self.state = TrainerState { experiment, ..state.clone() };
        self.before = self.state.counters();
        (self.saved_step, self.resumed) = match own {
            true => (Some(state.step), Some(loaded.save_id)),
            false => (None, None),
        };
        tracing::info!(path = %loaded.path.display(), step = state.step, epoch = state.epoch, "resumed");
        Ok(Resumed {
            path: loaded.path.clone(),
            save_id: loaded.save_id,
            state: self.state.clone(),
            passed_over,
            abandoned,
            report: loaded.report.clone(),
        })
    }
}

/// Loads what lies at `path`, wherever that is, strictly.
pub(super) fn load_path(
    group: &ProcessGroup,
    path: &Path,
    parts: &mut Parts<'_>,
) -> Result<Resumed> {
    let wanted = Wanted::parse(path)?;
    let rules = LoadRules::default();
    let destination = Whole { parts, with_data: true, state: None };
    let (loaded, state) = load_parts(group, &LocalStorage::new(), &wanted, &rules, destination)?;
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
    mut destination: Whole<'_, '_>,
) -> Result<(Loaded, TrainerState)> {
    let loaded = load(group, storage, wanted, &mut destination, rules, Atomicity::Atomic)?;
    let state = destination
        .state
        .ok_or_else(|| Error::new(ErrorKind::Disagreement, "a load passed without values"))?;
    Ok((loaded, state))
}

/// All parts as what a load fills.
struct Whole<'a, 'b> {
    parts: &'a mut Parts<'b>,
    with_data: bool,
    state: Option<TrainerState>,
}

impl Destination for Whole<'_, '_> {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.parts.targets(self.with_data)
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

/// The checkpoints that are newer than `chosen`, newest first; also damaged ones, if it is known
/// where they stand.
fn newer_than(found: &[CheckpointInfo], chosen: &CheckpointInfo) -> Vec<String> {
    let mut newer: Vec<&CheckpointInfo> = found
        .iter()
        .filter(|info| info.state != CheckpointState::Partial && info.save_id.is_some())
        .filter(|info| info.age_key() > chosen.age_key())
        .collect();
    newer.sort_by(|a, b| b.age_key().cmp(&a.age_key()));
    newer.into_iter().map(|info| info.name.clone()).collect()
}

/// Whether a checkpoint lies in a directory.
fn is_in(checkpoint: &Path, directory: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let parent = checkpoint.parent().and_then(absolute);
    parent.is_some() && parent == absolute(directory)
}
