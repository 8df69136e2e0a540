//! Whether ranks of one host read the same bytes, which decides how they are read.
//!
//! A rank that is alone with its bytes reads what is not in the page cache past it, which is the
//! fastest and leaves the cache to others. Ranks of one host that want the same bytes would each
//! read them from the device like that; through the cache, the first to come reads for all, and
//! each begins at another place. They do so if some host has several ranks and if two ranks want
//! exactly the same, or all together more than is stored.

use serde::{Deserialize, Serialize};

use crate::group::ProcessGroup;
use crate::manifest::{Manifest, truncated};
use crate::plan::load::{LoadPlan, WantedBox};
use crate::shard::Sharing;

/// What one rank reads, for phase "plan".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    /// A hash of the boxes.
    boxes: [u8; 16],
    bytes: u64,
    /// Bytes of all tensors of the checkpoint.
    stored: u64,
    local_rank: u32,
}

impl Share {
    pub(super) fn new(
        group: &ProcessGroup,
        manifest: &Manifest,
        plan: &LoadPlan,
        wanted: &[WantedBox],
        on_device: &[bool],
    ) -> Self {
        let boxes = if group.world_size().get() > 1 { hash(wanted, on_device) } else { [0; 16] };
        let (bytes, stored) = (plan.bytes_wanted(), manifest.tensor_bytes());
        Self { boxes, bytes, stored, local_rank: group.local_rank().0 }
    }
}

/// Taken as it goes: a list of all names would be memory that may be short.
fn hash(wanted: &[WantedBox], on_device: &[bool]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for wanted in wanted {
        hasher.update(wanted.name().as_str().as_bytes());
        // No name holds it.
        hasher.update(&[0]);
        for number in wanted.slice().offsets().iter().chain(wanted.slice().lengths()) {
            hasher.update(&number.to_le_bytes());
        }
    }
    for is_on_device in on_device {
        hasher.update(&[u8::from(*is_on_device)]);
    }
    truncated(&hasher.finalize())
}

/// Whether ranks of one host may want the same bytes.
pub(super) fn overlap(shares: &[Share]) -> bool {
    let together = shares.iter().fold(0u64, |sum, share| sum.saturating_add(share.bytes));
    let stored = shares.first().map_or(0, |share| share.stored);
    let mut boxes: Vec<_> = shares.iter().filter(|s| s.bytes > 0).map(|s| s.boxes).collect();
    boxes.sort_unstable();
    let two_want_the_same = boxes.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
    let share_a_host = shares.iter().any(|share| share.local_rank > 0);
    share_a_host && (two_want_the_same || together > stored)
}

/// Whether all ranks want exactly the same.
pub(super) fn all_want_the_same(shares: &[Share]) -> bool {
    let same = |share: &Share| shares.first().is_some_and(|first| share.boxes == first.boxes);
    shares.len() > 1 && shares.iter().all(same)
}

/// How this rank reads.
pub(super) fn sharing(group: &ProcessGroup, overlap: bool) -> Sharing {
    if !overlap {
        return Sharing::Alone;
    }
    Sharing::SameHost { rank: group.rank().get(), ranks: group.world_size().get() }
}
