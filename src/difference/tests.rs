use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::error::ErrorKind;
use crate::group::ProcessGroup;
use crate::save::{SaveOptions, save};
use crate::state::{StateDict, Value};
use crate::storage::{MemoryStorage, Storage};
use crate::tensor::{Component, Dtype};

struct Pairing {
    storage: MemoryStorage,
}

impl Pairing {
    fn new() -> Self {
        Self { storage: MemoryStorage::new() }
    }

    fn save(&self, name: &str, step: u64, state: &StateDict) -> Found {
        let path = CheckpointPath::parse(format!("runs/{name}")).unwrap();
        let options = SaveOptions { step, ..SaveOptions::default() };
        save(&ProcessGroup::solo(), &self.storage, &path, state, &options).unwrap();
        find(&self.storage, &Wanted::parse(format!("runs/{name}")).unwrap()).unwrap()
    }

    fn spoil(&self, found: &Found, offset: u64) {
        let file = &found.manifest.data_files()[0];
        let dir = self.storage.open_dir(Path::new("runs").join(found.name.as_str()).as_path());
        let file_for_writing = dir.unwrap().open_for_writing(&file.name).unwrap();
        file_for_writing.write_at(file.data_start + offset, &[0xA5]).unwrap();
    }
}

fn with(tensors: &[(&str, &[u64], Vec<f32>)]) -> StateDict {
    let mut state = StateDict::new();
    for (name, shape, floats) in tensors {
        let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        let spec = TensorSpec::new(Dtype::F32, shape.to_vec()).unwrap();
        let name = TensorName::new(*name).unwrap();
        state.add(&Component::model(), name, spec, Arc::new(bytes)).unwrap();
    }
    state
}

#[test]
fn the_same_state_is_equal_and_not_read() {
    let both = Pairing::new();
    let state = with(&[("a", &[3], vec![1.0, 2.0, f32::NAN]), ("b", &[0], vec![])]);
    let (a, b) = (both.save("a", 7, &state), both.save("b", 7, &state));
    both.spoil(&a, 0);
    let mut bytes = 0;
    let found = difference(&a, &b, &mut |n| bytes += n).unwrap();
    assert!(found.is_equal() && found.equal_tensors == 2, "{found:?}");
    assert_eq!(bytes, 12);
}

#[test]
fn every_kind_of_difference_is_found() {
    let both = Pairing::new();
    let mut old = with(&[
        ("gone", &[1], vec![1.0]),
        ("same", &[2], vec![1.0, 2.0]),
        ("shape", &[2, 1], vec![1.0, 2.0]),
        ("value", &[2], vec![3.0, 4.0]),
    ]);
    old.values.set("lr", 0.5);
    old.values.set("nan", f64::NAN);
    let mut new = with(&[
        ("new", &[1], vec![1.0]),
        ("same", &[2], vec![1.0, 2.0]),
        ("shape", &[1, 2], vec![1.0, 2.0]),
        ("value", &[2], vec![3.0, 9.0]),
    ]);
    new.values.set("nan", f64::NAN);
    new.values.set("x", 1);
    new.rank_values.set("seed", 4);
    let found =
        difference(&both.save("a", 1, &old), &both.save("b", 2, &new), &mut |_| {}).unwrap();
    let kinds: Vec<_> = found.tensors.iter().map(|t| (t.name.as_str(), &t.change)).collect();
    assert!(
        matches!(
            kinds[..],
            [
                ("gone", Change::Removed(_)),
                ("new", Change::Added(_)),
                ("shape", Change::Reshaped(..)),
                ("value", Change::Changed(_, Distance { relative_l2: 1.0, max_abs: 5.0, .. })),
            ]
        ),
        "{kinds:?}"
    );
    let values: Vec<_> = found.values.iter().map(|v| (v.name.as_str(), v.rank.is_some())).collect();
    assert_eq!(values, [("lr", false), ("x", false), ("seed", true)]);
    assert_eq!(found.values[0].old, Some(Value::Float(0.5)));
    assert_eq!((found.step, found.epoch, found.equal_tensors), (Some((1, 2)), None, 1));
    assert!(!found.is_equal());
}

#[test]
fn a_dtype_that_changed_is_compared_as_numbers() {
    let both = Pairing::new();
    let old = with(&[("w", &[2], vec![1.0, 0.1])]);
    let mut new = StateDict::new();
    let spec = TensorSpec::new(Dtype::BF16, [2]).unwrap();
    let bytes = Arc::new(vec![0x80u8, 0x3f, 0xcd, 0x3d]);
    new.add(&Component::model(), TensorName::new("w").unwrap(), spec, bytes).unwrap();
    let found =
        difference(&both.save("a", 1, &old), &both.save("b", 1, &new), &mut |_| {}).unwrap();
    let Change::Retyped(_, _, distance) = &found.tensors[0].change else { panic!("{found:?}") };
    assert_eq!((distance.numbers, distance.changed), (2, 1));
    assert!(distance.max_abs < 1e-3 && distance.max_abs > 0.0);
}

/// Another layout has other pieces, so that bytes decide; more of them than fit into one part.
#[test]
fn large_tensors_are_compared_part_by_part() {
    let both = Pairing::new();
    let mut floats = vec![1.0f32; 2_200_000];
    let a = both.save("a", 1, &with(&[("w", &[2_200_000], floats.clone())]));
    floats[2_199_999] = 2.0;
    let b = both.save("b", 1, &with(&[("w", &[2_200_000], floats)]));
    let found = difference(&a, &b, &mut |_| {}).unwrap();
    let Change::Changed(_, distance) = &found.tensors[0].change else { panic!("{found:?}") };
    assert_eq!((distance.numbers, distance.changed, distance.max_abs), (2_200_000, 1, 1.0));
    assert!((distance.relative_l2 - 1.0 / 2_200_000f64.sqrt()).abs() < 1e-12);
}

#[test]
fn damage_in_what_has_to_be_read_is_an_error() {
    let both = Pairing::new();
    let a = both.save("a", 1, &with(&[("w", &[2], vec![1.0, 2.0])]));
    let b = both.save("b", 1, &with(&[("w", &[2], vec![1.0, 3.0])]));
    both.spoil(&b, 1);
    let error = difference(&a, &b, &mut |_| {}).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Corrupt, Some("w")));
}

#[test]
fn a_tie_that_was_cut_is_no_difference_while_the_numbers_are_the_same() {
    let both = Pairing::new();
    let mut tied = with(&[("a", &[1], vec![1.0])]);
    tied.add_alias(TensorName::new("b").unwrap(), TensorName::new("a").unwrap()).unwrap();
    let two = with(&[("a", &[1], vec![1.0]), ("b", &[1], vec![1.0])]);
    let found =
        difference(&both.save("x", 1, &tied), &both.save("y", 1, &two), &mut |_| {}).unwrap();
    assert!(found.is_equal() && found.equal_tensors == 2, "{found:?}");
}
