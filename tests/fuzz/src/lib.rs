//! What the fuzz targets share.

use std::path::Path;

use tch_checkpoint::catalog::{self, Found, Wanted};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::manifest::{CheckpointInfo, Form, Manifest};
use tch_checkpoint::plan::load::{LoadRules, WantedBox, plan_load};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::LoadTargets;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::TensorName;
use tch_checkpoint::verify::verify;
use tch_checkpoint::{ProcessGroup, Result};

/// What a fuzzer may make us load: its limit on memory is for the library, not for destinations.
const LOADED_BYTES_MAX: u64 = 4 << 20;

/// Doubled no further.
const GROWN_BYTES_MAX: usize = 1 << 15;

/// Numbers at which lengths and offsets go wrong.
const ODD_NUMBERS: [u64; 12] = [
    0,
    1,
    15,
    4095,
    16 * 1024,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 4095,
    u64::MAX,
];

/// The input, taken from the front; zeros where it has ended.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn short(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A small number, one near `near`, or an odd one.
    pub fn number(&mut self, near: u64) -> u64 {
        match self.byte() {
            0 => near,
            1 => near.wrapping_add(u64::from(self.byte())),
            2 => near.wrapping_sub(u64::from(self.byte())),
            3 => self.short() as u64,
            4 => self.take(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            other => ODD_NUMBERS[usize::from(other) % ODD_NUMBERS.len()],
        }
    }
}

/// Changes `bytes` in one place.
pub fn edit(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    let at = input.short() % (bytes.len() + 1);
    match input.byte() % 6 {
        0 => bytes.truncate(at),
        1 if bytes.len() < GROWN_BYTES_MAX => bytes.extend_from_within(at..),
        2 => {
            let len = usize::from(input.byte());
            bytes.splice(at..at, input.take(len).iter().copied());
        }
        3 => {
            let len = usize::from(input.byte());
            let end = (at + len).min(bytes.len());
            bytes.splice(at..end, input.take(len).iter().copied());
        }
        4 => {
            let number = input.number(bytes.len() as u64).to_le_bytes();
            let end = (at + 8).min(bytes.len());
            bytes.splice(at..end, number);
        }
        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= input.byte()),
    }
}

/// Asks a manifest for everything that it can tell.
pub fn look(manifest: &Manifest) {
    let info = CheckpointInfo::of("a", manifest);
    assert_eq!(info.step, manifest.step());
    let mut wanted = Vec::new();
    for tensor in manifest.tensors() {
        assert_eq!(manifest.tensor(tensor.name.as_str()), Some(tensor));
        let bytes: u64 = tensor.pieces.iter().map(|piece| tensor.piece_bytes(piece)).sum();
        assert_eq!(bytes, tensor.spec.size_bytes());
        let (name, spec) = (tensor.name.clone(), tensor.spec.clone());
        let slice = Slice::full(spec.shape());
        wanted.push(WantedBox::new(name, spec, slice).expect("a whole tensor"));
    }
    for (index, file) in manifest.data_files().iter().enumerate() {
        let pieces = manifest.pieces_of_file(index);
        let bytes: u64 = pieces.map(|(tensor, piece)| tensor.piece_bytes(piece)).sum();
        assert_eq!(file.data_start + bytes, file.len);
    }
    for (alias, name) in manifest.aliases() {
        assert_eq!(manifest.tensor(alias.as_str()).map(|tensor| &tensor.name), Some(name));
    }
    let (plan, report) = plan_load(manifest, &wanted, &LoadRules::default());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(plan.bytes_wanted(), manifest.tensor_bytes());
}

/// Every tensor of a checkpoint, by name.
pub type Content = Vec<(TensorName, Vec<u8>)>;

/// Loads all of a checkpoint; `None` if that is too much.
pub fn load_all(
    storage: &MemoryStorage,
    wanted: &Wanted,
    manifest: &Manifest,
    atomicity: Atomicity,
) -> Option<Result<Content>> {
    if manifest.tensor_bytes() > LOADED_BYTES_MAX {
        return None;
    }
    let empty = |tensor: &tch_checkpoint::manifest::TensorRecord| {
        (tensor.name.clone(), vec![0xEE; tensor.spec.size_bytes() as usize])
    };
    let mut content: Content = manifest.tensors().iter().map(empty).collect();
    let mut targets = LoadTargets::new();
    for (tensor, (name, bytes)) in manifest.tensors().iter().zip(&mut content) {
        let sink = Box::new(bytes.as_mut_slice());
        targets.add(name.clone(), tensor.spec.clone(), sink).expect("a whole tensor");
    }
    let rules = LoadRules::default();
    let loaded = load(&ProcessGroup::solo(), storage, wanted, &mut targets, &rules, atomicity);
    drop(targets);
    let changed = || content.iter().any(|(_, bytes)| bytes.iter().any(|byte| *byte != 0xEE));
    if loaded.is_err() && atomicity == Atomicity::Atomic {
        assert!(!changed(), "a failed atomic load has changed its destination");
    }
    Some(loaded.map(|_| content))
}

/// Looks for a checkpoint, verifies and loads it: what is found whole can be loaded. Gives what it
/// loaded from files that carry sums.
pub fn all_of_it(
    storage: &MemoryStorage,
    wanted: &Wanted,
    atomicity: Atomicity,
) -> Option<Content> {
    let found: Found = catalog::find(storage, wanted).ok()?;
    look(&found.manifest);
    let damage = verify(&found, &mut |_| {}).map(|verified| verified.damage);
    let loaded = load_all(storage, wanted, &found.manifest, atomicity)?;
    if damage.as_ref().is_ok_and(Vec::is_empty) {
        assert!(loaded.is_ok(), "whole, but not loaded: {loaded:?}");
    }
    let is_plain = *found.manifest.form() == Form::Plain;
    assert!(!is_plain || loaded.is_ok(), "nothing to verify, but not loaded: {loaded:?}");
    loaded.ok().filter(|_| !is_plain)
}

/// A storage with these files in `runs`, which is there in any case.
pub fn storage_of<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> MemoryStorage {
    let storage = MemoryStorage::new();
    for directory in ["runs/golden", "runs/other"] {
        storage.create_dir_all(Path::new(directory)).expect("a directory in memory");
    }
    for (name, bytes) in files {
        storage.write(&Path::new("runs").join(name), bytes).expect("a file in memory");
    }
    storage
}
