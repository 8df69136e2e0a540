//! What has arrived at a rank: frames by sender and channel, and how every peer stands.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::Channel;
use super::frame::{Frame, Kind};
use crate::clock;
use crate::codec::{self, ENCODED_BYTES_MAX};
use crate::error::Error;
use crate::rank::Rank;

/// Frames of one peer that may wait on one channel: far more than ranks that go on after deadlines
/// leave to one another.
const WAITING_MAX: usize = 1024;

/// How a peer stands with this rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Connected, as far as is known.
    Live,
    /// Said goodbye.
    Left,
    /// Its connection closed or failed; why.
    Lost(String),
}

struct Peer {
    standing: Standing,
    heard_at: Instant,
}

/// Contents of an [`Inbox`], seen under its lock.
pub(super) struct State {
    queues: HashMap<(Rank, Channel), VecDeque<Frame>>,
    peers: HashMap<Rank, Peer>,
    /// Why no later phase can succeed.
    pub(super) broken: Option<Error>,
    /// Why this rank starts no phase any more, once it leaves.
    left: Option<Error>,
    heard: u64,
    /// Who has voted on each channel since the last look.
    voted: [Vec<Rank>; Channel::ALL.len()],
    /// Peers that are live no more, and errors that ended the group.
    losses: u64,
}

/// What a waiting rank found.
pub(super) enum Look<R> {
    /// The wait is over.
    Done(R),
    /// Look again after the next change, or at that time.
    Until(Instant),
}

