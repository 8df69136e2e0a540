//! Faults on purpose, for tests of what the other ranks then see. Without the feature `sabotage`
//! nothing of this is compiled in; with it, nothing happens until the variable
//! `TCH_CHECKPOINT_SABOTAGE=ACT@PLACE@RANK[@N]` names an act, a place and a rank: at the N-th visit
//! (1 by default) that rank kills, stops, ends, panics or fails.
//!
//! Places are `<phase>.enter` (before a rank's own part), `<phase>.voted` (the vote is sent, or on
//! the coordinator all votes are in), `<phase>.decided` (coordinator, before the answers go out),
//! `train.step`, and `retain.removed` (coordinator, after each removal of a retention pass). `fail`
//! is an error of that rank's own part, so there is none once the votes are cast: with `.voted`,
//! `.decided` or `.removed` the variable is refused.

use crate::error::Result;
use crate::rank::Rank;

/// Visits a place.
///
/// # Errors
/// Whatever the sabotage says; never without one.
#[cfg(not(feature = "sabotage"))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "fails only with the feature")]
pub(crate) fn visit(_rank: Rank, _phase: &str, _point: &str) -> Result<()> {
    Ok(())
}

#[cfg(feature = "sabotage")]
pub(crate) use active::visit;

/// Visits a place where nothing can fail any more: the vote is cast or the decision taken.
pub(crate) fn pass(rank: Rank, phase: &str, point: &str) {
    // A variable that cannot be read has failed the phase where it was entered.
    drop(visit(rank, phase, point));
}

#[cfg(feature = "sabotage")]
mod active {
    use std::str::FromStr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Rank, Result};
    use crate::error::{Error, ErrorKind};

    const VARIABLE: &str = "TCH_CHECKPOINT_SABOTAGE";

    #[derive(Clone, Copy)]
    enum Act {
        Kill,
        Stop,
        Exit(i32),
        Panic,
        Fail,
    }

    struct Plan {
        act: Act,
        place: String,
        rank: u32,
        nth: u64,
        visits: AtomicU64,
    }

    impl FromStr for Plan {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            let mut parts = text.split('@');
            let mut part = || parts.next().ok_or(());
            let act = match part()? {
                "kill" => Act::Kill,
                "stop" => Act::Stop,
                "exit" => Act::Exit(1),
                "exit0" => Act::Exit(0),
                "panic" => Act::Panic,
                "fail" => Act::Fail,
                _ => return Err(()),
            };
            let place = part()?.to_owned();
            let cannot_fail =
                [".voted", ".decided", ".removed"].iter().any(|end| place.ends_with(end));
            if matches!(act, Act::Fail) && cannot_fail {
                return Err(());
            }
            let rank = part()?.parse().map_err(drop)?;
            let nth = part().map_or(Ok(1), str::parse).map_err(drop)?;
            Ok(Self { act, place, rank, nth, visits: AtomicU64::new(0) })
        }
    }

    /// # Errors
    /// With the act `fail`, or for a variable that cannot be read.
    pub(crate) fn visit(rank: Rank, phase: &str, point: &str) -> Result<()> {
        static PLAN: OnceLock<Option<Result<Plan, ()>>> = OnceLock::new();
        let plan = match PLAN.get_or_init(|| {
            std::env::var(VARIABLE).ok().filter(|v| !v.is_empty()).map(|v| v.parse())
        }) {
            None => return Ok(()),
            Some(Err(())) => {
                let message =
                    format!("{VARIABLE} is not ACT@PLACE@RANK[@N], or fails where nothing can");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            Some(Ok(plan)) => plan,
        };
        if plan.rank != rank.get() || plan.place != format!("{phase}.{point}") {
            return Ok(());
        }
        if plan.visits.fetch_add(1, Ordering::Relaxed) + 1 != plan.nth {
            return Ok(());
        }
        act(plan.act)
    }

    fn act(act: Act) -> Result<()> {
        match act {
            Act::Kill => drop(kill_process(getpid(), Signal::KILL)),
            Act::Stop => drop(kill_process(getpid(), Signal::STOP)),
            Act::Exit(code) => std::process::exit(code),
            Act::Panic => panic!("sabotage"),
            Act::Fail => return Err(Error::new(ErrorKind::Storage, "sabotage")),
        }
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_a_ranks_own_part_can_fail() {
            for good in ["fail@commit.enter@0", "fail@train.step@1@2", "kill@commit.decided@0"] {
                assert!(good.parse::<Plan>().is_ok(), "{good}");
            }
            for bad in ["fail@commit.decided@0", "fail@commit.voted@1@2", "fall@plan.enter@0"] {
                assert!(bad.parse::<Plan>().is_err(), "{bad}");
            }
        }
    }
}
