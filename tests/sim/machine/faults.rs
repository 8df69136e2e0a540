//! What goes wrong in one life of a job, and when.

use std::time::Duration;

use rustix::io::Errno;

use crate::rng::Rng;

/// The deadline for progress of every simulated job.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Longer than any job lives.
pub const FOR_EVER: Duration = Duration::from_secs(1 << 32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes: all ranks are gone, and what the cache of the disk holds.
    PowerCut,
    /// All processes of the job are killed; the cache survives.
    KillAll,
    Kill(usize),
    /// As SIGSTOP and, perhaps, SIGCONT.
    Stop(usize, Duration),
    /// The connection of this rank to the coordinator is cut; both notice after a while, or never.
    Partition(usize, Duration),
    /// What the storage does to the next operation of a rank, or to all of them from then on.
    Storage {
        rank: Option<usize>,
        how: Failing,
        persistent: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    pub errno: Errno,
    /// The operation is carried out, and its answer lost.
    pub is_done: bool,
    /// It does not return at all.
    pub panics: bool,
}

/// What a storage that panics says.
pub const PANIC: &str = "a simulated panic";

/// Faults by the number of the operation in front of which they come, the next one last.
#[derive(Debug, Clone, Default)]
pub struct Plan(Vec<(u64, Fault)>);

impl Plan {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// One fault, in front of operation `number`.
    pub fn one(number: u64, fault: Fault) -> Self {
        Self(vec![(number, fault)])
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to three faults among about `operations` of `ranks` ranks; the life may end before them.
    pub fn draw(rng: &mut Rng, ranks: usize, operations: u64) -> Self {
        let count = rng.pick(&[0, 1, 1, 1, 1, 2, 2, 3]);
        // The first moments of a job are few, and have faults of their own.
        let operations = if rng.one_in(6) { operations.min(30) } else { operations };
        let fault = |rng: &mut Rng| (1 + rng.below(operations), draw(rng, ranks));
        let mut faults: Vec<_> = (0..count).map(|_| fault(rng)).collect();
        faults.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Self(faults)
    }

    /// The fault that comes in front of operation `number`, if there is one left.
    pub fn due(&mut self, number: u64) -> Option<Fault> {
        self.0.pop_if(|(at, _)| *at <= number).map(|(_, fault)| fault)
    }
}

fn draw(rng: &mut Rng, ranks: usize) -> Fault {
    let rank = rng.index(ranks);
    let time = match rng.one_in(5) {
        true => FOR_EVER,
        false => DEADLINE * rng.below(100) as u32 / 20,
    };
    match rng.below(16) {
        0..=4 => Fault::PowerCut,
        5 => Fault::KillAll,
        6 | 7 => Fault::Kill(rank),
        8 => Fault::Kill(0),
        9 | 10 => Fault::Stop(rank, time),
        11 if ranks > 1 => Fault::Partition(1 + rng.index(ranks - 1), time),
        _ => {
            let errno = rng.pick(&[Errno::IO, Errno::NOSPC]);
            let panics = rng.one_in(8);
            let how = Failing { errno, is_done: rng.one_in(4), panics };
            let rank = (!rng.one_in(4)).then_some(rank);
            // A second panic while the first unwinds would end the test.
            Fault::Storage { rank, how, persistent: rng.one_in(3) && !panics }
        }
    }
}
