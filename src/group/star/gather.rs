//! How rank 0 waits for votes: what each of them costs does not depend on how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Star;
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::group::frame::Frame;
use crate::group::inbox::{Look, State};
use crate::group::turn::{DEADLINE_HELP, Turn, disagreement};
use crate::rank::Rank;

/// What the coordinator holds when it has waited for votes.
pub(in crate::group) struct Gathered {
    /// Votes by rank, without its own.
    pub(in crate::group) votes: BTreeMap<Rank, Frame>,
    /// What is wrong with ranks that have not voted, or voted on something else.
    pub(in crate::group) failures: Vec<Error>,
    /// Why no later phase can succeed, if none can.
    pub(in crate::group) broken: Option<Error>,
}

/// Failures, and why no later phase can succeed, if none can.
type Failed = (Vec<Error>, Option<Error>);

/// A wait for votes, between two looks.
struct Wait {
    started: Instant,
    votes: BTreeMap<Rank, Frame>,
    missing: BTreeSet<Rank>,
    /// When the first of the missing ranks may have been silent for too long, and how many had been
    /// lost when that was found. None becomes silent earlier: what is heard only puts it off.
    judged: Option<(Instant, u64)>,
}

impl Star {
    /// Waits for the votes of all other ranks, or for a reason to wait no longer. Coordinator.
    pub(in crate::group) fn gather(&self, turn: &Turn<'_>) -> Gathered {
        // Whoever waits for the verdict learns that this rank is here.
        self.progress.add(1);
        let missing = self.links.keys().copied().collect();
        let mut wait =
            Wait { started: clock::now(), votes: BTreeMap::new(), missing, judged: None };
        let (failures, broken) = self.inbox.wait(|state| self.look(state, turn, &mut wait));
        Gathered { votes: wait.votes, failures, broken }
    }

    fn look(&self, state: &mut State, turn: &Turn<'_>, wait: &mut Wait) -> Look<Failed> {
        let voted = state.drain_voted(turn.channel);
        // What came before this phase began is in nobody's list.
        let first = wait.judged.is_none().then(|| wait.missing.iter().copied().collect());
        if let Some(error) = wait.take_votes(state, turn, first.unwrap_or(voted)) {
            return Look::Done((vec![error], None));
        }
        if wait.missing.is_empty() {
            return Look::Done((Vec::new(), None));
        }
        match wait.judged {
            Some((until, losses)) if losses == state.losses() && clock::now() < until => {
                Look::Until(until)
            }
            _ => {
                let look = self.judge_missing(state, turn, wait);
                if let Look::Until(until) = &look {
                    wait.judged = Some((*until, state.losses()));
                }
                look
            }
        }
    }

    fn judge_missing(&self, state: &State, turn: &Turn<'_>, wait: &Wait) -> Look<Failed> {
        if let Some(broken) = &state.broken {
            return Look::Done((vec![broken.clone()], Some(broken.clone())));
        }
        let missing = || wait.missing.iter().copied();
        let lost: Vec<Error> =
            missing().filter_map(|rank| self.peer_lost(state, rank, turn.phase)).collect();
        if !lost.is_empty() {
            let broken = Error::from_failures(lost.clone());
            return Look::Done((lost, Some(broken)));
        }
        let gives_up_at =
            |rank: Rank| state.heard_at(rank).max(wait.started) + self.deadlines.progress;
        let now = clock::now();
        let silent: Vec<Rank> = missing().filter(|rank| gives_up_at(*rank) <= now).collect();
        if !silent.is_empty() {
            return Look::Done((self.deadline_passed(turn, &silent), None));
        }
        Look::Until(missing().map(gives_up_at).min().unwrap_or(now))
    }

    fn deadline_passed(&self, turn: &Turn<'_>, silent: &[Rank]) -> Vec<Error> {
        let names: Vec<String> = silent.iter().map(Rank::to_string).collect();
        let text = format!(
            "no vote and no progress for {:?} from rank {}",
            self.deadlines.progress,
            names.join(", ")
        );
        let error = |rank: &Rank| {
            let error = Error::new(ErrorKind::Deadline, text.as_str()).at_rank(*rank);
            error.in_phase(turn.phase).with_help(DEADLINE_HELP)
        };
        silent.iter().map(error).collect()
    }
}

impl Wait {
    /// Takes the votes of these ranks that are there; an error if one is on another phase.
    fn take_votes(&mut self, state: &mut State, turn: &Turn<'_>, of: Vec<Rank>) -> Option<Error> {
        let mut other_phase = None;
        for rank in of {
            if !self.missing.contains(&rank) {
                continue;
            }
            let Some(vote) = state.take(rank, turn.channel, turn.sequence) else { continue };
            if !turn.is_for(&vote) {
                other_phase.get_or_insert_with(|| disagreement(turn, rank, &vote));
            }
            self.missing.remove(&rank);
            self.votes.insert(rank, vote);
        }
        other_phase
    }
}
