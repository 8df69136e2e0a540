//! The ranks that take part: threads of this process, or processes of their own.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::processes::{self, Seat};
use crate::cli::{Output, Stop};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Deadlines, ProcessGroup};
use crate::rank::WorldSize;

/// Most ranks that are played as threads, and as processes.
const THREADS_MAX: u32 = 1024;
const PROCESSES_MAX: u32 = 128;
/// The longest deadline: a year.
const DEADLINE_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1000;
/// Shortest wait for all ranks to start: a loaded machine needs some time for that.
const JOIN_MIN: Duration = Duration::from_secs(10);

/// What the ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Transport {
    /// Threads of this process, which talk through memory.
    Threads,
    /// Processes of their own, which talk over TCP on this host; they end when this one does.
    Tcp,
}

#[derive(Args)]
pub(in crate::cli) struct Ranks {
    /// How many ranks; at most 1024 threads, or 128 processes.
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    /// What the ranks are.
    #[arg(long, value_enum, default_value_t = Transport::Threads)]
    transport: Transport,
    /// Deadline for lack of progress, in milliseconds.
    #[arg(long, env = "TCH_CHECKPOINT_DEADLINE_MS", default_value_t = 30_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=DEADLINE_MS_MAX))]
    deadline_ms: u64,
}

/// What each rank does. The coordinator gets the output, and is on the thread that called.
pub(in crate::cli) type Part<'a> =
    &'a (dyn Fn(&ProcessGroup, Option<&mut Output<'_>>) -> Result<(), Stop> + Sync);

impl Ranks {
    /// Plays all ranks to their end, or, in a process that is one of them, that one. The exit code,
    /// or why the coordinator, else another rank, ended early.
    pub(in crate::cli) fn play(&self, out: &mut Output<'_>, part: Part<'_>) -> Result<u8, Stop> {
        let world = self.world()?;
        if let Some(seat) = Seat::of_this_process()? {
            return seat.take(world, self.deadlines(), out, part);
        }
        match self.transport {
            Transport::Tcp => processes::play(world, &self.deadlines()),
            Transport::Threads => {
                let groups = ProcessGroup::try_threads(world, &self.deadlines());
                let groups = groups.map_err(|e| e.with_help("use fewer ranks"))?;
                threads(groups, out, part).map(|()| 0)
            }
        }
    }

    /// Whether this process plays all ranks.
    pub(in crate::cli) fn share_a_process(&self) -> bool {
        self.transport == Transport::Threads
    }

    /// How many ranks there are.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for none, or more than can be played.
    pub(in crate::cli) fn world(&self) -> Result<WorldSize> {
        let most = match self.transport {
            Transport::Threads => THREADS_MAX,
            Transport::Tcp => PROCESSES_MAX,
        };
        if self.ranks > most {
            let message = format!("{} ranks, at most {most} are played", self.ranks);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        WorldSize::new(self.ranks)
    }

    fn deadlines(&self) -> Deadlines {
        let progress = Duration::from_millis(self.deadline_ms);
        Deadlines { progress, join: progress.max(JOIN_MIN), ..Deadlines::default() }
    }
}

fn threads(groups: Vec<ProcessGroup>, out: &mut Output<'_>, part: Part<'_>) -> Result<(), Stop> {
    std::thread::scope(|scope| {
        let mut groups = groups.into_iter();
        let coordinator = groups.next();
        let others: Vec<_> = groups
            .map(|group| {
                let rank = group.rank();
                let started = std::thread::Builder::new()
                    .name(format!("rank-{rank}"))
                    .spawn_scoped(scope, move || run(group, None, part));
                started.map_err(|e| {
                    let text = format!("no thread for it: {e}");
                    Error::new(ErrorKind::Storage, text).at_rank(rank)
                })
            })
            .collect();
        let first = coordinator.map_or(Ok(()), |group| run(group, Some(out), part));
        let others = others.into_iter().map(|rank| match rank {
            Ok(rank) => rank.join().unwrap_or_else(|_| Err(panicked().into())),
            Err(error) => Err(error.into()),
        });
        verdict(std::iter::once(first).chain(others).collect())
    })
}

/// The coordinator's verdict, but a cause before a loss that came of it.
fn verdict(ended: Vec<Result<(), Stop>>) -> Result<(), Stop> {
    let is_cause = |ended: &Result<(), Stop>| match ended {
        Err(Stop::Error(error)) => {
            !matches!(error.kind(), ErrorKind::PeerLost | ErrorKind::CoordinatorLost)
        }
        Err(Stop::Output(_)) => true,
        _ => false,
    };
    let cause = ended.iter().position(is_cause);
    let failed = || ended.iter().position(|ended| matches!(ended, Err(Stop::Error(_))));
    let counts = cause.or_else(failed).unwrap_or(0);
    ended.into_iter().nth(counts).unwrap_or(Ok(()))
}

/// One rank, to its end: it leaves in good order, since what it had to say went through a phase.
pub(super) fn run(
    group: ProcessGroup,
    out: Option<&mut Output<'_>>,
    part: Part<'_>,
) -> Result<(), Stop> {
    let done = part(&group, out);
    let left = group.finish();
    done.and(left.map_err(Stop::from))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "a rank ended without a verdict")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_before_what_came_of_it() {
        let failed = |kind| Err(Stop::Error(Error::new(kind, "")));
        let kind = |ended| match verdict(ended) {
            Err(Stop::Error(error)) => Some(error.kind()),
            _ => None,
        };
        let (lost, full) = (ErrorKind::PeerLost, ErrorKind::Storage);
        assert_eq!(kind(vec![failed(lost), Ok(()), failed(full)]), Some(full));
        assert_eq!(kind(vec![failed(full), failed(ErrorKind::Panic)]), Some(full));
        assert_eq!(kind(vec![Err(Stop::ClosedPipe), failed(lost)]), Some(lost));
        assert!(matches!(verdict(vec![Err(Stop::ClosedPipe), Ok(())]), Err(Stop::ClosedPipe)));
        assert_eq!(kind(vec![Ok(()), Ok(())]), None);
    }
}
