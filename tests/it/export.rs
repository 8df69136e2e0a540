//! Whole tensors as plain files for other programs, at once or not at all.

use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use tch_checkpoint::cast::cast;
use tch_checkpoint::export::{ExportOptions, Exported, export};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ErrorKind, Result, SaveOptions, save};

use crate::harness::*;

const OUT: &str = "out/model.safetensors";

fn whole(tensor: &TestTensor, generation: u64) -> Vec<u8> {
    content(&tensor.name, &tensor.spec, &Slice::full(tensor.spec.shape()), generation)
}

fn alone(storage: &dyn Storage, out: &str, options: &ExportOptions) -> Result<Exported> {
    let wanted = wanted("runs/a").or_unverified();
    export(&ProcessGroup::solo(), storage, &wanted, out, options)
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// Tensors larger than what is read at once, sharded along both dimensions.
fn large_tensors() -> Vec<TestTensor> {
    let mut tensors = usual_tensors();
    tensors.push(TestTensor::new("large.rows", Dtype::F64, &[3001, 701], Some(0)));
    tensors.push(TestTensor::new("large.columns", Dtype::F32, &[1501, 1703], Some(1)));
    tensors
}

#[test]
fn the_safetensors_crate_reads_an_export_of_three_ranks() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 3, "runs/a", &large_tensors(), 7);
    let inner = memory.clone();
    let everyone = on_ranks(2, move |group| {
        let wanted = wanted("runs/latest");
        export(&group, &inner, &wanted, OUT, &ExportOptions::default()).unwrap()
    });
    assert_eq!(everyone[0], everyone[1]);
    let exported = &everyone[0];
    assert_eq!((exported.step, exported.path.to_str()), (7, Some(OUT)));
    assert_eq!(entries(&memory, "out"), ["model.safetensors"]);
    let bytes = memory.read(Path::new(OUT)).unwrap();
    assert_eq!(exported.files[0].bytes, bytes.len() as u64);
    let read = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), large_tensors().len());
    for tensor in large_tensors() {
        let view = read.tensor(&tensor.name).unwrap();
        let shape: Vec<u64> = view.shape().iter().map(|d| *d as u64).collect();
        assert_eq!(shape, tensor.spec.shape(), "{}", tensor.name);
        assert_eq!(view.dtype().to_string(), tensor.spec.dtype().as_str());
        assert!(view.data() == whole(&tensor, 7), "{}", tensor.name);
    }
    let (header_len, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header_len + 8) % 4096, 0);
    let text = metadata.metadata().as_ref().unwrap();
    assert_eq!((text["format"].as_str(), text["tch_checkpoint.source_step"].as_str()), ("pt", "7"));
    assert_eq!(text["tch_checkpoint.source_save_id"], exported.save_id.to_string());
}

#[test]
fn floating_tensors_are_cast_and_others_are_not() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, "runs/a", &large_tensors(), 1);
    let options = ExportOptions { cast: Some(Dtype::BF16), ..ExportOptions::default() };
    let exported = alone(&memory, OUT, &options).unwrap();
    let bytes = memory.read(Path::new(OUT)).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    for tensor in large_tensors() {
        let from = tensor.spec.dtype();
        let is_float = matches!(from, Dtype::F32 | Dtype::F64 | Dtype::BF16);
        let mut expected = whole(&tensor, 1);
        let mut overflowed = 0;
        if is_float {
            let wide = std::mem::take(&mut expected);
            overflowed = cast(from, Dtype::BF16, &wide, &mut expected).unwrap();
        }
        assert!(read.tensor(&tensor.name).unwrap().data() == expected, "{}", tensor.name);
        let told = exported.files[0].tensors.iter().find(|t| t.name.as_str() == tensor.name);
        let told = told.unwrap();
        let is_cast = is_float && from != Dtype::BF16;
        assert_eq!(told.cast_from, is_cast.then_some(from), "{}", tensor.name);
        assert_eq!(told.overflowed, overflowed, "{}", tensor.name);
    }
}

/// A model with tied tensors, wrapped, and an optimizer.
fn saved_tied(storage: &MemoryStorage) {
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::F32, [2]).unwrap();
    let model = Component::model();
    for (index, text) in ["module.dec.out", "module.enc.w", "module.enc.b.x"].iter().enumerate() {
        let bytes = Arc::new(vec![index as u8; 8]);
        state.add(&model, name(text), spec.clone(), bytes).unwrap();
    }
    state.add_alias(name("module.enc.tied"), name("module.dec.out")).unwrap();
    let bytes = Arc::new(vec![9; 8]);
    state.add(&Component::optimizer(), name("optimizer.m"), spec, bytes).unwrap();
    save(&ProcessGroup::solo(), storage, &path("runs/a"), &state, &SaveOptions::default()).unwrap();
}

