//! What came of a measurement: one line of JSON for programs, a small table for people.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::held::Layout;
use super::measure::median;
use crate::cli::format::{bytes, table};
use crate::cli::{Output, Stop};
use crate::error::{Error, ErrorKind};
use crate::load::Loaded;
use crate::save::Checkpoint;

/// Where the time of the engine went, in seconds, as far as it says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) plan: Option<f64>,
    pub(super) stage: Option<f64>,
    pub(super) hash: Option<f64>,
    pub(super) write: Option<f64>,
    pub(super) fsync: Option<f64>,
    pub(super) commit: Option<f64>,
}

impl Times {
    /// What the engine says of a save. Beside training the copy that training waits for is what
    /// counts as `stage`.
    pub(super) fn of_save(saved: &Checkpoint) -> Self {
        let (report, write, commit) = (&saved.report, &saved.report.write, &saved.report.commit);
        let stage = if report.stage.is_zero() { write.stage } else { report.stage };
        Self {
            plan: Some(seconds(report.plan)),
            stage: Some(seconds(stage)),
            hash: Some(seconds(write.hash)),
            write: Some(seconds(write.write)),
            fsync: Some(seconds(write.fsync)),
            commit: Some(seconds(commit.checks + commit.seal + commit.publish + commit.rename)),
        }
    }

    /// What the engine says of a load: all that comes before the first byte is planning.
    pub(super) fn of_load(loaded: &Loaded) -> Self {
        let times = &loaded.report.times;
        Self { plan: Some(seconds(times.manifest + times.plan)), ..Self::default() }
    }

    fn all(&self) -> [Option<f64>; 6] {
        [self.plan, self.stage, self.hash, self.write, self.fsync, self.commit]
    }

    /// Each of them by itself: the middle one, or the largest.
    fn by(all: &[Self], choose: impl Fn(Vec<f64>) -> f64) -> Self {
        let choose = |index: usize| {
            let known = all.iter().filter_map(|times| times.all().get(index).copied().flatten());
            let known: Vec<f64> = known.collect();
            (!known.is_empty()).then(|| choose(known))
        };
        let [plan, stage, hash] = [choose(0), choose(1), choose(2)];
        Self { plan, stage, hash, write: choose(3), fsync: choose(4), commit: choose(5) }
    }
}

/// One rank's part of a round, then that of all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Round {
    /// Seconds of the operation.
    pub(super) seconds: f64,
    /// Seconds of the raw limit beside it.
    pub(super) raw: f64,
    /// Seconds until the caller went on, if it went on before.
    pub(super) stall: Option<f64>,
    /// Seconds of a copy of the same bytes in memory.
    pub(super) memcpy: Option<f64>,
    /// Rate of training while it was saved, as part of that of an idle machine.
    pub(super) trainer: Option<f64>,
    /// Bytes of memory beyond the state.
    pub(super) peak: u64,
    /// Bytes that were read of data files.
    pub(super) read: Option<u64>,
    pub(super) times: Times,
}

impl Round {
    /// The slowest rank counts, and the memory and the reads of all.
    pub(super) fn of_all(ranks: &[Self]) -> Self {
        let most =
            |get: &dyn Fn(&Self) -> Option<f64>| ranks.iter().filter_map(get).reduce(f64::max);
        let rates: Vec<f64> = ranks.iter().filter_map(|rank| rank.trainer).collect();
        let times: Vec<Times> = ranks.iter().map(|rank| rank.times).collect();
        Self {
            seconds: most(&|rank| Some(rank.seconds)).unwrap_or_default(),
            raw: most(&|rank| Some(rank.raw)).unwrap_or_default(),
            stall: most(&|rank| rank.stall),
            memcpy: most(&|rank| rank.memcpy),
            trainer: (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64),
            peak: ranks.iter().map(|rank| rank.peak).sum(),
            read: ranks.iter().filter_map(|rank| rank.read).reduce(|a, b| a.saturating_add(b)),
            times: Times::by(&times, |all| all.into_iter().fold(0.0, f64::max)),
        }
    }
}

/// What was measured; one line of JSON.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) op: &'static str,
    pub(super) workload: String,
    pub(super) ranks: u32,
    pub(super) layout: Layout,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cache: Option<&'static str>,
    pub(super) durable: bool,
    pub(super) tensors: usize,
    /// Of all tensors, each counted once.
    pub(super) bytes: u64,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stall: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memcpy_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trainer: Option<f64>,
    pub(super) raw_seconds: f64,
    /// How the raw limit was measured.
    pub(super) raw: &'static str,
    pub(super) ratio: f64,
    pub(super) gb_s: f64,
    pub(super) peak_rss_mb: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_read: Option<u64>,
    #[serde(flatten)]
    pub(super) times: Times,
}

/// What a report says beside its figures.
pub(super) struct About<'a> {
    pub(super) op: &'static str,
    pub(super) spec: &'a super::spec::Spec,
    pub(super) ranks: u32,
    pub(super) layout: Layout,
    pub(super) cache: Option<&'static str>,
    pub(super) raw: &'static str,
}

