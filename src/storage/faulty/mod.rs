//! A storage that fails at a chosen operation.

mod handles;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::storage::{Directory, Storage};
use handles::FaultyDir;

/// The error number of operations after the fatal one, where the fault names none (`EIO`).
const IO_ERROR: i32 = rustix::io::Errno::IO.raw_os_error();

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and reports this error number of the operating system.
    Error(i32),
    /// It is done, and reports this error number nevertheless, as a network file system does that
    /// loses an answer. What it would have returned is dropped.
    Lost(i32),
    /// It does nothing and panics.
    Panic,
    /// If it is a `write_at`, its first half is written; anything else does nothing. Then it
    /// reports `EIO`.
    Torn,
}

/// Fails at a chosen operation of the storage that it wraps.
///
/// Every call of [`Storage`], [`Directory`], [`WriteFile`](super::WriteFile) and
/// [`ReadFile`](super::ReadFile) that can fail is one operation, counted from 1 over all clones
/// and all handles; giving back a lock is none, and neither are [`Directory::space`] and
/// [`WriteFile::write_back`](super::WriteFile::write_back), see [`FaultyStorage::fail_write_back`].
#[derive(Clone)]
pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    faults: Arc<Faults>,
}

impl FaultyStorage {
    /// Counts the operations of `inner`, and fails none yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, faults: Arc::default() }
    }

    /// Applies `fault` to operation number `operation` (the first is 1), instead of what was
    /// chosen before. If `persistent`, the storage is dead from then on: every later operation
    /// does nothing and reports the error of the fault, or `EIO`.
    pub fn fail_at(&self, operation: u64, fault: Fault, persistent: bool) {
        self.faults.0.lock().chosen = Some(Chosen { operation, fault, persistent });
    }

    /// Lets every [`WriteFile::write_back`](super::WriteFile::write_back) do nothing and report this
    /// error number of the operating system, whatever operation was chosen. It is not counted: how
    /// often it is called depends on how fast the storage is.
    pub fn fail_write_back(&self, code: i32) {
        self.faults.0.lock().write_back = Some(code);
    }

    /// How many operations there were, failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.faults.0.lock().log.len() as u64
    }

    /// The operations so far, in order, each as its name and its path (`create_file run/a`).
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.faults.0.lock().log.clone()
    }

    /// Counts from the start again, and fails nothing.
    pub fn reset(&self) {
        *self.faults.0.lock() = State::default();
    }
}

impl FaultyStorage {
    fn wrap(&self, inner: Arc<dyn Directory>) -> Arc<dyn Directory> {
        FaultyDir::wrap(inner, &self.faults)
    }
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.faults.0.lock();
        f.debug_struct("FaultyStorage")
            .field("inner", &self.inner)
            .field("operations", &state.log.len())
            .field("chosen", &state.chosen)
            .finish()
    }
}

impl Storage for FaultyStorage {
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        self.faults.run("open_dir", path, || self.inner.open_dir(path)).map(|dir| self.wrap(dir))
    }

    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        let made = self.faults.run("create_dir_all", path, || self.inner.create_dir_all(path));
        made.map(|dir| self.wrap(dir))
    }
}

/// What the clones and handles of one [`FaultyStorage`] share.
#[derive(Debug, Default)]
struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    log: Vec<String>,
    chosen: Option<Chosen>,
    write_back: Option<i32>,
}

#[derive(Debug, Clone, Copy)]
struct Chosen {
    operation: u64,
    fault: Fault,
    persistent: bool,
}

impl Faults {
    /// Counts an operation, and does it as `body` says or fails as was chosen.
    fn run<T>(&self, operation: &str, path: &Path, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.run_write(operation, path, || {}, body)
    }

    /// Like [`Faults::run`], for one that can be torn: `tear` does the first half.
    fn run_write<T>(
        &self,
        operation: &str,
        path: &Path,
        tear: impl FnOnce(),
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (number, fault) = self.count(operation, path);
        let code = match fault {
            None => return body(),
            Some(Fault::Error(code)) => code,
            Some(Fault::Lost(code)) => {
                body()?;
                code
            }
            Some(Fault::Panic) => {
                panic!("injected panic in operation {number}: {operation} {}", path.display())
            }
            Some(Fault::Torn) => {
                tear();
                IO_ERROR
            }
        };
        let doing = format!("injected fault in operation {number}, {operation}");
        Err(Error::io(&io::Error::from_raw_os_error(code), &doing, path))
    }

    /// Does a `write_back` as `body` says, unless all of them are to fail.
    fn write_back(&self, path: &Path, body: impl FnOnce() -> Result<bool>) -> Result<bool> {
        let Some(code) = self.0.lock().write_back else { return body() };
        let doing = "injected fault in write_back";
        Err(Error::io(&io::Error::from_raw_os_error(code), doing, path))
    }

    /// Logs an operation; its number, and how it is to fail.
    fn count(&self, operation: &str, path: &Path) -> (u64, Option<Fault>) {
        let mut state = self.0.lock();
        state.log.push(format!("{operation} {}", path.display()));
        let number = state.log.len() as u64;
        let fault = state.chosen.and_then(|chosen| chosen.fault_of(number));
        (number, fault)
    }
}

impl Chosen {
    fn fault_of(self, number: u64) -> Option<Fault> {
        if number == self.operation {
            return Some(self.fault);
        }
        let is_dead = self.persistent && number > self.operation;
        is_dead.then_some(match self.fault {
            Fault::Error(code) | Fault::Lost(code) => Fault::Error(code),
            // One panic is a death; a second one while unwinding would abort the tests.
            Fault::Panic | Fault::Torn => Fault::Error(IO_ERROR),
        })
    }
}
