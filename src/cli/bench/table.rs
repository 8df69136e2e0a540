//! `bench --dir D`: how fast checkpoints are on this storage, as a table with the limit beside it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::disk::check_directory;
use super::held::Layout;
use super::interrupt;
use super::load::{self, Cache};
use super::memory::available;
use super::report::{Report, rate, time};
use super::save::{self, How, Saves};
use super::spec::Spec;
use super::workloads::{named, small};
use crate::catalog::{CheckpointPath, Wanted};
use crate::cli::format::{bytes, table};
use crate::cli::{Output, Stop};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::CheckpointName;
use crate::load::Atomicity;
use crate::storage::free_space;
use crate::tensor::Dtype;

/// Bytes of a large tensor.
const LARGE: u64 = 64 << 20;
/// Bytes of all large ones, if nothing stands against it.
const BYTES: u64 = 1 << 30;
/// Bytes of a small tensor, and how many there are at most.
const SMALL: u64 = 4096;
const SMALL_MAX: u64 = 20_000;

#[derive(Args)]
pub(super) struct Table {
    /// Without a verb: the directory to be measured. Nothing stays in it.
    #[arg(long, required = true)]
    dir: Option<PathBuf>,
    /// Bytes of the larger state. Default: 1 GiB, or what fits in memory and on the storage.
    #[arg(long)]
    bytes: Option<u64>,
    /// How often, after a warm-up; the figures are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// One JSON object per line instead of a table, as the verbs print it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Table) -> Result<u8, Stop> {
    let Some(dir) = &arguments.dir else {
        return Err(Error::new(ErrorKind::InvalidInput, "give --dir, or a verb").into());
    };
    check_directory(dir)?;
    let states = states(arguments.bytes.unwrap_or_else(|| fitting(dir)))?;
    let bar = bar(states.len() as u64 * 4);
    interrupt::watch();
    let folder = Folder::new(dir)?;
    let mut shown = table(&["state", "", "seconds", "GB/s", "raw seconds", "÷ raw"]);
    for (name, spec) in &states {
        let reports = measure(&folder, spec, arguments.rounds.into(), &bar)?;
        if arguments.json {
            reports.iter().try_for_each(|report| report.print(out, true))?;
            continue;
        }
        for (index, row) in rows(&reports).into_iter().enumerate() {
            let name = if index == 0 { name.as_str() } else { "" };
            shown.add_row(std::iter::once(name.to_owned()).chain(row));
        }
    }
    drop(folder);
    bar.finish_and_clear();
    if arguments.json {
        return Ok(0);
    }
    let rounds = arguments.rounds;
    out.line(format!("Checkpoints in {}, one rank, median of {rounds}", dir.display()))?;
    out.table(&shown)?;
    out.line("")?;
    out.line("saves are durable (fsync of files and directories), loads are verified")?;
    out.line("stall: until training goes on; raw: a copy in memory by two threads")?;
    out.line("warm, cold: files in the page cache, or not; raw: a plain write or read")?;
    out.line("÷ raw: of each round, then the median")?;
    Ok(0)
}

/// A state of large tensors and one of small ones, with their names for people.
fn states(most: u64) -> Result<Vec<(String, Spec)>> {
    if most < SMALL {
        let message = format!("--bytes {most} is less than one tensor of {SMALL}");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let (count, size) = if most < LARGE { (1, most) } else { (most / LARGE, LARGE) };
    let large = |i| (format!("large.{i:04}"), vec![size / 4096, 1024], Dtype::F32);
    let large = named("large", (0..count).map(large).collect())?;
    let count = usize::try_from((most / SMALL).min(SMALL_MAX)).unwrap_or_default();
    let small = named("small", small(count))?;
    let title = |spec: &Spec| format!("{} in {}", bytes(spec.bytes()), spec.tensors().len());
    Ok(vec![(title(&large), large), (title(&small), small)])
}

/// As much as is usual, or what leaves most of memory and storage alone.
fn fitting(dir: &Path) -> u64 {
    let storage = free_space(dir).unwrap_or(u64::MAX) / 4;
    let memory = available().unwrap_or(u64::MAX) / 6;
    BYTES.min(storage).min(memory).max(SMALL)
}

/// Save, save beside training, load from the cache and from the storage.
fn measure(folder: &Folder, spec: &Spec, rounds: usize, bar: &ProgressBar) -> Result<[Report; 4]> {
    let group = ProcessGroup::solo();
    let path = CheckpointPath::new(&folder.0, CheckpointName::new("checkpoint")?);
    let how = How { layout: Layout::Sharded, rounds, shared: true };
    let saved = |beside| {
        let report = save::measure(
            &group,
            spec,
            &path,
            &how,
            &Saves { beside, trains: false, unchanged: false },
        );
        bar.inc(1);
        report
    };
    let wanted = Wanted::from(path.clone());
    let loaded = |cache| {
        let report = load::measure(&group, spec, &wanted, &how, cache, Atomicity::InPlace);
        bar.inc(1);
        report
    };
    Ok([saved(false)?, saved(true)?, loaded(Cache::Warm)?, loaded(Cache::Cold)?])
}

fn rows(reports: &[Report; 4]) -> Vec<[String; 5]> {
    let [save, beside, warm, cold] = reports;
    let row = |name: &str, report: &Report, seconds: f64, raw: f64, ratio: f64| {
        let rate = rate(report.bytes, seconds);
        [name.to_owned(), time(seconds), rate, time(raw), format!("{ratio:.2}")]
    };
    let whole = |name: &str, report: &Report| {
        row(name, report, report.seconds, report.raw_seconds, report.ratio)
    };
    let (stall, copy) =
        (beside.stall.unwrap_or_default(), beside.memcpy_seconds.unwrap_or_default());
    vec![
        whole("save", save),
        row("async, stall", beside, stall, copy, stall / copy.max(1e-9)),
        whole("async, durable", beside),
        whole("load, warm", warm),
        whole("load, cold", cold),
    ]
}

/// Seen on a terminal only.
fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("measuring [{bar:30}] {pos}/{len} {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.tick();
    bar
}

/// A directory of our own, which goes with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new(dir: &Path) -> Result<Self> {
        let path = dir.join(format!(".tch-checkpoint-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| Error::io(&e, "making a directory", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed has a name that says whose it is.
        drop(fs::remove_dir_all(&self.0));
    }
}
