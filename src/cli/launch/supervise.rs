//! The ranks of one start, until nothing of them is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::ranks::{Program, RankProcess};
use super::signals::Signals;
use super::{WANTS_REQUEUE, say};
use crate::error::Result;

/// Ends of ranks are told by a signal; children that they have left are looked for so often.
const PAUSE: Duration = Duration::from_millis(50);
/// Signals this soon after the first say the same: who ends a terminal, or a group of processes as
/// `timeout` does, sends several.
const SAME: Duration = Duration::from_millis(500);
/// How long SIGKILL may take.
const UNKILLABLE: Duration = Duration::from_secs(10);
/// What a rank ends with that has lost another one.
const PEER_LOST: u8 = 5;

/// The ranks of one start. Those that are left are killed when this is dropped.
pub(super) struct Job {
    ranks: Vec<RankProcess>,
    grace: Duration,
    /// The code of the first rank that failed.
    result: u8,
    /// Whether ranks are being ended because one has.
    is_ending: bool,
    /// When this process was told to end.
    interrupted: Option<Instant>,
    /// When what is left is killed.
    deadline: Option<Instant>,
    /// When it was killed first.
    killed: Option<Instant>,
}

/// How a start came to its end.
pub(super) struct Ended {
    pub(super) code: u8,
    /// Whether nothing is left of it, and nobody asked for its end.
    pub(super) can_restart: bool,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.signal_groups(Signal::KILL);
        self.ranks.drain(..).for_each(RankProcess::reap);
    }
}

impl Job {
    /// Starts all ranks.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) if one cannot be started; the others are killed then.
    pub(super) fn start(
        program: &Program,
        restart: u32,
        port: u16,
        grace: Duration,
    ) -> Result<Self> {
        let mut job = Self {
            ranks: Vec::new(),
            grace,
            result: 0,
            is_ending: false,
            interrupted: None,
            deadline: None,
            killed: None,
        };
        for rank in 0..program.ranks {
            job.ranks.push(program.start(rank, restart, port)?);
        }
        Ok(job)
    }

    /// Passes signals on, and ends all ranks when one has failed, until nobody is left.
    pub(super) fn supervise(mut self, signals: &mut Signals) -> Result<Ended> {
        loop {
            let now = Instant::now();
            signals.take().into_iter().for_each(|signal| self.forward(signal, now));
            self.collect();
            if !self.is_any_left() {
                return Ok(Ended { code: self.result, can_restart: self.interrupted.is_none() });
            }
            self.end_what_has_to(now);
            if self.gives_up(now) {
                say("SIGKILL does not end all processes (a file system that hangs?)");
                let code = if self.result == 0 { 1 } else { self.result };
                return Ok(Ended { code, can_restart: false });
            }
            signals.pause(PAUSE);
        }
    }

    fn gives_up(&self, now: Instant) -> bool {
        self.killed.is_some_and(|killed| now > killed + UNKILLABLE)
    }

    /// A helper of a rank may take SIGUSR1 as its death, so only ranks get it.
    fn forward(&mut self, signal: Signal, now: Instant) {
        if signal == Signal::USR1 {
            self.ranks.iter().for_each(|rank| rank.signal(signal));
            return;
        }
        match self.interrupted {
            None => self.interrupt(signal, now),
            Some(first) if now < first + SAME => {}
            Some(_) => {
                self.kill(now);
                say(&format!("{} again: killing all ranks", name(signal.as_raw())));
            }
        }
    }

    /// A second signal means "at once" to a rank that is saving because of a first one, so nobody
    /// gets two, also not if another rank has failed before.
    fn interrupt(&mut self, signal: Signal, now: Instant) {
        let (name, grace) = (name(signal.as_raw()), self.grace.as_secs());
        self.interrupted = Some(now);
        if self.is_ending {
            say(&format!("{name}: ranks are being ended already; not started again"));
            return;
        }
        self.signal_groups(signal);
        self.deadline = Some(now + self.grace);
        say(&format!("{name}: passed on to all ranks; killing what is left after {grace} s"));
    }

    fn kill(&mut self, now: Instant) {
        self.killed.get_or_insert(now);
        self.deadline = Some(now);
        self.signal_groups(Signal::KILL);
    }

    /// Takes note of ranks that have ended.
    fn collect(&mut self) {
        let is_first_round = self.result == 0;
        let told = !self.is_ending && self.interrupted.is_none();
        let mut result = self.result;
        for rank in &mut self.ranks {
            let Some(code) = rank.newly_ended().filter(|code| *code != 0) else { continue };
            // Of failures seen at once, a lost peer is the consequence and not the cause.
            if result == 0 || (is_first_round && result == PEER_LOST) {
                result = code;
            }
            if told {
                say(&format!("rank {} ended with code {code}{}", rank.rank, reason(code)));
            }
        }
        self.result = result;
    }

    fn end_what_has_to(&mut self, now: Instant) {
        let has_failed = self.result != 0 && self.result != WANTS_REQUEUE;
        let all_ended = !self.ranks.iter().any(RankProcess::is_running);
        if !self.is_ending && (all_ended || has_failed) {
            self.is_ending = true;
            if self.interrupted.is_none() {
                self.signal_groups(Signal::TERM);
            }
            self.deadline.get_or_insert(now + self.grace);
        } else if self.result == WANTS_REQUEUE {
            // All ranks agreed to save and stop; those that are not done yet need no signal.
            self.deadline.get_or_insert(now + self.grace);
        }
        if self.deadline.is_some_and(|deadline| now > deadline) {
            self.kill(now);
        }
    }

    fn signal_groups(&self, signal: Signal) {
        self.ranks.iter().for_each(|rank| rank.signal_group(signal));
    }

    /// Whether a rank lives, or a child of one. Groups of which nobody is left are forgotten.
    fn is_any_left(&mut self) -> bool {
        if self.ranks.iter().any(RankProcess::is_running) {
            return true;
        }
        let live = live_groups();
        let (left, gone) =
            self.ranks.drain(..).partition(|rank| live.contains(&rank.group().as_raw_pid()));
        self.ranks = left;
        Vec::into_iter(gone).for_each(RankProcess::reap);
        !self.ranks.is_empty()
    }
}

/// The groups of all processes but zombies, which stay for ever where the first process of a
/// container takes no care of orphans.
fn live_groups() -> BTreeSet<i32> {
    let group_of = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        let stat = std::fs::read(entry.path().join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // pid (name, which may hold anything) state parent group …
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(group)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(group_of).collect()
}

fn reason(code: u8) -> String {
    match code {
        WANTS_REQUEUE => " (saved, wants a requeue)".to_owned(),
        129.. => format!(" ({})", name(i32::from(code) - 128)),
        _ => String::new(),
    }
}

fn name(signal: i32) -> String {
    let known = signal_hook::low_level::signal_name(signal);
    known.map_or_else(|| format!("signal {signal}"), str::to_owned)
}

#[cfg(test)]
mod tests;