fn names_in(storage: &MemoryStorage, file: &str) -> Vec<String> {
    let bytes = storage.read(Path::new(file)).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = texts(&read.names());
    names.sort();
    names
}

#[test]
fn tied_tensors_are_written_once_or_under_every_name() {
    let memory = MemoryStorage::new();
    saved_tied(&memory);
    let strip = ExportOptions { strip_prefix: Some("module.".into()), ..ExportOptions::default() };
    alone(&memory, OUT, &strip).unwrap();
    assert_eq!(names_in(&memory, OUT), ["dec.out", "enc.b.x", "enc.w"]);
    let bytes = memory.read(Path::new(OUT)).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["enc.tied"], "dec.out");
    let every = ExportOptions { repeat_tied: true, ..strip };
    alone(&memory, "out/every", &every).unwrap();
    assert_eq!(names_in(&memory, "out/every"), ["dec.out", "enc.b.x", "enc.tied", "enc.w"]);
    let bytes = memory.read(Path::new("out/every")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.tensor("enc.tied").unwrap().data(), [0; 8]);
    assert_eq!(read.tensor("enc.w").unwrap().data(), [1; 8]);
}

#[test]
fn parts_of_a_model_are_files_of_their_own() {
    let memory = MemoryStorage::new();
    saved_tied(&memory);
    let parts = ExportOptions {
        strip_prefix: Some("module.".into()),
        submodules: texts(&["enc", "dec", "enc.b"]),
        ..ExportOptions::default()
    };
    let exported = alone(&memory, "out/parts", &parts).unwrap();
    let files = ["dec.safetensors", "enc.b.safetensors", "enc.safetensors"];
    assert_eq!(entries(&memory, "out/parts"), files);
    let told: Vec<_> = exported.files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(told, files.map(|file| Path::new("out/parts").join(file)));
    // A part has the tied tensor, though another part has the name under which it is stored.
    assert_eq!(names_in(&memory, "out/parts/enc.safetensors"), ["b.x", "tied", "w"]);
    assert_eq!(names_in(&memory, "out/parts/enc.b.safetensors"), ["x"]);
    let keep = ExportOptions { keep_submodule_prefix: true, overwrite: true, ..parts };
    alone(&memory, "out/parts", &keep).unwrap();
    assert_eq!(names_in(&memory, "out/parts/enc.b.safetensors"), ["enc.b.x"]);
    assert_eq!(entries(&memory, "out"), ["parts"]);
}

#[test]
fn patterns_choose_and_components_are_asked_for() {
    let memory = MemoryStorage::new();
    saved_tied(&memory);
    let include =
        |patterns: &[&str]| ExportOptions { include: texts(patterns), ..ExportOptions::default() };
    alone(&memory, "out/a", &include(&["*.enc.*"])).unwrap();
    assert_eq!(names_in(&memory, "out/a"), ["module.enc.b.x", "module.enc.tied", "module.enc.w"]);
    let exclude = ExportOptions { exclude: texts(&["*.enc.*"]), ..ExportOptions::default() };
    alone(&memory, "out/b", &exclude).unwrap();
    assert_eq!(names_in(&memory, "out/b"), ["module.dec.out"]);
    let all = ExportOptions { components: None, ..exclude.clone() };
    alone(&memory, "out/c", &all).unwrap();
    assert_eq!(names_in(&memory, "out/c"), ["module.dec.out", "optimizer.m"]);
}

