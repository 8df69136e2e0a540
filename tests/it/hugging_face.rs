//! Directories as Hugging Face tools write them: what stock readers see of ours, and what comes back.

mod importing;
mod places;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use tch_checkpoint::catalog;
use tch_checkpoint::export::{ExportOptions, Exported, HuggingFace, export};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::import::{ImportOptions, import};
use tch_checkpoint::load::{Atomicity, load, read_tensor};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict, Value};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ErrorKind, Result, SaveOptions, save};

use crate::harness::*;

const OUT: &str = "out/hf";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "{\n  \"model_type\": \"gpt2\", \"n_layer\": 2\n}\n";

/// Files of at most so many bytes; the model alone.
fn shards_of(max_shard_bytes: u64) -> ExportOptions {
    let hugging_face = Some(HuggingFace { max_shard_bytes, ..HuggingFace::default() });
    ExportOptions { hugging_face, ..ExportOptions::default() }
}

fn everything(max_shard_bytes: u64) -> ExportOptions {
    ExportOptions { components: None, ..shards_of(max_shard_bytes) }
}

fn alone(storage: &dyn Storage, options: &ExportOptions) -> Result<Exported> {
    export(&ProcessGroup::solo(), storage, &wanted("runs/a"), OUT, options)
}

fn imported(storage: &dyn Storage, from: &str) -> Result<tch_checkpoint::Checkpoint> {
    let options = ImportOptions::default();
    import(&ProcessGroup::solo(), storage, from, &path("runs/b"), &options)
}

/// Dtype, shape and bytes.
type Seen = (String, Vec<u64>, Vec<u8>);

/// What a reader sees that goes by the index if there is one, and knows nothing of us.
fn seen_in(storage: &MemoryStorage, dir: &str, component: &str) -> BTreeMap<String, Seen> {
    let at = |file: &str| Path::new(dir).join(file);
    let read = |file: &str| storage.read(&at(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let index = storage.read(&at(&format!("{component}.safetensors.index.json"))).ok();
    let index: Option<serde_json::Value> = index.map(|text| serde_json::from_slice(&text).unwrap());
    let map: Option<BTreeMap<String, String>> =
        index.as_ref().map(|index| serde_json::from_value(index["weight_map"].clone()).unwrap());
    let mut files: Vec<String> = match &map {
        Some(map) => map.values().cloned().collect(),
        None => vec![format!("{component}.safetensors")],
    };
    files.sort();
    files.dedup();
    let (mut all, mut total) = (BTreeMap::new(), 0);
    for file in files {
        let bytes = read(&file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        for (name, view) in tensors.tensors() {
            if let Some(map) = &map {
                assert_eq!(map.get(&name), Some(&file), "{name}");
            }
            let shape = view.shape().iter().map(|d| *d as u64).collect();
            total += view.data().len();
            let seen = (view.dtype().to_string(), shape, view.data().to_vec());
            assert!(all.insert(name, seen).is_none());
        }
    }
    if let (Some(map), Some(index)) = (&map, &index) {
        assert_eq!(map.len(), all.len());
        assert_eq!(index["metadata"]["total_size"], total);
    }
    all
}

fn expected(tensors: &[TestTensor], generation: u64) -> BTreeMap<String, Seen> {
    let seen = |t: &TestTensor| {
        let bytes = content(&t.name, &t.spec, &Slice::full(t.spec.shape()), generation);
        (t.name.clone(), (t.spec.dtype().to_string(), t.spec.shape().to_vec(), bytes))
    };
    tensors.iter().map(seen).collect()
}

/// Every dtype, 0-dim and empty tensors, split and sharded ones, and one larger than what is read
/// at once.
fn all_kinds() -> Vec<TestTensor> {
    let mut tensors = usual_tensors();
    let every = Dtype::ALL.into_iter();
    tensors.extend(every.map(|d| TestTensor::new(&format!("every.{d}"), d, &[3, 5], None)));
    tensors.push(TestTensor::new("large", Dtype::F32, &[1501, 1703], Some(1)));
    tensors
}

#[test]
fn stock_readers_open_shards_of_one_rank_and_of_four() {
    for ranks in [1, 4] {
        let memory = MemoryStorage::new();
        saved(memory.clone(), ranks, "runs/a", &all_kinds(), 7);
        let exported = alone(&memory, &shards_of(100_000)).unwrap();
        assert!(seen_in(&memory, OUT, "model") == expected(&all_kinds(), 7), "{ranks} ranks");
        let count = exported.files.len();
        assert!(count > 2, "{count}");
        for (number, file) in (1..).zip(&exported.files) {
            let name = format!("model-{number:05}-of-{count:05}.safetensors");
            assert_eq!(file.path, Path::new(OUT).join(name));
            let bytes: u64 = file.tensors.iter().map(|tensor| tensor.spec.size_bytes()).sum();
            assert!(bytes <= 100_000 || file.tensors.len() == 1, "{file:?}");
        }
        assert_eq!(entries(&memory, OUT).len(), count + 1);
        assert_eq!(exported.documents, [Path::new(OUT).join(INDEX)]);
    }
}

#[test]
fn what_fits_is_one_file_without_an_index() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, "runs/a", &usual_tensors(), 1);
    alone(&memory, &shards_of(5_000_000_000)).unwrap();
    assert_eq!(entries(&memory, OUT), ["model.safetensors"]);
    assert!(seen_in(&memory, OUT, "model") == expected(&usual_tensors(), 1));
}

/// Floating tensors are cast, shards are measured afterwards, and integers stay.
#[test]
fn shards_of_another_dtype() {
    let memory = MemoryStorage::new();
    let tensor = |name: &str, dtype| TestTensor::new(name, dtype, &[1000], None);
    let tensors = [tensor("a", Dtype::F32), tensor("b", Dtype::F64), tensor("c", Dtype::I64)];
    saved(memory.clone(), 2, "runs/a", &tensors, 1);
    let options = ExportOptions { cast: Some(Dtype::F16), ..shards_of(4000) };
    alone(&memory, &options).unwrap();
    let seen = seen_in(&memory, OUT, "model");
    let dtypes: Vec<&str> = seen.values().map(|seen| seen.0.as_str()).collect();
    assert_eq!(dtypes, ["F16", "F16", "I64"]);
    assert_eq!(seen["c"], expected(&tensors, 1)["c"]);
    let two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX];
    assert_eq!(entries(&memory, OUT), two);

    saved(memory.clone(), 1, "runs/a", &[tensor("f8", Dtype::F8E5M2)], 1);
    let error = alone(&memory, &ExportOptions { overwrite: true, ..options }).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("f8")));
    assert_eq!(entries(&memory, OUT), two);
}

