//! The reader in Python that users copy (`examples/python/read_checkpoint.py`), on what we write
//! and on what is left of it.

use std::path::{Path, PathBuf};
use std::process::Output;

use tch_checkpoint::single::save_single_file;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype};
use tch_checkpoint::{OnExisting, ProcessGroup, SaveOptions, save};

use crate::harness::*;
use crate::tier;

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");
const PRINT: &str = r#"
import sys
sys.path.insert(0, sys.argv[1])
from read_checkpoint import read_checkpoint
for name, tensor in sorted(read_checkpoint(sys.argv[2]).items()):
    print(name, tensor.dtype, list(tensor.shape), tensor.tobytes().hex())
"#;

fn read(at: &Path) -> Option<Output> {
    let mut python = tier::python("numpy, safetensors")?;
    Some(python.args(["-c", PRINT, READER]).arg(at).output().unwrap())
}

/// Every dtype, whole and in boxes of rows and of columns, of three components.
fn tensors() -> Vec<TestTensor> {
    let mut tensors = usual_tensors();
    for (index, dtype) in Dtype::ALL.into_iter().enumerate() {
        let sharded = [None, Some(0), Some(1)][index % 3];
        tensors.push(TestTensor::new(&format!("t.{dtype}"), dtype, &[6, 10], sharded));
    }
    tensors.push(TestTensor::new("bits.BF16", Dtype::BF16, &[8, 4], Some(0)));
    tensors
}

/// The tensors of a rank, in components by their dtype.
fn in_components(group: &ProcessGroup, generation: u64) -> StateDict {
    let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let mut state = StateDict::new();
    for tensor in tensors() {
        let Some(slice) = tensor.held(rank, n) else { continue };
        let component = match tensor.spec.dtype() {
            Dtype::F32 => Component::model(),
            Dtype::BF16 => Component::new("ema").unwrap(),
            _ => Component::new("optimizer").unwrap(),
        };
        let bytes = content(&tensor.name, &tensor.spec, &slice, generation);
        let (name, spec) = (name(&tensor.name), tensor.spec.clone());
        state.add_slice(&component, name, spec, slice, std::sync::Arc::new(bytes)).unwrap();
    }
    state.values.set("lr", 0.25);
    state
}

fn saved_by(ranks: u32, at: &Path, generation: u64, as_file: bool) {
    let at = at.to_str().unwrap().to_owned();
    on_ranks(ranks, move |group| {
        let (state, at) = (in_components(&group, generation), path(&at));
        let options = SaveOptions {
            step: 1_000_000 * generation,
            on_existing: OnExisting::Replace,
            ..SaveOptions::default()
        };
        let storage = LocalStorage::new();
        match as_file {
            true => save_single_file(&group, &storage, &at, &state, &options).map(drop),
            false => save(&group, &storage, &at, &state, &options).map(drop),
        }
        .unwrap();
    });
}

/// What the reader is to print: 16 bits of BF16 are the upper half of a float32.
fn expected(generation: u64) -> String {
    let kinds = |dtype| match dtype {
        Dtype::Bool => "bool",
        Dtype::U8 | Dtype::F8E5M2 | Dtype::F8E4M3 => "uint8",
        Dtype::I8 => "int8",
        Dtype::I16 => "int16",
        Dtype::U16 => "uint16",
        Dtype::F16 => "float16",
        Dtype::I32 => "int32",
        Dtype::U32 => "uint32",
        Dtype::BF16 | Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        Dtype::I64 => "int64",
        Dtype::U64 => "uint64",
        Dtype::C64 => "complex64",
        other => panic!("{other} has no name in numpy"),
    };
    let mut tensors = tensors();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let line = |tensor: TestTensor| {
        let (dtype, shape) = (tensor.spec.dtype(), tensor.spec.shape());
        let mut bytes = content(&tensor.name, &tensor.spec, &Slice::full(shape), generation);
        if dtype == Dtype::BF16 {
            bytes = bytes.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]).collect();
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {} {shape:?} {hex}\n", tensor.name, kinds(dtype))
    };
    tensors.into_iter().map(line).collect()
}

