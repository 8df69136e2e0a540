//! `bench load`: how long a verified load into memory that is there takes, beside a raw read.

use std::time::Instant;

use clap::{Args, ValueEnum};

use super::disk::forget;
use super::held::Held;
use super::interrupt;
use super::load_raw::Data;
use super::measure::{everywhere, gathered, timed, together};
use super::memory::{Peak, check_room};
use super::raw::Blocks;
use super::report::{About, Report, Round, Times, seconds};
use super::save::{How, What};
use super::spec::Spec;
use crate::catalog::{self, Wanted};
use crate::cli::{Output, Stop};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::load::{Atomicity, load};
use crate::plan::load::LoadRules;
use crate::storage::LocalStorage;

#[derive(Args)]
pub(super) struct Load {
    #[command(flatten)]
    what: What,
    /// Whether the files are in the page cache.
    #[arg(long, value_enum, default_value_t = Cache::Warm)]
    cache: Cache,
    /// Verify everything before any memory changes, which takes memory for all of it once more.
    #[arg(long)]
    atomic: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Cache {
    /// They are: they were read just before.
    Warm,
    /// They are not: each is dropped from it before it is read.
    Cold,
}

impl Cache {
    fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Load) -> Result<u8, Stop> {
    let What { spec, dir, ranks, layout, rounds, json } = &arguments.what;
    let (spec, wanted) = (Spec::read(spec)?, Wanted::parse(dir)?);
    let how = How { layout: *layout, rounds: (*rounds).into(), shared: ranks.share_a_process() };
    let atomicity = if arguments.atomic { Atomicity::Atomic } else { Atomicity::InPlace };
    ranks.play(out, &|group, out| {
        interrupt::watch();
        let report = measure(group, &spec, &wanted, &how, arguments.cache, atomicity)?;
        out.map_or(Ok(()), |out| report.print(out, *json))
    })
}

/// Loads `wanted` again and again, and compares every byte each time.
///
/// # Collective
/// Every rank.
///
/// # Errors
/// That of any rank; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for bytes that `spec` does
/// not have.
pub(super) fn measure(
    group: &ProcessGroup,
    spec: &Spec,
    wanted: &Wanted,
    how: &How,
    cache: Cache,
    atomicity: Atomicity,
) -> Result<Report> {
    let storage = LocalStorage::new();
    let found = everywhere(group, "find", || catalog::find(&storage, wanted))?;
    group.on_coordinator("room", || {
        let staged = u64::from(atomicity == Atomicity::Atomic);
        check_room(spec.bytes().saturating_mul(how.copies(group)).saturating_mul(1 + staged))
    })?;
    let (held, blocks) =
        everywhere(group, "make", || Ok((Held::empty(spec, how.layout, group)?, Blocks::new()?)))?;
    together(group)?;
    let (data, path) = (Data::of(&found), found.path());
    let begin =
        data.begin_of(group.rank().get().into(), group.world_size().get().into(), held.bytes());
    let peak = how.peak(group);
    let mut loader =
        Loader { group, storage, wanted, atomicity, cache, held, blocks, data, path, begin, peak };
    let (warm_up, _) = loader.round()?;
    let rounds = (0..how.rounds).map(|_| loader.round()).collect::<Result<Vec<_>>>()?;
    let raw = rounds.last().map_or("buffered", |(_, raw)| *raw);
    let rounds: Vec<Round> = rounds.into_iter().map(|(round, _)| round).collect();
    let (ranks, layout, cache) = (group.world_size().get(), how.layout, Some(cache.name()));
    Ok(Report::new(&About { op: "load", spec, ranks, layout, cache, raw }, &warm_up, &rounds))
}

/// One rank that loads.
struct Loader<'a> {
    group: &'a ProcessGroup,
    storage: LocalStorage,
    wanted: &'a Wanted,
    atomicity: Atomicity,
    cache: Cache,
    held: Held,
    blocks: Blocks,
    data: Data,
    path: std::path::PathBuf,
    /// Where in the data this rank's raw read begins.
    begin: u64,
    peak: Option<Peak>,
}

impl Loader<'_> {
    fn round(&mut self) -> Result<(Round, &'static str)> {
        let (raw, how) = self.raw()?;
        self.before()?;
        self.held.spoil()?;
        let round = self.load()?;
        let (held, group) = (&self.held, self.group);
        everywhere(group, "check", || held.check(group))?;
        Ok((Round { raw, ..round }, how))
    }

    /// The cache as it is to be.
    fn before(&self) -> Result<()> {
        match self.cache {
            Cache::Warm => Ok(()),
            Cache::Cold => self.group.on_coordinator("forget", || forget(&self.path)),
        }
    }

    /// The limit, and how it was reached: of a cold file the faster of two ways.
    fn raw(&mut self) -> Result<(f64, &'static str)> {
        let direct = match self.cache {
            Cache::Warm => None,
            Cache::Cold => self.raw_direct()?,
        };
        self.before()?;
        let Self { group, data, held, begin, .. } = self;
        let progress = group.progress();
        let read = || data.read(*begin, held.memory()?, &progress);
        let buffered = seconds(timed(group, "raw", read)?);
        Ok(match direct {
            Some(direct) if direct < buffered => (direct, "direct"),
            _ => (buffered, "buffered"),
        })
    }

    fn raw_direct(&mut self) -> Result<Option<f64>> {
        self.before()?;
        let Self { group, data, held, begin, blocks, .. } = self;
        let (progress, mut can) = (group.progress(), false);
        let time = timed(group, "raw direct", || {
            can = data.read_direct(blocks, *begin, held.memory()?, &progress)?;
            Ok(())
        })?;
        let can = gathered(group, "raw direct", can)?.into_iter().all(|can| can);
        Ok(can.then_some(seconds(time)))
    }

    fn load(&mut self) -> Result<Round> {
        let Self { group, storage, wanted, atomicity, held, peak, .. } = self;
        let mut targets = everywhere(group, "targets", || held.targets())?;
        if let Some(peak) = peak {
            peak.again();
        }
        together(group)?;
        let begin = Instant::now();
        let rules = LoadRules::default();
        let loaded = load(group, storage, wanted, &mut targets, &rules, *atomicity)?;
        let seconds = seconds(begin.elapsed());
        together(group)?;
        let own = Round {
            seconds,
            peak: peak.as_ref().map(Peak::beyond).unwrap_or_default(),
            read: Some(loaded.bytes_read),
            times: Times::of_load(&loaded),
            ..Round::default()
        };
        Ok(Round::of_all(&gathered(group, "loaded", own)?))
    }
}