/// A model with a tied tensor, its description, an optimizer, and averages.
fn full_state(group: &ProcessGroup, tensors: &[TestTensor]) -> StateDict {
    let mut all = state(tensors, group, 4);
    all.add_alias(name("tied"), name("embedding")).unwrap();
    let spec = TensorSpec::new(Dtype::F32, [30]).unwrap();
    for (component, text) in [
        (Component::optimizer(), "optimizer.embedding.exp_avg"),
        (Component::optimizer(), "optimizer.step"),
        (Component::ema(), "ema.embedding"),
    ] {
        let bytes = content(text, &spec, &Slice::full(&[30]), 4);
        all.add(&component, name(text), spec.clone(), Arc::new(bytes)).unwrap();
    }
    all.values.set("model.config", Value::Json(CONFIG.to_owned()));
    all
}

fn saved_in_full(memory: &MemoryStorage, ranks: u32, tensors: Vec<TestTensor>) {
    let storage = memory.clone();
    on_ranks(ranks, move |group| {
        let options = SaveOptions { step: 4, epoch: 2, ..SaveOptions::default() };
        let all = full_state(&group, &tensors);
        save(&group, &storage, &path("runs/a"), &all, &options).unwrap();
    });
}

#[test]
fn there_and_back_every_bit_is_the_same() {
    for (ranks, back, shard_bytes) in [(1, 1, 5_000_000_000), (4, 3, 70_000), (4, 1, 100)] {
        let memory = MemoryStorage::new();
        saved_in_full(&memory, ranks, all_kinds());
        alone(&memory, &everything(shard_bytes)).unwrap();
        let storage = memory.clone();
        on_ranks(back, move |group| {
            import(&group, &storage, OUT, &path("runs/b"), &ImportOptions::default()).unwrap();
        });
        assert_good(&memory, "runs/b");
        let [a, b] =
            ["runs/a", "runs/b"].map(|at| catalog::find(&memory, &wanted(at)).unwrap().manifest);
        assert_eq!((b.step(), b.epoch(), b.world_size().get()), (4, 2, back));
        assert_eq!(a.aliases(), b.aliases());
        assert_eq!(b.values().find("model.config"), Some(&Value::Json(CONFIG.to_owned())));
        let names = |m: &tch_checkpoint::manifest::Manifest| {
            let tensors = m.tensors().iter();
            let all = tensors.map(|t| (t.name.clone(), t.component.clone(), t.spec.clone()));
            all.collect::<Vec<_>>()
        };
        assert_eq!(names(&a), names(&b));
        for tensor in a.tensors() {
            let [a, b] = ["runs/a", "runs/b"]
                .map(|at| read_tensor(&memory, &wanted(at), tensor.name.as_str()).unwrap());
            assert!(a == b, "{} of {ranks} ranks", tensor.name);
        }
    }
}

