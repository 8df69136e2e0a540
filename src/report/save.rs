//! What a save took.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RankTime, SlowestRank, by_rank, bytes_per_second, listed, one_line, seconds, to_json};

/// What one rank did for how long while it wrote its share. Parts run beside each other, so that
/// their sum may exceed the time that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteTimes {
    /// Copying out of the state into buffers.
    #[serde(with = "seconds")]
    pub stage: Duration,
    /// Taking block sums.
    #[serde(with = "seconds")]
    pub hash: Duration,
    /// Writing into files, and bringing them out of the page cache now and then.
    #[serde(with = "seconds")]
    pub write: Duration,
    /// Making files and directory durable.
    #[serde(with = "seconds")]
    pub fsync: Duration,
    /// All of it, from the first file to the last fsync: the time that passed.
    #[serde(with = "seconds")]
    pub total: Duration,
    /// Bytes written, of all files.
    pub bytes: u64,
}

/// What the coordinator did for how long once every rank had written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitTimes {
    /// Looking at every file that ranks say they wrote.
    #[serde(with = "seconds")]
    pub checks: Duration,
    /// Small files beside the data, and the manifest in memory.
    #[serde(with = "seconds")]
    pub seal: Duration,
    /// Writing the manifest, and making it and the entries of the directory durable; of
    /// checkpoints that are files, their headers.
    #[serde(with = "seconds")]
    pub publish: Duration,
    /// The rename that commits, with the lock around it and the fsync after it.
    #[serde(with = "seconds")]
    pub rename: Duration,
}

/// What a save took: the same on every rank, by the clock of the coordinator where it is not a
/// rank's own. [`Checkpoint::report`](crate::Checkpoint::report) has it.
///
/// Ends with the commit. What follows it (removing what was replaced, retention) is not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveReport {
    /// How many ranks saved.
    pub world_size: u32,
    /// Bytes of all tensors, each counted once.
    pub tensor_bytes: u64,
    /// Bytes of the data files, headers included, and of their block sums.
    pub file_bytes: u64,
    /// Bytes of data files that were linked, since nothing in them has changed since an earlier
    /// checkpoint: part of the checkpoint, and not written.
    #[serde(default)]
    pub linked_bytes: u64,
    /// From the call on the coordinator to the commit; an audit is part of it.
    #[serde(with = "seconds")]
    pub total: Duration,
    /// Deciding who writes what, and making the attempt, from the call on.
    #[serde(with = "seconds")]
    pub plan: Duration,
    /// Saves beside training: copying a rank's share out of its state, on the rank where that took
    /// longest. Zero for others, which copy while they write.
    #[serde(with = "seconds")]
    pub stage: Duration,
    /// Writing, on the rank where it took longest.
    pub write: WriteTimes,
    /// Checking and publishing, on the coordinator.
    pub commit: CommitTimes,
    /// For how long callers were held up, on the rank where that was longest: [`Self::total`], or,
    /// of a save beside training, until the call returned, and what
    /// [`wait_copied`](crate::save::PendingSave::wait_copied) had waited when the rank had written.
    #[serde(with = "seconds")]
    pub stall: Duration,
    /// How many saves were left out because this one was still going on beside training, as
    /// `in_flight = skip` says, until the commit.
    #[serde(default)]
    pub left_out: u64,
    /// The rank that wrote longest. `None` in a job of one rank.
    pub slowest: Option<SlowestRank>,
    /// How long each rank wrote how much, by number: all of at most
    /// [`RANKS_LISTED_MAX`](super::RANKS_LISTED_MAX), else the slowest
    /// [`RANKS_LISTED_OF_MANY`](super::RANKS_LISTED_OF_MANY).
    pub ranks: Vec<RankTime>,
}

/// What one rank brings to the vote.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct RankSave {
    pub(crate) write: WriteTimes,
    pub(crate) stage: Duration,
    /// How long its caller has been held up; `None` for one that waits for the verdict.
    pub(crate) held: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SaveBytes {
    pub(crate) tensors: u64,
    pub(crate) files: u64,
    pub(crate) linked: u64,
}

impl SaveReport {
    /// Tensor bytes per second of the whole save; `None` if the clock stood still.
    #[must_use]
    pub fn bandwidth(&self) -> Option<f64> {
        bytes_per_second(self.tensor_bytes, self.total)
    }

    /// One JSON object in one line: the fields of this type, times in seconds, and
    /// `bytes_per_second`, which is [`Self::bandwidth`]. Deserialising it gives this report again.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_json(self, self.bandwidth()).to_string()
    }

    /// What all ranks together did, and how long the coordinator took for its part of it.
    pub(crate) fn of(
        ranks: &[RankSave],
        bytes: SaveBytes,
        plan: Duration,
        commit: CommitTimes,
        total: Duration,
    ) -> Self {
        let times = by_rank(ranks, |rank| (rank.write.total, rank.write.bytes));
        let slowest = SlowestRank::of(&times);
        let write = slowest.and_then(|slowest| ranks.get(slowest.rank.index()));
        let stage = ranks.iter().map(|rank| rank.stage).max();
        let stall = ranks.iter().map(|rank| rank.held.unwrap_or(total)).max();
        Self {
            world_size: u32::try_from(ranks.len()).unwrap_or(u32::MAX),
            tensor_bytes: bytes.tensors,
            file_bytes: bytes.files,
            linked_bytes: bytes.linked,
            total,
            plan,
            stage: stage.unwrap_or_default(),
            write: write.map(|rank| rank.write).unwrap_or_default(),
            commit,
            stall: stall.unwrap_or_default(),
            left_out: 0,
            slowest: slowest.filter(|_| ranks.len() > 1),
            ranks: listed(times),
        }
    }
}

/// `1.49 GB in 0.81 s (1.8 GB/s), slowest rank 3`
impl fmt::Display for SaveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(f, self.tensor_bytes, self.total, self.slowest)
    }
}
