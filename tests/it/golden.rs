//! Every version of the format as files in this repository: what was written once is read for ever,
//! and the same content is written as the same bytes of the newest.
//!
//! With TCH_CHECKPOINT_WRITE_GOLDEN=DIR the test writes a new checkpoint `DIR/golden` instead;
//! see `tests/fixtures/README.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch_checkpoint::catalog::{self, Found};
use tch_checkpoint::layout::{DataFileName, HF_INDEX, LOCK, MANIFEST};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::manifest::{Manifest, SUMS_HEADER_BYTES, hash16};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::plan::{PlannedFile, PlannedPiece};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::shard::{Header, sum};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict, Value, Values};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ProcessGroup, Rank};

use crate::harness::{assert_good, name, on_ranks, path, wanted};

const WRITE: &str = "TCH_CHECKPOINT_WRITE_GOLDEN";

/// The same checkpoint in one version of the format.
struct Version {
    folder: &'static str,
    /// Every file of the checkpoint with its length and the start of its BLAKE3.
    files: &'static str,
    block_bytes: usize,
}

const VERSIONS: [Version; 2] = [
    Version {
        folder: "v1",
        files: include_str!("../fixtures/v1/files.txt"),
        block_bytes: 64 * 1024,
    },
    NEWEST,
];
const NEWEST: Version = Version {
    folder: "v2",
    files: include_str!("../fixtures/v2/files.txt"),
    block_bytes: 16 * 1024,
};

impl Version {
    fn golden(&self) -> PathBuf {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        fixtures.join(self.folder).join("golden")
    }

    fn at(&self) -> String {
        self.golden().to_str().unwrap().to_owned()
    }

    fn found(&self) -> Found {
        catalog::find(&LocalStorage::new(), &wanted(&self.at())).unwrap()
    }
}