/// Other components have files of their own, and tools that would open every file have an index.
#[test]
fn components_have_files_of_their_own() {
    let memory = MemoryStorage::new();
    saved_in_full(&memory, 2, usual_tensors());
    let exported = alone(&memory, &everything(5_000_000_000)).unwrap();
    let all =
        ["config.json", "ema.safetensors", "model.safetensors", INDEX, "optimizer.safetensors"];
    assert_eq!(entries(&memory, OUT), all);
    assert_eq!((exported.files.len(), exported.documents.len()), (3, 2));
    assert!(seen_in(&memory, OUT, "model") == expected(&usual_tensors(), 4));
    let optimizer = seen_in(&memory, OUT, "optimizer");
    let names: Vec<&str> = optimizer.keys().map(String::as_str).collect();
    assert_eq!(names, ["optimizer.embedding.exp_avg", "optimizer.step"]);

    let split = ExportOptions { overwrite: true, ..everything(120) };
    alone(&memory, &split).unwrap();
    assert!(seen_in(&memory, OUT, "optimizer") == optimizer);
    let split = entries(&memory, OUT);
    assert!(split.contains(&"optimizer-00002-of-00002.safetensors".to_owned()), "{split:?}");

    let absent = Some(vec![Component::model(), Component::new("sampler").unwrap()]);
    let options = ExportOptions { components: absent, overwrite: true, ..shards_of(1000) };
    assert_eq!(alone(&memory, &options).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(entries(&memory, OUT), split);
}

/// The metadata of its file names the kept tensor; readers of ours fill both names.
#[test]
fn tied_tensors_are_written_once() {
    let memory = MemoryStorage::new();
    saved_in_full(&memory, 1, usual_tensors());
    alone(&memory, &shards_of(70_000)).unwrap();
    let map = seen_in(&memory, OUT, "model");
    assert!(map.contains_key("embedding") && !map.contains_key("tied"));
    let spec = usual_tensors().remove(0).spec;
    let mut buffers = [vec![0; spec.size_bytes() as usize], vec![0; spec.size_bytes() as usize]];
    let mut targets = LoadTargets::new();
    for (text, buffer) in ["embedding", "tied"].iter().zip(&mut buffers) {
        targets.add(name(text), spec.clone(), Box::new(buffer.as_mut_slice())).unwrap();
    }
    let rules = LoadRules { strict: false, ..LoadRules::default() };
    let wanted = wanted(OUT).or_unverified();
    let group = ProcessGroup::solo();
    let loaded = load(&group, &memory, &wanted, &mut targets, &rules, Atomicity::Atomic).unwrap();
    assert_eq!(loaded.report.missing, []);
    drop(targets);
    assert!(buffers[0] == map["embedding"].2 && buffers[1] == buffers[0]);

    let repeat = ExportOptions { repeat_tied: true, overwrite: true, ..shards_of(70_000) };
    alone(&memory, &repeat).unwrap();
    let map = seen_in(&memory, OUT, "model");
    assert_eq!(map["tied"], map["embedding"]);
}

#[test]
fn the_description_of_the_model_passes_through() {
    let memory = MemoryStorage::new();
    let config = || String::from_utf8(memory.read(&Path::new(OUT).join("config.json")).ok()?).ok();
    saved_in_full(&memory, 1, usual_tensors());
    let overwrite = |config: Option<&str>| {
        let form = HuggingFace { config: config.map(str::to_owned), ..HuggingFace::default() };
        let hugging_face = Some(form);
        ExportOptions { hugging_face, overwrite: true, ..ExportOptions::default() }
    };
    alone(&memory, &overwrite(None)).unwrap();
    assert_eq!(config().as_deref(), Some(CONFIG));
    alone(&memory, &overwrite(Some("{\"a\": 1}"))).unwrap();
    assert_eq!(config().as_deref(), Some("{\"a\": 1}"));
    for bad in ["", "[1]", "{\"a\": }", "{} {}"] {
        let error = alone(&memory, &overwrite(Some(bad))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
    }
    assert_eq!(config().as_deref(), Some("{\"a\": 1}"));
    // A configuration that is no object, as that of a small program may be.
    let mut state = state(&usual_tensors(), &ProcessGroup::solo(), 1);
    state.values.set("model.config", Value::Json("[1, 2]".to_owned()));
    let options =
        SaveOptions { on_existing: tch_checkpoint::OnExisting::Replace, ..Default::default() };
    save(&ProcessGroup::solo(), &memory, &path("runs/a"), &state, &options).unwrap();
    alone(&memory, &overwrite(None)).unwrap();
    assert_eq!(config(), None);
}
