//! Model code of a handler, and the audit of its replicas.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::code::{CodeDifference, ModelCode, read_code};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::NNHandler;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{Atomicity, ErrorKind, LoadOptions, Result, model_code};

use crate::harness::*;
use crate::models::*;

fn code() -> ModelCode {
    model_code!("code.rs", "models.rs")
}

/// The same with one file changed and one added.
fn changed() -> ModelCode {
    let mut files = code().files().clone();
    files.insert("models.rs".to_owned(), "fn other() {}".to_owned());
    files.insert("new.rs".to_owned(), String::new());
    let (package, version) = (code().package().to_owned(), code().version().to_owned());
    let revision = code().git_revision().map(str::to_owned);
    ModelCode::new(files, package, version, revision, code().features().clone()).unwrap()
}

fn saved_code(storage: &MemoryStorage, at: &str) -> Option<ModelCode> {
    read_code(storage, &tch_checkpoint::catalog::Wanted::parse(at).unwrap()).unwrap()
}

fn load_with(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    at: &str,
    model_code: Option<ModelCode>,
) -> Result<NNHandler<Net>> {
    NNHandler::load(at, LoadOptions { model_code, ..options(group, storage) }).map(equip)
}

#[test]
fn code_goes_with_every_checkpoint_of_a_run_and_no_other() {
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        handler.save("runs/before").unwrap();
        handler.save_model_code(code());
        handler.auto_save(1, "runs", "auto{epoch}").unwrap();
        handler.train(2).unwrap();
        handler.save("runs/after").unwrap();
        let mut same = load_with(&group, &storage, "runs/after", Some(code())).unwrap();
        same.train(1).unwrap();
        // Which code this would be is not known.
        load_with(&group, &storage, "runs/after", None).unwrap().save("runs/unknown").unwrap();
    });
    for at in ["runs/auto1", "runs/auto2", "runs/after", "runs/auto3"] {
        assert_eq!(saved_code(&memory, at), Some(code()), "{at}");
    }
    for at in ["runs/before", "runs/unknown"] {
        assert_eq!(saved_code(&memory, at), None, "{at}");
    }
}

#[test]
fn differences_are_told_after_a_load() {
    let (memory, _) = memory();
    let told = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let mut handler = usual(&group, &storage);
        handler.save("runs/without").unwrap();
        handler.save_model_code(code());
        assert_eq!(handler.code_differences(), None);
        handler.save("runs/with").unwrap();
        handler.restore("runs/with", Atomicity::Atomic).unwrap();
        assert_eq!(handler.code_differences(), Some(&[][..]));
        handler.restore("runs/without", Atomicity::Atomic).unwrap();
        assert_eq!(handler.code_differences(), None);
        for (at, code) in [("runs/without", Some(code())), ("runs/with", None)] {
            let handler = load_with(&group, &storage, at, code).unwrap();
            assert_eq!(handler.code_differences(), None, "{at}");
        }
        let mut handler = load_with(&group, &storage, "runs/with", Some(changed())).unwrap();
        let told = handler.code_differences().unwrap().to_vec();
        handler.save_model_code(code());
        assert_eq!(handler.code_differences(), None);
        handler.restore("runs/with", Atomicity::Atomic).unwrap();
        assert_eq!(handler.code_differences(), Some(&[][..]));
        told
    });
    let (file, new) = ("models.rs".to_owned(), "new.rs".to_owned());
    let wanted = vec![CodeDifference::FileChanged(file), CodeDifference::FileAdded(new)];
    assert_eq!(told, [wanted.clone(), wanted]);
}

#[test]
fn damaged_code_is_no_reason_to_lose_a_load() {
    let (memory, storage) = memory();
    let solo = ProcessGroup::solo();
    let _generator = exclusive();
    let mut handler = usual(&solo, &storage);
    handler.save_model_code(code());
    handler.save("runs/a").unwrap();
    let dir = memory.open_dir(Path::new("runs/a/code")).unwrap();
    dir.remove_file("models.rs").unwrap();
    let loaded = load_with(&solo, &storage, "runs/a", Some(code())).unwrap();
    assert_eq!(loaded.code_differences(), None);
    assert_eq!(parameters(&loaded), parameters(&handler));
}

