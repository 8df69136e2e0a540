//! Ranks as threads with a deadline, and what is on their storage.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::{RwLock, RwLockWriteGuard};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::storage::{FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::{Error, Result, WorldSize};

/// A hang is a failure: no body of a test may take longer.
const HANG: Duration = Duration::from_secs(90);

/// libtorch has one generator for the whole process.
static GENERATOR: RwLock<()> = RwLock::new(());

/// Keeps every other test from drawing random numbers, or seeding.
pub fn exclusive() -> RwLockWriteGuard<'static, ()> {
    GENERATOR.write()
}

/// Runs `body` on `n` ranks, each a thread; the results in rank order.
pub fn on_ranks<T: Send + 'static>(
    n: u32,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let _shared = GENERATOR.read();
    on_ranks_alone(n, body)
}

/// The same for a test that is [`exclusive`].
pub fn on_ranks_alone<T: Send + 'static>(
    n: u32,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let results = on_ranks_that_may_panic(n, body);
    let whole = |(rank, result): (usize, Option<T>)| {
        result.unwrap_or_else(|| panic!("rank {rank} of {n} panicked"))
    };
    results.into_iter().enumerate().map(whole).collect()
}

/// `None` for a rank that panicked.
pub fn on_ranks_that_may_panic<T: Send + 'static>(
    n: u32,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<Option<T>> {
    tch::set_num_threads(1);
    let deadlines = Deadlines { progress: Duration::from_secs(20), ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(n).unwrap(), deadlines);
    let body = Arc::new(body);
    let (sender, results) = mpsc::channel();
    for (rank, group) in groups.into_iter().enumerate() {
        let (body, sender) = (body.clone(), sender.clone());
        std::thread::spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| body(group))).ok();
            let _ = sender.send((rank, result));
        });
    }
    drop(sender);
    let mut by_rank = BTreeMap::new();
    while by_rank.len() < n as usize {
        match results.recv_timeout(HANG) {
            Ok((rank, result)) => by_rank.insert(rank, result),
            Err(e) => panic!("{e:?}: only ranks {:?} of {n} ended", by_rank.keys()),
        };
    }
    by_rank.into_values().collect()
}

/// The error that every rank got.
pub fn one_error<T>(results: &[Result<T>]) -> Error {
    let errors: Vec<Option<&Error>> = results.iter().map(|r| r.as_ref().err()).collect();
    assert!(errors.iter().all(|e| *e == errors[0]), "ranks disagree: {errors:#?}");
    errors[0].expect("an error").clone()
}

pub fn memory() -> (MemoryStorage, Arc<dyn Storage>) {
    let memory = MemoryStorage::new();
    (memory.clone(), Arc::new(memory))
}

/// A storage that can be made to fail on one rank, over one that all ranks share.
#[derive(Clone)]
pub struct Stage {
    pub memory: MemoryStorage,
    pub faulty: FaultyStorage,
    rank: u32,
}

impl Stage {
    pub fn new(rank: u32) -> Self {
        let memory = MemoryStorage::new();
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        Self { memory, faulty, rank }
    }

    pub fn is_failing(&self, group: &ProcessGroup) -> bool {
        group.rank().get() == self.rank
    }

    pub fn storage(&self, group: &ProcessGroup) -> Arc<dyn Storage> {
        if self.is_failing(group) {
            Arc::new(self.faulty.clone())
        } else {
            Arc::new(self.memory.clone())
        }
    }
}

/// The names of everything in a directory, sorted, without the lock file and the links.
pub fn entries(storage: &dyn Storage, directory: &str) -> Vec<String> {
    let listed = storage.open_dir(Path::new(directory)).and_then(|dir| dir.list());
    let mut names: Vec<String> = listed.unwrap_or_default().into_iter().map(|e| e.name).collect();
    let links = ["latest", "latest.json", "best", "best.json"];
    names.retain(|name| name != ".tch-checkpoint.lock" && !links.contains(&name.as_str()));
    names.sort();
    names
}

/// The same without what an attempt that failed left behind.
pub fn visible(storage: &dyn Storage, directory: &str) -> Vec<String> {
    let mut names = entries(storage, directory);
    names.retain(|name| !name.starts_with('.'));
    names
}

/// What `body` returns, and the log of this thread meanwhile.
pub fn captured<T>(body: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<parking_lot::Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let result = tracing::subscriber::with_default(subscriber, body);
    let text = String::from_utf8_lossy(&log.0.lock()).into_owned();
    (result, text)
}
