//! SIGUSR1 and SIGTERM, noted instead of obeyed.
//!
//! Signals belong to the process, so this is state of the process. It is written by the handler,
//! where only what never waits and never allocates is allowed.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::low_level;

use crate::error::{Error, ErrorKind, Result};

const SIGNALS: [i32; 2] = [SIGUSR1, SIGTERM];
/// Signals that follow the first one so soon are the same wish: `timeout`, a process group and a
/// launcher may each pass one on to this process.
const SAME: Duration = Duration::from_secs(1);

/// The first signal: when it came (milliseconds since [`began`]) and its number; 0 for none.
static FIRST: AtomicU64 = AtomicU64::new(0);
/// How many [`Hold`]s there are.
static HOLDS: AtomicUsize = AtomicUsize::new(0);
/// Whether the ranks have agreed to end, so that the signal which told another rank may come here
/// when everything is saved.
static LATE_EXPECTED: AtomicBool = AtomicBool::new(false);
static BEGAN: OnceLock<Instant> = OnceLock::new();
/// How many of [`SIGNALS`] have their handler. They keep it: one that is taken away leaves a
/// signal that is ignored, and with it a process that cannot be told to end.
static REGISTERED: Mutex<usize> = Mutex::new(0);

/// Keeps signals from ending this process.
#[derive(Debug)]
pub(super) struct Hold(());

impl Hold {
    pub(super) fn begin() -> Result<Self> {
        BEGAN.get_or_init(Instant::now);
        HOLDS.fetch_add(1, SeqCst);
        let hold = Self(());
        let mut registered = REGISTERED.lock();
        for signal in SIGNALS.into_iter().skip(*registered) {
            register(signal).map_err(|e| {
                let text = format!("signal {signal} cannot be watched: {e}");
                Error::new(ErrorKind::Unsupported, text)
            })?;
            *registered += 1;
        }
        Ok(hold)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HOLDS.fetch_sub(1, SeqCst);
    }
}

/// The number of the first signal that this process got, if any.
pub(super) fn first() -> Option<i32> {
    unpack(FIRST.load(SeqCst)).map(|(_, signal)| signal)
}

/// From now on, a first signal does no harm.
pub(super) fn expect_late() {
    LATE_EXPECTED.store(true, SeqCst);
}

#[allow(unsafe_code)]
fn register(signal: i32) -> io::Result<()> {
    // SAFETY: `received` is fit for a signal handler: it uses atomics, reads the clock, and calls
    // the emulation of a default action, which is documented as fit for one.
    unsafe { low_level::register(signal, move || received(signal)) }.map(drop)
}

/// Runs inside the handler.
fn received(signal: i32) {
    let now = BEGAN.get().map_or(Duration::ZERO, Instant::elapsed);
    let is_expected = HOLDS.load(SeqCst) > 0 || LATE_EXPECTED.load(SeqCst);
    let act = decide(FIRST.load(SeqCst), now, is_expected);
    // Where two come at once, on two threads, one of them is the first, and the other is the same.
    if act == Act::Note {
        let _ = FIRST.compare_exchange(0, pack(now, signal), SeqCst, SeqCst);
    } else if act == Act::End {
        let _ = low_level::emulate_default_handler(signal);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Save and end, at the next opportunity.
    Note,
    /// Nothing: it is the first one again.
    Ignore,
    /// What the signal does by default.
    End,
}

fn decide(first: u64, now: Duration, is_expected: bool) -> Act {
    match unpack(first) {
        None if is_expected => Act::Note,
        None => Act::End,
        Some((at, _)) if now.saturating_sub(at) <= SAME => Act::Ignore,
        Some(_) => Act::End,
    }
}

/// Time and number in one value, so that nobody sees one without the other.
fn pack(at: Duration, signal: i32) -> u64 {
    let milliseconds = u64::try_from(at.as_millis()).unwrap_or(u64::MAX >> 8);
    (milliseconds << 8) | u64::from(signal.unsigned_abs() & 0xff)
}

fn unpack(packed: u64) -> Option<(Duration, i32)> {
    let signal = i32::try_from(packed & 0xff).ok().filter(|signal| *signal != 0)?;
    Some((Duration::from_millis(packed >> 8), signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_noted_its_echoes_are_ignored_and_a_second_one_ends() {
        let at = Duration::from_millis(70_000);
        let first = pack(at, SIGTERM);
        assert_eq!(unpack(first), Some((at, SIGTERM)));
        assert_eq!(unpack(0), None);
        for (first, now, is_expected, act) in [
            (0, at, true, Act::Note),
            (0, at, false, Act::End),
            (first, at, true, Act::Ignore),
            (first, at - SAME, true, Act::Ignore),
            (first, at + SAME, true, Act::Ignore),
            (first, at + SAME, false, Act::Ignore),
            (first, at + SAME + Duration::from_millis(1), true, Act::End),
            (first, Duration::MAX, false, Act::End),
        ] {
            assert_eq!(decide(first, now, is_expected), act, "{first} {now:?} {is_expected}");
        }
    }

    #[test]
    fn the_first_millisecond_is_a_time_too() {
        assert_eq!(unpack(pack(Duration::ZERO, SIGUSR1)), Some((Duration::ZERO, SIGUSR1)));
    }
}
