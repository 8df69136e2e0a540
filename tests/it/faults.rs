//! Every storage operation of a save failed in turn, on each rank; and the same for a load.

mod links;
mod lost;
mod matrix;
mod reads;
mod saves;
mod write_back;

use std::sync::Arc;

use tch_checkpoint::group::Channel;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Checkpoint, Error, ErrorKind, ProcessGroup, Result};

use crate::harness::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("w", Dtype::F32, &[300, 70], None),
        TestTensor::new("b", Dtype::F32, &[70], None),
    ]
}

/// A saved generation 1 and, on the given rank, a storage that counts or fails.
struct Stage {
    memory: MemoryStorage,
    faulty: FaultyStorage,
    ranks: u32,
    rank: u32,
}

impl Stage {
    fn new(ranks: u32, rank: u32) -> Self {
        let memory = MemoryStorage::new();
        let (inner, t) = (memory.clone(), tensors());
        for verdict in on_ranks(ranks, move |g| save_state(&g, &inner, "runs/a", &t, 1)) {
            verdict.unwrap();
        }
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        Self { memory, faulty, ranks, rank }
    }

    fn run<T: Send + 'static>(
        &self,
        body: impl Fn(&ProcessGroup, &Arc<dyn Storage>) -> T + Send + Sync + 'static,
    ) -> Vec<T> {
        let memory: Arc<dyn Storage> = Arc::new(self.memory.clone());
        let faulty: Arc<dyn Storage> = Arc::new(self.faulty.clone());
        let rank = self.rank;
        on_ranks(self.ranks, move |group| {
            let failing = group.rank().get() == rank;
            body(&group, if failing { &faulty } else { &memory })
        })
    }
}

/// How generation 2 is saved.
type Save = fn(&ProcessGroup, &Arc<dyn Storage>) -> Result<Checkpoint>;

fn in_front(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> Result<Checkpoint> {
    save_state(group, storage.as_ref(), "runs/a", &tensors(), 2)
}

/// Beside a training that goes on, whatever becomes of the save.
fn beside(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> Result<Checkpoint> {
    let pending = save_beside(group, storage, "runs/a", &tensors(), 2)?;
    for _ in 0..3 {
        group.phase_all(Channel::Training, "step", || Ok(()), |_| Ok(())).unwrap();
    }
    pending.wait()
}

/// Every rank has the same verdict, and it names the rank that failed.
fn one_verdict<T>(verdicts: &[Result<T>], rank: u32, what: &str) -> Option<Error> {
    let errors: Vec<Option<Error>> = verdicts.iter().map(|v| v.as_ref().err().cloned()).collect();
    let first = errors[0].clone();
    for error in &errors {
        assert_eq!(*error, first, "ranks disagree about {what}");
    }
    if let Some(error) = &first {
        assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(rank), "{what}: {error}");
        assert!(error.phase().is_some(), "{what}: {error}");
    }
    first
}

fn fail_each_operation_of_a_save(save: Save, ranks: u32, fault: Fault, persistent: bool) {
    for rank in 0..ranks {
        let mut operation = 1;
        loop {
            let stage = Stage::new(ranks, rank);
            stage.faulty.fail_at(operation, fault, persistent);
            let verdicts = stage.run(save);
            if stage.faulty.operations() < operation {
                break;
            }
            let log = stage.faulty.log();
            let what =
                format!("{ranks} ranks, rank {rank}, {fault:?} at {}", log[operation as usize - 1]);
            let verdict = one_verdict(&verdicts, rank, &what);
            check_disk(&stage, verdict.as_ref(), &what);
            operation += 1;
            assert!(operation < 500, "a save of two tensors has fewer operations");
        }
        assert!(operation > 5, "rank {rank} of {ranks} did {operation} operations");
    }
}

/// The verdict is true of the disk, and the next save over what is left works.
fn check_disk(stage: &Stage, verdict: Option<&Error>, what: &str) {
    let storage = &stage.memory;
    assert_good(storage, "runs/a");
    let found = tch_checkpoint::catalog::find(storage, &wanted("runs/a")).unwrap();
    let step = found.manifest.step();
    match verdict.map(Error::kind) {
        None => assert_eq!(step, 2, "{what}: committed, but not there"),
        Some(ErrorKind::DurabilityUncertain) => assert_eq!(step, 2, "{what}"),
        Some(_) => assert_eq!(step, 1, "{what}: not committed, but there"),
    }
    let memory = storage.clone();
    for verdict in on_ranks(stage.ranks, move |g| save_state(&g, &memory, "runs/a", &tensors(), 3))
    {
        verdict.unwrap();
    }
    assert_good(storage, "runs/a");
    assert_eq!(entries(storage, "runs"), ["a"], "{what}: debris stays after the next save");
}

#[test]
fn one_error_on_one_rank() {
    fail_each_operation_of_a_save(in_front, 1, Fault::Error(EIO), false);
}

#[test]
fn a_disk_that_dies_on_one_rank() {
    fail_each_operation_of_a_save(in_front, 1, Fault::Error(ENOSPC), true);
}

#[test]
fn one_error_on_each_of_two_ranks() {
    fail_each_operation_of_a_save(in_front, 2, Fault::Error(ENOSPC), false);
}

#[test]
fn a_disk_that_dies_on_each_of_two_ranks() {
    fail_each_operation_of_a_save(in_front, 2, Fault::Error(EIO), true);
}

#[test]
fn one_error_on_each_of_four_ranks() {
    fail_each_operation_of_a_save(in_front, 4, Fault::Error(EIO), false);
}

#[test]
fn torn_writes_on_each_of_two_ranks() {
    fail_each_operation_of_a_save(in_front, 2, Fault::Torn, true);
}

#[test]
fn a_panic_at_each_operation() {
    fail_each_operation_of_a_save(in_front, 2, Fault::Panic, false);
}

#[test]
fn one_error_beside_training_on_each_of_two_ranks() {
    fail_each_operation_of_a_save(beside, 1, Fault::Error(EIO), false);
    fail_each_operation_of_a_save(beside, 2, Fault::Error(ENOSPC), false);
}

#[test]
fn a_disk_that_dies_beside_training_on_each_of_four_ranks() {
    fail_each_operation_of_a_save(beside, 4, Fault::Error(EIO), true);
}

#[test]
fn a_panic_beside_training_at_each_operation() {
    fail_each_operation_of_a_save(beside, 2, Fault::Panic, false);
}

/// Each operation of a load fails in turn: same verdict everywhere, destination unchanged
/// (checked by `load_state`), checkpoint unharmed.
#[test]
fn each_operation_of_a_load() {
    for ranks in [1, 2, 4] {
        for rank in 0..ranks {
            for operation in 1.. {
                let stage = Stage::new(ranks, rank);
                stage.faulty.fail_at(operation, Fault::Error(EIO), false);
                let verdicts = stage.run(|group, storage| {
                    load_state(group, storage.as_ref(), "runs/a", &tensors(), 1, Atomicity::Atomic)
                        .map(|loaded| loaded.save_id)
                });
                if stage.faulty.operations() < operation {
                    assert!(operation > 3);
                    break;
                }
                let what = format!("{ranks} ranks, rank {rank}, operation {operation}");
                let verdict = one_verdict(&verdicts, rank, &what);
                assert_eq!(verdict.map(|e| e.kind()), Some(ErrorKind::Storage), "{what}");
                assert_good(&stage.memory, "runs/a");
            }
        }
    }
}
