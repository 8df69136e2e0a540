//! `bench save`: how long a durable save takes, beside a raw write of the same bytes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::disk::{MARK, check_parent, clean, raw_file, settle};
use super::held::{Held, Layout};
use super::interrupt;
use super::measure::{everywhere, gathered, timed, together};
use super::memory::{Peak, check_room};
use super::raw::{self, Blocks};
use super::report::{About, Report, Round, Times, seconds};
use super::spec::Spec;
use super::trainer::{Trainer, copy};
use crate::catalog::CheckpointPath;
use crate::cli::stress::ranks::Ranks;
use crate::cli::{Output, Stop};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::memory::touched;
use crate::plan::OnExisting;
use crate::save::{SaveOptions, save, save_async};
use crate::state::StateDict;
use crate::storage::{LocalStorage, Storage};

/// Threads of the copy that a stall is held against.
const COPIERS: usize = 2;

#[derive(Args)]
pub(super) struct Save {
    #[command(flatten)]
    what: What,
    /// Save beside training: `seconds` until it is durable, `stall` until training goes on.
    #[arg(long = "async")]
    beside: bool,
    /// With --async: multiply matrices meanwhile, and say at which part of the idle rate.
    #[arg(long, requires = "beside")]
    trainer: bool,
    /// Link what has not changed, as saves do unless told otherwise: here all of it, so that this
    /// is the time of comparing.
    #[arg(long)]
    unchanged: bool,
    /// Every save is durable: `no` changes nothing, and the JSON says so.
    #[arg(long, value_enum, default_value_t = Durable::Yes)]
    durable: Durable,
}

/// What both directions are told.
#[derive(Args)]
pub(super) struct What {
    /// The tensors, as `bench workload` prints them.
    #[arg(long)]
    pub(super) spec: PathBuf,
    /// The checkpoint itself; the directory in which it lies must be there.
    #[arg(long)]
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) ranks: Ranks,
    /// Who holds what.
    #[arg(long, value_enum, default_value_t = Layout::Sharded)]
    pub(super) layout: Layout,
    /// How often, after a warm-up; the figures are medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) rounds: u16,
    /// One line of JSON instead of a table.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Durable {
    Yes,
    No,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Save) -> Result<u8, Stop> {
    let What { spec, dir, ranks, layout, rounds, json } = &arguments.what;
    // There is no save that is not durable.
    let (Durable::Yes | Durable::No) = arguments.durable;
    let spec = Spec::read(spec)?;
    let path = CheckpointPath::parse(dir)?;
    let how = How { layout: *layout, rounds: (*rounds).into(), shared: ranks.share_a_process() };
    ranks.play(out, &|group, out| {
        interrupt::watch();
        let saver = Saves {
            beside: arguments.beside,
            trains: arguments.trainer,
            unchanged: arguments.unchanged,
        };
        let report = measure(group, &spec, &path, &how, &saver)?;
        out.map_or(Ok(()), |out| report.print(out, *json))
    })
}

/// How either direction is measured.
pub(super) struct How {
    pub(super) layout: Layout,
    pub(super) rounds: usize,
    /// Whether all ranks are in one process, so that one of them counts its memory.
    pub(super) shared: bool,
}

impl How {
    pub(super) fn peak(&self, group: &ProcessGroup) -> Option<Peak> {
        (!self.shared || group.is_coordinator()).then(Peak::start)
    }

    /// How often the whole state is in memory.
    pub(super) fn copies(&self, group: &ProcessGroup) -> u64 {
        match self.layout {
            Layout::Sharded => 1,
            Layout::Replicated => group.world_size().get().into(),
        }
    }
}

/// Which saves.
pub(super) struct Saves {
    pub(super) beside: bool,
    pub(super) trains: bool,
    pub(super) unchanged: bool,
}

/// Saves `spec` as `path`, again and again; the last one stays.
///
/// # Collective
/// Every rank.
///
/// # Errors
/// That of any rank. What `bench save` has not made is left alone.
pub(super) fn measure(
    group: &ProcessGroup,
    spec: &Spec,
    path: &CheckpointPath,
    how: &How,
    saves: &Saves,
) -> Result<Report> {
    group.on_coordinator("room", || {
        check_parent(path)?;
        // The state; beside training a copy of it, and one more to be held against.
        let copies = if saves.beside { 2 } else { 0 };
        let needed = how.copies(group).saturating_add(copies);
        check_room(spec.bytes().saturating_mul(needed))
    })?;
    let held = everywhere(group, "make", || Held::filled(spec, how.layout, group))?;
    let mut saver = Saver::new(group, spec, path, how, saves, &held)?;
    let warm_up = saver.save()?;
    let rounds = (0..how.rounds).map(|_| saver.round()).collect::<Result<Vec<_>>>()?;
    let raw = if saver.is_direct { "direct" } else { "buffered" };
    let op = if saves.beside { "save_async" } else { "save" };
    let (ranks, layout) = (group.world_size().get(), how.layout);
    Ok(Report::new(&About { op, spec, ranks, layout, cache: None, raw }, &warm_up, &rounds))
}

