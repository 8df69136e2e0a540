//! What a save beside training takes of memory on the thread that trains: this rank's share. With
//! an allocator of its own, which counts, and refuses when told to.

#![allow(unsafe_code, reason = "an allocator")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tch_checkpoint::group::Deadlines;
use tch_checkpoint::save::{
    AfterCommit, PendingSave, SaveOptions, free_staging, save_async, save_async_overlapped,
};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{
    CheckpointPath, ErrorKind, OnExisting, ProcessGroup, Rank, Result, WorldSize,
};

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most of them so far.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    /// From that size on this thread gets nothing.
    static REFUSED_FROM: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Counting;

impl Counting {
    fn count(change: isize) {
        let _ = LIVE.try_with(|live| {
            live.set(live.get() + change);
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
        });
    }
}

// SAFETY: passes everything on to the system's allocator, or refuses with null as it may; the
// counters are cells of the thread and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if REFUSED_FROM.try_with(|from| layout.size() >= from.get()).unwrap_or(false) {
            return std::ptr::null_mut();
        }
        Self::count(layout.size().cast_signed());
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: u64 = 1 << 20;

/// 24 MiB that every rank holds.
fn state() -> StateDict {
    let mut state = StateDict::new();
    for (name, mib) in [("a", 16), ("b", 5), ("c", 3)] {
        let spec = TensorSpec::new(Dtype::U8, vec![mib * 16, MIB / 16]).unwrap();
        let bytes = Arc::new(vec![7u8; usize::try_from(mib * MIB).unwrap()]);
        state.add(&Component::model(), TensorName::new(name).unwrap(), spec, bytes).unwrap();
    }
    state
}

fn on_ranks<T: Send + 'static>(n: u32, body: fn(&ProcessGroup, &Arc<dyn Storage>) -> T) -> Vec<T> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let groups = ProcessGroup::threads(WorldSize::new(n).unwrap(), Deadlines::default());
    let results = groups.into_iter().map(|group| {
        let (sender, result) = mpsc::channel();
        let storage = storage.clone();
        std::thread::spawn(move || sender.send(body(&group, &storage)));
        result
    });
    let results: Vec<_> = results.collect();
    results.iter().map(|result| result.recv_timeout(Duration::from_secs(60)).unwrap()).collect()
}

#[test]
fn a_rank_takes_its_share_and_little_more() {
    let peaks = on_ranks(3, |group, storage| {
        let state = state();
        let path = CheckpointPath::parse("runs/a").unwrap();
        PEAK.set(LIVE.get());
        let before = LIVE.get();
        let options = SaveOptions::default();
        let pending = save_async(group, storage, &path, &state, &options, Box::new(|_| {}));
        let peak = PEAK.get() - before;
        pending.unwrap().wait().unwrap();
        u64::try_from(peak).unwrap()
    });
    for peak in peaks {
        assert!((8 * MIB..9 * MIB).contains(&peak), "{peak} bytes for a third of 24 MiB");
    }
}

type Start = fn(
    &ProcessGroup,
    &Arc<dyn Storage>,
    &CheckpointPath,
    &StateDict,
    &SaveOptions,
    AfterCommit,
) -> Result<PendingSave>;

/// Bytes that this thread holds more, at most and in the end, by what `body` does.
fn taken(body: impl FnOnce()) -> (isize, isize) {
    let before = LIVE.get();
    PEAK.set(before);
    body();
    (PEAK.get() - before, LIVE.get() - before)
}

#[test]
fn the_memory_stays_for_the_next_save_until_it_is_given_back() {
    on_ranks(3, |group, storage| {
        let state = state();
        let path = CheckpointPath::parse("runs/a").unwrap();
        let options = SaveOptions {
            on_existing: OnExisting::Replace,
            copy_unchanged: true,
            ..SaveOptions::default()
        };
        let save = |start: Start| {
            taken(|| {
                let pending = start(group, storage, &path, &state, &options, Box::new(|_| {}));
                pending.unwrap().wait().unwrap();
            })
        };
        let share = 8 * isize::try_from(MIB).unwrap();
        let (first_peak, first_kept) = save(save_async);
        assert!(first_peak >= share && first_kept >= share, "{first_peak} {first_kept}");
        for start in [save_async, save_async_overlapped, save_async] {
            let (peak, kept) = save(start);
            assert!(peak < share / 8 && kept < share / 8, "used again: {peak} {kept}");
        }
        let (_, given_back) = taken(|| free_staging(group));
        assert!(given_back <= -share, "{given_back}");
        assert!(taken(|| free_staging(group)).1 == 0, "twice");
        assert!(save(save_async).0 >= share, "and made anew");
    });
}

#[test]
fn short_memory_on_one_rank_is_every_ranks_error() {
    let errors = on_ranks(2, |group, storage| {
        let state = state();
        let path = CheckpointPath::parse("runs/a").unwrap();
        let (options, after) = (SaveOptions::default(), Box::new(|_: &_| {}));
        if group.rank() == Rank::new(1) {
            REFUSED_FROM.set(usize::try_from(2 * MIB).unwrap());
        }
        let pending = save_async(group, storage, &path, &state, &options, after).unwrap();
        REFUSED_FROM.set(usize::MAX);
        pending.wait().unwrap_err()
    });
    assert_eq!(errors[0], errors[1]);
    assert_eq!((errors[0].kind(), errors[0].rank()), (ErrorKind::Storage, Some(Rank::new(1))));
    assert!(errors[0].message().contains("no memory"), "{}", errors[0]);
}
