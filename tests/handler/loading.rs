//! Loading what does not fit, is not there, or is no checkpoint of a handler.

use std::path::Path;
use std::sync::Arc;

use tch::{Device, Tensor};
use tch_checkpoint::handler::{LoadOptions, Model, NNHandler};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{StateDict, Value};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::torch::EmaConfig;
use tch_checkpoint::{CheckpointPath, Error, ErrorKind, ProcessGroup, Replicas, Result};

use crate::harness::*;
use crate::models::*;

fn saved_bag(items: &'static [(&'static str, &'static [i64])]) -> MemoryStorage {
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(1, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let items: Vec<BagItem> = items.iter().map(|(n, s)| item(n, s, "f32")).collect();
        bag::<Bag>(&group, &storage, &items).unwrap().save("runs/bag").unwrap();
    });
    memory
}

fn load_on<M: Model>(n: u32, memory: &MemoryStorage, path: &'static str) -> Vec<Result<String>> {
    let inner = memory.clone();
    on_ranks(n, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        NNHandler::<M>::load(path, options(&group, &storage))?.state_hash()
    })
}

#[test]
fn a_model_that_changed_is_refused_with_every_difference() {
    let memory = saved_bag(&[
        ("fine", &[2]),
        ("gone", &[2]),
        ("old_name", &[2]),
        ("shape", &[2, 3]),
        ("wider", &[1]),
        ("dtype", &[2]),
    ]);
    for n in [1, 3] {
        let error = one_error(&load_on::<ChangedBag>(n, &memory, "runs/bag"));
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        let text = error.message();
        for name in ["gone", "old_name", "new_name", "shape", "wider", "dtype", "added"] {
            assert!(text.contains(name), "{name} is not in: {text}");
        }
        assert!(!text.contains("fine"), "{text}");
    }
    assert!(load_on::<Bag>(2, &memory, "runs/bag").iter().all(Result::is_ok));
}

/// Each difference by itself, so that none hides behind another.
#[test]
fn each_difference_alone_is_refused() {
    const CASES: [&[(&str, &[i64])]; 3] =
        [&[("shape", &[2, 3])], &[("wider", &[1])], &[("dtype", &[2])]];
    for items in CASES {
        let memory = saved_bag(items);
        let lenient = on_ranks(1, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(memory.clone());
            let options = LoadOptions { lenient: true, ..options(&group, &storage) };
            NNHandler::<ChangedBag>::load("runs/bag", options).map(drop)
        });
        let error = one_error(&lenient);
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{items:?}: {error}");
        assert!(error.message().contains(items[0].0), "{error}");
    }
}

#[test]
fn a_lenient_load_ignores_names_of_one_side_and_leaves_ranks_equal() {
    let memory = saved_bag(&[("fine", &[2]), ("gone", &[2])]);
    assert_eq!(
        one_error(&load_on::<ChangedBag>(2, &memory, "runs/bag")).kind(),
        ErrorKind::Mismatch
    );
    let hashes = on_ranks(3, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let options = LoadOptions { lenient: true, ..options(&group, &storage) };
        let handler = NNHandler::<ChangedBag>::load("runs/bag", options).unwrap();
        let variables = handler.vars().variables();
        assert!(variables["fine"].equal(&ramp(&[2], 3.0)));
        assert!(variables["added"].int64_value(&[]) > 0, "the initial value stays");
        let report = handler.load_report().unwrap();
        assert!(report.missing.iter().any(|name| name.as_str().contains("added")), "{report:?}");
        assert_eq!((report.times.world_size, report.times.ranks.len()), (3, 3));
        handler.state_hash().unwrap()
    });
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "ranks differ in what was missing");
}

#[test]
fn what_is_not_there_or_no_checkpoint_is_not_found() {
    let memory = saved_bag(&[("fine", &[2])]);
    memory.create_dir_all(Path::new("runs/notes")).unwrap();
    memory.write(Path::new("runs/notes/model.safetensors"), b"{}").unwrap();
    memory.write(Path::new("runs/file"), b"").unwrap();
    memory.create_dir_all(Path::new("empty")).unwrap();
    for path in ["runs/none", "nowhere/a", "runs/notes", "runs/file", "empty/latest"] {
        let error = one_error(&load_on::<Bag>(2, &memory, path));
        assert_eq!(error.kind(), ErrorKind::NotFound, "{path}: {error}");
    }
    for path in ["", "/", "..", "runs/..", "runs/.hidden"] {
        let error = one_error(&load_on::<Bag>(2, &memory, path));
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}: {error}");
    }
    let error = one_error(&load_on::<Bag>(1, &memory, "runs/none"));
    assert!(error.to_string().contains("bag"), "what there is: {error}");
    let error = one_error(&load_on::<Bag>(1, &memory, "runs/file"));
    assert!(error.to_string().contains("this file is no checkpoint"), "{error}");
}

/// Saves `state` as the core does, and loads it as a handler.
fn load_state(state: impl Fn(&ProcessGroup) -> StateDict + Send + Sync + 'static) -> Error {
    let results = on_ranks(2, move |group| {
        // Each rank alone with its own storage: the same verdict all the same.
        let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
        let path = CheckpointPath::parse("runs/core").unwrap();
        save(&solo, &*storage, &path, &state(&group), &SaveOptions::default()).unwrap();
        NNHandler::<Net>::load("runs/core", options(&solo, &storage)).map(drop)
    });
    one_error(&results)
}