/// One rank that saves.
struct Saver<'a> {
    group: &'a ProcessGroup,
    storage: Arc<dyn Storage>,
    path: &'a CheckpointPath,
    state: StateDict,
    share: Vec<&'a [u8]>,
    blocks: Blocks,
    raw_file: PathBuf,
    is_direct: bool,
    peak: Option<Peak>,
    beside: bool,
    unchanged: bool,
    /// Memory to copy into, beside training.
    target: Vec<u8>,
    /// The loop that goes on, and its rate when nothing else runs.
    trainer: Option<(Trainer, f64)>,
    step: u64,
}

impl<'a> Saver<'a> {
    fn new(
        group: &'a ProcessGroup,
        spec: &Spec,
        path: &'a CheckpointPath,
        how: &How,
        saves: &Saves,
        held: &'a Held,
    ) -> Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
        let share = held.share(how.layout, group.rank(), group.world_size());
        let (mut state, blocks, target) = everywhere(group, "memory", || {
            let own: u64 = share.iter().map(|part| part.len() as u64).sum();
            let target = touched(if saves.beside { own } else { 0 })?;
            Ok((held.state()?, Blocks::new()?, target))
        })?;
        state.values.set(MARK, spec.name());
        together(group)?;
        let trainer = saves.trains.then(|| {
            let mut trainer = Trainer::new();
            let idle = trainer.idle_rate();
            (trainer, idle)
        });
        let raw_file = raw_file(path, group.rank());
        group.on_coordinator("clean", || clean(storage.as_ref(), path, group))?;
        let peak = how.peak(group);
        Ok(Self {
            group,
            storage,
            path,
            state,
            share,
            blocks,
            raw_file,
            is_direct: true,
            peak,
            beside: saves.beside,
            unchanged: saves.unchanged,
            target,
            trainer,
            step: 0,
        })
    }

    /// The limit, then what is held against it, each on a quiet disk.
    fn round(&mut self) -> Result<Round> {
        let (storage, path, group) = (Arc::clone(&self.storage), self.path, self.group);
        group.on_coordinator("clean", || clean(storage.as_ref(), path, group))?;
        let raw = self.raw()?;
        group.on_coordinator("settle", || settle(path.directory()))?;
        let memcpy = if self.beside { Some(self.copy()?) } else { None };
        Ok(Round { raw, memcpy, ..self.save()? })
    }

    fn raw(&mut self) -> Result<f64> {
        let Self { group, share, blocks, raw_file, .. } = self;
        let mut made = None;
        let time = timed(group, "raw", || {
            made = Some(raw::write(blocks, raw_file, share, &group.progress())?);
            Ok(())
        })?;
        let is_direct = made.is_none_or(|file| file.is_direct);
        self.is_direct = gathered(group, "raw", is_direct)?.into_iter().all(|direct| direct);
        Ok(seconds(time))
    }

    fn copy(&mut self) -> Result<f64> {
        let Self { group, share, target, .. } = self;
        let threads = COPIERS.div_ceil(group.world_size().len());
        Ok(seconds(timed(group, "copy", || copy(share, target, threads))?))
    }

    fn save(&mut self) -> Result<Round> {
        self.step += 1;
        if let Some(peak) = &self.peak {
            peak.again();
        }
        together(self.group)?;
        let mut own = if self.beside { self.save_beside()? } else { self.save_and_wait()? };
        together(self.group)?;
        own.peak = self.peak.as_ref().map(Peak::beyond).unwrap_or_default();
        Ok(Round::of_all(&gathered(self.group, "saved", own)?))
    }

    fn options(&self) -> SaveOptions {
        let on_existing = OnExisting::Replace;
        let copy_unchanged = !self.unchanged;
        SaveOptions { step: self.step, on_existing, copy_unchanged, ..SaveOptions::default() }
    }

    fn save_and_wait(&self) -> Result<Round> {
        let Self { group, storage, path, state, .. } = self;
        let begin = Instant::now();
        let saved = save(group, storage.as_ref(), path, state, &self.options())?;
        let seconds = seconds(begin.elapsed());
        Ok(Round { seconds, times: Times::of_save(&saved), ..Round::default() })
    }

    fn save_beside(&mut self) -> Result<Round> {
        let options = self.options();
        let Self { group, storage, path, state, trainer, .. } = self;
        let begin = Instant::now();
        let pending = save_async(group, storage, path, state, &options, Box::new(|_| {}))?;
        let stall = Some(seconds(begin.elapsed()));
        let rate = trainer
            .as_mut()
            .map(|(trainer, idle)| trainer.rate_until(|| pending.is_done()) / idle.max(1e-9));
        let saved = pending.wait()?;
        let seconds = seconds(begin.elapsed());
        let times = Times::of_save(&saved);
        Ok(Round { seconds, stall, trainer: rate, times, ..Round::default() })
    }
}
