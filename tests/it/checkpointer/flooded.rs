//! Saves while strangers knock at the port where the ranks have met.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tch_checkpoint::checkpointer::{Checkpointer, Outcome, Parts};
use tch_checkpoint::group::{Deadlines, JobId};
use tch_checkpoint::state::{LoadTargets, StateDict, Stateful, Values};
use tch_checkpoint::{LocalRank, ProcessGroup, Rank, Result, WorldSize};

use super::toy::{Toy, Weights, at, checkpointer, config, steps_of};

const RANKS: u32 = 3;
/// During each save, on each rank.
const KNOCKS: u64 = 1000;
const HANG: Duration = Duration::from_secs(60);

/// Knocks until told to stop: some stay for a while, some talk.
fn flood(port: SocketAddr, stop: &AtomicBool, knocks: &AtomicU64) {
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match TcpStream::connect(port) {
            Ok(stream) => {
                drop((&stream).write_all(b"TCHCKPT\n\x03\x00"));
                held.push(stream);
                held.drain(..held.len().saturating_sub(100));
            }
            Err(_) => std::thread::yield_now(),
        }
        knocks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Weights that are told only when so many have knocked since they were asked for.
struct AmongStrangers<'a>(Weights<'a>, &'a AtomicU64);

impl Stateful for AmongStrangers<'_> {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        let (since, until) = (self.1.load(Ordering::Relaxed), Instant::now() + HANG);
        while self.1.load(Ordering::Relaxed) < since + KNOCKS {
            assert!(Instant::now() < until, "nobody knocks");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.save_state(prefix, state)
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        self.0.load_targets(prefix, targets)
    }

    fn load_values(&mut self, prefix: &str, values: &Values, own: &Values) -> Result<()> {
        self.0.load_values(prefix, values, own)
    }
}

fn join(rank: u32, port: SocketAddr) -> Result<ProcessGroup> {
    let world = WorldSize::new(RANKS).unwrap();
    let job = JobId::new("flooded", "secret");
    let (rank, local) = (Rank::new(rank), LocalRank(rank));
    ProcessGroup::tcp(rank, local, world, &port.to_string(), job, Deadlines::default())
}

/// Saves three times, and takes up what it saved last.
fn rank(rank: u32, port: SocketAddr, place: &Path, knocks: &AtomicU64) -> (Vec<u64>, Toy) {
    let group = join(rank, port).unwrap();
    let mut run: Checkpointer = checkpointer(&group, config(place)).unwrap();
    let mut toy = Toy::new();
    for step in 1..=3 {
        toy.step(step, rank);
        let mut weights = AmongStrangers(Weights(&mut toy.weights), knocks);
        let saved = run.save(&at(step), &mut Parts::new().model(&mut weights)).unwrap();
        assert!(matches!(saved, Outcome::Saved(_)), "{saved:?}");
    }
    let mut loaded = Toy::new();
    let mut weights = AmongStrangers(Weights(&mut loaded.weights), knocks);
    let mut run = checkpointer(&group, config(place)).unwrap();
    run.resume(&mut Parts::new().model(&mut weights)).unwrap().unwrap();
    (steps_of(&run), loaded)
}

#[test]
fn a_run_saves_while_thousands_knock_at_rank_0s_port() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (stop, knocks) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let flooding = {
        let (stop, knocks) = (Arc::clone(&stop), Arc::clone(&knocks));
        std::thread::spawn(move || flood(port, &stop, &knocks))
    };
    let (done, results) = mpsc::channel();
    for number in 0..RANKS {
        let (place, knocks, done) = (place.to_path_buf(), Arc::clone(&knocks), done.clone());
        std::thread::spawn(move || done.send(rank(number, port, &place, &knocks)));
    }
    drop(done);
    let weights = Toy::after(3, 0).weights;
    for _ in 0..RANKS {
        let (steps, toy) = results.recv_timeout(HANG).expect("a rank hangs or panicked");
        assert_eq!((steps.first(), toy.weights), (Some(&3), weights.clone()));
    }
    stop.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
    assert!(knocks.load(Ordering::Relaxed) >= 3 * KNOCKS);
}
