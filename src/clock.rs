//! Time, waiting and chance: those of the operating system, or, in our own tests, of a simulator.
//!
//! Without the feature `sabotage` every function is the plain call. With it, a thread that has
//! installed a [`World`] gets everything from there, and so does the same thing again whenever the
//! simulator does.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, MutexGuard};

#[cfg_attr(not(feature = "sabotage"), expect(unreachable_pub, reason = "for simulators"))]
/// Where the installed thread gets time and chance from, and gives others the chance to run.
pub trait World {
    /// Time since the beginning of the simulation.
    fn now(&self) -> Duration;
    /// Lets others run until something has happened to the caller, or that time is there.
    fn wait_until(&self, time: Duration);
    /// Lets others run until that time is there.
    fn sleep_until(&self, time: Duration);
    /// Fills `bytes` by chance.
    fn fill_random(&self, bytes: &mut [u8]);
}

#[cfg(feature = "sabotage")]
pub use installed::{Installed, install};
#[cfg(feature = "sabotage")]
use installed::{instant, of_world, since_start};

#[cfg(not(feature = "sabotage"))]
#[inline]
fn of_world<R>(_: impl FnOnce(&dyn World) -> R) -> Option<R> {
    None
}

#[cfg(not(feature = "sabotage"))]
fn instant(_: Duration) -> Instant {
    Instant::now()
}

#[cfg(not(feature = "sabotage"))]
fn since_start(_: Instant) -> Duration {
    Duration::ZERO
}

/// Whether this thread runs in a simulation, where helper threads would escape it.
pub(crate) fn is_simulated() -> bool {
    of_world(|_| ()).is_some()
}

/// The monotonic clock.
pub(crate) fn now() -> Instant {
    of_world(|world| world.now()).map_or_else(Instant::now, instant)
}

/// Time since 1970 by the clock of the host.
pub(crate) fn unix_time() -> Duration {
    of_world(|world| world.now()).unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    })
}

pub(crate) fn sleep(time: Duration) {
    if of_world(|world| world.sleep_until(world.now() + time)).is_none() {
        std::thread::sleep(time);
    }
}

/// Waits for `changed`, or until that time; may return without either.
pub(crate) fn wait_until<T>(changed: &Condvar, guard: &mut MutexGuard<'_, T>, until: Instant) {
    let simulated = of_world(|world| {
        MutexGuard::unlocked(guard, || world.wait_until(since_start(until)));
    });
    if simulated.is_none() {
        changed.wait_until(guard, until);
    }
}

/// # Errors
/// There is no source of random bytes.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    if of_world(|world| world.fill_random(bytes)).is_some() {
        return Ok(());
    }
    getrandom::fill(bytes)
}

#[cfg(feature = "sabotage")]
mod installed {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    use super::World;

    thread_local! {
        static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
    }

    /// Takes the world away again when dropped.
    #[derive(Debug)]
    pub struct Installed(());

    impl Drop for Installed {
        fn drop(&mut self) {
            drop(WORLD.take());
        }
    }

    /// Lets this thread live in `world` until what is returned is dropped.
    #[must_use]
    pub fn install(world: Rc<dyn World>) -> Installed {
        WORLD.set(Some(world));
        Installed(())
    }

    /// What `ask` gets from the world of this thread, if there is one. The world may run others
    /// meanwhile, which ask it too.
    pub(super) fn of_world<R>(ask: impl FnOnce(&dyn World) -> R) -> Option<R> {
        let world = WORLD.with_borrow(Clone::clone)?;
        Some(ask(world.as_ref()))
    }

    fn start() -> Instant {
        static START: OnceLock<Instant> = OnceLock::new();
        *START.get_or_init(Instant::now)
    }

    pub(super) fn instant(since_start: Duration) -> Instant {
        start() + since_start
    }

    pub(super) fn since_start(instant: Instant) -> Duration {
        instant.saturating_duration_since(start())
    }
}
