//! Where the time of saves and loads went: plain data, the same on every rank.

pub(crate) mod chrome;
mod load;
mod save;
pub(crate) mod seconds;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rank::Rank;

pub use load::LoadTimes;
pub(crate) use load::RankLoad;
pub use save::{CommitTimes, SaveReport, WriteTimes};
pub(crate) use save::{RankSave, SaveBytes};

/// Reports list each rank of a job of at most so many.
pub const RANKS_LISTED_MAX: usize = 64;

/// Of a larger job, a report lists so many ranks: the slowest.
pub const RANKS_LISTED_OF_MANY: usize = 16;

/// How long one rank moved its bytes, from or to storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankTime {
    /// Which rank.
    pub rank: Rank,
    /// How long. In JSON, as all times: seconds.
    #[serde(with = "seconds")]
    pub time: Duration,
    /// How many bytes.
    pub bytes: u64,
}

/// The rank for which the others had to wait, beside what is usual: far apart, it straggles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowestRank {
    /// Which rank; of several the lowest.
    pub rank: Rank,
    /// How long it took.
    #[serde(with = "seconds")]
    pub time: Duration,
    /// How long ranks took at the median; of an even number of ranks the shorter middle one.
    #[serde(with = "seconds")]
    pub median: Duration,
}

impl SlowestRank {
    fn of(ranks: &[RankTime]) -> Option<Self> {
        let mut times: Vec<Duration> = ranks.iter().map(|rank| rank.time).collect();
        times.sort_unstable();
        let median = *times.get(times.len().checked_sub(1)? / 2)?;
        let slowest = ranks.iter().rev().max_by_key(|rank| rank.time)?;
        Some(Self { rank: slowest.rank, time: slowest.time, median })
    }
}

/// All ranks, or the slowest of many; by number.
fn listed(mut ranks: Vec<RankTime>) -> Vec<RankTime> {
    if ranks.len() > RANKS_LISTED_MAX {
        ranks.sort_by_key(|rank| std::cmp::Reverse(rank.time));
        ranks.truncate(RANKS_LISTED_OF_MANY);
        ranks.sort_by_key(|rank| rank.rank);
    }
    ranks
}

/// One entry per rank of a job, in rank order.
fn by_rank<T>(all: &[T], time: impl Fn(&T) -> (Duration, u64)) -> Vec<RankTime> {
    let numbered = all.iter().zip(0..).map(|(one, rank)| (time(one), Rank::new(rank)));
    numbered.map(|((time, bytes), rank)| RankTime { rank, time, bytes }).collect()
}

/// `None` if no time passed.
fn bytes_per_second(bytes: u64, time: Duration) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    let rate = bytes as f64 / time.as_secs_f64();
    rate.is_finite().then_some(rate)
}

/// The fields of `report`, and its bandwidth.
fn to_json<T: Serialize>(report: &T, bytes_per_second: Option<f64>) -> Value {
    let mut json = serde_json::to_value(report).unwrap_or_default();
    if let Some(fields) = json.as_object_mut() {
        fields.insert("bytes_per_second".to_owned(), bytes_per_second.into());
    }
    json
}

/// `1.49 GB in 0.81 s (1.8 GB/s), slowest rank 3`
fn one_line(
    f: &mut fmt::Formatter<'_>,
    bytes: u64,
    total: Duration,
    slowest: Option<SlowestRank>,
) -> fmt::Result {
    write!(f, "{} in {:.2} s", Size(bytes), total.as_secs_f64())?;
    if let Some(rate) = bytes_per_second(bytes, total) {
        write!(f, " ({:.1} GB/s)", rate / 1e9)?;
    }
    slowest.map_or(Ok(()), |slowest| write!(f, ", slowest rank {}", slowest.rank))
}

/// Bytes in decimal units, as bandwidths are given.
struct Size(u64);

impl fmt::Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..1_000_000 => write!(f, "{:.2} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.2} MB", bytes / 1e6),
            _ => write!(f, "{:.2} GB", bytes / 1e9),
        }
    }
}
