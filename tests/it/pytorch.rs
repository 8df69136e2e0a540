//! Files of the real PyTorch: what comes of them here, bit for bit, and what is refused.

mod archives;
mod distributed;
mod forge;
mod hostile;
mod opened;
mod round_trips;
mod trainings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tch_checkpoint::catalog;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::import::{ImportOptions, import};
use tch_checkpoint::load::read_tensor;
use tch_checkpoint::manifest::Manifest;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{Checkpoint, Result};

use crate::harness::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A storage with this file of the fixtures, under its own name in `/from`.
fn memory_with(folder: &str, name: &str) -> MemoryStorage {
    let memory = MemoryStorage::new();
    put(&memory, name, &std::fs::read(fixture(folder).join(name)).unwrap());
    memory
}

fn put(memory: &MemoryStorage, name: &str, bytes: &[u8]) {
    memory.create_dir_all(Path::new("/from")).unwrap();
    memory.write(&Path::new("/from").join(name), bytes).unwrap();
}

fn imported(memory: &MemoryStorage, name: &str) -> Result<Checkpoint> {
    imported_as(memory, name, &ImportOptions::default())
}

fn imported_as(memory: &MemoryStorage, name: &str, options: &ImportOptions) -> Result<Checkpoint> {
    let from = Path::new("/from").join(name);
    import(&ProcessGroup::solo(), memory, from, &path("/runs/a"), options)
}

fn manifest(storage: &dyn Storage) -> Manifest {
    catalog::find(storage, &wanted("/runs/a")).unwrap().manifest
}

/// Dtype in safetensors' words, shape and bytes.
type Seen = (String, Vec<u64>, Vec<u8>);

/// Everything in a checkpoint, second names included.
fn tensors_of(storage: &dyn Storage, at: &str) -> BTreeMap<String, Seen> {
    let wanted = wanted(at).or_unverified();
    let manifest = catalog::find(storage, &wanted).unwrap().manifest;
    let names = manifest.tensors().iter().map(|tensor| tensor.name.to_string());
    let names = names.chain(manifest.aliases().iter().map(|(alias, _)| alias.to_string()));
    let read = |name: String| {
        let spec = manifest.tensor(&name).unwrap().spec.clone();
        let bytes = read_tensor(storage, &wanted, &name).unwrap().1;
        (name, (spec.dtype().to_string(), spec.shape().to_vec(), bytes))
    };
    names.map(read).collect()
}

/// What the script that made a fixture says is in it.
fn expected(folder: &str, name: &str) -> BTreeMap<String, Seen> {
    let bytes = std::fs::read(fixture(folder).join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let seen = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let shape = view.shape().iter().map(|length| *length as u64).collect();
        (name.to_owned(), (format!("{:?}", view.dtype()), shape, view.data().to_vec()))
    };
    file.iter().map(seen).collect()
}

/// Compares with names, so that a difference can be read.
fn assert_same(seen: &BTreeMap<String, Seen>, expected: &BTreeMap<String, Seen>, what: &str) {
    let names = |all: &BTreeMap<String, Seen>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(seen), names(expected), "{what}");
    for (name, tensor) in seen {
        assert_eq!(*tensor, expected[name], "{what}: {name}");
    }
}
