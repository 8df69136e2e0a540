//! What the hooks of all ranks amount to. Pure, but for the coordinator's look at names.

use serde::{Deserialize, Serialize};

use super::request::{Requests, SaveRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::OnExisting;
use crate::rank::Rank;

/// What one rank brings for one callback.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Brought {
    /// `None` if its hook failed here.
    pub(super) requests: Option<Requests>,
    /// Failures since the last vote.
    pub(super) failures: Vec<Error>,
}

/// What all ranks do for one callback: the coordinator's requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Verdict {
    /// `None` if its hook failed on the coordinator; then nothing is done.
    pub(super) requests: Option<Requests>,
    /// Failures on any rank since the last vote.
    pub(super) failures: Vec<Error>,
}

/// A callback as the vote sees it.
pub(super) struct Voter {
    pub(super) id: String,
    /// Whether it failed before: then ranks need not agree.
    pub(super) diverged: bool,
}

/// Coordinator: one verdict per callback. `resolve` says what a save does about a name that is
/// taken.
pub(super) fn decide(
    voters: &[Voter],
    all: &[Vec<Brought>],
    resolve: impl Fn(&SaveRequest) -> Result<OnExisting>,
) -> Result<Vec<Verdict>> {
    if let Some((_, rank)) = all.iter().zip(0..).find(|(rank, _)| rank.len() != voters.len()) {
        let message = "ranks have different numbers of callbacks";
        return Err(Error::new(ErrorKind::Disagreement, message).at_rank(Rank::new(rank)));
    }
    let mut verdicts = Vec::with_capacity(voters.len());
    for (index, voter) in voters.iter().enumerate() {
        let column: Vec<&Brought> = all.iter().filter_map(|rank| rank.get(index)).collect();
        let failures: Vec<Error> = column.iter().flat_map(|b| b.failures.clone()).collect();
        let ours = column.first().and_then(|brought| brought.requests.clone());
        if let Some(ours) = ours.as_ref().filter(|_| !voter.diverged && failures.is_empty()) {
            agree(voter, ours, &column)?;
        }
        let requests = ours.map(|mut requests| -> Result<Requests> {
            for save in &mut requests.saves {
                let on_existing = resolve(save)?;
                *save = save.clone().on_existing(on_existing);
            }
            Ok(requests)
        });
        verdicts.push(Verdict { requests: requests.transpose()?, failures });
    }
    Ok(verdicts)
}

fn agree(voter: &Voter, ours: &Requests, column: &[&Brought]) -> Result<()> {
    let differs = |b: &&Brought| b.requests.as_ref().is_none_or(|r| !r.agrees_with(ours));
    let Some((brought, rank)) = column.iter().zip(0..).find(|(b, _)| differs(b)) else {
        return Ok(());
    };
    let theirs = brought.requests.as_ref();
    let message =
        format!("callback `{}` asks for {theirs:?}, but for {ours:?} on the coordinator", voter.id);
    Err(Error::new(ErrorKind::Disagreement, message)
        .at_rank(Rank::new(rank))
        .with_help("let what a callback asks for follow from numbers that are equal on all ranks"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CheckpointPath;

    fn keep(request: &SaveRequest) -> Result<OnExisting> {
        Ok(request.existing())
    }

    fn voter(diverged: bool) -> [Voter; 1] {
        [Voter { id: "c".to_owned(), diverged }]
    }

    fn asks(requests: Requests) -> Vec<Brought> {
        vec![Brought { requests: Some(requests), failures: Vec::new() }]
    }

    fn failed() -> Vec<Brought> {
        vec![Brought { requests: None, failures: vec![Error::new(ErrorKind::Panic, "boom")] }]
    }

    fn stop(reason: &str) -> Requests {
        Requests { stop: Some(reason.to_owned()), ..Requests::default() }
    }

    #[test]
    fn the_coordinators_requests_count_and_others_must_agree() {
        let all = [asks(stop("one")), asks(stop("two"))];
        let verdict = decide(&voter(false), &all, keep).unwrap().remove(0);
        assert_eq!(verdict.requests.unwrap().stop.as_deref(), Some("one"));

        let all = [asks(stop("one")), asks(Requests::default())];
        let error = decide(&voter(false), &all, keep).unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(1))));
        assert!(error.message().contains("`c`"), "{error}");

        let path = CheckpointPath::parse("runs/a").unwrap();
        let saves = Requests { saves: vec![SaveRequest::new(&path)], ..Requests::default() };
        let all = [asks(saves.clone()), asks(Requests::default())];
        assert!(decide(&voter(false), &all, keep).is_err());
        let all = [asks(Requests::default()), asks(saves)];
        assert!(decide(&voter(false), &all, keep).is_err());
    }

    #[test]
    fn where_a_callback_failed_the_coordinator_decides_alone() {
        let all = [asks(stop("one")), failed()];
        let verdict = decide(&voter(false), &all, keep).unwrap().remove(0);
        assert!(verdict.requests.unwrap().stop.is_some());
        assert_eq!(verdict.failures.len(), 1);

        let all = [failed(), asks(stop("two"))];
        let verdict = decide(&voter(false), &all, keep).unwrap().remove(0);
        assert!(verdict.requests.is_none());

        let all = [asks(stop("one")), asks(Requests::default())];
        assert!(decide(&voter(true), &all, keep).unwrap().remove(0).requests.is_some());
    }

    #[test]
    fn a_rank_with_fewer_callbacks_is_named() {
        let all = [asks(stop("one")), Vec::new()];
        let error = decide(&voter(false), &all, keep).unwrap_err();
        assert_eq!(error.rank(), Some(Rank::new(1)));
    }
}