#[test]
fn options_that_cannot_be_are_named_before_anything_is_written() {
    let memory = MemoryStorage::new();
    saved_tied(&memory);
    let default = ExportOptions::default;
    let cases = [
        (
            ExportOptions { include: texts(&["a"]), exclude: texts(&["b"]), ..default() },
            ErrorKind::InvalidInput,
            "`include` and `exclude`",
        ),
        (ExportOptions { cast: Some(Dtype::I8), ..default() }, ErrorKind::InvalidInput, "I8"),
        (
            ExportOptions { submodules: texts(&["a", "a"]), ..default() },
            ErrorKind::InvalidInput,
            "`a` is given twice",
        ),
        (
            ExportOptions { submodules: texts(&["../a"]), ..default() },
            ErrorKind::InvalidInput,
            "`../a`",
        ),
        (
            ExportOptions { submodules: texts(&["module", "nope"]), ..default() },
            ErrorKind::NotFound,
            "nothing is below `nope`; 1 at the top: module",
        ),
        (
            ExportOptions { include: texts(&["module.*", "nope.*"]), ..default() },
            ErrorKind::NotFound,
            "include: `nope.*` matches nothing; 4 stored: module.dec.out",
        ),
        (ExportOptions { exclude: texts(&["*"]), ..default() }, ErrorKind::NotFound, "excluded"),
        (
            ExportOptions { strip_prefix: Some("module.enc.".into()), ..default() },
            ErrorKind::InvalidInput,
            "1 do not: module.dec.out",
        ),
        (
            ExportOptions { components: Some(vec![Component::ema()]), ..default() },
            ErrorKind::NotFound,
            "2 stored: model, optimizer",
        ),
    ];
    for (options, kind, part) in cases {
        let error = alone(&memory, OUT, &options).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(part), "{error}");
        assert_eq!(entries(&memory, "out"), [""; 0]);
    }
    let spec = TensorSpec::new(Dtype::F8E4M3, [2]).unwrap();
    let mut state = StateDict::new();
    state.add(&Component::model(), name("f8"), spec, Arc::new([0u8; 2])).unwrap();
    save(&ProcessGroup::solo(), &memory, &path("runs/b"), &state, &SaveOptions::default()).unwrap();
    let cast = ExportOptions { cast: Some(Dtype::F32), ..default() };
    let done = export(&ProcessGroup::solo(), &memory, &wanted("runs/b"), OUT, &cast);
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Only an export is replaced, and only when asked for; checkpoints and files of users never are.
#[test]
fn a_taken_name_is_refused_or_replaced() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &usual_tensors(), 1);
    let overwrite = ExportOptions { overwrite: true, ..ExportOptions::default() };
    alone(&memory, OUT, &ExportOptions::default()).unwrap();
    saved(memory.clone(), 1, "runs/a", &usual_tensors(), 2);
    let error = alone(&memory, OUT, &ExportOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.help().unwrap().contains("overwrite"), "{error}");
    assert_eq!(alone(&memory, OUT, &overwrite).unwrap().step, 2);
    assert_eq!(entries(&memory, "out"), ["model.safetensors"]);

    memory.write(Path::new("out/mine"), b"a letter").unwrap();
    let parts = ExportOptions { submodules: texts(&["layers"]), ..overwrite.clone() };
    memory.create_dir_all(Path::new("out/empty")).unwrap();
    memory.create_dir_all(Path::new("out/full")).unwrap();
    memory.write(Path::new("out/full/mine"), b"a letter").unwrap();
    for (out, options) in [
        ("out/mine", &overwrite),
        ("out/full", &overwrite),
        ("out/full", &parts),
        (OUT, &parts),
        ("runs/a", &overwrite),
        ("runs/a", &parts),
    ] {
        let error = alone(&memory, out, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{out}: {error}");
    }
    assert_eq!(memory.read(Path::new("out/full/mine")).unwrap(), b"a letter");
    alone(&memory, "out/empty", &parts).unwrap();
    assert_eq!(entries(&memory, "out/empty"), ["layers.safetensors"]);
    assert_eq!(entries(&memory, "out"), ["empty", "full", "mine", "model.safetensors"]);
    assert_good(&memory, "runs/a");
}

#[test]
fn a_place_inside_a_checkpoint_is_refused() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &usual_tensors(), 1);
    let before = entries(&memory, "runs/a");
    let error = alone(&memory, "runs/a/model", &ExportOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(entries(&memory, "runs/a"), before);
}

#[test]
fn damage_is_found_and_nothing_is_visible() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &usual_tensors(), 1);
    let file = entries(&memory, "runs/a").into_iter().find(|name| name.starts_with("model-"));
    let file = Path::new("runs/a").join(file.unwrap());
    let good = memory.read(&file).unwrap();
    // In the header, in the middle of the data, at its end.
    for offset in [100, good.len() as u64 / 2, good.len() as u64 - 1] {
        memory.corrupt(&file, offset, 0x10).unwrap();
        let error = alone(&memory, OUT, &ExportOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{offset}: {error}");
        assert_eq!(entries(&memory, "out"), [""; 0]);
        memory.write(&file, &good).unwrap();
    }
    alone(&memory, OUT, &ExportOptions::default()).unwrap();
}