/// The arrivals of one rank, filled by its links and emptied by its phases.
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Inbox {
    /// An inbox that hears from `peers`.
    pub(super) fn new(peers: impl Iterator<Item = Rank>) -> Arc<Self> {
        let heard_at = clock::now();
        let peers = peers.map(|r| (r, Peer { standing: Standing::Live, heard_at })).collect();
        let (queues, voted) = (HashMap::new(), Default::default());
        let state = State { queues, peers, broken: None, left: None, heard: 0, voted, losses: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Takes in a frame that `from` has sent.
    ///
    /// # Errors
    /// It must not send this, or that much; it counts as lost then.
    pub(super) fn deliver(&self, from: Rank, frame: Frame) -> io::Result<()> {
        let mut state = self.state.lock();
        state.hear(from);
        let taken = state.take_in(from, frame);
        if let Err(error) = &taken {
            state.set_standing(from, Standing::Lost(format!("its connection failed: {error}")));
        }
        drop(state);
        self.changed.notify_all();
        taken
    }

    /// Notes that bytes of a longer frame have arrived.
    pub(super) fn hear(&self, from: Rank) {
        self.state.lock().hear(from);
    }

    /// Notes that the connection to `peer` is gone.
    pub(super) fn lose(&self, peer: Rank, why: impl Into<String>) {
        self.state.lock().set_standing(peer, Standing::Lost(why.into()));
        self.changed.notify_all();
    }

    /// Ends every wait, now and later, with `error`, unless another error came first.
    pub(super) fn break_with(&self, error: Error) {
        self.state.lock().break_with(error);
        self.changed.notify_all();
    }

    /// Lets this rank start no more phases; those that wait go on.
    pub(super) fn leave(&self, why: Error) {
        self.state.lock().left.get_or_insert(why);
    }

    /// Why this rank may start no phase, if it has left or is about to say goodbye.
    pub(super) fn left(&self) -> Option<Error> {
        self.state.lock().left.clone()
    }

    /// A number that grows whenever anything is heard from anybody.
    pub(super) fn heard_total(&self) -> u64 {
        self.state.lock().heard
    }

    /// How `peer` stands, and when it was last heard.
    pub(super) fn peer(&self, peer: Rank) -> (Standing, Instant) {
        let state = self.state.lock();
        (state.standing(peer), state.heard_at(peer))
    }

    /// Runs `look` now, after every change, and at the times it asks for.
    pub(super) fn wait<R>(&self, mut look: impl FnMut(&mut State) -> Look<R>) -> R {
        let mut state = self.state.lock();
        loop {
            match look(&mut state) {
                Look::Done(found) => return found,
                Look::Until(when) => clock::wait_until(&self.changed, &mut state, when),
            }
        }
    }
}

impl State {
    fn hear(&mut self, from: Rank) {
        self.heard += 1;
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.heard_at = clock::now();
        }
    }

    /// Leaving and losing are final; the first of them counts.
    fn set_standing(&mut self, peer: Rank, standing: Standing) {
        if let Some(peer) = self.peers.get_mut(&peer)
            && peer.standing == Standing::Live
        {
            peer.standing = standing;
            self.losses += 1;
        }
    }

    fn take_in(&mut self, from: Rank, frame: Frame) -> io::Result<()> {
        match frame.kind {
            Kind::Progress | Kind::Farewell => Ok(()),
            Kind::Goodbye => {
                self.set_standing(from, Standing::Left);
                Ok(())
            }
            Kind::Vote if from.is_coordinator() => Err(refused("a vote of rank 0")),
            Kind::Verdict | Kind::Missed | Kind::Abort if !from.is_coordinator() => {
                Err(refused("a verdict that is rank 0's to give"))
            }
            Kind::Vote | Kind::Verdict | Kind::Missed => self.push(from, frame),
            Kind::Abort => {
                if let Ok((_, broken)) = codec::decode::<(Error, Error)>(&frame.body) {
                    self.break_with(broken);
                }
                self.push(from, frame)
            }
        }
    }

    /// A peer sends one frame for each that it waits for, so few can be here at a time.
    fn push(&mut self, from: Rank, frame: Frame) -> io::Result<()> {
        let queue = self.queues.entry((from, frame.channel)).or_default();
        let waiting: usize = queue.iter().map(|frame| frame.body.len()).sum();
        let is_full = waiting.saturating_add(frame.body.len()) > ENCODED_BYTES_MAX;
        if queue.len() >= WAITING_MAX || (is_full && !queue.is_empty()) {
            return Err(refused("more than may wait at a time"));
        }
        if frame.kind == Kind::Vote {
            self.voted[frame.channel.index()].push(from);
        }
        queue.push_back(frame);
        Ok(())
    }

    fn break_with(&mut self, error: Error) {
        self.broken.get_or_insert(error);
        self.losses += 1;
    }

    /// A number that grows whenever a peer is lost, or the group.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    /// Who has voted on `channel` since this was asked last.
    pub(super) fn drain_voted(&mut self, channel: Channel) -> Vec<Rank> {
        std::mem::take(&mut self.voted[channel.index()])
    }

    /// The oldest frame of `from` on `channel` that is not older than `sequence`. Older ones
    /// belong to phases that were given up for lack of progress.
    pub(super) fn take(&mut self, from: Rank, channel: Channel, sequence: u64) -> Option<Frame> {
        let queue = self.queues.get_mut(&(from, channel))?;
        while let Some(frame) = queue.pop_front() {
            if frame.sequence >= sequence {
                return Some(frame);
            }
        }
        None
    }

    /// Drops the verdicts of `from` on `channel`; the highest number among them.
    pub(super) fn discard_answers(&mut self, from: Rank, channel: Channel) -> Option<u64> {
        let queue = self.queues.get_mut(&(from, channel))?;
        let is_answer = |frame: &&Frame| matches!(frame.kind, Kind::Verdict | Kind::Missed);
        let highest = queue.iter().filter(is_answer).map(|frame| frame.sequence).max();
        queue.retain(|frame| !is_answer(&frame));
        highest
    }

    /// Whether a frame of `from` waits on `channel`.
    pub(super) fn has_frame(&self, from: Rank, channel: Channel) -> bool {
        self.queues.get(&(from, channel)).is_some_and(|queue| !queue.is_empty())
    }

    /// How `peer` stands; a rank that is no peer is live.
    pub(super) fn standing(&self, peer: Rank) -> Standing {
        self.peers.get(&peer).map_or(Standing::Live, |peer| peer.standing.clone())
    }

    /// When `peer` was last heard.
    pub(super) fn heard_at(&self, peer: Rank) -> Instant {
        self.peers.get(&peer).map_or_else(clock::now, |peer| peer.heard_at)
    }
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
