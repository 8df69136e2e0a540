//! N ranks in one process: frames go straight into the peer's inbox, data through memory.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::data::{Pipe, StarData};
use super::frame::Frame;
use super::inbox::Inbox;
use super::star::{Link, Links, Star};
use super::{Deadlines, Member, ProcessGroup, Progress};
use crate::error::Result;
use crate::rank::{LocalRank, Rank, WorldSize};

/// How long a pipe waits before it reports that nothing came.
const PAUSE: Duration = Duration::from_millis(50);

/// One group per rank, in rank order.
pub(super) fn groups(world: WorldSize, deadlines: &Deadlines) -> Result<Vec<ProcessGroup>> {
    if world == WorldSize::ONE {
        let (rank, local_rank) = (Rank::COORDINATOR, LocalRank(0));
        return Ok(vec![ProcessGroup::alone(
            Member { rank, local_rank, world },
            deadlines.clone(),
        )]);
    }
    let others = || world.ranks().filter(|rank| !rank.is_coordinator());
    let center = Inbox::new(others());
    let mut center_links = Links::new();
    let mut center_pipes: Vec<(Rank, Box<dyn Pipe>)> = Vec::new();
    let mut outer = Vec::new();
    for rank in others() {
        let inbox = Inbox::new(std::iter::once(Rank::COORDINATOR));
        center_links.insert(rank, link(Rank::COORDINATOR, &inbox));
        let (near, far) = memory_pipes();
        center_pipes.push((rank, Box::new(near)));
        let links = Links::from([(Rank::COORDINATOR, link(rank, &center))]);
        let pipes: Vec<(Rank, Box<dyn Pipe>)> = vec![(Rank::COORDINATOR, Box::new(far))];
        outer.push(group(rank, world, deadlines, inbox, links, pipes)?);
    }
    let coordinator =
        group(Rank::COORDINATOR, world, deadlines, center, center_links, center_pipes)?;
    Ok(std::iter::once(coordinator).chain(outer).collect())
}

fn group(
    rank: Rank,
    world: WorldSize,
    deadlines: &Deadlines,
    inbox: Arc<Inbox>,
    links: Links,
    pipes: Vec<(Rank, Box<dyn Pipe>)>,
) -> Result<ProcessGroup> {
    let member = Member { rank, local_rank: LocalRank(rank.get()), world };
    let progress = Progress::default();
    let data = StarData::new(member, Arc::clone(&inbox), deadlines.progress, pipes);
    let star = Star::new(member, deadlines.clone(), inbox, Arc::new(links), progress.clone())?;
    Ok(ProcessGroup::assemble(member, deadlines.clone(), progress, Some(star), Box::new(data)))
}

struct ThreadLink {
    from: Rank,
    to: Arc<Inbox>,
}

fn link(from: Rank, to: &Arc<Inbox>) -> Box<dyn Link> {
    Box::new(ThreadLink { from, to: Arc::clone(to) })
}

impl Link for ThreadLink {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        self.to.deliver(self.from, frame.clone())
    }

    fn send_if_free(&self, frame: &Frame) {
        // Nobody refuses a sign of life.
        drop(self.to.deliver(self.from, frame.clone()));
    }

    fn drain(&self, _: Instant) {}

    fn close(&self) {
        self.to.lose(self.from, "its connection closed");
    }
}

#[derive(Default)]
struct Bytes {
    waiting: VecDeque<u8>,
    closed: bool,
}

/// One direction of a pipe in memory.
#[derive(Default)]
struct Way {
    bytes: Mutex<Bytes>,
    changed: Condvar,
}

struct MemoryPipe {
    out: Arc<Way>,
    incoming: Arc<Way>,
}

fn memory_pipes() -> (MemoryPipe, MemoryPipe) {
    let (there, back) = (Arc::<Way>::default(), Arc::<Way>::default());
    let near = MemoryPipe { out: Arc::clone(&there), incoming: Arc::clone(&back) };
    (near, MemoryPipe { out: back, incoming: there })
}

impl Pipe for MemoryPipe {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut way = self.out.bytes.lock();
        if way.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        way.waiting.extend(bytes);
        self.out.changed.notify_all();
        Ok(())
    }

    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut way = self.incoming.bytes.lock();
        if way.waiting.is_empty() && !way.closed {
            self.incoming.changed.wait_for(&mut way, PAUSE);
        }
        if way.waiting.is_empty() {
            return if way.closed { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        io::Read::read(&mut way.waiting, bytes)
    }
}

impl Drop for MemoryPipe {
    fn drop(&mut self) {
        for way in [&self.out, &self.incoming] {
            way.bytes.lock().closed = true;
            way.changed.notify_all();
        }
    }
}
