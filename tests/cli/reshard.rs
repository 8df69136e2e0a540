//! `reshard`.

use std::sync::Arc;

use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::group::Deadlines;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ProcessGroup, SaveOptions, WorldSize, save};

use crate::snapshot::{Made, assert_snapshot, verb, verb_lines};
use crate::{Folder, assert_code, entries, flip, shard};

/// Saved by two ranks, of which each holds half of the columns of a tensor: no piece of it is
/// contiguous. Its bytes.
fn by_columns(folder: &Folder, name: &str, has_values: bool) -> String {
    let at = folder.at(name);
    let spec = TensorSpec::new(Dtype::F32, [300, 70]).unwrap();
    let groups = ProcessGroup::threads(WorldSize::new(2).unwrap(), Deadlines::default());
    std::thread::scope(|scope| {
        for group in groups {
            let (at, spec) = (&at, spec.clone());
            scope.spawn(move || {
                let rank = u64::from(group.rank().get());
                let slice = Slice::new(vec![0, rank * 35], vec![300, 35]).unwrap();
                let numbers = (0..300 * 35).map(|i| (i / 35 * 70 + rank * 35 + i % 35) as f32);
                let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
                let mut state = StateDict::new();
                let name = TensorName::new("columns").unwrap();
                let model = Component::model();
                state.add_slice(&model, name, spec, slice, Arc::new(bytes)).unwrap();
                if has_values {
                    state.rank_values.set("rng.cpu", vec![u8::try_from(rank).unwrap(); 4]);
                }
                let path = CheckpointPath::parse(at).unwrap();
                let options = SaveOptions { step: 7, epoch: 2, ..SaveOptions::default() };
                save(&group, &LocalStorage::new(), &path, &state, &options).unwrap();
                group.finish().unwrap();
            });
        }
    });
    at
}

#[track_caller]
fn assert_equal(a: &str, b: &str) {
    let diff = verb("diff", a, &[b]);
    assert_code(&diff, 0);
}

#[test]
fn a_checkpoint_is_the_same_in_any_number_of_ranks() {
    let folder = Folder::new();
    let odd: Vec<u8> = (0..100_003u32).map(|i| i.to_le_bytes()[0]).collect();
    let made = Made::new(12, 3).metric("loss", 0.25).floats("a.w", &[64, 8], &[0.5; 512]);
    let made = made.tensor("odd", Dtype::U8, &[100_003], odd).floats("scalar", &[], &[3.0]);
    let made = made.tensor_of("optimizer", "empty", Dtype::F16, &[0, 4], Vec::new());
    let one = made.save(&folder);
    let mut last = one.clone();
    for ranks in ["5", "2", "1"] {
        let to = folder.at(&format!("ranks-{ranks}"));
        let ran = verb("reshard", &last, &["-o", &to, "--world-size", ranks]);
        if ranks == "5" {
            assert_snapshot("reshard", &ran, &folder);
        }
        assert_code(&ran, 0);
        assert_code(&verb("verify", &to, &[]), 0);
        assert_equal(&one, &to);
        let files = entries(to.as_ref());
        let of_model = files.iter().filter(|name| name.starts_with("model-0")).count();
        assert_eq!(of_model.to_string(), ranks, "{files:?}");
        last = to;
    }
    // Whole tensors have an index again.
    assert!(entries(last.as_ref()).contains(&"model.safetensors.index.json".to_owned()));
}

#[test]
fn pieces_of_any_place_are_read_in_order() {
    let folder = Folder::new();
    let columns = by_columns(&folder, "columns", false);
    for ranks in ["1", "3"] {
        let to = folder.at(&format!("ranks-{ranks}"));
        let ran = verb("reshard", &columns, &["-o", &to, "--world-size", ranks]);
        assert_code(&ran, 0);
        assert_equal(&columns, &to);
    }
    let floats: Vec<f32> = (0..300 * 70).map(|i| i as f32).collect();
    let whole = Made::new(7, 2).floats("columns", &[300, 70], &floats).save_as(&folder, "whole");
    assert_equal(&whole, &folder.at("ranks-3"));
}

#[test]
fn values_of_ranks_stay_with_their_ranks_and_what_is_left_out_is_told() {
    let folder = Folder::new();
    let two = by_columns(&folder, "two", true);
    let again = folder.at("again");
    let same = verb("reshard", &two, &["-o", &again, "--world-size", "2"]);
    assert_code(&same, 0);
    assert!(!same.stdout.contains("left out"), "{}", same.stdout);
    assert_equal(&two, &again);
    let to = folder.at("one");
    let ran = verb("reshard", &two, &["-o", &to, "--world-size", "1", "--json"]);
    assert_snapshot("reshard_json", &ran, &folder);
    let values = verb("inspect", &to, &["--json"]).stdout;
    assert!(values.contains("reshard.world_size"), "{values}");
}

