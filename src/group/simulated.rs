//! Ranks of a simulation: one thread runs them all, and what they send waits until the simulator
//! delivers it, or does not.
//!
//! For our own tests. Everything above the links is the code that runs in a job: votes, verdicts,
//! deadlines, announcements of progress.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::data::NoData;
use super::frame::Frame;
use super::heartbeat::{Pulse, tick};
use super::inbox::Inbox;
use super::star::{Link, Links, Star};
use super::{Deadlines, Member, ProcessGroup, Progress, phase};
use crate::rank::{LocalRank, Rank, WorldSize};

/// Takes what ranks send. Called on the thread of the simulation, from inside the rank.
pub trait Network: Send + Sync {
    /// `parcel` is on its way.
    fn send(&self, parcel: Parcel);
}

/// Something on its way from one rank to another. What is delivered over one link keeps its order.
pub struct Parcel {
    from: Rank,
    to: Rank,
    inbox: Arc<Inbox>,
    /// Absent if the connection closes.
    frame: Option<Frame>,
}

impl Parcel {
    /// Who has sent it.
    #[must_use]
    pub fn from(&self) -> Rank {
        self.from
    }

    /// Whom it is for.
    #[must_use]
    pub fn to(&self) -> Rank {
        self.to
    }

    /// The phase that it belongs to; empty for what belongs to none.
    #[must_use]
    pub fn phase(&self) -> &str {
        self.frame.as_ref().map_or("", |frame| &frame.phase)
    }

    /// What it takes on a socket.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let parts = self.frame.as_ref().map(Frame::to_parts).and_then(Result::ok);
        parts.map_or(0, |parts| parts.map(|part| part.len() as u64).sum())
    }

    /// Lets it arrive.
    pub fn deliver(self) {
        match self.frame {
            // Who refuses it has noted that.
            Some(frame) => drop(self.inbox.deliver(self.from, frame)),
            None => self.inbox.lose(self.from, "its connection closed"),
        }
    }
}

impl fmt::Display for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, frame, .. } = self;
        match frame {
            Some(frame) => write!(
                f,
                "{from}>{to} {:?} {:?} {} \"{}\" {} bytes",
                frame.kind,
                frame.channel,
                frame.sequence,
                frame.phase,
                frame.body.len()
            ),
            None => write!(f, "{from}>{to} closed"),
        }
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One simulated rank, as the simulator holds it.
pub struct Node {
    group: ProcessGroup,
    inbox: Arc<Inbox>,
    pulse: Option<Pulse>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.group).finish()
    }
}

impl Node {
    /// The ranks of a job over `network`, in rank order. On a thread that has installed a world.
    ///
    /// # Panics
    /// Elsewhere, if the operating system refuses a thread.
    #[must_use]
    pub fn job(world: WorldSize, deadlines: &Deadlines, network: &Arc<dyn Network>) -> Vec<Self> {
        let deadlines = &deadlines.bounded();
        let others = || world.ranks().filter(|rank| !rank.is_coordinator());
        let inboxes: Vec<Arc<Inbox>> = world
            .ranks()
            .map(|rank| match rank.is_coordinator() {
                true => Inbox::new(others()),
                false => Inbox::new(std::iter::once(Rank::COORDINATOR)),
            })
            .collect();
        let link = |from: Rank, to: Rank| -> Option<(Rank, Box<dyn Link>)> {
            let inbox = Arc::clone(inboxes.get(to.index())?);
            let network = Arc::clone(network);
            Some((to, Box::new(SimulatedLink { from, to, inbox, network })))
        };
        let node = |(rank, inbox): (Rank, &Arc<Inbox>)| {
            let links: Links = match rank.is_coordinator() {
                true => others().filter_map(|other| link(rank, other)).collect(),
                false => link(rank, Rank::COORDINATOR).into_iter().collect(),
            };
            Self::new(
                Member { rank, local_rank: LocalRank(rank.get()), world },
                deadlines,
                inbox,
                links,
            )
        };
        world.ranks().zip(&inboxes).map(node).collect()
    }

    fn new(member: Member, deadlines: &Deadlines, inbox: &Arc<Inbox>, links: Links) -> Self {
        let (deadlines, inbox) = (deadlines.clone(), Arc::clone(inbox));
        if member.world == WorldSize::ONE {
            return Self { group: ProcessGroup::alone(member, deadlines), inbox, pulse: None };
        }
        let (links, progress) = (Arc::new(links), Progress::default());
        let pulse =
            Pulse::new(member.rank, progress.clone(), Arc::clone(&inbox), Arc::clone(&links));
        let (to, own) = (Arc::clone(&inbox), progress.clone());
        #[expect(clippy::expect_used, reason = "it starts no thread")]
        let star = Star::new(member, deadlines.clone(), to, links, own).expect("no thread");
        let group =
            ProcessGroup::assemble(member, deadlines, progress, Some(star), Box::new(NoData));
        Self { group, inbox, pulse: Some(pulse) }
    }

    /// The membership of this rank.
    #[must_use]
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Time between two calls of [`Node::beat`].
    #[must_use]
    pub fn tick(&self) -> Duration {
        tick(self.group.deadlines().progress)
    }

    /// What the thread that announces progress does at each tick.
    pub fn beat(&mut self) {
        if let Some(pulse) = &mut self.pulse {
            pulse.beat();
        }
    }

    /// Ends every wait of this rank, now and later: its process is dead.
    pub fn end_waits(&self) {
        let peers = self.group.world_size().ranks().filter(|rank| *rank != self.group.rank());
        peers.for_each(|rank| self.inbox.lose(rank, "this rank is dead"));
    }

    /// Lets this rank know that its connection to `peer` is gone.
    pub fn lose(&self, peer: Rank) {
        self.inbox.lose(peer, "the connection failed");
    }
}

/// How deep the rank that runs on this thread is in its phases; set anew at each change of rank.
#[must_use]
pub fn swap_depth(depth: u32) -> u32 {
    phase::swap_depth(depth)
}

struct SimulatedLink {
    from: Rank,
    to: Rank,
    inbox: Arc<Inbox>,
    network: Arc<dyn Network>,
}

impl SimulatedLink {
    fn give(&self, frame: Option<Frame>) {
        let inbox = Arc::clone(&self.inbox);
        self.network.send(Parcel { from: self.from, to: self.to, inbox, frame });
    }
}

impl Link for SimulatedLink {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        self.give(Some(frame.clone()));
        Ok(())
    }

    fn send_if_free(&self, frame: &Frame) {
        self.give(Some(frame.clone()));
    }

    fn drain(&self, _: Instant) {}

    fn close(&self) {
        self.give(None);
    }
}
