//! Filling and writing in many orders in which their threads can run, where the disk, a source or a
//! thread may fail.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use shuttle::rand::{Rng, thread_rng};

use super::*;
use crate::error::{Error, ErrorKind};
use crate::memory::held;
use crate::state::TensorSource;
use crate::sync::explore::{explore, tier};
use crate::sync::{Flaw, chance, flawed};

/// What one save takes at most, see `write_shards`.
const BUFFERS_MAX: isize = 6;

/// Memory that can be copied by several threads until it is gone, with an error or a panic.
struct Source {
    bytes: Vec<u8>,
    is_of_host: bool,
    /// How often it is asked before.
    left: AtomicU32,
    panics: bool,
    has_failed: AtomicU32,
}

impl Source {
    fn is_left(&self) -> bool {
        let left = self.left.fetch_sub(1, SeqCst) > 1;
        if !left {
            self.left.store(1, SeqCst);
            self.has_failed.store(1, SeqCst);
        }
        left
    }
}

impl TensorSource for Source {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match self.is_left() {
            true => self.bytes.read_into(offset, out),
            // Not `panic!`, whose hook prints.
            false if self.panics => resume_unwind(Box::new("gone")),
            false => Err(Error::new(ErrorKind::Device, "gone")),
        }
    }

    fn bytes(&self) -> Option<&[u8]> {
        if !self.is_of_host {
            return None;
        }
        if !self.is_left() {
            resume_unwind(Box::new("gone"));
        }
        Some(&self.bytes)
    }
}

/// Two files of seven and three slots; the source of the larger one, asked so often at most.
fn share(left: u32, is_of_host: bool, panics: bool) -> (StateDict, SavePlan, Arc<Source>) {
    let mut state = StateDict::new();
    let mut large = whole(&mut state, "unused", Dtype::U8, &[100_000]);
    large.name = name("large");
    let bytes = bytes_of(100_000, 9);
    let (left, has_failed) = (AtomicU32::new(left), AtomicU32::new(0));
    let source = Arc::new(Source { bytes, is_of_host, left, panics, has_failed });
    state.add(&Component::model(), name("large"), large.spec.clone(), source.clone()).unwrap();
    let small = whole(&mut state, "small", Dtype::U8, &[40_000]);
    let files = vec![planned_file("large", vec![large]), planned_file("small", vec![small])];
    (state, plan_of(files), source)
}

/// What is written where nothing fails, by one thread after the other.
fn expected() -> &'static BTreeMap<String, Vec<u8>> {
    static EXPECTED: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let ((state, plan, _), dir) = (share(u32::MAX, true, false), MemoryDir::default());
        save(&dir, &plan, &state).unwrap();
        dir.0.lock().files.clone()
    })
}

fn one_save() {
    let mut rng = thread_rng();
    let left = if chance(3) { rng.gen_range(1..20) } else { u32::MAX };
    let (state, plan, source) = share(left, !chance(4), chance(2));
    let dir = MemoryDir::default();
    dir.0.lock().fail_at = chance(2).then(|| rng.gen_range(0..22));
    dir.0.lock().panics = chance(2);
    let (before, _) = held::BUFFERS.get();
    held::BUFFERS.set((before, before));

    let end = catch_unwind(AssertUnwindSafe(|| save(&dir, &plan, &state)));
    let (now, most) = held::BUFFERS.get();
    assert_eq!(now, before, "buffers were not given back");
    assert!(most - before <= BUFFERS_MAX, "{} buffers at once", most - before);
    let is_gone = source.has_failed.load(SeqCst) > 0;
    let has_failed = is_gone || !dir.0.lock().failed.is_empty();
    match end {
        Ok(Ok(_)) => {
            // A thread that would have helped may find it gone when all is done.
            assert!(!has_failed || is_gone, "an error is lost");
            assert!(dir.0.lock().files == *expected(), "something else was written");
        }
        Ok(Err(error)) => {
            let is_refused = error.message().contains("starting the writer thread");
            assert!(has_failed || is_refused, "fails for nothing: {error}");
        }
        Err(_) => assert!(has_failed, "panics for nothing"),
    }
}

#[test]
fn buffers_come_back_and_no_error_is_lost_in_any_order() {
    expected();
    let count = usize::try_from(tier::count(600, 10_000)).unwrap();
    explore(count, 4, one_save);
    tier::figure("schedules of filling and writing a share, all buffers returned", count);
}

#[test]
fn a_channel_that_breaks_its_word_is_noticed() {
    expected();
    for flaw in [Flaw::LostMessage, Flaw::LostEnd] {
        let run = || flawed(flaw, || explore(500, 5, one_save));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "{flaw:?}");
    }
}
