//! What PyTorch's own reader, `HuggingFaceStorageReader`, makes of our directories: whole ones, and
//! damaged ones beside what we say of the same. Needs a Python with torch; says so where there is
//! none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype};
use tch_checkpoint::{ErrorKind, OnExisting, ProcessGroup, SaveOptions, save};

use crate::harness::*;
use crate::tier;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/pytorch_reads.py");
const MODULES: &str = "safetensors, torch.distributed.checkpoint, torch.distributed.tensor";

/// Replicated and sharded, of every kind that a training job has; several components.
fn tensors() -> Vec<TestTensor> {
    let mut tensors = usual_tensors();
    for (index, dtype) in Dtype::ALL.into_iter().enumerate() {
        let sharded = [None, Some(0), Some(1)][index % 3];
        tensors.push(TestTensor::new(&format!("t.{dtype}"), dtype, &[9, 14], sharded));
    }
    tensors.push(TestTensor::new("ema.layers.0.bias", Dtype::BF16, &[257], None));
    tensors.push(TestTensor::new("optimizer.layers.0.bias.exp_avg", Dtype::F32, &[257], Some(0)));
    tensors.push(TestTensor::new("optimizer.layers.0.bias.step", Dtype::F32, &[], None));
    tensors.push(TestTensor::new("batches", Dtype::I64, &[], None));
    tensors
}

fn component_of(tensor: &TestTensor) -> Component {
    let first = tensor.name.split('.').next().unwrap();
    match first {
        "ema" | "optimizer" => Component::new(first).unwrap(),
        _ => Component::model(),
    }
}

fn state_of(group: &ProcessGroup, generation: u64) -> StateDict {
    let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let mut state = StateDict::new();
    for tensor in tensors() {
        let Some(slice) = tensor.held(rank, n) else { continue };
        let bytes = whole_or_part(&tensor, &slice, generation);
        let (name, spec) = (name(&tensor.name), tensor.spec.clone());
        state.add_slice(&component_of(&tensor), name, spec, slice, Arc::new(bytes)).unwrap();
    }
    state
}

/// A boolean is a byte that is 0 or 1.
fn whole_or_part(tensor: &TestTensor, slice: &Slice, generation: u64) -> Vec<u8> {
    let mut bytes = content(&tensor.name, &tensor.spec, slice, generation);
    if tensor.spec.dtype() == Dtype::Bool {
        bytes.iter_mut().for_each(|byte| *byte &= 1);
    }
    bytes
}

fn saved_by(ranks: u32, at: &Path, generation: u64) {
    let at = at.to_str().unwrap().to_owned();
    on_ranks(ranks, move |group| {
        let options = SaveOptions {
            step: 1_000_000 * generation,
            on_existing: OnExisting::Refuse,
            ..SaveOptions::default()
        };
        save(&group, &LocalStorage::new(), &path(&at), &state_of(&group, generation), &options)
            .unwrap();
    });
}

/// What a load is to give, as files for the script.
fn expect(dir: &Path, generation: u64) {
    std::fs::create_dir(dir).unwrap();
    let mut list = Vec::new();
    for (index, tensor) in tensors().iter().enumerate() {
        let (dtype, shape) = (tensor.spec.dtype(), tensor.spec.shape());
        let bytes = whole_or_part(tensor, &Slice::full(shape), generation);
        std::fs::write(dir.join(format!("{index}.bin")), bytes).unwrap();
        // Two ranks hold other boxes than the four that saved.
        let split = tensor.sharded.or((shape.len() == 2).then_some(index % 2));
        list.push(json!({"name": tensor.name, "dtype": dtype.to_string(), "shape": shape,
            "split": split}));
    }
    std::fs::write(dir.join("tensors.json"), json!(list).to_string()).unwrap();
}

/// Its versions, and what it says of each checkpoint; `None` if there is no PyTorch.
fn read(ranks: u32, expected: &Path, checkpoints: &[PathBuf]) -> Option<(String, Vec<String>)> {
    let mut python = tier::python(MODULES)?;
    python.arg(SCRIPT).arg(ranks.to_string()).arg(expected).args(checkpoints);
    let ran = python.output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let stdout = String::from_utf8(ran.stdout).unwrap();
    let mut lines = stdout.lines().map(str::to_owned);
    let versions = lines.next().unwrap();
    let said: Vec<String> = lines.collect();
    assert_eq!(said.len(), checkpoints.len(), "{stdout}");
    Some((versions, said))
}

