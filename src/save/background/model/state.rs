//! What the loop trains, and what can go wrong with it.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::storage::{Failing, pause};
use crate::ProcessGroup;
use crate::catalog::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Atomicity, load};
use crate::plan::load::LoadRules;
use crate::state::{LoadTargets, StateDict, TensorSource};
use crate::storage::MemoryStorage;
use crate::sync::chance;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

const BYTES: usize = 40;
/// Memory that does not change, which several threads copy.
const FIXED: [u8; 100] = [7; 100];

/// Memory that its owner changes, in steps that others can see.
pub(super) struct Tensor {
    bytes: Mutex<Vec<u8>>,
    version: AtomicU64,
    is_steady: bool,
    fails: Mutex<Option<Failure>>,
    has_failed: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Error,
    Panic,
}

impl Tensor {
    fn new(is_steady: bool) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; BYTES]),
            version: AtomicU64::new(0),
            is_steady,
            fails: Mutex::default(),
            has_failed: AtomicBool::new(false),
        })
    }

    /// As libtorch does it: the version counts when all is changed.
    pub(super) fn set(&self, byte: u8) {
        self.bytes.lock()[..BYTES / 2].fill(byte);
        pause();
        self.bytes.lock()[BYTES / 2..].fill(byte);
        self.version.fetch_add(1, SeqCst);
    }
}

impl TensorSource for Tensor {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        pause();
        let failure = *self.fails.lock();
        if let Some(failure) = failure {
            self.has_failed.store(true, SeqCst);
            match failure {
                Failure::Error => return Err(Error::new(ErrorKind::Device, "off the bus")),
                // Not `panic!`, whose hook prints.
                Failure::Panic => resume_unwind(Box::new("off the bus")),
            }
        }
        self.bytes.lock().read_into(offset, out)
    }

    fn is_steady(&self) -> bool {
        self.is_steady
    }

    fn version(&self) -> Option<u64> {
        Some(self.version.load(SeqCst))
    }
}

/// A parameter and a buffer.
pub(super) struct Memory {
    pub(super) weight: Arc<Tensor>,
    pub(super) buffer: Arc<Tensor>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self { weight: Tensor::new(true), buffer: Tensor::new(false) }
    }

    pub(super) fn set_all(&self, byte: u8) {
        self.weight.set(byte);
        self.buffer.set(byte);
    }

    pub(super) fn mend(&self) {
        for tensor in [&self.weight, &self.buffer] {
            *tensor.fails.lock() = None;
            tensor.has_failed.store(false, SeqCst);
        }
    }

    pub(super) fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        let mut add = |name: &str, len: usize, source: Arc<dyn TensorSource>| {
            let (name, spec) = (TensorName::new(name).unwrap(), spec(len));
            state.add(&Component::model(), name, spec, source).unwrap();
        };
        add("buffer", BYTES, self.buffer.clone());
        add("fixed", FIXED.len(), Arc::new(FIXED.to_vec()));
        add("weight", BYTES, self.weight.clone());
        state
    }
}

fn spec(len: usize) -> TensorSpec {
    TensorSpec::new(Dtype::U8, vec![len as u64]).unwrap()
}

/// The byte of which the stored checkpoint consists, if there is one. Read by a thread of the
/// system: what a load does is no part of the model.
pub(super) fn stored(disk: &MemoryStorage) -> Option<u8> {
    read_aside(disk).unwrap_or_else(|torn| panic!("{torn}"))
}

/// Whether it is of several states.
pub(super) fn is_torn(disk: &MemoryStorage) -> bool {
    read_aside(disk).is_err()
}

fn read_aside(disk: &MemoryStorage) -> Result<Option<u8>, String> {
    let disk = disk.clone();
    std::thread::spawn(move || read(&disk)).join().unwrap()
}

fn read(disk: &MemoryStorage) -> Result<Option<u8>, String> {
    let mut all = [vec![0; BYTES], vec![0; FIXED.len()], vec![0; BYTES]];
    let mut targets = LoadTargets::new();
    for (name, bytes) in ["buffer", "fixed", "weight"].iter().zip(&mut all) {
        let name = TensorName::new(*name).unwrap();
        targets.add(name, spec(bytes.len()), Box::new(bytes.as_mut_slice())).unwrap();
    }
    let (group, at) = (ProcessGroup::solo(), Wanted::parse("runs/a").unwrap());
    let rules = LoadRules { strict: true, ..LoadRules::default() };
    let loaded = load(&group, disk, &at, &mut targets, &rules, Atomicity::Atomic);
    drop(targets);
    match loaded {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => panic!("{error}"),
    }
    let [buffer, fixed, weight] = all;
    assert_eq!(fixed, FIXED);
    let byte = buffer[0];
    let is_one = buffer.iter().chain(&weight).all(|b| *b == byte);
    if is_one { Ok(Some(byte)) } else { Err(format!("torn: {buffer:?} {weight:?}")) }
}

/// What goes wrong in one round, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    /// Copying one of them.
    Weight(Failure),
    Buffer(Failure),
    /// The storage, at some operation.
    Storage,
}

impl Trouble {
    pub(super) fn by_chance() -> Self {
        let failure = if chance(2) { Failure::Error } else { Failure::Panic };
        match () {
            () if chance(2) => Self::None,
            () if chance(4) => Self::Weight(failure),
            () if chance(4) => Self::Buffer(failure),
            () => Self::Storage,
        }
    }

    pub(super) fn prepare(self, memory: &Memory, storage: &Failing) {
        match self {
            Self::None => {}
            Self::Weight(failure) => *memory.weight.fails.lock() = Some(failure),
            Self::Buffer(failure) => *memory.buffer.fails.lock() = Some(failure),
            Self::Storage => storage.fail_soon(),
        }
    }

    /// Whether it came about while the state was copied.
    pub(super) fn is_met(self, memory: &Memory) -> bool {
        match self {
            Self::None | Self::Storage => false,
            Self::Weight(_) | Self::Buffer(_) => {
                [&memory.weight, &memory.buffer].iter().any(|t| t.has_failed.load(SeqCst))
            }
        }
    }
}
