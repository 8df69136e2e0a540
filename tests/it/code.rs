//! Attached files: stored with the checkpoint, checked like everything else, and read back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog::{find, read_other};
use tch_checkpoint::code::{ModelCode, load_model_code, read_code};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{Fault, FaultyStorage, LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::verify::verify;
use tch_checkpoint::{Checkpoint, ErrorKind, OnExisting, ProcessGroup, Result, model_code};

use crate::harness::*;

fn code() -> ModelCode {
    model_code!("main.rs", "deep/er/harness.rs" = "harness.rs", "Cargo.toml" = "../../Cargo.toml")
}

fn tensors() -> Vec<TestTensor> {
    vec![TestTensor::new("w", Dtype::F32, &[40, 7], None)]
}

fn save_with(
    group: &ProcessGroup,
    storage: &dyn Storage,
    at: &str,
    attach: impl FnOnce(&mut StateDict),
) -> Result<Checkpoint> {
    let mut state = state(&tensors(), group, 1);
    attach(&mut state);
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    save(group, storage, &path(at), &state, &options)
}

fn saved_code(storage: impl Storage + Clone + 'static, at: &str) {
    let at = at.to_owned();
    for verdict in on_ranks(2, move |group| {
        save_with(&group, &storage, &at, |state| code().attach_to(state).unwrap())
    }) {
        verdict.unwrap();
    }
}

#[test]
fn code_is_saved_verified_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("a").to_str().unwrap().to_owned();
    saved_code(LocalStorage::new(), &at);
    assert_good(&LocalStorage::new(), &at);
    let read = load_model_code(&at).unwrap().unwrap();
    assert_eq!(read, code());
    assert_eq!(read.package(), "tch-checkpoint");
    assert_eq!(read.files()["main.rs"], include_str!("main.rs"));
    // Ordinary files, for people too.
    let on_disk = std::fs::read_to_string(Path::new(&at).join("code/deep/er/harness.rs")).unwrap();
    assert_eq!(on_disk, include_str!("harness.rs"));
    let facts = std::fs::read_to_string(Path::new(&at).join("code/provenance.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["version"], env!("CARGO_PKG_VERSION"));
    // Replaced by one without code: nothing of it is left.
    for verdict in loaded(LocalStorage::new(), 3, &at, &tensors(), 1) {
        verdict.unwrap();
    }
    saved(LocalStorage::new(), 1, &at, &tensors(), 2);
    assert_eq!(load_model_code(&at).unwrap(), None);
    assert_eq!(load_model_code(folder.path().join("b")).unwrap_err().kind(), ErrorKind::NotFound);
}

fn link_to_moved(entry: &Path) {
    let checkpoint = entry.ancestors().find(|path| path.ends_with("a")).unwrap();
    let elsewhere = checkpoint.with_file_name("elsewhere");
    std::fs::rename(entry, &elsewhere).unwrap();
    std::os::unix::fs::symlink(elsewhere, entry).unwrap();
}

#[test]
fn damaged_and_foreign_code_is_found_and_tensors_still_load() {
    type Change = fn(&Path);
    let damage: [(&str, &str, Change); 6] = [
        ("main.rs", "not what was saved", |file| {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[9] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }),
        ("main.rs", "bytes long", |file| std::fs::write(file, "").unwrap()),
        ("provenance.json", "opening", |file| std::fs::remove_file(file).unwrap()),
        ("deep/er/harness.rs", "opening", |file| {
            std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
        }),
        // Links to good copies are not followed either.
        ("main.rs", "not a regular file", |file| link_to_moved(file)),
        ("deep/er/harness.rs", "opening", |file| link_to_moved(file.parent().unwrap())),
    ];
    for (file, what, change) in damage {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("a").to_str().unwrap().to_owned();
        saved_code(LocalStorage::new(), &at);
        change(&Path::new(&at).join("code").join(file));
        let found = find(&LocalStorage::new(), &wanted(&at)).unwrap();
        let verified = verify(&found, &mut |_| {}).unwrap();
        let [error] = &verified.damage[..] else { panic!("{file}: {:?}", verified.damage) };
        assert!(error.message().contains(what), "{error}");
        assert!(error.path().unwrap().ends_with(file), "{error}");
        assert_eq!(load_model_code(&at).unwrap_err().kind(), ErrorKind::Corrupt, "{file}");
        for verdict in loaded(LocalStorage::new(), 1, &at, &tensors(), 1) {
            verdict.unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("a").to_str().unwrap().to_owned();
    saved_code(LocalStorage::new(), &at);
    std::fs::write(Path::new(&at).join("code/deep/own.rs"), "").unwrap();
    let found = find(&LocalStorage::new(), &wanted(&at)).unwrap();
    assert_eq!(verify(&found, &mut |_| {}).unwrap().foreign, ["code/deep/own.rs"]);
}

#[test]
fn ranks_must_agree_about_attached_files() {
    let storage = MemoryStorage::new();
    let inner = storage.clone();
    let verdicts = on_ranks(3, move |group| {
        let text = if group.rank().get() == 2 { "a" } else { "b" };
        save_with(&group, &inner, "runs/a", |state| {
            state.attach_file("code/model.rs", text.as_bytes()).unwrap();
        })
    });
    let error = one_error(&verdicts, "attached files");
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    assert!(error.message().contains("attached file `code/model.rs`"), "{error}");
    assert_eq!(entries(&storage, "runs"), [""; 0]);
}

#[test]
fn any_bytes_can_be_attached_by_hand() {
    let storage = MemoryStorage::new();
    let content = vec![0xff; 70_000];
    let file = content.clone();
    let group = ProcessGroup::solo();
    save_with(&group, &storage, "runs/a", |s| s.attach_file("code/net.bin", file).unwrap())
        .unwrap();
    let found = find(&storage, &wanted("runs/a")).unwrap();
    let record = found.manifest.other_files().iter().find(|f| f.name == "code/net.bin").unwrap();
    assert_eq!(read_other(&found.dir, record).unwrap(), content);
    let error = read_code(&storage, &wanted("runs/a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
}

/// Each operation of the coordinator fails in turn: the old checkpoint stays, with its code.
#[test]
fn a_fault_while_code_is_written_commits_nothing() {
    let mut of_code = 0;
    for operation in 1..500 {
        let memory = MemoryStorage::new();
        saved_code(memory.clone(), "runs/a");
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.fail_at(operation, Fault::Error(5), false);
        let changed = |state: &mut StateDict| {
            let files = BTreeMap::from([("a/b.rs".to_owned(), "new".to_owned())]);
            let code = ModelCode::new(files, "p", "2", None, Default::default()).unwrap();
            code.attach_to(state).unwrap();
        };
        let verdict = save_with(&ProcessGroup::solo(), &faulty, "runs/a", changed);
        if faulty.operations() < operation {
            verdict.unwrap();
            assert!(of_code >= 6, "{of_code} operations on code");
            return;
        }
        let failed = &faulty.log()[operation as usize - 1];
        let is_code = failed.contains("/code");
        of_code += usize::from(is_code && failed.contains(".partial"));
        assert_good(&memory, "runs/a");
        let read = read_code(&memory, &wanted("runs/a")).unwrap().unwrap();
        match verdict {
            Err(e) if e.kind() != ErrorKind::DurabilityUncertain => {
                assert_eq!(read, code(), "{failed}");
            }
            _ => assert_eq!(read.version(), "2", "{failed}"),
        }
    }
    panic!("a save has fewer operations");
}
