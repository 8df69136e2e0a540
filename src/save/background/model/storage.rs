//! A disk that lets others run at each operation, and fails at one of them; and the log.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::super::Storage;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::sync::chance;

#[path = "../../../../tests/it/hooked.rs"]
#[allow(dead_code, unreachable_pub, reason = "of test binaries")]
mod hooked;

/// Others may run here.
pub(super) fn pause() {
    shuttle::thread::sleep(Duration::ZERO);
}

/// At most so many operations of a save are gone through.
const OPERATIONS: u64 = 40;
/// Without these there is no checkpoint: what they report is the save's error.
const FATAL: [&str; 4] = ["create_file", "write_at", "finish", "create_dir"];

pub(super) struct Failing {
    faulty: FaultyStorage,
    at: Cell<Option<u64>>,
}

/// What failed of an operation, if one did.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) is_any: bool,
    /// One without which there is no checkpoint.
    pub(super) is_fatal: bool,
    #[expect(dead_code, reason = "shown when a test fails")]
    operation: Option<String>,
}

impl Failing {
    pub(super) fn new(disk: &MemoryStorage) -> Self {
        Self { faulty: FaultyStorage::new(Arc::new(disk.clone())), at: Cell::new(None) }
    }

    pub(super) fn shared(&self) -> Arc<dyn Storage> {
        Arc::new(hooked::Hooked::new(&self.faulty, |_| {
            pause();
            Ok(())
        }))
    }

    pub(super) fn fail_soon(&self) {
        let at = self.faulty.operations() + thread_rng().gen_range(1..=OPERATIONS);
        let faults = [Fault::Error(28), Fault::Lost(5), Fault::Panic, Fault::Torn];
        let fault = faults[thread_rng().gen_range(0..faults.len())];
        self.at.set(Some(at));
        self.faulty.fail_at(at, fault, chance(2));
    }

    pub(super) fn failed(&self) -> Failed {
        let log = self.faulty.log();
        let at = self.at.get().and_then(|at| usize::try_from(at).ok());
        let operation = at.and_then(|at| log.get(at - 1)).cloned();
        let fatal = |operation: &String| FATAL.iter().any(|name| operation.starts_with(name));
        let is_fatal = operation.as_ref().is_some_and(fatal);
        Failed { is_any: operation.is_some(), is_fatal, operation }
    }

    pub(super) fn mend(&self) {
        self.at.set(None);
        self.faulty.reset();
    }
}

thread_local! {
    static ERRORS: Cell<u32> = const { Cell::new(0) };
}

/// Counts what this crate logs as an error, on this thread of the system.
pub(super) struct Errors;

impl Errors {
    pub(super) fn counted(body: impl FnOnce()) {
        tracing::subscriber::with_default(Self, body);
    }

    pub(super) fn so_far() -> u32 {
        ERRORS.get()
    }
}

impl Subscriber for Errors {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        *of.level() == Level::ERROR && of.target().starts_with("tch_checkpoint")
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        ERRORS.set(ERRORS.get() + 1);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
