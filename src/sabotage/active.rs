//! What the variable asks for.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, getppid, kill_process};

use super::Defect;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

const VARIABLE: &str = "TCH_CHECKPOINT_SABOTAGE";
const MARK: &str = "TCH_CHECKPOINT_SABOTAGE_MARK";

#[derive(Clone, Copy)]
enum Act {
    Kill,
    Stop,
    Exit(i32),
    Panic,
    Fail,
    /// To this process, or to the one that started it.
    Tell(Whom, Signal),
}

#[derive(Clone, Copy)]
enum Whom {
    Rank,
    Launcher,
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
            "usr1" => Act::Tell(Whom::Rank, Signal::USR1),
            "term" => Act::Tell(Whom::Rank, Signal::TERM),
            "launcher-usr1" => Act::Tell(Whom::Launcher, Signal::USR1),
            "launcher-term" => Act::Tell(Whom::Launcher, Signal::TERM),
            _ => return Err(()),
        };
        let place = part()?.to_owned();
        let cannot_fail = [".voted", ".decided", ".removed"].iter().any(|end| place.ends_with(end));
        if matches!(act, Act::Fail) && cannot_fail {
            return Err(());
        }
        let rank = part()?.parse().map_err(drop)?;
        let nth = part().map_or(Ok(1), str::parse).map_err(drop)?;
        Ok(Self { act, place, rank, nth, visits: AtomicU64::new(0) })
    }
}

/// What the variable asks for.
enum Wish {
    Plan(Plan),
    Defect(Defect),
}

impl FromStr for Wish {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Defect::parse(text).map_or_else(|| text.parse().map(Self::Plan), |d| Ok(Self::Defect(d)))
    }
}

/// What this process was asked for, if anything; an error for what cannot be read.
fn wish() -> Option<&'static Result<Wish, ()>> {
    static WISH: OnceLock<Option<Result<Wish, ()>>> = OnceLock::new();
    let read = || std::env::var(VARIABLE).ok().filter(|v| !v.is_empty()).map(|v| v.parse());
    WISH.get_or_init(read).as_ref()
}

/// Whether the code is to have that defect. What cannot be read is refused by [`visit`].
pub(crate) fn is_on(defect: Defect) -> bool {
    matches!(wish(), Some(Ok(Wish::Defect(wanted))) if *wanted == defect)
}

/// 1, 2, 3: what anybody can guess.
pub(crate) fn counted() -> u128 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed).into()
}

/// # Errors
/// With the act `fail`, or for a variable that cannot be read.
pub(crate) fn visit(rank: Rank, phase: &str, point: &str) -> Result<()> {
    let plan = match wish() {
        None | Some(Ok(Wish::Defect(_))) => return Ok(()),
        Some(Err(())) => {
            let message = format!(
                "{VARIABLE} is neither ACT@PLACE@RANK[@N] nor S1 to S12, or fails where nothing can"
            );
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Some(Ok(Wish::Plan(plan))) => plan,
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
    if let Some(mark) = std::env::var_os(MARK) {
        // Without it a test has no figure, and says so.
        drop(std::fs::write(mark, ""));
    }
    match act {
        Act::Kill => drop(kill_process(getpid(), Signal::KILL)),
        Act::Stop => drop(kill_process(getpid(), Signal::STOP)),
        Act::Tell(Whom::Rank, signal) => drop(kill_process(getpid(), signal)),
        Act::Tell(Whom::Launcher, signal) => {
            getppid().map(|launcher| kill_process(launcher, signal));
        }
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
            assert!(matches!(good.parse(), Ok(Wish::Plan(_))), "{good}");
        }
        for bad in ["fail@commit.decided@0", "fail@commit.voted@1@2", "fall@plan.enter@0"] {
            assert!(bad.parse::<Wish>().is_err(), "{bad}");
        }
    }

    #[test]
    fn defects_are_numbered_from_one_to_twelve() {
        for (defect, number) in Defect::ALL.into_iter().zip(1..) {
            let read: Result<Wish, ()> = format!("S{number}").parse();
            assert!(matches!(read, Ok(Wish::Defect(read)) if read == defect), "{defect:?}");
        }
        for bad in ["S0", "S13", "S", "S01", "S+1", "s1", "1", "S1@commit.enter@0"] {
            assert!(bad.parse::<Wish>().is_err(), "{bad}");
        }
    }
}
