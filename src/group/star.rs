//! The control plane: every rank has one link, to the coordinator. How frames travel is the
//! business of the links; everything else is here, once.

mod gather;
mod spread;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(super) use self::gather::Gathered;
use super::frame::{Frame, Kind};
use super::heartbeat::Heartbeat;
use super::inbox::{Inbox, Look, Standing, State};
#[cfg(feature = "nccl")]
use super::peers::Peers;
use super::turn::{Count, LOST_HELP, Turn, silent_coordinator};
use super::{Channel, Deadlines, Member, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;
use crate::{clock, codec};

/// How much longer than the coordinator a rank waits, so that the coordinator's verdict on a
/// silent rank comes before the others give up on the coordinator.
pub(super) const VERDICT_MARGIN: Duration = Duration::from_secs(1);
/// Longest wait of a rank that leaves for its last words to arrive.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// One way to a peer.
pub(super) trait Link: Send + Sync {
    /// Hands a frame over; waits while the peer takes none, up to the deadline for progress.
    fn send(&self, frame: &Frame) -> io::Result<()>;
    /// Hands over as much as the peer takes now, of this frame and what was offered before; whether
    /// nothing is left. Fails if it takes nothing up to the deadline for progress.
    fn offer(&self, frame: Option<&Frame>) -> io::Result<bool> {
        frame.map_or(Ok(()), |frame| self.send(frame)).map(|()| true)
    }
    /// What becomes writable when the peer takes more; absent if it takes everything at once.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Sends unless somebody else is sending: what is being sent shows as well that we live.
    fn send_if_free(&self, frame: &Frame);
    /// Waits until the peer has everything up to the goodbye, is gone, or time is up.
    fn drain(&self, until: Instant);
    /// Closes the link; the peer sees it at once.
    fn close(&self);
}

/// The links of a rank: all others for the coordinator, the coordinator for all others.
pub(super) type Links = BTreeMap<Rank, Box<dyn Link>>;

/// One rank's end of the control plane.
pub(super) struct Star {
    member: Member,
    deadlines: Deadlines,
    inbox: Arc<Inbox>,
    links: Arc<Links>,
    counts: [Mutex<Count>; Channel::ALL.len()],
    progress: Progress,
    heartbeat: Mutex<Option<Heartbeat>>,
}

impl Star {
    pub(super) fn new(
        member: Member,
        deadlines: Deadlines,
        inbox: Arc<Inbox>,
        links: Arc<Links>,
        progress: Progress,
    ) -> Result<Self> {
        let deadlines = deadlines.kept();
        let heartbeat = Heartbeat::start(
            member.rank,
            deadlines.progress,
            progress.clone(),
            Arc::clone(&inbox),
            Arc::clone(&links),
        )?;
        let (counts, heartbeat) = (Default::default(), Mutex::new(heartbeat));
        Ok(Self { member, deadlines, inbox, links, counts, progress, heartbeat })
    }

    /// What a data plane of another make sees of the other ranks.
    #[cfg(feature = "nccl")]
    pub(super) fn peers(&self) -> Peers {
        let (inbox, links) = (Arc::clone(&self.inbox), Arc::clone(&self.links));
        Peers::new(self.member, inbox, links, self.progress.clone(), self.deadlines.progress)
    }

    /// Starts a phase; waits for an earlier one of this rank on the same channel.
    pub(super) fn turn<'a>(&'a self, channel: Channel, phase: &'a str) -> Turn<'a> {
        let mut count = self.counts[channel.index()].lock();
        let is_returning = std::mem::take(&mut count.gave_up);
        if is_returning {
            // What the coordinator has answered meanwhile was about phases without this rank.
            let passed = self.inbox.wait(|state| {
                Look::Done(state.discard_answers(Rank::COORDINATOR, channel).map(after))
            });
            count.next = count.next.max(passed.unwrap_or_default());
        }
        self.progress.add(1);
        Turn::new(self, channel, phase, count, is_returning)
    }

    /// Whether the phase can be run at all.
    ///
    /// # Errors
    /// This rank has left; or the loss that has made the group useless. The coordinator has told
    /// the others of a loss then.
    pub(super) fn check(&self, turn: &Turn<'_>) -> Result<()> {
        self.inbox.left().map_or(Ok(()), Err)?;
        let found = self.inbox.wait(|state| Look::Done(self.loss(state, turn)));
        let Some(error) = found else { return Ok(()) };
        if self.member.rank.is_coordinator() {
            self.abort(turn, &BTreeMap::new(), &error, &error);
        }
        Err(error)
    }

    fn loss(&self, state: &mut State, turn: &Turn<'_>) -> Option<Error> {
        if state.broken.is_some() {
            return state.broken.clone();
        }
        let lost: Vec<Error> = self
            .links
            .keys()
            .filter(|rank| !state.has_frame(**rank, turn.channel))
            .filter_map(|rank| self.peer_lost(state, *rank, turn.phase))
            .collect();
        (!lost.is_empty()).then(|| Error::from_failures(lost))
    }

    /// The error that a peer which is gone means to this rank.
    fn peer_lost(&self, state: &State, peer: Rank, phase: &str) -> Option<Error> {
        let why = match state.standing(peer) {
            Standing::Live => return None,
            Standing::Left => "it left the job".to_owned(),
            Standing::Lost(why) => why,
        };
        let kind =
            if peer.is_coordinator() { ErrorKind::CoordinatorLost } else { ErrorKind::PeerLost };
        let error = Error::new(kind, format!("rank {peer} is gone: {why}"));
        Some(error.at_rank(peer).in_phase(phase).with_help(LOST_HELP))
    }

    /// Gives every voter its answer. Coordinator. A rank that cannot be reached counts as lost
    /// from then on; the others still get theirs.
    pub(super) fn answer(
        &self,
        turn: &Turn<'_>,
        votes: &BTreeMap<Rank, Frame>,
        body: impl Fn(Rank) -> Arc<Vec<u8>>,
    ) {
        self.reply(turn, votes, Kind::Verdict, body);
    }

    /// Gives every rank `verdict`, and makes every later phase fail with `broken`. Coordinator.
    pub(super) fn abort(
        &self,
        turn: &Turn<'_>,
        votes: &BTreeMap<Rank, Frame>,
        verdict: &Error,
        broken: &Error,
    ) {
        self.inbox.break_with(broken.clone());
        let body = Arc::new(codec::encode(&(verdict, broken)).unwrap_or_default());
        self.reply(turn, votes, Kind::Abort, |_| Arc::clone(&body));
        let others = Channel::ALL.into_iter().filter(|channel| *channel != turn.channel);
        others.for_each(|channel| self.end_idle(channel));
    }

    /// Ends the wait of ranks on a channel on which this rank runs no phase, if the group is
    /// useless. A phase that runs gives its own verdict: it may have been decided already.
    /// Coordinator.
    pub(super) fn end_idle(&self, channel: Channel) {
        if !self.member.rank.is_coordinator() {
            return;
        }
        let Some(broken) = self.inbox.wait(|state| Look::Done(state.broken.clone())) else {
            return;
        };
        // Not kept while it sends: another thread may begin a phase there.
        let next = self.counts[channel.index()].try_lock().map(|count| count.next);
        let Some(sequence) = next else { return };
        let body = Arc::new(codec::encode(&(&broken, &broken)).unwrap_or_default());
        let (kind, phase) = (Kind::Abort, String::new());
        let frame = Frame { kind, channel, sequence, phase, body };
        self.spread(self.live().map(|rank| (rank, frame.clone())));
    }

    fn reply(
        &self,
        turn: &Turn<'_>,
        votes: &BTreeMap<Rank, Frame>,
        kind: Kind,
        body: impl Fn(Rank) -> Arc<Vec<u8>>,
    ) {
        // An answer carries number and name of the vote, so that a rank in another phase knows
        // that it is meant.
        let frame = |rank: Rank| {
            let vote = votes.get(&rank);
            let is_missed = kind == Kind::Verdict && vote.is_none();
            let kind = if is_missed { Kind::Missed } else { kind };
            let sequence = vote.map_or(turn.sequence, |vote| vote.sequence);
            let phase = vote.map_or(turn.phase, |vote| &vote.phase).to_owned();
            Frame { kind, channel: turn.channel, sequence, phase, body: body(rank) }
        };
        self.spread(self.live().map(|rank| (rank, frame(rank))));
    }

    /// Sends this rank's vote. Not the coordinator.
    pub(super) fn vote(&self, turn: &Turn<'_>, body: &Arc<Vec<u8>>) {
        let frame = Frame {
            kind: Kind::Vote,
            channel: turn.channel,
            sequence: turn.sequence,
            phase: turn.phase.to_owned(),
            body: Arc::clone(body),
        };
        // A failure shows in the wait for the verdict, which may already be here.
        self.send(Rank::COORDINATOR, &frame);
    }

    /// The body of the coordinator's answer to `vote`. Not the coordinator.
    ///
    /// # Errors
    /// A verdict that ends the group; `CoordinatorLost` if none comes.
    pub(super) fn verdict(&self, turn: &mut Turn<'_>, vote: &Arc<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        loop {
            let frame = self.next_answer(turn)?;
            if frame.kind == Kind::Abort {
                let (verdict, _): (Error, Error) = codec::decode(&frame.body)?;
                return Err(verdict);
            }
            if turn.is_answered_by(&frame) {
                return Ok(frame.body);
            }
            if frame.sequence >= turn.sequence {
                // That phase was over before this rank's vote, which counts in a later one.
                turn.move_to(after(frame.sequence));
                self.vote(turn, vote);
            }
        }
    }

    /// Waits for a frame of the coordinator on this channel. A loss on another channel says
    /// nothing about this vote, which may have been counted: the coordinator answers on each.
    fn next_answer(&self, turn: &mut Turn<'_>) -> Result<Frame> {
        let started = clock::now();
        let patience = self.deadlines.progress + VERDICT_MARGIN;
        let found = self.inbox.wait(|state| {
            if let Some(frame) = state.take(Rank::COORDINATOR, turn.channel, 0) {
                return Look::Done(Some(Ok(frame)));
            }
            if let Some(error) = self.peer_lost(state, Rank::COORDINATOR, turn.phase) {
                return Look::Done(Some(Err(error)));
            }
            let gives_up_at = state.heard_at(Rank::COORDINATOR).max(started) + patience;
            if gives_up_at <= clock::now() { Look::Done(None) } else { Look::Until(gives_up_at) }
        });
        found.unwrap_or_else(|| {
            turn.give_up();
            Err(silent_coordinator(turn, patience))
        })
    }

    /// Says goodbye and closes the links.
    pub(super) fn finish(&self) {
        drop(self.heartbeat.lock().take());
        let error = Error::new(ErrorKind::InvalidInput, "this rank has left the job already");
        let error = error.at_rank(self.member.rank);
        // Before the goodbye: peers may act on it at once, and answer no vote after it.
        self.inbox.leave(error.clone());
        let goodbye = Frame::signal(Kind::Goodbye);
        self.spread(self.live().map(|rank| (rank, goodbye.clone())));
        // The last verdict may still be on its way; closing too early could tear it.
        let until = clock::now() + self.deadlines.progress.min(DRAIN_MAX);
        self.links.values().for_each(|link| link.drain(until));
        self.inbox.break_with(error);
        self.close_links();
        // Who waits for a verdict in another thread cannot get it any more.
        self.links.keys().for_each(|rank| self.inbox.lose(*rank, "this rank has left the job"));
    }

    fn close_links(&self) {
        self.links.values().for_each(|link| link.close());
    }
}

impl Drop for Star {
    fn drop(&mut self) {
        // Links first: a heartbeat that is stuck in a write ends with them.
        self.close_links();
        drop(self.heartbeat.lock().take());
    }
}

/// The number of the phase after that numbered `sequence`.
pub(super) fn after(sequence: u64) -> u64 {
    sequence.saturating_add(1)
}
