//! The vote, the only collective of the checkpoint protocol: a part on every rank, one decision,
//! and the same verdict everywhere, whatever fails.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::PHASE_BYTES_MAX;
use super::star::{Gathered, Star};
use super::turn::Turn;
use super::{Channel, ProcessGroup};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;
use crate::sabotage::{self, Defect};

/// What a decision answers.
pub(super) enum Answers<R> {
    /// One answer per rank, in rank order.
    Each(Vec<R>),
    /// The same answer for all.
    Same(R),
}

/// Runs one phase on this rank; see [`ProcessGroup::phase`].
pub(super) fn run<T, R>(
    group: &ProcessGroup,
    channel: Channel,
    name: &str,
    local: impl FnOnce() -> Result<T>,
    decide: impl FnOnce(Vec<T>) -> Result<Answers<R>>,
) -> Result<R>
where
    T: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    if name.len() > PHASE_BYTES_MAX || is_inside() {
        let text = "a phase inside a phase, or a name of over 255 bytes";
        return Err(Error::new(ErrorKind::InvalidInput, text).in_phase(name));
    }
    let rank = group.rank();
    sabotage::visit(rank, name, "before").map_err(|error| error.at_rank(rank).in_phase(name))?;
    let entered = || {
        sabotage::visit(rank, name, "enter")?;
        local()
    };
    let Some(star) = group.star() else {
        let value = guarded(rank, name, entered)?;
        let answers = guarded(rank, name, || decide(vec![value]))?;
        return own_answer(answers);
    };
    let mut turn = star.turn(channel, name);
    star.check(&turn)?;
    let own = guarded(rank, name, entered);
    if rank.is_coordinator() {
        return coordinate(star, &mut turn, own, |values| guarded(rank, name, || decide(values)));
    }
    let vote = Arc::new(encode_vote(rank, name, own)?);
    star.vote(&turn, &vote);
    sabotage::pass(rank, name, "voted");
    let verdict = star.verdict(&mut turn, &vote)?;
    codec::decode::<Result<R>>(&verdict)
        .unwrap_or_else(|error| Err(unreadable(&turn, "verdict", Rank::COORDINATOR, &error)))
}

/// What cannot be read is no damage of a checkpoint.
fn unreadable(turn: &Turn<'_>, what: &str, from: Rank, error: &Error) -> Error {
    let text = format!("the {what} cannot be read: {}", error.message());
    let error = Error::new(ErrorKind::Disagreement, text).at_rank(from);
    turn.place(error).with_help("do all ranks run the same program?")
}

fn encode_vote<T: Serialize>(rank: Rank, name: &str, own: Result<T>) -> Result<Vec<u8>> {
    codec::encode(&own).or_else(|e| codec::encode(&Err::<(), _>(e.at_rank(rank).in_phase(name))))
}

fn coordinate<T, R>(
    star: &Star,
    turn: &mut Turn<'_>,
    own: Result<T>,
    decide: impl FnOnce(Vec<T>) -> Result<Answers<R>>,
) -> Result<R>
where
    T: DeserializeOwned,
    R: Serialize,
{
    let mut gathered = star.gather(turn);
    turn.follow_votes(&gathered.votes);
    sabotage::pass(Rank::COORDINATOR, turn.name(), "voted");
    let decided = count(&mut gathered, turn, own)
        .and_then(decide)
        .and_then(|answers| encode_answers(answers, gathered.votes.len() + 1))
        .map_err(|error| turn.place(error));
    sabotage::pass(Rank::COORDINATOR, turn.name(), "decided");
    match (decided, &gathered.broken) {
        (Ok((own, bodies)), _) => {
            star.answer(turn, &gathered.votes, |rank| bodies.of(rank));
            Ok(own)
        }
        (Err(verdict), Some(broken)) => {
            star.abort(turn, &gathered.votes, &verdict, broken);
            Err(verdict)
        }
        (Err(verdict), None) => {
            let body = Arc::new(codec::encode(&Err::<(), _>(&verdict)).unwrap_or_default());
            star.answer(turn, &gathered.votes, |_| Arc::clone(&body));
            Err(verdict)
        }
    }
}

