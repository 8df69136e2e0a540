use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::error::ErrorKind;
use crate::group::ProcessGroup;
use crate::save::{SaveOptions, save};
use crate::state::StateDict;
use crate::storage::{MemoryStorage, Storage};
use crate::tensor::Component;

fn saved(dtype: Dtype, bytes: Vec<u8>) -> Found {
    let storage = MemoryStorage::new();
    let mut state = StateDict::new();
    let elements = bytes.len() as u64 / dtype.size_bytes();
    let spec = TensorSpec::new(dtype, [elements]).unwrap();
    state.add(&Component::model(), TensorName::new("a.w").unwrap(), spec, Arc::new(bytes)).unwrap();
    let path = CheckpointPath::parse("runs/x").unwrap();
    save(&ProcessGroup::solo(), &storage, &path, &state, &SaveOptions::default()).unwrap();
    find(&storage, &Wanted::parse("runs/x").unwrap()).unwrap()
}

fn of(dtype: Dtype, bytes: Vec<u8>) -> Statistics {
    statistics(&saved(dtype, bytes), "a.w", &mut |_| {}).unwrap()
}

fn of_floats(floats: &[f32]) -> Statistics {
    of(Dtype::F32, floats.iter().flat_map(|x| x.to_le_bytes()).collect())
}

#[test]
fn floats_are_counted_and_what_is_not_finite_is_left_out() {
    let found = of_floats(&[1.0, -1.0, 0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 4.0]);
    assert_eq!((found.numbers, found.nan, found.infinite, found.zeros), (8, 1, 2, 2));
    assert_eq!(found.range, Some((Number::Float(-1.0), Number::Float(4.0))));
    assert!((found.mean - 0.8).abs() < 1e-12);
    // The variance is (0.2² + 1.8² + 0.8² + 0.8² + 3.2²) / 5.
    assert!((found.deviation - 2.96f64.sqrt()).abs() < 1e-12);
    let counts: Vec<u64> = found.histogram.iter().map(|bin| bin.count).collect();
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (16, 5));
    assert_eq!((counts[0], counts[3], counts[6], counts[15]), (1, 2, 1, 1));
    assert_eq!(found.histogram[15].to, Number::Float(4.0));
}

#[test]
fn nothing_and_one_number_have_statistics() {
    let none = of_floats(&[]);
    assert_eq!((none.numbers, none.range, none.mean, none.histogram.len()), (0, None, 0.0, 0));
    assert_eq!(of_floats(&[f32::NAN]).range, None);
    let one = of_floats(&[7.0, 7.0]);
    assert_eq!((one.histogram.len(), one.histogram[0].count, one.deviation), (1, 2, 0.0));
}

#[test]
fn the_widest_range_does_not_overflow() {
    let ends = [f64::MAX, -f64::MAX];
    let found = of(Dtype::F64, ends.iter().flat_map(|x| x.to_le_bytes()).collect());
    assert_eq!((found.histogram[0].count, found.histogram[15].count), (1, 1));
    assert_eq!(found.histogram[15].to, Number::Float(f64::MAX));
}

#[test]
fn integers_are_exact_and_few_have_a_bin_each() {
    let ends = of(Dtype::I64, [i64::MIN, i64::MAX, i64::MAX - 1].map(i64::to_le_bytes).concat());
    let range = (Number::Integer(i64::MIN.into()), Number::Integer(i64::MAX.into()));
    assert_eq!(ends.range, Some(range));
    assert_eq!(ends.histogram.iter().map(|bin| bin.count).sum::<u64>(), 3);
    let few = of(Dtype::Bool, vec![0, 1, 1]);
    let counts: Vec<_> = few.histogram.iter().map(|b| (b.from, b.to, b.count)).collect();
    let (zero, one) = (Number::Integer(0), Number::Integer(1));
    assert_eq!(counts, [(zero, zero, 1), (one, one, 2)]);
    assert_eq!(of(Dtype::U8, (0..=255).collect()).histogram.len(), 16);
}

/// More than one part, so that what is merged is compared with what is summed up at once.
#[test]
fn tensors_of_several_parts_are_merged() {
    let floats: Vec<f32> = (0..2_200_000u32).map(|i| (i % 1000) as f32).collect();
    let found = of_floats(&floats);
    assert_eq!(found.numbers, 2_200_000);
    assert!((found.mean - 499.5).abs() < 1e-9, "{}", found.mean);
    let expected = ((1_000_000.0f64 - 1.0) / 12.0).sqrt();
    assert!((found.deviation - expected).abs() < 1e-6, "{}", found.deviation);
    assert_eq!(found.histogram.iter().map(|bin| bin.count).sum::<u64>(), 2_200_000);
}

#[test]
fn names_that_are_near_are_proposed() {
    let found = saved(Dtype::U8, vec![1]);
    for name in ["a.v", "w"] {
        let error = statistics(&found, name, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.help(), Some("did you mean `a.w`?"), "{name}");
    }
    let far = statistics(&found, "something else", &mut |_| {}).unwrap_err();
    assert!(far.message().contains("a.w"), "{far}");
}

#[test]
fn a_damaged_tensor_has_none() {
    let storage = MemoryStorage::new();
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, [100]).unwrap();
    let name = TensorName::new("w").unwrap();
    state.add(&Component::model(), name, spec, Arc::new(vec![1u8; 100])).unwrap();
    let path = CheckpointPath::parse("runs/x").unwrap();
    save(&ProcessGroup::solo(), &storage, &path, &state, &SaveOptions::default()).unwrap();
    let found = find(&storage, &Wanted::parse("runs/x").unwrap()).unwrap();
    let file = &found.manifest.data_files()[0];
    let dir = storage.open_dir(Path::new("runs/x")).unwrap();
    dir.open_for_writing(&file.name).unwrap().write_at(file.data_start + 3, &[9]).unwrap();
    let error = statistics(&found, "w", &mut |_| {}).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Corrupt, Some("w")));
}
