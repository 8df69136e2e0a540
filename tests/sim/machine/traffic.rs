//! What ranks have sent, by what they were about and by phase, and how long rank 0 has computed.

use std::collections::BTreeMap;
use std::time::Duration;

use tch_checkpoint::simulation::Parcel;

/// What one phase took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// To rank 0, and their bytes with heads.
    pub votes: (u64, u64),
    /// Of rank 0, and their bytes with heads.
    pub answers: (u64, u64),
    /// Of rank 0 up to its answers, in real time.
    pub computed: Duration,
}

/// By operation and phase, in alphabetical order. What belongs to no phase has no name.
#[derive(Debug, Default)]
pub struct Traffic {
    costs: BTreeMap<(&'static str, String), Cost>,
    /// What each rank does.
    doing: BTreeMap<usize, &'static str>,
    /// Not yet counted to a phase.
    computed: Duration,
}

impl Traffic {
    /// What `rank` does from now on.
    pub fn begins(&mut self, rank: usize, what: &'static str) {
        self.doing.insert(rank, what);
    }

    pub fn computed(&mut self, rank: usize, time: Duration) {
        if rank == 0 {
            self.computed += time;
        }
    }

    pub fn sent(&mut self, parcel: &Parcel) {
        let from = parcel.from().index();
        let what = self.doing.get(&from).copied().unwrap_or_default();
        let cost = self.costs.entry((what, parcel.phase().to_owned())).or_default();
        let (count, bytes) = if from == 0 { &mut cost.answers } else { &mut cost.votes };
        *count += 1;
        *bytes += parcel.size_bytes();
        if from == 0 && !parcel.phase().is_empty() {
            cost.computed += std::mem::take(&mut self.computed);
        }
    }

    /// Everything so far.
    pub fn costs(&self) -> impl Iterator<Item = (&(&'static str, String), &Cost)> {
        self.costs.iter()
    }
}
