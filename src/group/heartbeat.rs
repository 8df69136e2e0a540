//! The thread that tells peers that this rank is alive and working.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Progress;
use super::frame::{Frame, Kind};
use super::inbox::Inbox;
use super::star::Links;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// Longest time between progress and its announcement.
const TICK_MAX: Duration = Duration::from_secs(1);

struct Stop {
    wanted: Mutex<bool>,
    changed: Condvar,
}

/// Runs until dropped.
pub(super) struct Heartbeat {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Sends a progress frame over every link, at most once a tick, if `progress` has moved
    /// meanwhile. The coordinator passes on what it hears as well: a rank that waits for a
    /// verdict hears only from it, and must learn that others still work. None in a simulation,
    /// which beats for its ranks.
    pub(super) fn start(
        rank: Rank,
        deadline: Duration,
        progress: Progress,
        inbox: Arc<Inbox>,
        links: Arc<Links>,
    ) -> Result<Option<Self>> {
        if clock::is_simulated() {
            return Ok(None);
        }
        let stop = Arc::new(Stop { wanted: Mutex::new(false), changed: Condvar::new() });
        let seen_by_thread = Arc::clone(&stop);
        let pulse = Pulse::new(rank, progress, inbox, links);
        let thread = std::thread::Builder::new()
            .name("tch-heartbeat".into())
            .spawn(move || beat(&seen_by_thread, tick(deadline), pulse))
            .map_err(|e| Error::new(ErrorKind::Storage, format!("starting a thread: {e}")))?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

/// Time between two looks for progress.
pub(super) fn tick(deadline: Duration) -> Duration {
    (deadline / 8).min(TICK_MAX)
}

fn beat(stop: &Stop, tick: Duration, mut pulse: Pulse) {
    let mut wanted = stop.wanted.lock();
    while !*wanted {
        stop.changed.wait_for(&mut wanted, tick);
        if !*wanted {
            // Unlocked, so that a write that is stuck does not hold up who wants to stop.
            parking_lot::MutexGuard::unlocked(&mut wanted, || pulse.beat());
        }
    }
}

/// What is announced, and whether it has moved since.
pub(super) struct Pulse {
    rank: Rank,
    progress: Progress,
    inbox: Arc<Inbox>,
    links: Arc<Links>,
    announced: u64,
}

impl Pulse {
    pub(super) fn new(
        rank: Rank,
        progress: Progress,
        inbox: Arc<Inbox>,
        links: Arc<Links>,
    ) -> Self {
        let mut pulse = Self { rank, progress, inbox, links, announced: 0 };
        pulse.announced = pulse.now();
        pulse
    }

    fn now(&self) -> u64 {
        let heard = if self.rank.is_coordinator() { self.inbox.heard_total() } else { 0 };
        self.progress.total().wrapping_add(heard)
    }

    /// Announces progress, if there was any.
    pub(super) fn beat(&mut self) {
        let now = self.now();
        if now != self.announced {
            self.announced = now;
            let signal = Frame::signal(Kind::Progress);
            self.links.values().for_each(|link| link.send_if_free(&signal));
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        *self.stop.wanted.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the peers' deadlines have noticed.
            drop(thread.join());
        }
    }
}
