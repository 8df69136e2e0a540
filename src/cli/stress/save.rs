//! `stress save` and `stress loop`: generated content through the real engine.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::content::{Content, Live};
use super::ranks::Ranks;
use crate::autosave::Retention;
use crate::catalog::{self, CheckpointPath};
use crate::cli::directory::open_if_there;
use crate::cli::{Output, Stop};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{ProcessGroup, Progress};
use crate::layout::CheckpointName;
use crate::save::{AfterCommit, Checkpoint, SaveOptions, save, save_async};
use crate::storage::{LocalStorage, Storage};
use crate::tidy::{Pointed, Tidy};

#[derive(Args)]
pub(in crate::cli) struct Save {
    /// Step; the checkpoint is called `step-<step>`.
    #[arg(long)]
    step: u64,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
pub(in crate::cli) struct Loop {
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct How {
    /// Directory of checkpoints; made if missing.
    #[arg(long)]
    dir: PathBuf,
    /// Bytes over all ranks.
    #[arg(long)]
    bytes: u64,
    #[command(flatten)]
    ranks: Ranks,
    /// Save beside other work: everything is changed while it is written.
    #[arg(long = "async")]
    beside: bool,
    /// Keep the newest K of what was saved with this option, and move the link `latest`.
    #[arg(long, value_name = "K")]
    keep: Option<NonZeroU64>,
    /// One JSON object for each save instead of a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn once(out: &mut Output<'_>, arguments: &Save) -> Result<u8, Stop> {
    let how = &arguments.how;
    how.ranks.play(out, &|group, out| Saver::new(how, group).save(arguments.step, out)?)
}

pub(super) fn until_killed(out: &mut Output<'_>, arguments: &Loop) -> Result<u8, Stop> {
    let how = &arguments.how;
    how.ranks.play(out, &|group, out| Saver::new(how, group).go_on(out))
}

/// What became of telling it; the save stands, whatever that is.
type Said = Result<(), Stop>;

/// One rank that saves.
struct Saver<'a> {
    how: &'a How,
    group: &'a ProcessGroup,
    storage: Arc<dyn Storage>,
    live: Live,
    pointed: Pointed,
}

impl<'a> Saver<'a> {
    fn new(how: &'a How, group: &'a ProcessGroup) -> Self {
        let (storage, live) = (Arc::new(LocalStorage::new()), Live::new(group.rank()));
        Self { how, group, storage, live, pointed: Pointed::default() }
    }

    /// Saves step after step, until one of them fails or nobody can be told of them.
    fn go_on(&self, mut out: Option<&mut Output<'_>>) -> Result<(), Stop> {
        let (mut last, mut said) = (None, Ok(()));
        loop {
            let next = self.group.on_coordinator("next", || match last {
                _ if said.is_err() => Ok(None),
                Some(last) => step_after(last).map(Some),
                None => self.first_step().map(Some),
            })?;
            let Some(step) = next else { return said };
            said = self.save(step, out.as_deref_mut())?;
            last = Some(step);
        }
    }

    /// The first step of a loop: one more than the newest, and one whose name is not taken by
    /// something damaged or foreign.
    fn first_step(&self) -> Result<u64> {
        let progress: Progress = self.group.progress();
        let Some(dir) = open_if_there(self.storage.as_ref(), &self.how.dir)? else { return Ok(1) };
        let found = catalog::list(dir.as_ref(), &mut || progress.add(1))?;
        let committed = found.iter().filter(|info| info.is_committed());
        let mut step = committed.map(|info| info.step).max().map_or(Ok(1), step_after)?;
        let entries = dir.list()?;
        let taken: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        while taken.contains(name_of(step).as_str()) {
            step = step_after(step)?;
        }
        Ok(step)
    }

    fn save(&self, step: u64, out: Option<&mut Output<'_>>) -> Result<Said> {
        let Self { how, group, storage, live, .. } = self;
        let path = CheckpointPath::new(&how.dir, CheckpointName::new(&name_of(step))?);
        let content = Content { step, ranks: group.world_size(), bytes: how.bytes };
        let state = live.state(&content, how.keep.is_some())?;
        let options = SaveOptions { step, ..SaveOptions::default() };
        if !how.beside {
            let committed = save(group, storage.as_ref(), &path, &state, &options)?;
            let said = self.say(out, &committed, step);
            self.after_commit()(&committed);
            return Ok(said);
        }
        let pending = save_async(group, storage, &path, &state, &options, self.after_commit())?;
        live.become_step(step.wrapping_add(1));
        Ok(self.say(out, &pending.wait()?, step))
    }

    fn say(&self, out: Option<&mut Output<'_>>, committed: &Checkpoint, step: u64) -> Said {
        super::say(out, self.how.json, "committed", step, committed.save_id)
    }

    fn after_commit(&self) -> AfterCommit {
        let Some(keep) = self.how.keep else { return Box::new(|_| {}) };
        let tidy = Tidy {
            group: self.group.clone(),
            storage: Arc::clone(&self.storage),
            directory: self.how.dir.clone(),
            retention: Retention { last: Some(keep), ..Retention::default() },
            monitor: None,
            protected: Vec::new(),
            line: 0,
            pointed: self.pointed.clone(),
            events: None,
        };
        Box::new(move |committed| tidy.after(committed))
    }
}

fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

fn step_after(step: u64) -> Result<u64> {
    step.checked_add(1).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("no step can follow step {step}"))
            .with_help("use another directory")
    })
}
