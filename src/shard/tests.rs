//! The shard modules against a directory in memory that can fail.

mod bulk;
mod damage;
mod failing;
mod headers;
mod memory;
mod model;
mod round_trip;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use memory::MemoryDir;

use super::*;
use crate::error::Result;
use crate::layout::SaveId;
use crate::manifest::{DataFile, OtherFile, sums_of};
use crate::plan::{PlannedFile, PlannedPiece, Receipt, SavePlan};
use crate::rank::Rank;
use crate::slice::Slice;
use crate::state::StateDict;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

const SAVE_ID: SaveId = SaveId::from_bytes([0xab; 16]);
const RANK: Rank = Rank::new(3);
const STEP: u64 = 17;

fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

fn bytes_of(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// A whole tensor as its own piece, with made-up bytes in `state`.
fn whole(state: &mut StateDict, text: &str, dtype: Dtype, shape: &[u64]) -> PlannedPiece {
    let spec = TensorSpec::new(dtype, shape).unwrap();
    let bytes = bytes_of(spec.size_bytes(), text.len() as u64 + spec.size_bytes());
    state.add(&Component::model(), name(text), spec.clone(), Arc::new(bytes)).unwrap();
    let slice = Slice::full(shape);
    PlannedPiece { name: name(text), spec, held: slice.clone(), slice }
}

fn planned_file(name: &str, pieces: Vec<PlannedPiece>) -> PlannedFile {
    PlannedFile { name: name.to_owned(), component: Component::model(), pieces: pieces.into() }
}

fn plan_of(files: Vec<PlannedFile>) -> SavePlan {
    SavePlan { save_id: SAVE_ID, files, sums_file: Some("sums.bin".to_owned()) }
}

/// A small state in two files: odd sizes, a scalar, empty tensors, bf16.
fn small() -> (StateDict, SavePlan) {
    let mut state = StateDict::new();
    let first = vec![
        whole(&mut state, "loss \"scale\"", Dtype::F64, &[]),
        whole(&mut state, "none", Dtype::F32, &[0, 3]),
        whole(&mut state, "weight", Dtype::F32, &[5, 7]),
        whole(&mut state, "half", Dtype::BF16, &[3]),
        whole(&mut state, "mask", Dtype::Bool, &[11]),
    ];
    let second = vec![whole(&mut state, "second.größe", Dtype::I64, &[2, 2])];
    let files = vec![planned_file("a.safetensors", first), planned_file("b.safetensors", second)];
    (state, plan_of(files))
}

fn save(dir: &MemoryDir, plan: &SavePlan, state: &StateDict) -> Result<Receipt> {
    write_shards(dir, plan, RANK, STEP, state, &|_| {})
}

/// What a manifest would say about these files, and where their pieces lie.
fn records(plan: &SavePlan, receipt: &Receipt) -> (Vec<DataFile>, OtherFile, Vec<Vec<PieceAt>>) {
    let mut all_pieces = Vec::new();
    let mut files = Vec::new();
    for (index, (planned, file)) in plan.files.iter().zip(&receipt.files).enumerate() {
        let (mut begin, mut first_sum) = (file.data_start, 0);
        let mut pieces = Vec::new();
        for &bytes in &file.piece_bytes {
            pieces.push(PieceAt { file: index, begin, bytes, first_sum });
            begin += bytes;
            first_sum += sums_of(bytes);
        }
        assert_eq!(begin, file.len);
        all_pieces.push(pieces);
        files.push(DataFile {
            name: file.name.clone(),
            component: planned.component.clone(),
            save_id: plan.save_id,
            len: file.len,
            data_start: file.data_start,
            header_hash: file.header_hash,
            sums_file: 0,
            sums_begin: file.sums_begin,
            sums_count: first_sum,
            sums_hash: file.sums_hash,
        });
    }
    let sums = receipt.sums_file.clone().unwrap();
    (files, OtherFile { name: sums.name, len: sums.len, hash: sums.hash }, all_pieces)
}

fn reader(dir: &Arc<MemoryDir>, files: &[DataFile], sums: &OtherFile) -> ShardReader {
    ShardReader::new(dir.clone(), files, std::slice::from_ref(sums))
}

/// The bytes that the state holds for a planned piece.
fn expected(state: &StateDict, piece: &PlannedPiece) -> Vec<u8> {
    let held = state.boxes(piece.name.as_str()).iter().find(|b| b.slice == piece.held).unwrap();
    let element = piece.spec.dtype().size_bytes();
    let mut out = Vec::new();
    for run in piece.held.runs_of(&piece.slice) {
        let mut part = vec![0; usize::try_from(run.elements * element).unwrap()];
        held.source.read_into(run.from * element, &mut part).unwrap();
        out.extend(part);
    }
    out
}

/// Runs `test` on another thread; a hang is a failure, not a wait.
fn within_a_minute<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(test()));
    result.recv_timeout(Duration::from_secs(60)).expect("no result within a minute")
}
