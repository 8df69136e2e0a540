//! Locks, what is waited for under them, and flags.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Flaw, has, is_modelled};

pub(crate) enum Mutex<T> {
    Plain(parking_lot::Mutex<T>),
    Modelled(shuttle::sync::Mutex<T>),
}

pub(crate) enum MutexGuard<'a, T> {
    Plain(parking_lot::MutexGuard<'a, T>),
    /// Present but while it waits.
    Modelled(Option<shuttle::sync::MutexGuard<'a, T>>),
}

/// For a static, which no model owns.
pub(crate) const fn const_mutex<T>(value: T) -> Mutex<T> {
    Mutex::Plain(parking_lot::const_mutex(value))
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        match is_modelled() {
            true => Self::Modelled(shuttle::sync::Mutex::new(value)),
            false => const_mutex(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        match self {
            Self::Plain(lock) if !is_modelled() => MutexGuard::Plain(lock.lock()),
            Self::Plain(lock) => loop {
                // Others may come first; and threads of other tests hold it for a moment.
                shuttle::thread::yield_now();
                if let Some(guard) = lock.try_lock() {
                    return MutexGuard::Plain(guard);
                }
            },
            Self::Modelled(lock) => {
                MutexGuard::Modelled(Some(lock.lock().unwrap_or_else(PoisonError::into_inner)))
            }
        }
    }

    pub(crate) fn into_inner(self) -> T {
        match self {
            Self::Plain(lock) => lock.into_inner(),
            Self::Modelled(lock) => lock.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Plain(guard) => guard,
            Self::Modelled(guard) => guard.as_ref().unwrap(),
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Plain(guard) => guard,
            Self::Modelled(guard) => guard.as_mut().unwrap(),
        }
    }
}

pub(crate) enum Condvar {
    Plain(parking_lot::Condvar),
    Modelled(shuttle::sync::Condvar),
}

impl Default for Condvar {
    fn default() -> Self {
        match is_modelled() {
            true => Self::Modelled(shuttle::sync::Condvar::new()),
            false => Self::Plain(parking_lot::Condvar::new()),
        }
    }
}

impl Condvar {
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        match (self, guard) {
            (Self::Plain(condvar), MutexGuard::Plain(guard)) => condvar.wait(guard),
            (Self::Modelled(condvar), MutexGuard::Modelled(guard)) => {
                let woken = condvar.wait(guard.take().unwrap());
                *guard = Some(woken.unwrap_or_else(PoisonError::into_inner));
            }
            _ => panic!("a lock and a condition of different worlds"),
        }
    }

    pub(crate) fn notify_all(&self) {
        match self {
            Self::Plain(condvar) => drop(condvar.notify_all()),
            Self::Modelled(_) if has(Flaw::LostNotify) => {}
            Self::Modelled(condvar) => condvar.notify_all(),
        }
    }
}

#[derive(Debug)]
pub(crate) enum AtomicBool {
    Plain(std::sync::atomic::AtomicBool),
    Modelled(shuttle::sync::atomic::AtomicBool),
}

impl AtomicBool {
    pub(crate) fn new(value: bool) -> Self {
        match is_modelled() {
            true => Self::Modelled(shuttle::sync::atomic::AtomicBool::new(value)),
            false => Self::Plain(value.into()),
        }
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        match self {
            Self::Plain(flag) => flag.load(order),
            Self::Modelled(flag) => flag.load(order),
        }
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        match self {
            Self::Plain(flag) => flag.store(value, order),
            Self::Modelled(flag) => flag.store(value, order),
        }
    }

    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        match self {
            Self::Plain(flag) => flag.swap(value, order),
            Self::Modelled(flag) if has(Flaw::TornSwap) => {
                let before = flag.load(Ordering::SeqCst);
                flag.store(value, Ordering::SeqCst);
                before
            }
            Self::Modelled(flag) => flag.swap(value, order),
        }
    }
}

impl Default for AtomicBool {
    fn default() -> Self {
        Self::new(false)
    }
}
