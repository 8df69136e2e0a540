//! The thread that tells peers that this rank is alive and working.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Progress;
use super::frame::{Frame, Kind};
use super::inbox::Inbox;
use super::star::Links;
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
    /// verdict hears only from it, and must learn that others still work.
    pub(super) fn start(
        rank: Rank,
        deadline: Duration,
        progress: Progress,
        inbox: Arc<Inbox>,
        links: Arc<Links>,
    ) -> Result<Self> {
        let stop = Arc::new(Stop { wanted: Mutex::new(false), changed: Condvar::new() });
        let tick = (deadline / 8).min(TICK_MAX);
        let seen_by_thread = Arc::clone(&stop);
        let moved = move || {
            let heard = if rank.is_coordinator() { inbox.heard_total() } else { 0 };
            progress.total().wrapping_add(heard)
        };
        let thread = std::thread::Builder::new()
            .name("tch-heartbeat".into())
            .spawn(move || beat(&seen_by_thread, tick, moved, &links))
            .map_err(|e| Error::new(ErrorKind::Storage, format!("starting a thread: {e}")))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

fn beat(stop: &Stop, tick: Duration, moved: impl Fn() -> u64, links: &Links) {
    let signal = Frame::signal(Kind::Progress);
    let mut announced = moved();
    let mut wanted = stop.wanted.lock();
    while !*wanted {
        stop.changed.wait_for(&mut wanted, tick);
        let now = moved();
        if now != announced && !*wanted {
            announced = now;
            // Unlocked, so that a write that is stuck does not hold up who wants to stop.
            parking_lot::MutexGuard::unlocked(&mut wanted, || {
                links.values().for_each(|link| link.send_if_free(&signal));
            });
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
