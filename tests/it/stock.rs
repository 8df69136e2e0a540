//! What readers that know nothing of us see: data files are plain safetensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tch_checkpoint::catalog;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::Dtype;

use crate::harness::*;
use crate::tier;

const INDEX: &str = "model.safetensors.index.json";

struct OnDisk {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn on_disk(ranks: u32, tensors: &[TestTensor]) -> OnDisk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    saved(LocalStorage::new(), ranks, path.to_str().unwrap(), tensors, 3);
    OnDisk { _dir: dir, path }
}

fn shards(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

fn whole(tensor: &TestTensor) -> Vec<u8> {
    content(&tensor.name, &tensor.spec, &Slice::full(tensor.spec.shape()), 3)
}

/// Every dtype that the crate knows, 0-dim and empty tensors.
fn of_every_dtype() -> Vec<TestTensor> {
    let mut tensors: Vec<TestTensor> = Dtype::ALL
        .into_iter()
        .map(|dtype| TestTensor::new(&format!("t.{dtype}"), dtype, &[3, 5], None))
        .collect();
    tensors.push(TestTensor::new("scalar", Dtype::F32, &[], None));
    tensors.push(TestTensor::new("empty", Dtype::F32, &[4, 0], None));
    tensors
}

#[test]
fn the_safetensors_crate_reads_every_dtype() {
    let tensors = of_every_dtype();
    let disk = on_disk(1, &tensors);
    let [file] = &shards(&disk.path)[..] else { panic!("one rank, one component, one file") };
    let bytes = std::fs::read(file).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), tensors.len());
    for tensor in &tensors {
        let view = read.tensor(&tensor.name).unwrap();
        let shape: Vec<u64> = view.shape().iter().map(|d| *d as u64).collect();
        assert_eq!(shape, tensor.spec.shape(), "{}", tensor.name);
        assert_eq!(view.dtype().to_string(), tensor.spec.dtype().as_str(), "{}", tensor.name);
        assert_eq!(view.data(), whole(tensor), "{}", tensor.name);
    }
    let (header_len, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header_len + 8) % 4096, 0);
    let text = metadata.metadata().as_ref().unwrap();
    assert_eq!(text["format"], "pt");
    assert_eq!(text["tch_checkpoint.step"], "3");
}

/// Split and sharded tensors keep their names; offsets in the metadata say where each piece
/// belongs, in the form that PyTorch reads.
#[test]
fn pieces_read_with_the_safetensors_crate_make_up_the_tensors() {
    #[derive(serde::Deserialize)]
    struct Saved {
        saved_offsets: Vec<u64>,
    }
    let tensors = usual_tensors();
    let disk = on_disk(3, &tensors);
    assert!(!disk.path.join(INDEX).exists(), "no stock reader joins pieces");
    let mut made: BTreeMap<String, Vec<u8>> =
        tensors.iter().map(|t| (t.name.clone(), vec![0xEE; whole(t).len()])).collect();
    for file in shards(&disk.path) {
        let bytes = std::fs::read(&file).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = metadata.metadata().as_ref().unwrap();
        assert_eq!(text["DCP_VERSION"], "1.0");
        let offsets: BTreeMap<String, Saved> =
            serde_json::from_str(&text["DCP_SHARDING_INFO"]).unwrap();
        for (name, view) in read.tensors() {
            let tensor = tensors.iter().find(|t| t.name == name).unwrap();
            let lengths = view.shape().iter().map(|d| *d as u64).collect();
            let piece = Slice::new(offsets[&name].saved_offsets.clone(), lengths).unwrap();
            let size = tensor.spec.dtype().size_bytes();
            let out = made.get_mut(&name).unwrap();
            for run in Slice::full(tensor.spec.shape()).runs_of(&piece) {
                let [from, to, len] =
                    [run.to * size, run.from * size, run.elements * size].map(|n| n as usize);
                out[to..to + len].copy_from_slice(&view.data()[from..from + len]);
            }
        }
    }
    for tensor in &tensors {
        assert!(made[&tensor.name] == whole(tensor), "{}", tensor.name);
    }
}

/// One rank: every tensor is whole, and the index names the file of each.
#[test]
fn the_hugging_face_index_of_whole_tensors() {
    let tensors = usual_tensors();
    let disk = on_disk(1, &tensors);
    let text = std::fs::read_to_string(disk.path.join(INDEX)).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), tensors.len());
    for tensor in &tensors {
        let file = disk.path.join(map[&tensor.name].as_str().unwrap());
        let bytes = std::fs::read(file).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor(&tensor.name).unwrap().data(), whole(tensor), "{}", tensor.name);
    }
    let bytes: usize = tensors.iter().map(|tensor| whole(tensor).len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    let found = catalog::find(&LocalStorage::new(), &wanted(disk.path.to_str().unwrap())).unwrap();
    assert_eq!(found.manifest.other_files()[0].name, INDEX);
}

/// No load reads it, but it was committed: `verify` says where it is damaged.
#[test]
fn the_hugging_face_index_damaged() {
    let tensors = usual_tensors();
    let disk = on_disk(1, &tensors);
    let (at, index) = (disk.path.to_str().unwrap(), disk.path.join(INDEX));
    let good = std::fs::read(&index).unwrap();
    let mut flipped = good.clone();
    flipped[5] ^= 2;
    for changed in [flipped, good[1..].to_vec(), Vec::new()] {
        std::fs::write(&index, &changed).unwrap();
        let found = catalog::find(&LocalStorage::new(), &wanted(at)).unwrap();
        let damage = tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap().damage;
        let [error] = &damage[..] else { panic!("{damage:?}") };
        assert_eq!(error.kind(), tch_checkpoint::ErrorKind::Corrupt, "{error}");
        assert_eq!(error.path(), index.to_str(), "{error}");
        let verdicts = loaded(LocalStorage::new(), 2, at, &tensors, 3);
        verdicts.into_iter().for_each(|verdict| drop(verdict.unwrap()));
    }
}

const READ_WITH_PYTHON: &str = r#"
import sys, json
import numpy
from safetensors.numpy import load_file
with open(sys.argv[1] + "/model.safetensors.index.json") as file:
    weight_map = json.load(file)["weight_map"]
for name, file in sorted(weight_map.items()):
    tensor = load_file(sys.argv[1] + "/" + file)[name]
    print(name, list(tensor.shape), tensor.dtype, tensor.tobytes().hex())
"#;

/// The same through Python, where it has safetensors and numpy; where it has not, the crate above
/// has read the same files.
#[test]
fn python_reads_them() {
    let Some(mut python) = tier::python("numpy, safetensors.numpy") else { return };
    let tensors = vec![
        TestTensor::new("a", Dtype::F32, &[3, 5], None),
        TestTensor::new("b", Dtype::I64, &[], None),
        TestTensor::new("c", Dtype::U8, &[2, 0], None),
    ];
    let disk = on_disk(1, &tensors);
    let ran = python.arg("-c").arg(READ_WITH_PYTHON).arg(&disk.path).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let kinds = ["float32", "int64", "uint8"];
    let expected: String = tensors
        .iter()
        .zip(kinds)
        .map(|(t, k)| format!("{} {:?} {k} {}\n", t.name, t.spec.shape(), hex(whole(t))))
        .collect();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), expected);
}