#[test]
fn nothing_appears_if_something_is_wrong() {
    let folder = Folder::new();
    let made = Made::new(1, 1).floats("w", &[64, 64], &[0.5; 4096]).save(&folder);
    let taken = Made::new(2, 1).floats("w", &[2], &[0.5; 2]).save(&folder);
    let ran = verb("reshard", &made, &["-o", &taken, "--world-size", "2"]);
    assert_code(&ran, 7);
    assert_code(&verb("reshard", &made, &["-o", &taken, "--world-size", "2", "--force"]), 0);
    assert_equal(&made, &taken);
    for ranks in ["0", "5000", "many"] {
        assert_code(&verb("reshard", &made, &["-o", "x", "--world-size", ranks]), 2);
    }
    let missing = folder.at("missing");
    assert_code(&verb("reshard", &missing, &["-o", "x", "--world-size", "2"]), 7);
    flip(&shard(&made), 4096 + 70);
    let out = folder.at("out");
    let damaged = verb("reshard", &made, &["-o", &out, "--world-size", "2"]);
    assert_code(&damaged, 3);
    assert!(damaged.stderr.contains("tensor `w`"), "{}", damaged.stderr);
    let visible = folder.entries().into_iter().filter(|name| !name.starts_with(".tch"));
    assert_eq!(visible.collect::<Vec<_>>(), ["step-0001", "step-0002"]);
}

#[test]
fn who_saved_first_is_told_however_often_it_is_written_anew() {
    let folder = Folder::new();
    let mut last = by_columns(&folder, "two", true);
    for (name, ranks) in [("a", "3"), ("b", "5"), ("c", "5")] {
        let to = folder.at(name);
        assert_code(&verb("reshard", &last, &["-o", &to, "--world-size", ranks]), 0);
        let inspected = verb("inspect", &to, &["--json"]).stdout;
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["values"]["reshard.world_size"], 2);
        last = to;
    }
}

/// Names of all that `diff` tells, but for the number of ranks.
fn differences(a: &str, b: &str) -> Vec<String> {
    let mut objects = verb_lines(&verb("diff", a, &[b, "--json"]));
    assert_eq!(objects.pop().unwrap()["kind"], "summary");
    objects.iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect()
}

/// Boxes of a 3-dimensional tensor as shards of shards leave them, of every dtype, with names of
/// their own, files, and a few bytes for many ranks.
#[test]
fn everything_is_the_same_in_any_number_of_ranks() {
    let folder = Folder::new();
    let mut made = Made::new(3, 1).metric("loss", f64::NAN).automatic();
    for (number, dtype) in Dtype::ALL.iter().copied().enumerate() {
        let (shape, size) = ([6u64, 5, 8], usize::try_from(dtype.size_bytes()).unwrap());
        let spec = TensorSpec::new(dtype, shape).unwrap();
        let name = TensorName::new(format!("boxes.{dtype}")).unwrap();
        let component = Component::new(["model", "optimizer"][number % 2]).unwrap();
        for (offsets, lengths) in [
            ([0, 0, 0], [3, 5, 3]),
            ([3, 0, 0], [3, 2, 3]),
            ([3, 2, 0], [3, 3, 3]),
            ([0, 0, 3], [6, 5, 5]),
        ] {
            let slice = Slice::new(offsets.to_vec(), lengths.to_vec()).unwrap();
            let len = usize::try_from(slice.elements()).unwrap() * size;
            let bytes: Vec<u8> = (0..len).map(|i| u8::from((i * 7 + number) % 3 == 0)).collect();
            let bytes = Arc::new(bytes);
            made.state.add_slice(&component, name.clone(), spec.clone(), slice, bytes).unwrap();
        }
        let scalar = format!("scalar.{dtype}");
        made = made.tensor(&scalar, dtype, &[], vec![1; size]);
        made = made.tensor_of("empty", &format!("empty.{dtype}"), dtype, &[3, 0, 2], Vec::new());
    }
    made.state
        .add_alias(TensorName::new("tied").unwrap(), TensorName::new("scalar.F32").unwrap())
        .unwrap();
    made.state.attach_file("code/model.rs".to_owned(), b"fn main() {}".to_vec()).unwrap();
    made.state.rank_values.set("rng.cpu", vec![1u8; 9]);
    let one = made.save(&folder);
    let before = std::fs::read(std::path::Path::new(&one).join("manifest.bin")).unwrap();
    for ranks in ["1", "3", "7", "64"] {
        let to = folder.at(&format!("ranks-{ranks}"));
        assert_code(&verb("reshard", &one, &["-o", &to, "--world-size", ranks]), 0);
        assert_code(&verb("verify", &to, &[]), 0);
        // No rule removes what somebody has asked for.
        let mut marked = vec!["checkpoint.automatic", "reshard.world_size"];
        marked.truncate(if ranks == "1" { 1 } else { 2 });
        assert_eq!(differences(&one, &to), marked);
        let back = folder.at(&format!("back-{ranks}"));
        assert_code(&verb("reshard", &to, &["-o", &back, "--world-size", "1"]), 0);
        let again = verb("reshard", &back, &["-o", &back, "--world-size", "2", "--force"]);
        assert_code(&again, 0);
        assert_code(&verb("verify", &back, &[]), 0);
        let marked: &[&str] = if ranks == "1" { &["reshard.world_size"] } else { &[] };
        assert_eq!(differences(&to, &back), marked);
    }
    assert_eq!(std::fs::read(std::path::Path::new(&one).join("manifest.bin")).unwrap(), before);
}
