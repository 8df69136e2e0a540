//! File descriptors of rank 0, which holds one or two for every other rank. Whether they suffice is
//! known before anybody comes, and said then.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, ErrorKind, Result};
use crate::rank::{Rank, WorldSize};

/// Connections of strangers, and of ranks that have not proved themselves, at the same time: as many
/// as there is room for, within these.
const GUESTS: (u64, u64) = (16, 512);
/// For the listener, checkpoints, and what the program opens later.
const SPARE: u64 = 64;
/// What is taken to be open where it cannot be counted.
const OPEN_GUESS: u64 = 64;

/// Lets this process open as many files as a job of `world` ranks takes, by raising its soft limit
/// if need be. How many guests there may be at the gate.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the hard limit is too low.
pub(super) fn make_room(world: WorldSize, with_data: bool) -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let need = Need::of(world, with_data, open_now());
    if let Some(guests) = need.guests(soft) {
        return Ok(usize::try_from(guests).unwrap_or(usize::MAX));
    }
    let guests = need.guests(hard).ok_or_else(|| too_few(world, need, hard))?;
    // Up to the hard limit anybody may.
    let raised = Rlimit { current: Some(need.connections + guests), maximum: limit.maximum };
    let refused =
        |e| too_few(world, need, soft).with_help(format!("the limit cannot be raised: {e}"));
    setrlimit(Resource::Nofile, raised).map_err(refused)?;
    Ok(usize::try_from(guests).unwrap_or(usize::MAX))
}

#[derive(Clone, Copy)]
struct Need {
    /// For all connections of the job, what is open already, and what may come.
    connections: u64,
}

impl Need {
    fn of(world: WorldSize, with_data: bool, open: u64) -> Self {
        let each = 1 + u64::from(with_data);
        Self { connections: u64::from(world.get() - 1) * each + open + SPARE }
    }

    /// How many guests fit below `hard`, if enough do.
    fn guests(self, hard: u64) -> Option<u64> {
        let left = hard.checked_sub(self.connections)?.min(GUESTS.1);
        (left >= GUESTS.0).then_some(left)
    }
}

fn open_now() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(OPEN_GUESS, |open| open.count() as u64)
}

fn too_few(world: WorldSize, need: Need, limit: u64) -> Error {
    let text = format!(
        "rank 0 of a job of {world} ranks needs {} open files, and the limit of its process is \
         {limit}",
        need.connections + GUESTS.0
    );
    Error::new(ErrorKind::InvalidInput, text).at_rank(Rank::COORDINATOR).with_help(
        "raise the hard limit of open files on rank 0's host (ulimit -Hn, limits.conf, or \
         LimitNOFILE of the service that starts the job)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(ranks: u32, with_data: bool, hard: u64) -> Option<u64> {
        Need::of(WorldSize::new(ranks).unwrap(), with_data, 10).guests(hard)
    }

    #[test]
    fn ranks_come_first_and_guests_have_what_is_left() {
        assert_eq!(guests(10_000, true, 1 << 20), Some(GUESTS.1));
        let taken = 2 * 99 + 10 + SPARE;
        assert_eq!(guests(100, true, taken + 100), Some(100));
        assert_eq!(guests(100, true, taken + GUESTS.0 - 1), None);
        assert_eq!(guests(100, false, taken - 99 + GUESTS.0), Some(GUESTS.0));
    }
}