#[test]
fn a_checkpoint_that_no_handler_saved_is_refused_clearly() {
    let error = load_state(|_| {
        let mut state = StateDict::new();
        let spec = TensorSpec::new(Dtype::F32, [1]).unwrap();
        let name = TensorName::new("w").unwrap();
        state.add(&Component::model(), name, spec, Arc::new([0u8; 4])).unwrap();
        state
    });
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("handler"), "{error}");
}

/// Values of a checkpoint are another program's: none of them may end in a panic.
#[test]
fn values_that_make_no_sense_are_refused() {
    type Change = fn(&mut StateDict);
    let changes: [(&str, Change); 11] = [
        ("epoch", |s| s.values.set("trainer.epoch", -1i64)),
        ("epoch", |s| s.values.set("trainer.epoch", i64::MAX)),
        ("step", |s| s.values.set("trainer.step", "three")),
        ("seed", |s| s.values.set("trainer.seed", "no seed")),
        ("history", |s| s.values.set("history.loss", vec![1.0; 9])),
        ("model.config", |s| s.values.set("model.config", Value::Json("{".to_owned()))),
        ("optimizer.lr", |s| s.values.set("optimizer.lr", vec![1.0; 3])),
        ("optimizer.lr", |s| s.values.set("optimizer.lr", vec![f64::NAN])),
        ("optimizer.weight_decay", |s| s.values.set("optimizer.weight_decay", vec![f64::INFINITY])),
        ("auto_saver", |s| s.values.set("auto_saver", Value::Json("[]".to_owned()))),
        ("random state", |s| s.rank_values.set("rng.cpu", vec![1u8; 3])),
    ];
    for (what, change) in changes {
        let error = load_state(move |_| {
            let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
            let mut handler = usual(&solo, &storage);
            handler.train(1).unwrap();
            let mut state = handler.state_dict().unwrap();
            change(&mut state);
            state
        });
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
    }
}

#[test]
fn a_device_that_is_not_there_becomes_the_cpu() {
    if tch::Cuda::is_available() {
        return;
    }
    let memory = saved_bag(&[("fine", &[2])]);
    on_ranks(1, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let options = LoadOptions { device: Some(Device::Cuda(0)), ..options(&group, &storage) };
        let handler = NNHandler::<Bag>::load("runs/bag", options).unwrap();
        assert_eq!(handler.device(), Device::Cpu);
    });
}

#[test]
fn what_the_user_adds_comes_back() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut handler = usual(&solo, &storage);
    handler.user_values_mut().set("run", "a-7");
    handler.save("runs/named").unwrap();
    let again = loaded(&solo, &storage, "runs/named").unwrap();
    assert_eq!(again.user_values().text("run").unwrap(), "a-7");
    assert_eq!(again.user_values(), handler.user_values());
}

/// Epochs go on being counted, and new series are as long as they are many.
#[test]
fn a_load_without_history_begins_the_series_anew() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut first = usual(&solo, &storage);
    first.train(2).unwrap();
    first.save("runs/two").unwrap();
    let without = LoadOptions { skip_history: true, ..options(&solo, &storage) };
    let mut second = equip(NNHandler::<Net>::load("runs/two", without).unwrap());
    assert_eq!((second.epoch(), second.history().series("loss").len()), (2, 0));
    second.save("runs/again").unwrap();
    assert_eq!(loaded(&solo, &storage, "runs/again").unwrap().history().epochs(), 2);
    second.train(1).unwrap();
    let loss = second.history().series("loss");
    assert!(loss[..2].iter().all(|x| x.is_nan()) && loss[2].is_finite(), "{loss:?}");
}

/// The average of a parameter that the checkpoint lacks begins as the parameter, on every rank.
#[test]
fn a_lenient_load_leaves_averages_equal_too() {
    let (_, storage) = memory();
    let averages = on_ranks(2, move |group| {
        let mut saved = usual(&group, &storage);
        saved.set_ema(EmaConfig::default()).unwrap();
        saved.train(1).unwrap();
        saved.save("runs/net").unwrap();
        let lenient = LoadOptions { lenient: true, ..options(&group, &storage) };
        let grown = NNHandler::<GrownNet>::load("runs/net", lenient).unwrap();
        let number = |tensor: &Tensor| tensor.double_value(&[]);
        let average = grown.ema().unwrap().averages().find(|(name, _)| *name == "added");
        (number(average.unwrap().1), number(&grown.vars().variables()["added"]))
    });
    assert_eq!(averages[0], averages[1]);
    assert_eq!(averages[0].0, averages[0].1);
}

#[test]
fn a_load_that_reads_each_byte_once_and_other_devices_give_the_same_handler() {
    let memory = saved_bag(&[("a", &[40, 7]), ("b", &[3]), ("c", &[])]);
    let expected = one_value(&load_on::<Bag>(3, &memory, "runs/bag"));
    let inner = memory.clone();
    let results = on_ranks(3, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let device_map = vec![(Device::Cpu, Device::Cpu), (Device::Cuda(0), Device::Cpu)];
        let replicas = Replicas::ReadOnce;
        let options = LoadOptions { replicas, device_map, ..options(&group, &storage) };
        NNHandler::<Bag>::load("runs/bag", options)?.state_hash()
    });
    assert_eq!(one_value(&results), expected);
}

/// What all ranks have alike.
fn one_value(results: &[Result<String>]) -> String {
    let values: Vec<&String> = results.iter().map(|result| result.as_ref().unwrap()).collect();
    assert!(values.iter().all(|value| *value == values[0]));
    values[0].clone()
}