/// The values of all ranks in rank order, or the one error that all failures amount to.
fn count<T: DeserializeOwned>(
    gathered: &mut Gathered,
    turn: &Turn<'_>,
    own: Result<T>,
) -> Result<Vec<T>> {
    let mut failures = std::mem::take(&mut gathered.failures);
    let mut values = Vec::with_capacity(gathered.votes.len() + 1);
    let mut keep = |vote: Result<T>| match vote {
        Ok(value) => values.push(value),
        Err(error) => failures.push(error),
    };
    keep(own);
    for (rank, vote) in gathered.votes.iter().filter(|(_, vote)| turn.is_for(vote)) {
        let vote = codec::decode::<Result<T>>(&vote.body);
        keep(vote.unwrap_or_else(|error| Err(unreadable(turn, "vote", *rank, &error))));
    }
    if failures.is_empty() || sabotage::is_on(Defect::VotesNotAwaited) {
        return Ok(values);
    }
    failures.sort_by_key(Error::rank);
    Err(Error::from_failures(failures))
}

/// Encoded answers for the other ranks.
enum Bodies {
    Each(Vec<Arc<Vec<u8>>>),
    Same(Arc<Vec<u8>>),
}

impl Bodies {
    fn of(&self, rank: Rank) -> Arc<Vec<u8>> {
        match self {
            // Absent means empty, which no rank takes for an answer.
            Self::Each(bodies) => bodies.get(rank.index()).cloned().unwrap_or_default(),
            Self::Same(body) => Arc::clone(body),
        }
    }
}

fn encode_answers<R: Serialize>(answers: Answers<R>, ranks: usize) -> Result<(R, Bodies)> {
    let encode = |answer: &R| codec::encode(&Ok::<_, Error>(answer)).map(Arc::new);
    let bodies = match &answers {
        Answers::Each(each) if each.len() != ranks => {
            let text = format!("{} answers for {ranks} ranks", each.len());
            return Err(Error::new(ErrorKind::InvalidInput, text).at_rank(Rank::COORDINATOR));
        }
        Answers::Each(each) => Bodies::Each(each.iter().map(encode).collect::<Result<_>>()?),
        Answers::Same(answer) => Bodies::Same(encode(answer)?),
    };
    Ok((own_answer(answers)?, bodies))
}

/// The coordinator's own answer.
fn own_answer<R>(answers: Answers<R>) -> Result<R> {
    match answers {
        Answers::Same(answer) => Ok(answer),
        Answers::Each(each) => each
            .into_iter()
            .next()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "no answer for rank 0")),
    }
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static PANIC_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Whether this thread runs a rank's part of a phase: a panic there becomes a vote.
pub(super) fn is_inside() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
}

/// Sets how deep this thread is in parts of phases, and gives what it was: a simulator that runs
/// several ranks on one thread keeps it for each of them.
#[cfg(feature = "sabotage")]
pub(super) fn swap_depth(depth: u32) -> u32 {
    DEPTH.replace(depth)
}

struct Inside;

impl Inside {
    fn enter() -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Runs a part of a phase; error and panic come back as an error that names rank and phase.
pub(crate) fn guarded<T>(rank: Rank, phase: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
    hook_panics();
    let inside = Inside::enter();
    let outcome = catch_unwind(AssertUnwindSafe(part));
    drop(inside);
    outcome
        .unwrap_or_else(|payload| Err(panic_error(&*payload)))
        .map_err(|error| error.at_rank(rank).in_phase(phase))
}

pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
}

fn panic_error(payload: &(dyn Any + Send)) -> Error {
    let text = panic_text(payload);
    let place = PANIC_PLACE.take().map(|place| format!(" (at {place})")).unwrap_or_default();
    Error::new(ErrorKind::Panic, format!("{text}{place}"))
}

/// Inside a phase a panic is reported by the verdict, so nothing is printed there. Elsewhere the
/// hook that was set before does its work.
fn hook_panics() {
    static ONCE: Once = Once::new();
    if std::thread::panicking() {
        return; // hooks cannot be changed then
    }
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if is_inside() {
                PANIC_PLACE.set(info.location().map(ToString::to_string));
            } else {
                earlier(info);
            }
        }));
    });
}