fn assert_reads(at: &Path, generation: u64) {
    let Some(ran) = read(at) else { return };
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(ran.stdout == expected(generation).into_bytes(), "{}", at.display());
}

fn assert_refuses(at: &Path, what: &str, said: &str) {
    let Some(ran) = read(at) else { return };
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && ran.stdout.is_empty(), "{what} is taken");
    assert!(error.lines().last().is_some_and(|line| line.contains(said)), "{what}: {error}");
}

fn data_files(at: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    let is_data = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    let mut files: Vec<_> = entries.filter(is_data).collect();
    files.sort();
    files
}

#[test]
fn every_byte_of_directories_of_one_to_five_ranks() {
    let dir = tempfile::tempdir().unwrap();
    for ranks in 1..=5 {
        let at = dir.path().join(format!("{ranks}"));
        saved_by(ranks, &at, 3, false);
        assert_reads(&at, 3);
    }
}

#[test]
fn every_byte_of_a_single_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a.safetensors");
    saved_by(3, &at, 4, true);
    assert_reads(&at, 4);
}

/// A rank's file may hold whole tensors only, which nothing but the manifest tells of.
#[test]
fn each_data_file_that_is_lost_or_cut_or_longer() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a");
    saved_by(4, &at, 3, false);
    let files = data_files(&at);
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let good = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_refuses(&at, "a lost file", "No such file or directory");
        for len in [good.len() - 1, good.len() + 1, 0] {
            let mut other = good.clone();
            other.resize(len, 0);
            std::fs::write(&file, &other).unwrap();
            assert_refuses(&at, "a file of another length", "Error");
        }
        std::fs::write(&file, &good).unwrap();
    }
    assert_reads(&at, 3);
}

/// What has not changed is a file of the earlier save, under its old name.
#[test]
fn files_that_are_linked_from_an_earlier_save() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    saved_by(3, &old, 2, false);
    saved_by(3, &new, 2, false);
    let names = |at: &Path| data_files(at).into_iter().map(|f| f.file_name().map(Into::into));
    let names = |at: &Path| names(at).collect::<Vec<Option<PathBuf>>>();
    assert_eq!(names(&old), names(&new), "all of them are linked");
    std::fs::remove_dir_all(old).unwrap();
    assert_reads(&new, 2);
}

/// The same shapes, another step: the file fits in every other way.
#[test]
fn a_file_of_another_save() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    saved_by(4, &old, 2, false);
    saved_by(4, &new, 3, false);
    for (from, to) in data_files(&old).iter().zip(data_files(&new)) {
        let good = std::fs::read(&to).unwrap();
        std::fs::copy(from, &to).unwrap();
        assert_refuses(&new, "a file of another save", "is of another save");
        std::fs::write(&to, good).unwrap();
    }
    std::fs::copy(&data_files(&old)[0], new.join("model-00009-of-00009.safetensors")).unwrap();
    assert_reads(&new, 3);
}

#[test]
fn what_was_not_committed_and_what_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a");
    saved_by(2, &at, 3, false);
    assert_refuses(&data_files(&at)[0], "one file of several", "no checkpoint of its own");
    let manifest = at.join("manifest.bin");
    let good = std::fs::read(&manifest).unwrap();
    for (bytes, said) in [
        (&good[..good.len() - 1], "no whole manifest"),
        (&good[..8], "no whole manifest"),
        (b"", "no whole manifest"),
    ] {
        std::fs::write(&manifest, bytes).unwrap();
        assert_refuses(&at, "a manifest that is cut", said);
    }
    std::fs::remove_file(&manifest).unwrap();
    assert_refuses(&at, "no manifest", "No such file or directory");
    std::fs::rename(&at, dir.path().join(".a.partial")).unwrap();
    assert_refuses(&at, "nothing", "No such file or directory");
}

/// Forty lines, without the names of the formats that begin them.
#[test]
fn it_is_forty_lines() {
    let text = std::fs::read_to_string(Path::new(READER).join("read_checkpoint.py")).unwrap();
    let code = &text[text.find("def require").unwrap()..];
    assert!(code.lines().filter(|line| !line.trim().is_empty()).count() <= 40);
}