#[test]
fn ranks_with_different_code_save_nothing() {
    let (memory, _) = memory();
    let inner = memory.clone();
    let verdicts = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        handler.save_model_code(if group.is_coordinator() { code() } else { changed() });
        handler.save("runs/a")
    });
    let error = one_error(&verdicts);
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    assert!(error.message().contains("`code/models.rs`"), "{error}");
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}

#[test]
fn code_is_read_from_the_file_system_without_a_handler() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("a");
    let storage: Arc<dyn Storage> = Arc::new(tch_checkpoint::storage::LocalStorage::new());
    let _generator = exclusive();
    let mut handler = usual(&ProcessGroup::solo(), &storage);
    handler.save_model_code(code());
    handler.save(&at).unwrap();
    let read = NNHandler::<Net>::load_model_code(&at).unwrap().unwrap();
    assert_eq!(read, code());
    assert_eq!((read.package(), read.version()), ("tch-checkpoint", env!("CARGO_PKG_VERSION")));
    assert!(read.features().contains("torch"), "{read:?}");
}

/// One weight of one rank, in its last bit.
fn perturb(handler: &NNHandler<Net>) {
    let mut variables = handler.vars().variables();
    let weight = variables.get_mut("output.weight").unwrap();
    let mut values = Vec::<f32>::try_from(weight.detach().flatten(0, -1)).unwrap();
    values[3] = f32::from_bits(values[3].to_bits() ^ 1);
    let changed = tch::Tensor::from_slice(&values).view_as(weight);
    tch::no_grad(|| weight.copy_(&changed));
}

#[test]
fn a_rank_that_drifted_apart_is_found_by_an_audit() {
    let (memory, _) = memory();
    let inner = memory.clone();
    let verdicts = on_ranks(3, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        handler.audit_replicas(true);
        handler.auto_save(1, "runs", "auto{epoch}").unwrap();
        // Ranks train in step, with running statistics and moments: nothing to find.
        handler.train(1).unwrap();
        if group.rank().get() == 1 {
            perturb(&handler);
        }
        let found = handler.save("runs/a").map(drop);
        assert_eq!(entries(&inner, "runs"), ["auto1"]);
        handler.process_group().all_reduce_sum(&mut [0.0]).unwrap();
        handler.audit_replicas(false);
        handler.save("runs/b").unwrap();
        found
    });
    let error = one_error(&verdicts);
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    assert_eq!(error.tensor(), Some("output.weight"));
    assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(1));
    assert_eq!(entries(&memory, "runs"), ["auto1", "b"]);
}

/// A single file has no directory for it: it travels inside.
#[test]
fn code_goes_into_files_too() {
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        handler.save_model_code(code());
        handler.save_single_file("runs/one.safetensors").unwrap();
        handler.save_multi_files("runs/many").unwrap();
        let again = load_with(&group, &storage, "runs/one.safetensors", Some(changed())).unwrap();
        assert_eq!(again.code_differences().unwrap().len(), 2);
    });
    for at in ["runs/one.safetensors", "runs/many"] {
        assert_eq!(saved_code(&memory, at), Some(code()), "{at}");
    }
}

#[test]
fn the_audit_looks_at_files_too() {
    let (memory, storage) = memory();
    let saves: Vec<Result<()>> = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.audit_replicas(true);
        if group.rank().get() == 1 {
            let mut bias = handler.vars().variables()["input.bias"].detach();
            let _same = bias.fill_(1.0);
        }
        handler.save_single_file("runs/one.safetensors").map(drop)
    });
    let error = one_error(&saves);
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    assert!(error.to_string().contains("input.bias"), "{error}");
    assert_eq!(visible(&memory, "runs"), [""; 0]);
}