/// A tensor of the golden checkpoint: name, component, dtype, shape, and its bytes.
type Golden = (&'static str, &'static str, Dtype, &'static [u64], Vec<u8>);

fn tensors() -> Vec<Golden> {
    let f32s = |n: u16| (0..n).flat_map(|i| (f32::from(i) / 4.0 - 8.0).to_le_bytes()).collect();
    let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
    vec![
        ("embedding.weight", "model", Dtype::BF16, &[6, 5], {
            (0u8..30).flat_map(|i| bf16(f32::from(i) * -0.5).to_le_bytes()).collect()
        }),
        ("layer.weight", "model", Dtype::F32, &[9, 7], f32s(63)),
        ("layer.mask", "model", Dtype::Bool, &[5], vec![1, 0, 0, 1, 1]),
        ("layer.none", "model", Dtype::I64, &[0, 4], Vec::new()),
        ("optimizer.layer.weight.exp_avg", "optimizer", Dtype::F32, &[9, 7], f32s(63)),
        ("optimizer.layer.weight.step", "optimizer", Dtype::F64, &[], 12.0f64.to_le_bytes().into()),
        ("optimizer.columns", "optimizer", Dtype::I16, &[4, 3], {
            (0i16..12).flat_map(|i| (i * -1000).to_le_bytes()).collect()
        }),
    ]
}

fn spec(dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(dtype, shape).unwrap()
}

fn values() -> Values {
    let mut values = Values::new();
    values.set("bool", true);
    values.set("int", -42i64);
    values.set("float", 0.1);
    values.set("float.nan", f64::NAN);
    values.set("text", "Ünïcode\n\"quoted\"");
    values.set("bytes", vec![0u8, 255, 7]);
    values.set("floats", vec![1.5, f64::NEG_INFINITY, -0.0]);
    values.set("json", Value::Json("{\"lr\":0.001,\"betas\":[0.9,0.999]}".into()));
    values
}

fn rank_values(rank: Rank) -> Values {
    let mut values = Values::new();
    values.set("rng", vec![rank.get() as u8; 3]);
    values
}

/// What rank `rank` of two holds of a tensor: one is sharded by rows, one by columns.
fn held(tensor: &str, shape: &[u64], rank: Rank) -> Slice {
    let first = rank == Rank::new(0);
    match (tensor, first) {
        ("layer.weight", true) => Slice::new(vec![0, 0], vec![4, 7]),
        ("layer.weight", false) => Slice::new(vec![4, 0], vec![5, 7]),
        ("optimizer.columns", true) => Slice::new(vec![0, 0], vec![4, 1]),
        ("optimizer.columns", false) => Slice::new(vec![0, 1], vec![4, 2]),
        _ => Ok(Slice::full(shape)),
    }
    .unwrap()
}

fn state(rank: Rank) -> StateDict {
    let mut state = StateDict::new();
    for (tensor, component, dtype, shape, bytes) in tensors() {
        let (slice, size) = (held(tensor, shape, rank), dtype.size_bytes() as usize);
        let mut part = Vec::new();
        for run in Slice::full(shape).runs_of(&slice) {
            let from = run.from as usize * size;
            part.extend_from_slice(&bytes[from..from + run.elements as usize * size]);
        }
        let (component, spec) = (Component::new(component).unwrap(), spec(dtype, shape));
        state.add_slice(&component, name(tensor), spec, slice, Arc::new(part)).unwrap();
    }
    state.add_alias(name("head.weight"), name("embedding.weight")).unwrap();
    state.values = values();
    state.rank_values = rank_values(rank);
    state
}

/// Writes the golden checkpoint and the list of its files into `dir`.
fn write(dir: &Path) {
    let at = dir.join("golden").to_str().unwrap().to_owned();
    for verdict in on_ranks(2, move |group| {
        let options = SaveOptions {
            step: 1234,
            epoch: 5,
            libtorch_version: "2.9.0".into(),
            ..SaveOptions::default()
        };
        save(&group, &LocalStorage::new(), &path(&at), &state(group.rank()), &options)
    }) {
        verdict.unwrap();
    }
    std::fs::remove_file(dir.join(LOCK)).unwrap();
    std::fs::write(dir.join("files.txt"), listing(&dir.join("golden"))).unwrap();
}

fn listing(dir: &Path) -> String {
    let mut lines: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let hex: String = hash16(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} {} {hex}\n", path.file_name().unwrap().to_str().unwrap(), bytes.len())
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// Nobody, no tool and no merge has changed the files.
#[test]
fn the_files_are_those_committed() {
    if let Some(dir) = std::env::var_os(WRITE) {
        return write(Path::new(&dir));
    }
    for version in VERSIONS {
        assert_eq!(listing(&version.golden()), version.files);
    }
}

#[test]
fn verifies() {
    for version in VERSIONS {
        assert_good(&LocalStorage::new(), &version.at());
    }
}

/// Content and values, asserted against what is written in this file, on any world size.
#[test]
fn loads_on_any_world_size() {
    for version in VERSIONS {
        for ranks in 1..4 {
            let at = version.at();
            on_ranks(ranks, move |group| load_and_compare(&group, &at));
        }
    }
}

fn load_and_compare(group: &ProcessGroup, at: &str) {
    let expected = tensors();
    let names = expected.iter().map(|t| t.0).chain(["head.weight"]);
    let of = |tensor: &str| {
        let stored = if tensor == "head.weight" { "embedding.weight" } else { tensor };
        expected.iter().find(|t| t.0 == stored).unwrap()
    };
    let mut buffers: Vec<(&str, Vec<u8>)> =
        names.map(|tensor| (tensor, vec![0xEE; of(tensor).4.len()])).collect();
    let mut targets = LoadTargets::new();
    for (tensor, bytes) in &mut buffers {
        let (_, _, dtype, shape, _) = of(tensor);
        let sink = Box::new(bytes.as_mut_slice());
        targets.add(name(tensor), spec(*dtype, shape), sink).unwrap();
    }
    let at = wanted(at);
    let rules = LoadRules { strict: true, ..LoadRules::default() };
    let storage = LocalStorage::new();
    let loaded = load(group, &storage, &at, &mut targets, &rules, Atomicity::Atomic).unwrap();
    drop(targets);
    for (tensor, bytes) in &buffers {
        assert_eq!(*bytes, of(tensor).4, "{tensor}");
    }
    assert_manifest(&loaded.manifest);
}

fn assert_manifest(manifest: &Manifest) {
    assert_eq!((manifest.step(), manifest.epoch(), manifest.world_size().get()), (1234, 5, 2));
    assert_eq!((manifest.library_version(), manifest.libtorch_version()), ("0.1.0", "2.9.0"));
    assert_eq!(manifest.values().first_difference(&values()), None);
    for rank in manifest.world_size().ranks() {
        assert_eq!(manifest.rank_values(rank), Some(&rank_values(rank)));
    }
    assert_eq!(manifest.rank_values(Rank::new(2)), None);
    let stored = manifest.tensors().iter().map(|t| (t.name.as_str(), t.component.as_str()));
    let mut expected: Vec<_> = tensors().iter().map(|t| (t.0, t.1)).collect();
    expected.sort_unstable();
    assert_eq!(stored.collect::<Vec<_>>(), expected);
    assert_eq!(manifest.aliases(), [(name("head.weight"), name("embedding.weight"))]);
    let split = manifest.tensors().iter().filter(|t| t.pieces.len() > 1).count();
    assert_eq!(split, 2, "one by rows, one by columns");
}

/// A manifest is encoded as it was.
#[test]
fn the_manifest_is_written_as_it_was() {
    for version in VERSIONS {
        let bytes = std::fs::read(version.golden().join(MANIFEST)).unwrap();
        let manifest = Manifest::parse(&bytes).unwrap();
        assert!(manifest.encode().unwrap() == bytes);
        assert_eq!(manifest.block_bytes(), version.block_bytes as u64);
    }
}

/// Headers of the newest version are regenerated from the manifest alone, byte for byte.
#[test]
fn headers_are_written_as_they_were() {
    let manifest = NEWEST.found().manifest;
    assert_eq!(manifest.data_files().len(), 4);
    for (index, file) in manifest.data_files().iter().enumerate() {
        let pieces = manifest.pieces_of_file(index).map(|(tensor, piece)| PlannedPiece {
            name: tensor.name.clone(),
            spec: tensor.spec.clone(),
            held: Slice::full(tensor.spec.shape()),
            slice: piece.slice.clone(),
        });
        let planned = PlannedFile {
            name: file.name.clone(),
            component: file.component.clone(),
            pieces: pieces.collect(),
        };
        let rank = DataFileName::parse(&file.name).unwrap().rank;
        let header = Header::of(&planned, &manifest.save_id(), rank, manifest.step()).unwrap();
        let bytes = std::fs::read(NEWEST.golden().join(&file.name)).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        assert_eq!(text(header.bytes()), text(&bytes[..file.data_start as usize]), "{}", file.name);
        assert_eq!(header.hash(), file.header_hash, "{}", file.name);
        assert_eq!(header.file_len(), bytes.len() as u64, "{}", file.name);
    }
}

/// Sums files are regenerated from the data, byte for byte.
#[test]
fn sums_are_written_as_they_were() {
    VERSIONS.iter().for_each(assert_sums);
}

fn assert_sums(version: &Version) {
    let manifest = version.found().manifest;
    for (number, sums_file) in manifest.sums_files().iter().enumerate() {
        let mut expected = b"TCHSUMS\n\x01\0\0\0\0\0\0\0".to_vec();
        expected.extend_from_slice(manifest.save_id().as_bytes());
        assert_eq!(expected.len() as u64, SUMS_HEADER_BYTES);
        for (index, file) in manifest.data_files().iter().enumerate() {
            if file.sums_file as usize == number {
                let bytes = std::fs::read(version.golden().join(&file.name)).unwrap();
                for (tensor, piece) in manifest.pieces_of_file(index) {
                    let end = piece.begin + tensor.piece_bytes(piece);
                    let data = &bytes[piece.begin as usize..end as usize];
                    expected.extend(data.chunks(version.block_bytes).flat_map(sum));
                }
            }
        }
        assert_eq!(std::fs::read(version.golden().join(&sums_file.name)).unwrap(), expected);
    }
    assert_eq!(manifest.sums_files().len(), 2);
    assert!(!version.golden().join(HF_INDEX).exists(), "a model with a split tensor has no index");
}
