//! Every fault of a load, on each rank, in turn: what lives stays as it was, or what has changed is
//! known to whoever asked for it, and no rank takes half a load for a whole one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tch_checkpoint::load::{Atomicity, Destination, load};
use tch_checkpoint::manifest::Manifest;
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::state::{LoadTargets, TensorSink, Values};
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Rank, Result};

use crate::harness::*;
use crate::tier;

const UNTOUCHED: u8 = 0xEE;

pub fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("model.w", Dtype::F32, &[300, 130], None),
        TestTensor::new("model.b", Dtype::BF16, &[130], None),
        TestTensor::new("optimizer.w.exp_avg", Dtype::F32, &[300, 130], Some(0)),
        TestTensor::new("optimizer.w.step", Dtype::F32, &[], None),
        TestTensor::new("columns", Dtype::I64, &[40, 60], Some(1)),
    ]
}

/// How the n-th copy into a destination fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyFault {
    None,
    Error,
    Panic,
}

/// What a rank holds: tensors of which each copy is counted, and values.
pub struct Live {
    buffers: Vec<(TestTensor, tch_checkpoint::slice::Slice, Vec<u8>)>,
    generation: i64,
    rank_value: i64,
    copies: Arc<AtomicU64>,
    fail_at: u64,
    fault: CopyFault,
    /// As host memory: then bytes are placed without a copy.
    is_memory: bool,
    fails_in_values: bool,
    /// Finds out that writing needs more than there is.
    lacks_memory: bool,
    /// That the last load was to change it.
    was_told: bool,
}

struct Sink<'a> {
    buffer: &'a mut [u8],
    copies: Arc<AtomicU64>,
    fail_at: u64,
    fault: CopyFault,
    is_memory: bool,
    lacks_memory: bool,
}

impl TensorSink for Sink<'_> {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        self.is_memory.then_some(&mut *self.buffer)
    }

    fn prepare(&mut self) -> Result<()> {
        match self.lacks_memory {
            true => Err(Error::new(ErrorKind::Device, "an injected lack of memory")),
            false => Ok(()),
        }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let number = self.copies.fetch_add(1, SeqCst) + 1;
        match self.fault {
            CopyFault::Error if number == self.fail_at => {
                return Err(Error::new(ErrorKind::Device, "an injected copy failed"));
            }
            CopyFault::Panic if number == self.fail_at => panic!("an injected copy panicked"),
            _ => {}
        }
        self.buffer.write_at(offset, bytes)
    }
}

impl Live {
    pub fn new(group: &ProcessGroup) -> Self {
        let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        let held = tensors().into_iter().filter_map(|t| t.held(rank, n).map(|slice| (t, slice)));
        let buffers = held.map(|(tensor, slice)| {
            let bytes = slice.elements() * tensor.spec.dtype().size_bytes();
            (tensor, slice, vec![UNTOUCHED; bytes as usize])
        });
        Self {
            buffers: buffers.collect(),
            generation: -1,
            rank_value: -1,
            copies: Arc::default(),
            fail_at: 0,
            fault: CopyFault::None,
            is_memory: false,
            fails_in_values: false,
            lacks_memory: false,
            was_told: false,
        }
    }

    pub fn load(
        &mut self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        at: &str,
        atomicity: Atomicity,
    ) -> Result<()> {
        let rules = LoadRules { strict: group.world_size().get() == 1, ..LoadRules::default() };
        self.was_told = false;
        load(group, storage, &wanted(at), self, &rules, atomicity).map(drop)
    }

    pub fn is_untouched(&self) -> bool {
        let same = |bytes: &Vec<u8>| bytes.iter().all(|byte| *byte == UNTOUCHED);
        self.buffers.iter().all(|(.., bytes)| same(bytes))
            && (self.generation, self.rank_value) == (-1, -1)
    }

    pub fn is_loaded(&self, group: &ProcessGroup, generation: u64) -> bool {
        let good = |(tensor, slice, bytes): &(TestTensor, _, Vec<u8>)| {
            *bytes == content(&tensor.name, &tensor.spec, slice, generation)
        };
        let values = (i64::try_from(generation).unwrap(), i64::from(group.rank().get()));
        self.buffers.iter().all(good) && (self.generation, self.rank_value) == values
    }
}

