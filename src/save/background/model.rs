//! A training loop and its saves, in many orders in which their threads can run: the real code, in
//! a job of one rank, on a storage in memory that fails now and then.

mod state;
mod storage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::*;
use crate::memory::held;
use crate::plan::OnExisting;
use crate::storage::MemoryStorage;
use crate::sync::explore::{explore, tier};
use crate::sync::{Flaw, chance, flawed};
use state::{Memory, Trouble, is_torn, stored};
use storage::{Errors, Failing};

/// Saves of one life.
const ROUNDS: u8 = 3;

/// What one training loop has.
struct Loop {
    group: ProcessGroup,
    disk: MemoryStorage,
    storage: Failing,
    memory: Memory,
    /// What is stored under the name.
    committed: Option<u8>,
    /// Saves that were begun and have not ended.
    pending: Arc<AtomicU32>,
}

/// What the loop did between the call and the end of the save.
struct Course {
    byte: u8,
    trouble: Trouble,
    /// Whether it changed what it should have waited for.
    is_early: bool,
    errors: u32,
}

/// Counts one save as begun until whatever follows it is dropped with it.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(pending: &Arc<AtomicU32>) -> Self {
        pending.fetch_add(1, SeqCst);
        Self(Arc::clone(pending))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Loop {
    fn new() -> Self {
        let disk = MemoryStorage::new();
        let storage = Failing::new(&disk);
        let (group, memory) = (ProcessGroup::solo(), Memory::new());
        Self { group, disk, storage, memory, committed: None, pending: Arc::default() }
    }

    fn start(&self, copying: Copying, after: AfterCommit) -> Result<PendingSave> {
        let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
        let path = CheckpointPath::parse("runs/a").unwrap();
        start(
            &self.group,
            &self.storage.shared(),
            &path,
            &self.memory.state(),
            &options,
            after,
            copying,
        )
    }

    /// Trains, saves, goes on training, and hears what became of it. Whether there is more to learn.
    fn round(&mut self, byte: u8) -> bool {
        self.memory.set_all(byte);
        let trouble = Trouble::by_chance();
        trouble.prepare(&self.memory, &self.storage);
        let overlaps = chance(2);
        let copying = if overlaps { Copying::SteadyLater } else { Copying::Now };
        let errors = Errors::so_far();
        let counted = Counted::new(&self.pending);
        let started = self.start(copying, Box::new(move |_| drop(counted)));
        let course = |is_early| Course { byte, trouble, is_early, errors };
        let pending = match started {
            Ok(pending) => pending,
            Err(error) => {
                self.judge(&course(false), Some(Err(error)));
                return true;
            }
        };
        assert!(self.pending.load(SeqCst) <= 1, "more than one in flight");
        if chance(3) {
            self.see_the_next_one_refused();
        }
        let is_early = self.go_on(&pending, overlaps);
        let verdict = if chance(2) {
            Some(pending.wait())
        } else {
            drop(pending);
            None
        };
        // A version counts when a change ends: that a step did not wait is not seen if it takes
        // longer than all the rest of the save.
        if is_early && is_torn(&self.disk) {
            return false;
        }
        self.judge(&course(is_early), verdict);
        true
    }

    fn see_the_next_one_refused(&self) {
        let refused = self.start(Copying::Now, Box::new(|_| ())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    }

    /// Forward, backward and step beside the save; whether the step came too early.
    fn go_on(&self, pending: &PendingSave, overlaps: bool) -> bool {
        self.memory.buffer.set(0xEE);
        let _ = pending.is_done();
        let is_early = overlaps && chance(8);
        if !is_early {
            pending.wait_copied();
        }
        self.memory.weight.set(0xEE);
        if chance(4) {
            // Somebody looks meanwhile.
            let found = stored(&self.disk);
            assert!(found == self.committed || found.is_some(), "what was there is gone");
        }
        is_early
    }

    /// The end is known, and the name holds what it says.
    fn judge(&mut self, course: &Course, verdict: Option<Result<Checkpoint>>) {
        let failed = self.storage.failed();
        let must_fail = course.trouble.is_met(&self.memory) || failed.is_fatal;
        self.memory.mend();
        self.storage.mend();
        assert_eq!(self.pending.load(SeqCst), 0, "it goes on after its end");
        let found = stored(&self.disk);
        let is_saved = found == Some(course.byte);
        assert!(is_saved || found == self.committed, "{found:?} is neither the old nor the new");
        let (is_error, is_unsure) = match &verdict {
            Some(Ok(_)) => (false, false),
            Some(Err(error)) => {
                let unsure = [ErrorKind::DurabilityUncertain, ErrorKind::OutcomeUnknown];
                (true, unsure.contains(&error.kind()))
            }
            // Dropped: an error is logged.
            None => (Errors::so_far() > course.errors, true),
        };
        assert!(is_error || !must_fail, "an error is lost: {:?} {failed:?}", course.trouble);
        let may_fail = must_fail || failed.is_any || course.is_early;
        assert!(!is_error || may_fail, "fails for nothing: {verdict:?}");
        assert!(is_error || is_saved, "a success without a checkpoint");
        assert!(!is_error || !is_saved || is_unsure, "an error, and a checkpoint: {verdict:?}");
        self.committed = found;
    }
}

/// All of a program.
fn life() {
    let (buffers, regions) = (held::BUFFERS.get().0, held::REGIONS.get().0);
    held::REGIONS.set((regions, regions));
    let mut this = Loop::new();
    for byte in 1..=ROUNDS {
        if !this.round(byte) {
            break;
        }
    }
    drop(this);
    assert_eq!(held::BUFFERS.get().0, buffers, "buffers were not given back");
    let (now, most) = held::REGIONS.get();
    assert_eq!(now, regions, "memory for a share was not given back");
    assert!(most <= regions + 1, "memory for more than one share");
}

fn schedules(short: u64) -> usize {
    usize::try_from(tier::count(short, 10_000)).unwrap()
}

#[test]
fn a_loop_and_its_saves_in_any_order() {
    let count = schedules(600);
    Errors::counted(|| explore(count, 1, life));
    tier::figure("schedules of a training loop with three saves beside it, nothing lost", count);
}

/// As many threads as there are want the place at once.
fn race() {
    let (group, inside) = (ProcessGroup::solo(), Arc::new(AtomicU32::new(0)));
    let racer = |group: ProcessGroup, inside: Arc<AtomicU32>| {
        move || {
            for _ in 0..2 {
                if let Ok(seat) = group.take_background() {
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two have the place");
                    storage::pause();
                    inside.fetch_sub(1, SeqCst);
                    drop(seat);
                }
            }
        }
    };
    let racers = [0; 3].map(|_| shuttle::thread::spawn(racer(group.clone(), inside.clone())));
    racers.into_iter().for_each(|racer| racer.join().unwrap());
    drop(group.take_background().expect("all have left"));
}

#[test]
fn the_place_is_never_taken_twice() {
    explore(schedules(600), 2, race);
}

/// Whether a model notices that what it stands on breaks its word.
fn is_noticed(flaw: Flaw, body: fn()) -> bool {
    let run = || Errors::counted(|| explore(500, 3, body));
    catch_unwind(AssertUnwindSafe(|| flawed(flaw, run))).is_err()
}

#[test]
fn a_flaw_below_is_noticed() {
    assert!(is_noticed(Flaw::LostNotify, life), "a gate that nobody hears open");
    assert!(is_noticed(Flaw::EarlyJoin, life), "an end that is not waited for");
    assert!(is_noticed(Flaw::TornSwap, race), "a place that two can take");
}

#[cfg(feature = "sabotage")]
#[path = "../../../tests/sabotages/mod.rs"]
#[allow(unreachable_pub, reason = "of test binaries")]
mod sabotaged;

#[cfg(feature = "sabotage")]
#[test]
fn a_save_that_refers_and_swallows_is_found() {
    sabotaged::found_by("S11", &["save::background::model::a_loop_and_its_saves_in_any_order"]);
}
