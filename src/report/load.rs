//! What a load took.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{RankTime, SlowestRank, by_rank, bytes_per_second, listed, one_line, seconds, to_json};

/// What a load took: the same on every rank, each phase on the rank where it took longest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadTimes {
    /// How many ranks loaded.
    pub world_size: u32,
    /// Bytes that reached the destinations of all ranks.
    pub bytes_wanted: u64,
    /// Bytes read from data files, by all ranks: more than are wanted, since whole blocks are
    /// verified.
    pub bytes_read: u64,
    /// From the call on the coordinator until every tensor was in place.
    #[serde(with = "seconds")]
    pub total: Duration,
    /// Finding the checkpoint, and sharing its manifest; waiting for ranks that come late is part
    /// of it.
    #[serde(with = "seconds")]
    pub manifest: Duration,
    /// Deciding what to read, and opening it.
    #[serde(with = "seconds")]
    pub plan: Duration,
    /// Reading and verifying; of in-place loads also placing.
    #[serde(with = "seconds")]
    pub read: Duration,
    /// Copying what was read to its destination, and handing over values.
    #[serde(with = "seconds")]
    pub place: Duration,
    /// How often the load began again, because its checkpoint was replaced under it. What came
    /// before the last beginning counts in [`Self::total`] alone.
    pub restarts: u32,
    /// The rank that read longest. `None` in a job of one rank.
    pub slowest: Option<SlowestRank>,
    /// How long each rank read how much, by number: all of at most
    /// [`RANKS_LISTED_MAX`](super::RANKS_LISTED_MAX), else the slowest
    /// [`RANKS_LISTED_OF_MANY`](super::RANKS_LISTED_OF_MANY).
    pub ranks: Vec<RankTime>,
}

/// What one rank brings to the last vote.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct RankLoad {
    pub(crate) manifest: Duration,
    pub(crate) plan: Duration,
    pub(crate) read: Duration,
    pub(crate) place: Duration,
    pub(crate) bytes_wanted: u64,
    pub(crate) bytes_read: u64,
}

impl LoadTimes {
    /// Bytes per second that reached destinations, over the whole load; `None` if the clock stood
    /// still.
    #[must_use]
    pub fn bandwidth(&self) -> Option<f64> {
        bytes_per_second(self.bytes_wanted, self.total)
    }

    /// One JSON object in one line: the fields of this type, times in seconds, and
    /// `bytes_per_second`, which is [`Self::bandwidth`]. Deserialising it gives these times again.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.to_value().to_string()
    }

    pub(crate) fn to_value(&self) -> Value {
        to_json(self, self.bandwidth())
    }

    /// What all ranks together did.
    pub(crate) fn of(ranks: &[RankLoad], restarts: u32, total: Duration) -> Self {
        let times = by_rank(ranks, |rank| (rank.read, rank.bytes_read));
        let longest =
            |phase: fn(&RankLoad) -> Duration| ranks.iter().map(phase).max().unwrap_or_default();
        Self {
            world_size: u32::try_from(ranks.len()).unwrap_or(u32::MAX),
            bytes_wanted: ranks.iter().map(|rank| rank.bytes_wanted).sum(),
            bytes_read: ranks.iter().map(|rank| rank.bytes_read).sum(),
            total,
            manifest: longest(|rank| rank.manifest),
            plan: longest(|rank| rank.plan),
            read: longest(|rank| rank.read),
            place: longest(|rank| rank.place),
            restarts,
            slowest: SlowestRank::of(&times).filter(|_| ranks.len() > 1),
            ranks: listed(times),
        }
    }
}

/// `1.49 GB in 0.81 s (1.8 GB/s), slowest rank 3`
impl fmt::Display for LoadTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(f, self.bytes_wanted, self.total, self.slowest)
    }
}