impl Destination for Live {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        let (fail_at, fault, is_memory) = (self.fail_at, self.fault, self.is_memory);
        let lacks_memory = self.lacks_memory;
        for (tensor, slice, buffer) in &mut self.buffers {
            let copies = Arc::clone(&self.copies);
            let sink = Sink { buffer, copies, fail_at, fault, is_memory, lacks_memory };
            let (spec, slice) = (tensor.spec.clone(), slice.clone());
            targets.add_slice(name(&tensor.name), spec, slice, Box::new(sink))?;
        }
        Ok(targets)
    }

    fn begin_change(&mut self) {
        self.was_told = true;
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        assert!(self.was_told);
        if self.fails_in_values {
            return Err(Error::new(ErrorKind::Mismatch, "an injected value failed"));
        }
        self.generation = manifest.values().int("generation")?;
        self.rank_value = rank_values.map_or(Ok(-1), |values| values.int("rank"))?;
        Ok(())
    }
}

fn stage(ranks: u32) -> MemoryStorage {
    let memory = MemoryStorage::new();
    saved(memory.clone(), ranks, "runs/a", &tensors(), 1);
    memory
}

/// The same error on every rank, of rank `failing`.
fn one_fault(results: &[Result<()>], failing: u32, what: &str) -> Option<Error> {
    if results.iter().all(Result::is_ok) {
        return None;
    }
    let error = one_error(results, what);
    assert_eq!(error.rank(), Some(Rank::new(failing)), "{what}: {error}");
    Some(error)
}

/// What failed without a change is tried again, and works.
fn check_rank(
    live: &mut Live,
    group: &ProcessGroup,
    storage: &dyn Storage,
    result: &Result<()>,
    atomicity: Atomicity,
    what: &str,
) {
    match result {
        Ok(()) => assert!(live.is_loaded(group, 1), "{what}: half a load was taken for a whole"),
        Err(error) => {
            let may_change = atomicity == Atomicity::InPlace || error.phase() == Some("place");
            assert!(may_change || live.is_untouched(), "{what}: changed by {error}");
            let is_in_place = error.phase() == Some("place");
            assert_eq!(live.was_told, is_in_place, "{what}: told of a change before {error}");
            (live.fault, live.fails_in_values) = (CopyFault::None, false);
            live.lacks_memory = false;
            live.load(group, storage, "runs/a", Atomicity::Atomic).unwrap();
            assert!(live.is_loaded(group, 1), "{what}: not whole after a good load");
        }
    }
}

/// Fails each operation of a load on one rank; how many there were.
fn fail_each_read(
    ranks: u32,
    failing: u32,
    fault: Fault,
    persistent: bool,
    atomicity: Atomicity,
) -> u64 {
    let memory = stage(ranks);
    for operation in 1.. {
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.fail_at(operation, fault, persistent);
        let what = format!(
            "{ranks} ranks, rank {failing}, operation {operation}, {fault:?}, {atomicity:?}"
        );
        let (inner, bad, text) = (memory.clone(), faulty.clone(), what.clone());
        let results = on_ranks(ranks, move |group| {
            let mut live = Live::new(&group);
            let is_failing = group.rank().get() == failing;
            let storage: &dyn Storage = if is_failing { &bad } else { &inner };
            let result = live.load(&group, storage, "runs/a", atomicity);
            if is_failing {
                assert_eq!(result.is_err(), bad.operations() >= operation, "{text}: {result:?}");
            }
            check_rank(&mut live, &group, &inner, &result, atomicity, &text);
            result
        });
        match one_fault(&results, failing, &what) {
            None => {
                assert!(operation > 4, "{what}: there were only {operation} operations");
                return operation - 1;
            }
            Some(error) => {
                let wanted = match fault {
                    Fault::Panic => ErrorKind::Panic,
                    _ => ErrorKind::Storage,
                };
                assert_eq!(error.kind(), wanted, "{what}: {error}");
            }
        }
    }
    unreachable!("a load has an end")
}

const ERRORS: [(&str, i32); 7] = [
    ("EIO", 5),
    ("EACCES", 13),
    ("EINTR", 4),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("ESTALE", 116),
    ("EDQUOT", 122),
];

