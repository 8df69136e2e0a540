use std::path::Path;

use super::*;
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::group::ProcessGroup;
use crate::save::{SaveOptions, save};
use crate::storage::MemoryStorage;
use crate::tensor::{Component, Dtype};

const STEP: usize = 128 << 10;

fn state(shape: [u64; 2], boxes: &[[u64; 4]]) -> (TensorSpec, StateDict) {
    let (spec, mut state) = (TensorSpec::new(Dtype::F32, shape).unwrap(), StateDict::new());
    for [row, column, rows, columns] in boxes.iter().copied() {
        let numbers = (row..row + rows).flat_map(|r| {
            (column..column + columns).map(move |c| u32::try_from(r * shape[1] + c).unwrap())
        });
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let slice = Slice::new(vec![row, column], vec![rows, columns]).unwrap();
        let name = TensorName::new("w").unwrap();
        state.add_slice(&Component::model(), name, spec.clone(), slice, Arc::new(bytes)).unwrap();
    }
    (spec, state)
}

/// Saves boxes of a tensor whose elements count up, reads it in steps, and gives the bytes that
/// were read for it.
fn read_of(shape: [u64; 2], boxes: &[[u64; 4]], step: usize) -> u64 {
    let (spec, state) = state(shape, boxes);
    let (solo, storage) = (ProcessGroup::solo(), MemoryStorage::new());
    let path = CheckpointPath::parse(Path::new("runs/a")).unwrap();
    save(&solo, &storage, &path, &state, &SaveOptions::default()).unwrap();
    let found = find(&storage, &Wanted::from(path)).unwrap();
    let reader = Arc::new(ShardReader::of(found.dir.clone(), &found.manifest));
    let stored = stored_state(&reader, &found.manifest, &mut |_| true).unwrap();
    let source = stored.boxes("w")[0].source.clone();
    let mut whole = vec![0; usize::try_from(spec.size_bytes()).unwrap()];
    for (part, number) in whole.chunks_mut(step).zip(0u64..) {
        source.read_into(number * step as u64, part).unwrap();
    }
    let numbers = whole.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    assert!(numbers.eq(0..u32::try_from(spec.elements()).unwrap()));
    assert!(source.read_into(spec.size_bytes(), &mut [0]).is_err());
    reader.bytes_read()
}

/// A row of the tensor has some bytes of each of many pieces, and a block of each has many rows.
#[test]
fn pieces_side_by_side_are_read_about_once() {
    let boxes: Vec<_> = (0..64).map(|i| [0, i * 16, 2048, 16]).collect();
    let read = read_of([2048, 1024], &boxes, STEP);
    assert!(read < 2 * (8 << 20), "{read} bytes read of 8 MiB");
}

#[test]
fn boxes_of_any_place_are_put_together_in_any_steps() {
    let grid: Vec<_> = (0..6).flat_map(|r| (0..5).map(move |c| [r * 7, c * 9, 7, 9])).collect();
    for step in [1, 3, 64, 1000, STEP] {
        read_of([42, 45], &grid, step);
    }
    // Over the end of a window, with boxes of many heights.
    let mixed = [[0, 0, 2000, 700], [0, 700, 500, 900], [500, 700, 1500, 900]];
    read_of([2000, 1600], &mixed, STEP);
}
