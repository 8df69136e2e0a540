//! The enumerator: every operation of one rank's storage fails in turn, until no fault fires.

use std::sync::Arc;

use rustix::io::Errno;
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::{Error, ProcessGroup, Result};

use super::one_verdict;
use crate::harness::on_ranks;
use crate::hooked::{Hooked, unsupported};
use crate::tier;

/// What storages report. Above the storage all are one kind of error, so that few of them tell as
/// much as all; the short tier takes two, another pair for each scenario.
const ERRNOS: [Errno; 7] =
    [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::INTR, Errno::STALE, Errno::ACCESS, Errno::ROFS];

type Act = fn(&ProcessGroup, &Arc<dyn Storage>, arm: &dyn Fn()) -> Result<()>;

/// Something that ranks do together while the storage of one of them fails.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// What all ranks see of the memory.
    pub storage: fn(&MemoryStorage) -> Arc<dyn Storage>,
    /// What is there before.
    pub before: fn(&MemoryStorage, ranks: u32),
    /// What each rank does; faults begin when it calls the last argument.
    pub act: Act,
    /// Whether the verdict is true of the disk, and what comes next works.
    pub check: fn(&After<'_>),
}

/// What a scenario left.
pub struct After<'a> {
    pub memory: &'a MemoryStorage,
    pub ranks: u32,
    /// Of all ranks.
    pub verdict: Option<&'a Error>,
    /// The operation that failed, and its path.
    pub hit: &'a str,
    /// What was done to it, for messages.
    pub what: &'a str,
}

/// A storage that can do everything.
pub fn able(memory: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(memory.clone())
}

/// One that can neither exchange two names nor lock, as some network file systems.
pub fn poor(memory: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(Hooked::new(memory, |call| {
        let exchanges = call.mode == Some(tch_checkpoint::storage::Rename::Exchange);
        if exchanges || call.operation.starts_with("try_lock") {
            return Err(unsupported());
        }
        Ok(())
    }))
}

/// Which faults a run is about.
#[derive(Clone, Copy)]
pub struct Kind {
    pub fault: Fault,
    pub persistent: bool,
    /// The operations that can fail like this, by their names; empty for all.
    pub operations: &'static [&'static str],
}

impl Kind {
    fn can_fail(self, line: &str) -> bool {
        let name = line.split(' ').next().unwrap_or_default();
        self.operations.is_empty() || self.operations.contains(&name)
    }
}

impl Scenario {
    /// All error numbers of the tier, once and from then on, on each rank of each world.
    pub fn fails_at_each_operation(self) {
        let worlds: &[u32] = if tier::is_full() { &[1, 2, 4] } else { &[2] };
        let first = self.name.len() % ERRNOS.len();
        let mut faults = 0;
        for &ranks in worlds {
            for number in 0..tier::count(1, ERRNOS.len() as u64) as usize {
                for persistent in [false, true] {
                    let code = ERRNOS[(first + number + usize::from(persistent)) % ERRNOS.len()];
                    let fault = Fault::Error(code.raw_os_error());
                    faults += self.fails(ranks, Kind { fault, persistent, operations: &[] });
                }
            }
        }
        tier::figure(&format!("faults, {}", self.name), faults);
    }

    /// One kind of fault at each operation of each rank; how many faults fired.
    pub fn fails(self, ranks: u32, kind: Kind) -> u64 {
        (0..ranks).map(|rank| self.fails_on(ranks, rank, kind)).sum()
    }

    fn fails_on(self, ranks: u32, rank: u32, kind: Kind) -> u64 {
        let mut fired = 0;
        let expected = match kind.operations {
            [] => Vec::new(),
            _ => self.run(ranks, rank, u64::MAX, kind).1,
        };
        for operation in 1..2000 {
            let at = operation as usize - 1;
            if expected.get(at).is_some_and(|line| !kind.can_fail(line)) {
                continue;
            }
            let (memory, log, verdicts) = self.run(ranks, rank, operation, kind);
            let Some(hit) = log.get(at) else {
                assert!(rank > 0 || fired > 0, "{}: rank {rank} did {log:?}", self.name);
                return fired;
            };
            if !kind.can_fail(hit) {
                continue;
            }
            fired += 1;
            let (fault, lasting) = (kind.fault, if kind.persistent { ", then dead" } else { "" });
            let what =
                format!("{}, {ranks} ranks, rank {rank}, {fault:?} at {hit}{lasting}", self.name);
            let verdict = one_verdict(&verdicts, rank, &what);
            let (memory, verdict, what) = (&memory, verdict.as_ref(), &what);
            (self.check)(&After { memory, ranks, verdict, hit, what });
        }
        panic!("{}: a fault fires at every operation", self.name);
    }

    /// The memory that is left, the operations of the failing rank, and all verdicts.
    fn run(
        self,
        ranks: u32,
        rank: u32,
        operation: u64,
        kind: Kind,
    ) -> (MemoryStorage, Vec<String>, Vec<Result<()>>) {
        let memory = MemoryStorage::new();
        (self.before)(&memory, ranks);
        let healthy = (self.storage)(&memory);
        let faulty = FaultyStorage::new(healthy.clone());
        let failing = faulty.clone();
        let verdicts = on_ranks(ranks, move |group| {
            if group.rank().get() != rank {
                return (self.act)(&group, &healthy, &|| ());
            }
            let arm = || {
                failing.reset();
                failing.fail_at(operation, kind.fault, kind.persistent);
            };
            let storage: Arc<dyn Storage> = Arc::new(failing.clone());
            (self.act)(&group, &storage, &arm)
        });
        (memory, faulty.log(), verdicts)
    }
}
