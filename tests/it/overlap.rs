//! Saves that copy steady boxes while the caller goes on.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tch_checkpoint::save::{PendingSave, SaveOptions, save_async_overlapped};
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, ErrorKind, ProcessGroup, Rank, Result};

use crate::background::Signal;
use crate::harness::*;
use crate::hooked::Hooked;

/// A parameter: read only after the signal, changed by whoever steps.
struct Weight {
    bytes: Mutex<Vec<u8>>,
    version: AtomicU64,
    read: Signal,
}

impl Weight {
    fn new(byte: u8) -> Arc<Self> {
        let (bytes, version) = (Mutex::new(vec![byte; 600]), AtomicU64::new(0));
        Arc::new(Self { bytes, version, read: Signal::default() })
    }

    fn step(&self, byte: u8) {
        self.bytes.lock().unwrap().fill(byte);
        self.version.fetch_add(1, SeqCst);
    }
}

impl TensorSource for Weight {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read.await_it()?;
        self.bytes.lock().unwrap().read_into(offset, out)
    }
    fn is_steady(&self) -> bool {
        true
    }
    fn version(&self) -> Option<u64> {
        Some(self.version.load(SeqCst))
    }
}

fn start(group: &ProcessGroup, storage: &Arc<dyn Storage>, weight: &Arc<Weight>) -> PendingSave {
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, vec![600]).unwrap();
    state.add(&Component::model(), name("weight"), spec.clone(), weight.clone()).unwrap();
    state.add(&Component::model(), name("buffer"), spec, Arc::new(vec![1u8; 600])).unwrap();
    let options = SaveOptions::default();
    let at = path("runs/a");
    save_async_overlapped(group, storage, &at, &state, &options, Box::new(|_| {})).unwrap()
}

fn saved_bytes(storage: &dyn Storage) -> Vec<u8> {
    let group = ProcessGroup::solo();
    let (mut weight, mut buffer) = (vec![0u8; 600], vec![0u8; 600]);
    let mut targets = tch_checkpoint::state::LoadTargets::new();
    let spec = TensorSpec::new(Dtype::U8, vec![600]).unwrap();
    targets.add(name("weight"), spec.clone(), Box::new(weight.as_mut_slice())).unwrap();
    targets.add(name("buffer"), spec, Box::new(buffer.as_mut_slice())).unwrap();
    let rules = tch_checkpoint::plan::load::LoadRules::default();
    let atomicity = tch_checkpoint::Atomicity::Atomic;
    tch_checkpoint::load(&group, storage, &wanted("runs/a"), &mut targets, &rules, atomicity)
        .unwrap();
    drop(targets);
    assert_eq!(buffer, [1; 600]);
    weight
}

#[test]
fn steady_boxes_are_copied_after_the_call_and_before_the_gate() {
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    on_ranks(2, move |group| {
        let weight = Weight::new(7);
        // If the call read it, the signal would never come.
        let pending = start(&group, &storage, &weight);
        weight.read.give();
        pending.wait_copied();
        weight.step(8);
        pending.wait_copied();
        pending.wait().unwrap();
    });
    assert_eq!(saved_bytes(&memory), [7; 600]);
}

/// The verdicts on two ranks if rank 1 does `early` before it waits.
fn with_early_step(early: fn(&Weight, &PendingSave)) -> (MemoryStorage, Vec<Result<Checkpoint>>) {
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let verdicts = on_ranks(2, move |group| {
        let weight = Weight::new(7);
        let pending = start(&group, &storage, &weight);
        if group.rank() == Rank::new(1) {
            early(&weight, &pending);
        }
        weight.read.give();
        pending.wait()
    });
    (memory, verdicts)
}

#[test]
fn a_step_before_the_gate_fails_the_save_by_name() {
    let (memory, verdicts) = with_early_step(|weight, _| weight.step(8));
    let error = one_error(&verdicts, "an early step");
    assert_eq!((error.kind(), error.rank()), (ErrorKind::InvalidInput, Some(Rank::new(1))));
    assert_eq!(error.tensor(), Some("weight"));
    assert!(error.help().unwrap().contains("wait_copied()"), "{error}");
    assert_eq!(entries(&memory, "runs"), [""; 0], "nothing was committed");

    let (memory, verdicts) = with_early_step(|weight, pending| {
        weight.read.give();
        pending.wait_copied();
        weight.step(8);
    });
    assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
    assert_eq!(saved_bytes(&memory), [7; 600]);
}

/// The verdict if, when all is copied, the caller steps or goes through the gate, in this order.
fn after_the_copy(acts: &'static [Act]) -> (MemoryStorage, Result<Checkpoint>) {
    let weight = Weight::new(7);
    weight.read.give();
    let memory = MemoryStorage::new();
    let (go, at_file) = (Signal::default(), Signal::default());
    let (signal, reached) = (go.clone(), at_file.clone());
    // All is copied when the first file is made.
    let storage: Arc<dyn Storage> = Arc::new(Hooked::new(&memory, move |call| {
        if call.operation == "create_file" && !call.path.ends_with("manifest.bin") {
            reached.give();
            signal.await_it()?;
        }
        Ok(())
    }));
    let verdicts = on_ranks(1, move |group| {
        let pending = start(&group, &storage, &weight);
        at_file.await_it().unwrap();
        for act in acts {
            match act {
                Act::Step => weight.step(8),
                Act::Pass => pending.wait_copied(),
            }
        }
        go.give();
        pending.wait()
    });
    (memory, verdicts.into_iter().next().unwrap())
}

enum Act {
    Step,
    Pass,
}

/// An operation in place that began before the copy counts the version up only after it.
#[test]
fn a_version_that_moves_after_the_copy_fails_the_save_unless_the_gate_was_passed() {
    let (memory, verdict) = after_the_copy(&[Act::Pass, Act::Step, Act::Pass]);
    verdict.unwrap();
    assert_eq!(saved_bytes(&memory), [7; 600]);
    for too_late in [&[Act::Step][..], &[Act::Step, Act::Pass], &[Act::Step, Act::Pass, Act::Pass]]
    {
        let (memory, verdict) = after_the_copy(too_late);
        assert_eq!(verdict.unwrap_err().tensor(), Some("weight"));
        assert_eq!(entries(&memory, "runs"), [""; 0], "nothing was committed");
    }
}

/// Whatever ends the save opens the gate: a source that fails, a rank that is gone.
#[test]
fn the_gate_opens_however_the_save_ends() {
    struct Broken;
    impl TensorSource for Broken {
        fn read_into(&self, _offset: u64, _out: &mut [u8]) -> Result<()> {
            panic!("the device is gone")
        }
        fn is_steady(&self) -> bool {
            true
        }
    }
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let verdicts = on_ranks(2, move |group| {
        let mut state = StateDict::new();
        let spec = TensorSpec::new(Dtype::U8, vec![600]).unwrap();
        state.add(&Component::model(), name("weight"), spec, Arc::new(Broken)).unwrap();
        let (at, options) = (path("runs/a"), SaveOptions::default());
        let pending =
            save_async_overlapped(&group, &storage, &at, &state, &options, Box::new(|_| {}))
                .unwrap();
        pending.wait_copied();
        pending.wait()
    });
    assert_eq!(one_error(&verdicts, "a broken device").kind(), ErrorKind::Panic);
}