#[test]
fn every_failed_read_of_an_atomic_load_changes_nothing() {
    let mut faults = 0;
    for (_, code) in ERRORS {
        for persistent in [false, true] {
            faults += fail_each_read(1, 0, Fault::Error(code), persistent, Atomicity::Atomic);
        }
    }
    for ranks in [2, 4] {
        for failing in 0..ranks {
            faults += fail_each_read(ranks, failing, Fault::Error(5), false, Atomicity::Atomic);
        }
        faults += fail_each_read(ranks, ranks - 1, Fault::Error(116), true, Atomicity::Atomic);
        faults += fail_each_read(ranks, 1, Fault::Panic, false, Atomicity::Atomic);
    }
    tier::figure("failed reads of an atomic load", faults);
}

#[test]
fn every_failed_read_of_a_load_in_place_is_every_ranks_error() {
    let mut faults = 0;
    for ranks in [1, 2, 4] {
        for failing in [0, ranks - 1] {
            faults += fail_each_read(ranks, failing, Fault::Error(5), false, Atomicity::InPlace);
            faults += fail_each_read(ranks, failing, Fault::Panic, false, Atomicity::InPlace);
        }
    }
    tier::figure("failed reads of a load in place", faults);
}

/// Fails each copy into the destination of one rank; how many there were.
fn fail_each_copy(ranks: u32, failing: u32, fault: CopyFault, atomicity: Atomicity) -> u64 {
    let memory = stage(ranks);
    for number in 1.. {
        let what =
            format!("{ranks} ranks, rank {failing}, copy {number}, {fault:?}, {atomicity:?}");
        let (inner, text) = (memory.clone(), what.clone());
        let results = on_ranks(ranks, move |group| {
            let mut live = Live::new(&group);
            if group.rank().get() == failing {
                (live.fail_at, live.fault) = (number, fault);
            }
            let result = live.load(&group, &inner, "runs/a", atomicity);
            if let Err(error) = &result {
                assert_eq!(error.phase(), Some("place"), "{text}: {error}");
            }
            check_rank(&mut live, &group, &inner, &result, atomicity, &text);
            result
        });
        match one_fault(&results, failing, &what) {
            None => {
                assert!(number > 3, "{what}: there were only {number} copies");
                return number - 1;
            }
            Some(error) => {
                let wanted =
                    if fault == CopyFault::Panic { ErrorKind::Panic } else { ErrorKind::Device };
                assert_eq!(error.kind(), wanted, "{what}: {error}");
            }
        }
    }
    unreachable!("a load has an end")
}

#[test]
fn every_failed_copy_is_every_ranks_error() {
    let mut faults = 0;
    for ranks in [1, 2, 4] {
        for failing in 0..ranks {
            for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
                faults += fail_each_copy(ranks, failing, CopyFault::Error, atomicity);
            }
        }
        faults += fail_each_copy(ranks, ranks - 1, CopyFault::Panic, Atomicity::Atomic);
        faults += fail_each_copy(ranks, 0, CopyFault::Panic, Atomicity::InPlace);
    }
    tier::figure("failed copies", faults);
}

#[test]
fn a_target_that_lacks_memory_to_be_written_says_so_before_anything_changes() {
    for (ranks, failing) in [(1, 0), (2, 1), (4, 2)] {
        let memory = stage(ranks);
        let results = on_ranks(ranks, move |group| {
            let mut live = Live::new(&group);
            live.lacks_memory = group.rank().get() == failing;
            let result = live.load(&group, &memory, "runs/a", Atomicity::Atomic);
            assert_eq!(result.as_ref().unwrap_err().phase(), Some("read"));
            check_rank(&mut live, &group, &memory, &result, Atomicity::Atomic, "memory");
            result
        });
        let error = one_fault(&results, failing, "memory").unwrap();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.tensor().is_some(), "{error}");
    }
}

#[test]
fn values_that_one_rank_cannot_take_are_every_ranks_error() {
    for (ranks, failing) in [(1, 0), (2, 1), (4, 2)] {
        let memory = stage(ranks);
        let results = on_ranks(ranks, move |group| {
            let mut live = Live::new(&group);
            live.fails_in_values = group.rank().get() == failing;
            let result = live.load(&group, &memory, "runs/a", Atomicity::Atomic);
            assert_eq!(result.as_ref().unwrap_err().phase(), Some("place"));
            check_rank(&mut live, &group, &memory, &result, Atomicity::Atomic, "values");
            result
        });
        let error = one_fault(&results, failing, "values").unwrap();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
    }
}
