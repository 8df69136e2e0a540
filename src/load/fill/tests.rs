//! Boxes of all kinds, out of checkpoints cut in all ways.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::group::ProcessGroup;
use crate::plan::load::{LoadRules, plan_load};
use crate::save::{SaveOptions, save};
use crate::state::StateDict;
use crate::storage::MemoryStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// A sink that is no host memory, as a tensor on a device.
struct Elsewhere(Vec<u8>, std::thread::ThreadId);

impl TensorSink for Elsewhere {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(self.1, std::thread::current().id(), "not on the thread that loads");
        self.0.as_mut_slice().write_at(offset, bytes)
    }
}

fn range(cut: (u64, u64), len: u64) -> (u64, u64) {
    let (a, b) = (cut.0 % (len + 1), cut.1 % (len + 1));
    (a.min(b), a.max(b))
}

fn box_of(cuts: [(u64, u64); 2], shape: [u64; 2]) -> Slice {
    let ranges = [range(cuts[0], shape[0]), range(cuts[1], shape[1])];
    let (offsets, lengths) = ranges.iter().map(|(a, b)| (*a, b - a)).unzip();
    Slice::new(offsets, lengths).unwrap()
}

/// The value of the element at `row`, `column`.
fn element(row: u64, column: u64) -> [u8; 4] {
    u32::try_from(row * 100_003 + column).unwrap().to_le_bytes()
}

fn bytes_of(slice: &Slice) -> Vec<u8> {
    let (rows, columns) = (slice.ranges().next().unwrap(), slice.ranges().nth(1).unwrap());
    rows.flat_map(|row| columns.clone().flat_map(move |column| element(row, column))).collect()
}

/// A checkpoint with one tensor of this shape, in pieces split at these rows and columns.
fn stored(shape: [u64; 2], split: (u64, u64)) -> (MemoryStorage, Wanted) {
    let storage = MemoryStorage::new();
    let spec = TensorSpec::new(Dtype::U32, shape).unwrap();
    let mut state = StateDict::new();
    let (row, column) = (split.0 % shape[0], split.1 % shape[1]);
    for (top, bottom) in [(0, row), (row, shape[0])] {
        for (left, right) in [(0, column), (column, shape[1])] {
            let slice = Slice::new(vec![top, left], vec![bottom - top, right - left]).unwrap();
            if slice.elements() > 0 {
                let (name, bytes) = (TensorName::new("t").unwrap(), bytes_of(&slice));
                let added = Component::model();
                state.add_slice(&added, name, spec.clone(), slice, Arc::new(bytes)).unwrap();
            }
        }
    }
    let (group, path) = (ProcessGroup::solo(), CheckpointPath::parse("runs/a").unwrap());
    save(&group, &storage, &path, &state, &SaveOptions::default()).unwrap();
    (storage, Wanted::parse("runs/a").unwrap())
}

fn fills(shape: [u64; 2], split: (u64, u64), boxes: &[[(u64, u64); 2]]) {
    let (storage, at) = stored(shape, split);
    let found = find(&storage, &at).unwrap();
    let spec = TensorSpec::new(Dtype::U32, shape).unwrap();
    let wanted: Vec<_> = boxes
        .iter()
        .map(|cuts| {
            let name = TensorName::new("t").unwrap();
            WantedBox::new(name, spec.clone(), box_of(*cuts, shape)).unwrap()
        })
        .collect();
    let (plan, _) = plan_load(&found.manifest, &wanted, &LoadRules::default());
    let here = std::thread::current().id();
    let room = |w: &WantedBox| vec![0u8; usize::try_from(w.size_bytes()).unwrap()];
    let mut memory: Vec<_> = wanted.iter().map(room).collect();
    let mut elsewhere: Vec<_> = wanted.iter().map(|w| Elsewhere(room(w), here)).collect();
    let mut slices: Vec<_> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let sinks = slices.iter_mut().zip(&mut elsewhere).enumerate();
    let mut sinks: Vec<&mut dyn TensorSink> = sinks
        .map(|(index, (slice, other))| -> &mut dyn TensorSink {
            if index % 3 == 2 { other } else { slice }
        })
        .collect();
    let reader = ShardReader::of(found.dir.clone(), &found.manifest);
    fill(&reader, &plan, &wanted, Sharing::Alone, &mut sinks).unwrap();
    for (index, wanted) in wanted.iter().enumerate() {
        let got = if index % 3 == 2 { &elsewhere[index].0 } else { &memory[index] };
        assert!(*got == bytes_of(wanted.slice()), "box {index}: {}", wanted.slice());
    }
}

/// Long enough for several threads, and for scattered ranges to be taken apart.
#[test]
fn columns_of_a_large_tensor_and_boxes_elsewhere() {
    let columns = |from, to| [(0, 1500), (from, to)];
    let boxes = [columns(0, 1100), columns(1, 1000), columns(3, 1099), columns(0, 7)];
    fills([1500, 1100], (1400, 0), &boxes);
    fills([1500, 1100], (0, 550), &boxes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_box_is_filled(
        shape in (1u64..400, 1u64..300),
        split in (0u64..400, 0u64..300),
        boxes in prop::collection::vec([(0u64..1000, 0u64..1000), (0u64..1000, 0u64..1000)], 1..7),
    ) {
        fills([shape.0, shape.1], split, &boxes);
    }
}
