//! Groups of several ranks, as threads with both transports. Every run has a hard deadline: a
//! hang is a failure.

mod data;
mod env;
mod faulty;
mod flooded;
mod join;
mod leave;
mod limits;
mod loss;
#[cfg(feature = "mpi")]
mod peers;
mod phase;
mod port_file;
mod process;
mod silence;
mod strangers;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use super::{Channel, Deadlines, JobId, ProcessGroup};
use crate::error::{Error, ErrorKind, Result};
use crate::rank::{LocalRank, Rank, WorldSize};

/// After this a test has hung.
const HUNG: Duration = Duration::from_secs(60);

/// Deadlines that no test should reach.
fn patient() -> Deadlines {
    let seconds = Duration::from_secs;
    Deadlines { join: seconds(30), progress: seconds(40), connect: seconds(10) }
}

fn impatient(progress: Duration) -> Deadlines {
    Deadlines { progress, ..patient() }
}

fn world(ranks: u32) -> WorldSize {
    WorldSize::new(ranks).unwrap()
}

/// Runs `body` once per rank, each in its own thread, and gives the results in rank order.
fn on_ranks<R: Send + 'static>(
    ranks: u32,
    body: impl Fn(Rank) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let body = Arc::new(body);
    let (done, results) = crossbeam_channel::unbounded();
    for rank in world(ranks).ranks() {
        let (body, done) = (Arc::clone(&body), done.clone());
        std::thread::spawn(move || done.send((rank, body(rank))));
    }
    drop(done);
    let mut all: Vec<(Rank, R)> = world(ranks)
        .ranks()
        .map(|_| results.recv_timeout(HUNG).expect("a rank hangs, or its thread panicked"))
        .collect();
    all.sort_by_key(|(rank, _)| *rank);
    all.into_iter().map(|(_, result)| result).collect()
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    Threads,
    Tcp,
}

const TRANSPORTS: [Transport; 2] = [Transport::Threads, Transport::Tcp];

/// A loopback address that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn join_tcp(rank: Rank, ranks: u32, address: &str, deadlines: Deadlines) -> Result<ProcessGroup> {
    let job = JobId::new("test", "secret");
    ProcessGroup::tcp(rank, LocalRank(rank.get()), world(ranks), address, job, deadlines)
}

/// Runs `body` with the group of every rank.
fn with_groups<R: Send + 'static>(
    transport: Transport,
    ranks: u32,
    deadlines: &Deadlines,
    body: impl Fn(ProcessGroup) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let deadlines = deadlines.clone();
    match transport {
        Transport::Threads => {
            let groups = ProcessGroup::threads(world(ranks), deadlines);
            let groups = parking_lot::Mutex::new(groups.into_iter().map(Some).collect::<Vec<_>>());
            on_ranks(ranks, move |rank| {
                let group = groups.lock()[rank.index()].take().unwrap();
                body(group)
            })
        }
        Transport::Tcp => {
            let address = free_address();
            on_ranks(ranks, move |rank| {
                body(join_tcp(rank, ranks, &address, deadlines.clone()).unwrap())
            })
        }
    }
}

/// A phase in which every rank votes its number and gets the list of all.
fn roll_call(group: &ProcessGroup, channel: Channel, name: &str) -> Result<Vec<u32>> {
    group.phase_all(channel, name, || Ok(group.rank().get()), Ok)
}

/// The one error that all ranks must have.
#[track_caller]
fn same_error<R: std::fmt::Debug>(results: Vec<Result<R>>) -> Error {
    let mut errors = results.into_iter().map(|result| result.expect_err("every rank fails"));
    let first = errors.next().unwrap();
    errors.for_each(|other| assert_eq!(other, first));
    first
}
