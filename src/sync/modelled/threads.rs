//! Threads, which may be refused, and what they end with.

use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, Builder, Result};

use super::lock::AtomicBool;
use super::refusing::asked;
use super::{Flaw, chance, has, is_modelled};

/// One thread in so many is not to be had.
const REFUSED: u32 = 16;

pub(crate) enum JoinHandle<T> {
    Plain(thread::JoinHandle<T>),
    Modelled { thread: shuttle::thread::JoinHandle<Result<T>>, is_done: Arc<AtomicBool> },
}

pub(crate) enum ScopedJoinHandle<'scope, T> {
    Plain(thread::ScopedJoinHandle<'scope, T>),
    Modelled(shuttle::thread::ScopedJoinHandle<'scope, Result<T>>),
}

#[derive(Clone, Copy)]
pub(crate) enum Scope<'scope, 'env: 'scope> {
    Plain(&'scope thread::Scope<'scope, 'env>),
    Modelled(&'scope shuttle::thread::Scope<'scope, 'env>, PhantomData<&'env ()>),
}

fn refused() -> io::Error {
    io::Error::from(io::ErrorKind::WouldBlock)
}

/// The checker takes a panic for the end of everything, and a caller takes it for the end of a
/// thread.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run))
}

pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    if !is_modelled() {
        asked()?;
        return Builder::new().name(name.to_owned()).spawn(run).map(JoinHandle::Plain);
    }
    if chance(REFUSED) {
        return Err(refused());
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    let thread = shuttle::thread::spawn(move || {
        let end = caught(run);
        done.store(true, SeqCst);
        end
    });
    Ok(JoinHandle::Modelled { thread, is_done })
}

pub(crate) fn spawn_in<'scope, T: Send + 'scope>(
    scope: Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    match scope {
        Scope::Plain(scope) => {
            asked()?;
            let thread = Builder::new().name(name.to_owned());
            thread.spawn_scoped(scope, run).map(ScopedJoinHandle::Plain)
        }
        Scope::Modelled(..) if chance(REFUSED) => Err(refused()),
        Scope::Modelled(scope, _) => {
            Ok(ScopedJoinHandle::Modelled(scope.spawn(move || caught(run))))
        }
    }
}

/// As that of std, but for a panic of a thread that nobody joins, which is not told.
pub(crate) fn scope<'env, T>(body: impl for<'scope> FnOnce(Scope<'scope, 'env>) -> T) -> T {
    if !is_modelled() {
        return thread::scope(|scope| body(Scope::Plain(scope)));
    }
    // The checker's own leaves its threads alone where `body` panics.
    let end = shuttle::thread::scope(|scope| caught(|| body(Scope::Modelled(scope, PhantomData))));
    end.unwrap_or_else(|panic| resume_unwind(panic))
}

impl<T> JoinHandle<T> {
    pub(crate) fn is_finished(&self) -> bool {
        match self {
            Self::Plain(thread) => thread.is_finished(),
            Self::Modelled { is_done, .. } => is_done.load(SeqCst),
        }
    }

    pub(crate) fn join(self) -> Result<T> {
        match self {
            Self::Plain(thread) => thread.join(),
            Self::Modelled { is_done, .. } if has(Flaw::EarlyJoin) && !is_done.load(SeqCst) => {
                Err(Box::new("not waited for"))
            }
            Self::Modelled { thread, .. } => thread.join().and_then(|end| end),
        }
    }
}

impl<T> ScopedJoinHandle<'_, T> {
    pub(crate) fn join(self) -> Result<T> {
        match self {
            Self::Plain(thread) => thread.join(),
            Self::Modelled(thread) => thread.join().and_then(|end| end),
        }
    }
}
