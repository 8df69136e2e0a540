//! One phase as one rank runs it: its number and name, and how ranks that have lost each other
//! come to the same number again.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::Channel;
use super::frame::{Frame, Kind};
use super::star::{Star, after};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

pub(super) const LOST_HELP: &str = "this group of processes is of no more use; start the job \
                                    again from its newest checkpoint";
pub(super) const DEADLINE_HELP: &str = "the rank hangs, or its storage does; if it only is slow \
                                        between signs of progress, raise \
                                        TCH_CHECKPOINT_DEADLINE_MS";

/// How far a rank is on a channel.
#[derive(Default)]
pub(super) struct Count {
    /// Number of the next phase.
    pub(super) next: u64,
    /// This rank has given up a phase that the coordinator may have gone on with.
    pub(super) gave_up: bool,
}

/// The right to run one phase on a channel; phases of one channel follow one another.
pub(super) struct Turn<'a> {
    star: &'a Star,
    pub(super) channel: Channel,
    pub(super) sequence: u64,
    pub(super) phase: &'a str,
    /// This rank gave up an earlier phase, and may be behind.
    is_returning: bool,
    /// Present until the end.
    count: Option<MutexGuard<'a, Count>>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(
        star: &'a Star,
        channel: Channel,
        phase: &'a str,
        mut count: MutexGuard<'a, Count>,
        is_returning: bool,
    ) -> Self {
        let sequence = count.next;
        count.next = after(sequence);
        Self { star, channel, sequence, phase, is_returning, count: Some(count) }
    }

    /// Whether `vote` is on this phase.
    pub(super) fn is_for(&self, vote: &Frame) -> bool {
        vote.sequence == self.sequence && vote.phase == self.phase
    }

    /// Whether `verdict` is on this rank's vote: on this phase, or on this number because ranks
    /// are in different phases. A late rank takes the verdict that it has missed; one that has
    /// given up must not, since it has done with what that phase belonged to.
    pub(super) fn is_answered_by(&self, verdict: &Frame) -> bool {
        let is_disagreement = || {
            codec::decode::<Result<()>>(&verdict.body)
                .is_ok_and(|v| v.is_err_and(|error| error.kind() == ErrorKind::Disagreement))
        };
        let is_for_us = !self.is_returning || verdict.kind != Kind::Missed;
        (self.is_for(verdict) && is_for_us)
            || (verdict.sequence == self.sequence && is_disagreement())
    }

    /// The name of the phase.
    pub(super) fn name(&self) -> &str {
        self.phase
    }

    /// `error` with the name of this phase.
    pub(super) fn place(&self, error: Error) -> Error {
        error.in_phase(self.phase)
    }

    /// Gives this phase another number: the coordinator is there already.
    pub(super) fn move_to(&mut self, sequence: u64) {
        self.sequence = sequence;
        self.follow(sequence);
    }

    /// Lets the next phase come after those that others have voted on.
    pub(super) fn follow_votes(&mut self, votes: &BTreeMap<Rank, Frame>) {
        votes.values().for_each(|vote| self.follow(vote.sequence));
    }

    fn follow(&mut self, sequence: u64) {
        if let Some(count) = &mut self.count {
            count.next = count.next.max(after(sequence));
        }
    }

    /// Notes that this rank waits no longer for a coordinator that may still go on.
    pub(super) fn give_up(&mut self) {
        if let Some(count) = &mut self.count {
            count.gave_up = true;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // In this order: whoever finds the group useless meanwhile passes over a channel in use.
        drop(self.count.take());
        self.star.end_idle(self.channel);
    }
}

pub(super) fn silent_coordinator(turn: &Turn<'_>, patience: Duration) -> Error {
    let text = format!("no verdict and no sign of life from the coordinator for {patience:?}");
    let error = Error::new(ErrorKind::CoordinatorLost, text).at_rank(Rank::COORDINATOR);
    error.in_phase(turn.phase).with_help(DEADLINE_HELP)
}

pub(super) fn disagreement(turn: &Turn<'_>, rank: Rank, vote: &Frame) -> Error {
    let text = format!(
        "rank {} is in phase \"{}\" (number {}), rank {rank} in phase \"{}\" (number {}) of \
         channel {:?}",
        Rank::COORDINATOR,
        turn.phase,
        turn.sequence,
        vote.phase,
        vote.sequence,
        turn.channel
    );
    let error = Error::new(ErrorKind::Disagreement, text).at_rank(rank).in_phase(turn.phase);
    error.with_help("every rank must call the same operations in the same order")
}