/// Files of other tools, and our single files, are exported too.
#[test]
fn files_are_exported_too() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, "runs/b", &usual_tensors(), 1);
    let solo = ProcessGroup::solo();
    let (from, to) = (wanted("runs/b"), "runs/a");
    export(&solo, &memory, &from, to, &ExportOptions::default()).unwrap();
    // An export is a file of another tool, as far as loading goes.
    let exported = alone(&memory, OUT, &ExportOptions::default()).unwrap();
    assert_eq!(exported.files[0].tensors.len(), usual_tensors().len());
    let bytes = memory.read(Path::new(OUT)).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    for tensor in usual_tensors() {
        assert!(read.tensor(&tensor.name).unwrap().data() == whole(&tensor, 1), "{}", tensor.name);
    }
}

fn small() -> Vec<TestTensor> {
    vec![
        TestTensor::new("enc.w", Dtype::F32, &[300, 70], None),
        TestTensor::new("dec.w", Dtype::F32, &[70], None),
    ]
}

/// What is under the name: nothing, or everything of one generation.
fn generation_of(storage: &MemoryStorage, options: &ExportOptions) -> Option<u64> {
    let files: &[&str] = match options.submodules.is_empty() {
        true => &["out/e"],
        false => &["out/e/dec.safetensors", "out/e/enc.safetensors"],
    };
    let read = |file: &&str| {
        let bytes = storage.read(Path::new(file)).ok()?;
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let step: u64 =
            metadata.metadata().as_ref().unwrap()["tch_checkpoint.source_step"].parse().unwrap();
        for (name, view) in read.tensors() {
            let part = file.strip_prefix("out/e/").and_then(|f| f.strip_suffix(".safetensors"));
            let full = part.map_or(name.clone(), |part| format!("{part}.{name}"));
            let tensor = small().into_iter().find(|tensor| tensor.name == full).unwrap();
            assert!(view.data() == whole(&tensor, step), "{file} {name}");
        }
        Some(step)
    };
    let steps: Vec<_> = files.iter().map(read).collect();
    assert!(steps.windows(2).all(|pair| pair[0] == pair[1]), "half an export: {steps:?}");
    steps[0]
}

/// Every operation failed in turn: what is under the name is whole, of the old export or the new
/// one, and the next export leaves no debris.
#[test]
fn an_export_that_fails_anywhere_leaves_nothing_or_the_whole() {
    let parts = ExportOptions { submodules: texts(&["enc", "dec"]), ..ExportOptions::default() };
    let forms = [ExportOptions::default(), parts];
    let faults = [(Fault::Error(28), false), (Fault::Torn, true), (Fault::Panic, true)];
    for (options, old) in
        [(&forms[0], false), (&forms[0], true), (&forms[1], false), (&forms[1], true)]
    {
        for (fault, persistent) in faults {
            fail_each_operation(options, old, fault, persistent);
        }
    }
}

fn fail_each_operation(options: &ExportOptions, old: bool, fault: Fault, persistent: bool) {
    for operation in 1.. {
        let memory = MemoryStorage::new();
        if old {
            saved(memory.clone(), 1, "runs/a", &small(), 1);
            alone(&memory, "out/e", options).unwrap();
        }
        saved(memory.clone(), 2, "runs/a", &small(), 2);
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.fail_at(operation, fault, persistent);
        let options = ExportOptions { overwrite: true, ..options.clone() };
        let done = alone(&faulty, "out/e", &options);
        if faulty.operations() < operation {
            assert!(operation > 15 && done.is_ok(), "{operation} operations: {done:?}");
            return;
        }
        assert!(operation < 200, "an export has fewer operations");
        let what = format!("{fault:?} at {}", faulty.log()[operation as usize - 1]);
        let there = generation_of(&memory, &options);
        match done.as_ref().map_err(tch_checkpoint::Error::kind) {
            Ok(_) | Err(ErrorKind::DurabilityUncertain) => assert_eq!(there, Some(2), "{what}"),
            Err(_) => assert_eq!(there, old.then_some(1), "{what}: {done:?}"),
        }
        if let (false, Err(error)) = (persistent, &done) {
            let hidden = entries(&memory, "out").into_iter().filter(|name| name.starts_with('.'));
            let is_uncertain = error.kind() == ErrorKind::DurabilityUncertain;
            assert!(is_uncertain || hidden.count() == 0, "{what}: debris");
        }
        assert_eq!(alone(&memory, "out/e", &options).unwrap().step, 2, "{what}");
        assert_eq!(entries(&memory, "out"), ["e"], "{what}");
    }
}
