//! `bench plan`: what deciding costs for many ranks, without any storage.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::held::Layout;
use super::measure::median;
use super::memory::Peak;
use super::report::{print_json, round6, seconds, time};
use crate::cli::format::{bytes, table};
use crate::cli::{Output, Stop};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::{Manifest, SealInfo};
use crate::plan::load::{LoadRules, WantedBox, plan_load};
use crate::plan::save::{MergedPlan, local_plan, merge_plans};
use crate::plan::{LocalPlan, Receipt, SaveTarget};
use crate::rank::{Rank, WorldSize};
use crate::slice::Slice;
use crate::state::{StateDict, TensorSource};
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// Rows of a rank, and elements of a row.
const ROWS: u64 = 4;
const ROW: u64 = 1024;
/// Most boxes over all ranks.
const BOXES_MAX: u64 = 20_000_000;

#[derive(Args)]
pub(super) struct Plan {
    /// How many ranks are simulated.
    #[arg(long, default_value_t = 512)]
    ranks: u32,
    /// How many tensors each of them has.
    #[arg(long, default_value_t = 1000)]
    tensors: u64,
    /// Who holds what.
    #[arg(long, value_enum, default_value_t = Layout::Sharded)]
    layout: Layout,
    /// How often, after a warm-up; the figures are medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// One line of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What was measured; one line of JSON.
#[derive(Serialize)]
struct Report {
    op: &'static str,
    workload: String,
    ranks: u32,
    layout: Layout,
    tensors: u64,
    rounds: u16,
    /// Both halves.
    seconds: f64,
    /// A plan on each rank (they plan beside each other: the slowest counts), merging, sealing,
    /// encoding.
    plan_seconds: f64,
    /// Parsing, and the plan of one rank that loads what it saved.
    load_plan_seconds: f64,
    local_plan_seconds: f64,
    merge_seconds: f64,
    seal_seconds: f64,
    encode_seconds: f64,
    parse_seconds: f64,
    manifest_bytes: usize,
    peak_rss_mb: f64,
}

/// The times of a round.
#[derive(Clone, Copy, Default)]
struct Parts {
    local: Duration,
    merge: Duration,
    seal: Duration,
    encode: Duration,
    parse: Duration,
    load: Duration,
    manifest_bytes: usize,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Plan) -> Result<u8, Stop> {
    let job = Job::new(arguments)?;
    let peak = Peak::start();
    job.round()?;
    let rounds = (0..arguments.rounds).map(|_| job.round()).collect::<Result<Vec<_>>>()?;
    let of = |get: &dyn Fn(&Parts) -> Duration| {
        round6(median(rounds.iter().map(|round| seconds(get(round)))))
    };
    let report = Report {
        op: "plan",
        workload: format!("plan-{}x{}", arguments.ranks, arguments.tensors),
        ranks: arguments.ranks,
        layout: arguments.layout,
        tensors: arguments.tensors,
        rounds: arguments.rounds,
        seconds: of(&|p| p.save_half() + p.load_half()),
        plan_seconds: of(&Parts::save_half),
        load_plan_seconds: of(&Parts::load_half),
        local_plan_seconds: of(&|p| p.local),
        merge_seconds: of(&|p| p.merge),
        seal_seconds: of(&|p| p.seal),
        encode_seconds: of(&|p| p.encode),
        parse_seconds: of(&|p| p.parse),
        manifest_bytes: rounds.last().map(|round| round.manifest_bytes).unwrap_or_default(),
        peak_rss_mb: round6(peak.beyond() as f64 / f64::from(1 << 20)),
    };
    report.print(out, arguments.json)?;
    Ok(0)
}

impl Parts {
    fn save_half(&self) -> Duration {
        self.local + self.merge + self.seal + self.encode
    }