impl Report {
    /// Medians of `rounds`; the memory is the most of them and of `warm_up`.
    pub(super) fn new(about: &About<'_>, warm_up: &Round, rounds: &[Round]) -> Self {
        let of = |get: &dyn Fn(&Round) -> Option<f64>| {
            let known: Vec<f64> = rounds.iter().filter_map(get).collect();
            (!known.is_empty()).then(|| round6(median(known)))
        };
        let seconds = median(rounds.iter().map(|round| round.seconds));
        let times: Vec<Times> = rounds.iter().map(|round| round.times).collect();
        let peak = rounds.iter().map(|round| round.peak).fold(warm_up.peak, u64::max);
        let ratios = rounds.iter().map(|round| round.seconds / round.raw.max(1e-9));
        Self {
            op: about.op,
            workload: about.spec.name().to_owned(),
            ranks: about.ranks,
            layout: about.layout,
            cache: about.cache,
            durable: true,
            tensors: about.spec.tensors().len(),
            bytes: about.spec.bytes(),
            rounds: rounds.len(),
            seconds: round6(seconds),
            stall: of(&|round| round.stall),
            memcpy_seconds: of(&|round| round.memcpy),
            trainer: of(&|round| round.trainer),
            raw_seconds: round6(median(rounds.iter().map(|round| round.raw))),
            raw: about.raw,
            ratio: round6(median(ratios)),
            gb_s: round6(about.spec.bytes() as f64 / seconds.max(1e-9) / 1e9),
            peak_rss_mb: round6(peak as f64 / f64::from(1 << 20)),
            bytes_read: rounds.last().and_then(|round| round.read),
            times: Times::by(&times, |all| round6(median(all))),
        }
    }

    /// One line of JSON, or a small table.
    pub(super) fn print(&self, out: &mut Output<'_>, json: bool) -> Result<(), Stop> {
        if json {
            return print_json(out, self);
        }
        let ranks = if self.ranks == 1 { "1 rank".into() } else { format!("{} ranks", self.ranks) };
        out.line(format!("{} of `{}`, {}, {ranks}", self.op, self.workload, bytes(self.bytes)))?;
        let mut shown = table(&["", "seconds", "GB/s", "÷ raw"]);
        let mut row = |name: &str, seconds: f64| {
            let ratio = seconds / self.raw_seconds.max(1e-9);
            let ratio = if name == self.op { self.ratio } else { ratio };
            shown.add_row([
                name,
                &time(seconds),
                &rate(self.bytes, seconds),
                &format!("{ratio:.2}"),
            ]);
        };
        row(self.op, self.seconds);
        self.stall.into_iter().for_each(|stall| row("stall", stall));
        self.memcpy_seconds.into_iter().for_each(|copy| row("copy in memory", copy));
        row(&format!("raw ({})", self.raw), self.raw_seconds);
        out.table(&shown)?;
        out.line("")?;
        out.line(format!("memory beyond the state: {:.0} MiB", self.peak_rss_mb))?;
        match self.trainer {
            Some(rate) => {
                out.line(format!("training beside it: {:.0} % of its rate", rate * 100.0))
            }
            None => Ok(()),
        }
    }
}

/// One line.
pub(super) fn print_json(out: &mut Output<'_>, what: &impl Serialize) -> Result<(), Stop> {
    let line = serde_json::to_string(what)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string()))?;
    out.line(line)
}

pub(super) fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Microseconds are enough.
pub(super) fn round6(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// A time as a person reads it.
pub(super) fn time(seconds: f64) -> String {
    if seconds < 0.1 { format!("{seconds:.4}") } else { format!("{seconds:.3}") }
}

/// Bytes by time, in GB/s.
pub(super) fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.2}", bytes as f64 / seconds.max(1e-9) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rank_counts_and_the_memory_of_all() {
        let times = |write| Times { write, ..Times::default() };
        let one = Round {
            seconds: 1.0,
            stall: Some(0.1),
            peak: 5,
            read: Some(7),
            times: times(Some(3.0)),
            ..Round::default()
        };
        let two = Round { seconds: 2.0, peak: 6, read: Some(8), times: times(Some(1.0)), ..one };
        let all = Round::of_all(&[one, two]);
        assert_eq!((all.seconds, all.stall, all.peak, all.read), (2.0, Some(0.1), 11, Some(15)));
        assert_eq!((all.times, all.trainer), (times(Some(3.0)), None));
    }

    #[test]
    fn a_report_holds_medians_and_the_highest_peak() {
        let spec = super::super::workloads::spec("small-2").unwrap();
        let round = |seconds, raw, peak| Round { seconds, raw, peak, ..Round::default() };
        let about = About {
            op: "save",
            spec: &spec,
            ranks: 1,
            layout: Layout::Sharded,
            cache: None,
            raw: "direct",
        };
        let rounds = [round(1.0, 1.0, 1 << 20), round(4.0, 2.0, 0), round(3.0, 1.0, 0)];
        let report = Report::new(&about, &round(9.0, 9.0, 3 << 20), &rounds);
        assert_eq!((report.seconds, report.raw_seconds, report.ratio), (3.0, 1.0, 2.0));
        assert_eq!((report.peak_rss_mb, report.rounds, report.bytes), (3.0, 3, 8192));
    }
}