#[test]
fn pytorch_reads_what_four_ranks_saved_in_one_process_and_in_two() {
    let dir = tempfile::tempdir().unwrap();
    let (at, expected) = (dir.path().join("a"), dir.path().join("expected"));
    saved_by(4, &at, 3);
    expect(&expected, 3);
    for ranks in [1, 2] {
        let Some((versions, said)) = read(ranks, &expected, std::slice::from_ref(&at)) else {
            return;
        };
        assert_eq!(said, ["equal"], "{ranks} ranks of {versions}");
        tier::figure(&format!("{ranks} ranks of {versions} read 4 ranks' files"), &said[0]);
    }
}

/// Loads everything as one rank, into memory that is compared with what was saved.
fn load_here(at: &Path, generation: u64) -> Result<(), ErrorKind> {
    let tensors = tensors();
    let whole = |tensor: &TestTensor| Slice::full(tensor.spec.shape());
    let expected: Vec<Vec<u8>> =
        tensors.iter().map(|t| whole_or_part(t, &whole(t), generation)).collect();
    let mut buffers: Vec<Vec<u8>> = expected.iter().map(|bytes| vec![0xEE; bytes.len()]).collect();
    let mut targets = LoadTargets::new();
    for (tensor, buffer) in tensors.iter().zip(&mut buffers) {
        let (name, spec) = (name(&tensor.name), tensor.spec.clone());
        targets.add(name, spec, Box::new(buffer.as_mut_slice())).unwrap();
    }
    let (wanted, rules) = (wanted(at.to_str().unwrap()), LoadRules::default());
    let group = ProcessGroup::solo();
    let (storage, atomicity) = (LocalStorage::new(), Atomicity::Atomic);
    let loaded = load(&group, &storage, &wanted, &mut targets, &rules, atomicity);
    drop(targets);
    loaded.map_err(|error| error.kind())?;
    assert!(buffers == expected, "{}", at.display());
    Ok(())
}

/// Something that happens to one data file of a checkpoint; the first path is the file, the second
/// the same file of an older save.
type Damage = fn(&Path, &Path);

fn flip_in_the_data(file: &Path, _: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

fn cut(file: &Path, _: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
}

const DAMAGES: [(&str, Damage); 5] = [
    ("a lost file", |file, _| std::fs::remove_file(file).unwrap()),
    ("a flipped bit", flip_in_the_data),
    ("a file of an older step in its place", |file, old| {
        std::fs::copy(old, file).unwrap();
    }),
    ("a file that is a byte short", cut),
    ("no manifest: a save that was never committed", |file, _| {
        std::fs::remove_file(file.with_file_name("manifest.bin")).unwrap();
    }),
];

fn data_files(at: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    let is_data = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    let mut files: Vec<_> = entries.filter(is_data).collect();
    files.sort();
    files
}

/// A copy of `good` for every data file in it, each damaged in that file.
fn damaged(dir: &Path, good: &Path, older: &Path, case: usize) -> Vec<PathBuf> {
    let mut made = Vec::new();
    for (index, (file, old)) in data_files(good).iter().zip(&data_files(older)).enumerate() {
        let at = dir.join(format!("{case}-{index}"));
        std::fs::create_dir(&at).unwrap();
        for entry in std::fs::read_dir(good).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), at.join(entry.file_name())).unwrap();
        }
        DAMAGES[case].1(&at.join(file.file_name().unwrap()), old);
        made.push(at);
    }
    made
}

/// Ours refuses every one. What PyTorch does is told, for it may be better in another version.
#[test]
fn what_is_damaged_is_refused_here_whatever_pytorch_makes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let [good, older, expected] = ["good", "older", "expected"].map(|name| dir.path().join(name));
    saved_by(4, &good, 3);
    saved_by(4, &older, 2);
    expect(&expected, 3);
    load_here(&good, 3).unwrap();
    for (case, (what, _)) in DAMAGES.iter().enumerate() {
        let copies = damaged(dir.path(), &good, &older, case);
        for at in &copies {
            let kind = load_here(at, 3).unwrap_err();
            let expected = [ErrorKind::Corrupt, ErrorKind::NotFound];
            assert!(expected.contains(&kind), "{what}: {kind:?}");
        }
        let Some((versions, said)) = read(1, &expected, &copies) else { continue };
        let of = |begin: &str| said.iter().filter(|line| line.starts_with(begin)).count();
        let figure = format!(
            "{} of {} refused; PyTorch refuses {}, loads {} with other bytes, {} as they were",
            copies.len(),
            copies.len(),
            of("refused"),
            of("differs"),
            of("equal")
        );
        tier::figure(&format!("{what}, {versions}"), figure);
        if let Some(line) = said.iter().find(|line| line.starts_with("refused")) {
            tier::figure(&format!("{what}, {versions}, for example"), line);
        }
    }
}