    fn load_half(&self) -> Duration {
        self.parse + self.load
    }
}

impl Report {
    fn print(&self, out: &mut Output<'_>, json: bool) -> Result<(), Stop> {
        if json {
            return print_json(out, self);
        }
        out.line(format!("{} ranks, {} tensors, without storage", self.ranks, self.tensors))?;
        let mut shown = table(&["", "seconds"]);
        let mut row = |name: &str, seconds: f64| {
            shown.add_row([name, &time(seconds)]);
        };
        row("plan of a rank", self.local_plan_seconds);
        row("merging the plans", self.merge_seconds);
        row("sealing the manifest", self.seal_seconds);
        row("encoding it", self.encode_seconds);
        row("parsing it", self.parse_seconds);
        row("plan of a load", self.load_plan_seconds - self.parse_seconds);
        out.table(&shown)?;
        let manifest = bytes(self.manifest_bytes as u64);
        out.line("")?;
        out.line(format!("manifest {manifest}, memory {:.0} MiB", self.peak_rss_mb))
    }
}

/// A state of many ranks, of which no byte exists.
struct Job {
    world: WorldSize,
    tensors: u64,
    layout: Layout,
}

impl Job {
    fn new(arguments: &Plan) -> Result<Self> {
        let world = WorldSize::new(arguments.ranks)?;
        let tensors = arguments.tensors;
        let boxes = u64::from(arguments.ranks).checked_mul(tensors);
        if boxes.is_none_or(|boxes| boxes > BOXES_MAX) {
            let message = format!("ranks times tensors is more than {BOXES_MAX}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self { world, tensors, layout: arguments.layout })
    }

    fn round(&self) -> Result<Parts> {
        let mut parts = Parts::default();
        let mut plans: Vec<LocalPlan> = Vec::new();
        for rank in self.world.ranks() {
            let state = self.state(rank)?;
            let (plan, time) = clocked(|| Ok(local_plan(target(), &state)))?;
            parts.local = parts.local.max(time);
            plans.push(plan);
        }
        let (merged, time) = clocked(|| merge_plans(SaveId::random()?, &plans))?;
        parts.merge = time;
        drop(plans);
        let receipts = receipts(&merged);
        let seal = || Manifest::seal(&merged, receipts, Vec::new(), SealInfo::default());
        let (manifest, time) = clocked(seal)?;
        parts.seal = time;
        let (bytes, time) = clocked(|| manifest.encode())?;
        (parts.encode, parts.manifest_bytes) = (time, bytes.len());
        drop((manifest, merged));
        let (manifest, time) = clocked(|| Manifest::parse(&bytes))?;
        parts.parse = time;
        let wanted = self.wanted(self.world.ranks().last().unwrap_or(Rank::COORDINATOR))?;
        let rules = LoadRules { strict: false, ..LoadRules::default() };
        let ((plan, report), time) = clocked(|| Ok(plan_load(&manifest, &wanted, &rules)))?;
        parts.load = time;
        report.check(&rules)?;
        let own: u64 = wanted.iter().map(WantedBox::size_bytes).sum();
        if plan.bytes_wanted() != own {
            return Err(Error::new(ErrorKind::Panic, "the plan of a load is not complete"));
        }
        Ok(parts)
    }

    /// Name, spec and box of each tensor of a rank.
    fn boxes(&self, rank: Rank) -> impl Iterator<Item = Result<(TensorName, TensorSpec, Slice)>> {
        let (world, rank) = (u64::from(self.world.get()), u64::from(rank.get()));
        let (rows, begin) = match self.layout {
            Layout::Sharded => (ROWS * world, ROWS * rank),
            Layout::Replicated => (ROWS, 0),
        };
        (0..self.tensors).map(move |index| {
            let name = TensorName::new(format!("layers.{index:05}.weight"))?;
            let spec = TensorSpec::new(Dtype::F32, [rows, ROW])?;
            Ok((name, spec, Slice::new(vec![begin, 0], vec![ROWS, ROW])?))
        })
    }

    fn state(&self, rank: Rank) -> Result<StateDict> {
        let source: Arc<dyn TensorSource> = Arc::new(Nowhere);
        let mut state = StateDict::new();
        for held in self.boxes(rank) {
            let (name, spec, slice) = held?;
            state.add_slice(&Component::model(), name, spec, slice, Arc::clone(&source))?;
        }
        Ok(state)
    }

    fn wanted(&self, rank: Rank) -> Result<Vec<WantedBox>> {
        self.boxes(rank)
            .map(|wanted| wanted.and_then(|(name, spec, slice)| WantedBox::new(name, spec, slice)))
            .collect()
    }
}

/// Bytes that nobody reads: planning does not.
struct Nowhere;

impl TensorSource for Nowhere {
    fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "a simulated rank has no bytes"))
    }
}

fn target() -> SaveTarget {
    SaveTarget {
        directory: "simulated".to_owned(),
        name: "plan".to_owned(),
        step: 1,
        epoch: 0,
        ..SaveTarget::default()
    }
}

fn clocked<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let begin = Instant::now();
    let made = work()?;
    Ok((made, begin.elapsed()))
}

/// What ranks say that have done as planned; no part of what is measured.
fn receipts(merged: &MergedPlan) -> Vec<Receipt> {
    merged.plans.iter().map(Receipt::as_planned).collect()
}
