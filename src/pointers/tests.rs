mod odd;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::catalog::pointer::read;
use crate::catalog::{Order, Wanted, find, find_checkpoints};
use crate::group::ProcessGroup;
use crate::manifest::CheckpointState;
use crate::plan::OnExisting;
use crate::state::StateDict;
use crate::storage::{Fault, FaultyStorage, LocalStorage, MemoryStorage, Storage};
use crate::sweep::{When, sweep};
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};
use crate::{CheckpointPath, SaveOptions, save};

fn pace() -> Pace {
    Pace { patience: Duration::from_millis(100), progress: Default::default() }
}

/// Saves `<directory>/<name>`, and what a listing says of it.
fn put(
    storage: &dyn Storage,
    directory: &Path,
    name: &str,
    step: u64,
    loss: f64,
) -> CheckpointInfo {
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, [2]).unwrap();
    let weight = TensorName::new("w").unwrap();
    state.add(&Component::model(), weight, spec, Arc::new(vec![1u8, 2])).unwrap();
    state.values.set("metrics.loss", loss);
    let options = SaveOptions { step, on_existing: OnExisting::Replace, ..Default::default() };
    let path = CheckpointPath::parse(directory.join(name)).unwrap();
    save(&ProcessGroup::solo(), storage, &path, &state, &options).unwrap();
    let listed = find_checkpoints(storage, directory, &Order::Latest).unwrap();
    listed.into_iter().find(|info| info.name == name).unwrap()
}

struct Runs {
    storage: MemoryStorage,
    dir: Arc<dyn Directory>,
    a: CheckpointInfo,
    b: CheckpointInfo,
}

impl Runs {
    fn new() -> Self {
        let (storage, runs) = (MemoryStorage::new(), Path::new("runs"));
        let a = put(&storage, runs, "a", 1, 0.25);
        let b = put(&storage, runs, "b", 2, f64::NAN);
        let dir = storage.open_dir(runs).unwrap();
        Self { storage, dir, a, b }
    }

    fn update(&self, latest: &CheckpointInfo, best: Option<&CheckpointInfo>) -> Result<()> {
        update(self.dir.as_ref(), Some(latest), best, &pace())
    }

    /// What all four say; `-` if there is nothing.
    fn said(&self) -> [String; 4] {
        let dir = self.dir.as_ref();
        let link = |name| dir.read_link(name).unwrap_or("-".to_owned());
        let json = |name| {
            let named = read_json(dir, name).unwrap();
            named.map_or("-".to_owned(), |name| name.to_string())
        };
        [link(LATEST), json(LATEST), link(BEST), json(BEST)]
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.storage.read(&Path::new("runs").join(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let file = self.dir.create_file(name).unwrap();
        file.write_at(0, bytes).unwrap();
        file.finish().unwrap();
    }

    fn hidden(&self) -> Vec<String> {
        let names = self.dir.list().unwrap().into_iter().map(|entry| entry.name);
        names.filter(|name| name.starts_with('.') && name != layout::LOCK).collect()
    }
}

#[test]
fn links_and_files_name_the_latest_and_the_best() {
    let runs = Runs::new();
    runs.update(&runs.a, Some(&runs.a)).unwrap();
    assert_eq!(runs.said(), ["a"; 4]);
    runs.update(&runs.b, Some(&runs.a)).unwrap();
    assert_eq!(runs.said(), ["b", "b", "a", "a"]);
    runs.update(&runs.b, None).unwrap();
    assert_eq!(runs.said(), ["b", "b", "a", "a"], "without a best one it stays");
    assert_eq!(runs.hidden(), [""; 0]);
    let best = find(&runs.storage, &Wanted::best("runs")).unwrap();
    assert_eq!(best.name.as_str(), "a");

    let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&runs.bytes(name)).unwrap();
    let expected = |info: &CheckpointInfo, loss: serde_json::Value| {
        serde_json::json!({
            "tch_checkpoint_pointer": 1, "name": info.name, "step": info.step, "epoch": 0,
            "save_id": info.save_id.unwrap().to_string(), "metrics": {"loss": loss},
            "created_unix_ms": info.created_unix_ms,
        })
    };
    assert_eq!(json("best.json"), expected(&runs.a, 0.25.into()));
    assert_eq!(json("latest.json"), expected(&runs.b, "NaN".into()));
}

/// The same pointers again write nothing; another save under the same name does.
#[test]
fn what_is_right_is_not_written_again() {
    let runs = Runs::new();
    let faulty = FaultyStorage::new(Arc::new(runs.storage.clone()));
    let dir = faulty.open_dir(Path::new("runs")).unwrap();
    let again = |latest: &CheckpointInfo| {
        faulty.reset();
        update(dir.as_ref(), Some(latest), Some(&runs.a), &pace()).unwrap();
        let is_read = |operation: &str| {
            ["try_lock", "read_link", "open_file", "read_at"]
                .contains(&operation.split(' ').next().unwrap())
        };
        faulty.log().into_iter().filter(|operation| !is_read(operation)).count()
    };
    assert!(again(&runs.a) > 0);
    assert_eq!(again(&runs.a), 0);
    let replaced = put(&runs.storage, Path::new("runs"), "a", 1, 0.5);
    assert!(again(&replaced) > 0, "{replaced:?}");
    assert_eq!(runs.said(), ["a"; 4]);
}

#[test]
fn what_the_user_has_under_these_names_stays() {
    let runs = Runs::new();
    runs.dir.create_dir("latest").unwrap().create_file("thesis").unwrap().finish().unwrap();
    runs.write("latest.json", b"{\"name\": \"a\"}");
    runs.write("best", b"mine");
    runs.dir.create_dir("best.json").unwrap();
    let error = runs.update(&runs.a, Some(&runs.a)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.failures().len(), 4, "{error}");
    assert_eq!(runs.dir.open_dir("latest").unwrap().list().unwrap().len(), 1);
    assert_eq!(runs.bytes("latest.json"), b"{\"name\": \"a\"}");
    assert_eq!(runs.bytes("best"), b"mine");
    assert!(runs.dir.open_dir("best.json").is_ok());
    assert_eq!(runs.hidden(), [""; 0]);
    // One that is the user's does not keep the others from moving.
    runs.dir.remove_dir("best.json").unwrap();
    assert_eq!(runs.update(&runs.a, Some(&runs.a)).unwrap_err().failures().len(), 3);
    assert_eq!(runs.said(), ["-", "-", "-", "a"]);
}

/// A link holds no work of anybody: it is moved, and what it led to is not touched.
#[test]
fn a_link_elsewhere_is_replaced_and_not_followed() {
    for text in ["../outside", "/outside", "a/b", "latest"] {
        let runs = Runs::new();
        runs.storage.write(Path::new("outside"), b"mine").unwrap();
        for name in ["latest", "best", "latest.json"] {
            runs.dir.create_link(name, text).unwrap();
        }
        update(runs.dir.as_ref(), None, None, &pace()).unwrap();
        assert_eq!(runs.said(), [text, "-", text, "-"], "no checkpoint, no change");
        assert_eq!(read(runs.dir.as_ref(), BEST).unwrap(), Some(Err(text.to_owned())));
        runs.update(&runs.a, Some(&runs.b)).unwrap();
        assert_eq!(runs.said(), ["a", "a", "b", "b"]);
        assert_eq!(runs.storage.read(Path::new("outside")).unwrap(), b"mine");
    }
}

#[test]
fn a_pointer_to_nothing_is_removed() {
    let runs = Runs::new();
    runs.update(&runs.b, Some(&runs.a)).unwrap();
    let old = layout::old_dir(&CheckpointName::new("a").unwrap(), &runs.b.save_id.unwrap());
    runs.dir.rename("a", &old, Rename::NoReplace).unwrap();
    runs.update(&runs.b, None).unwrap();
    assert_eq!(runs.said(), ["b", "b", "a", "a"], "a replacement is under way");
    runs.dir.rename(&old, "elsewhere", Rename::NoReplace).unwrap();
    runs.update(&runs.b, None).unwrap();
    assert_eq!(runs.said(), ["b", "b", "-", "-"]);
    update(runs.dir.as_ref(), None, None, &pace()).unwrap();
    assert_eq!(runs.said(), ["b", "b", "-", "-"]);
}

#[test]
fn only_what_is_committed_is_pointed_to() {
    let runs = Runs::new();
    let partial = CheckpointInfo { state: CheckpointState::Partial, ..runs.a.clone() };
    let unnamed = CheckpointInfo { name: "../x".to_owned(), ..runs.a.clone() };
    let unsaved = CheckpointInfo { save_id: None, ..runs.a.clone() };
    for bad in [partial, unnamed, unsaved] {
        let error = runs.update(&bad, Some(&runs.a)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        assert_eq!(runs.said(), ["-", "-", "a", "a"]);
    }
}

/// Whatever operation fails, and if the storage is dead from then on: each pointer is the old one
/// or the new one, and the next update and a sweep leave things as if nothing had failed.
#[test]
fn each_operation_of_an_update_may_fail() {
    let operations = {
        let runs = Runs::new();
        runs.update(&runs.a, Some(&runs.a)).unwrap();
        let faulty = FaultyStorage::new(Arc::new(runs.storage.clone()));
        let dir = faulty.open_dir(Path::new("runs")).unwrap();
        update(dir.as_ref(), Some(&runs.b), Some(&runs.b), &pace()).unwrap();
        faulty.operations()
    };
    assert!(operations > 20, "{operations}");
    for persistent in [false, true] {
        for (operation, fault) in
            (2..=operations).flat_map(|n| [(n, Fault::Error(5)), (n, Fault::Torn)])
        {
            let runs = Runs::new();
            runs.update(&runs.a, Some(&runs.a)).unwrap();
            let faulty = FaultyStorage::new(Arc::new(runs.storage.clone()));
            let dir = faulty.open_dir(Path::new("runs")).unwrap();
            faulty.fail_at(operation, fault, persistent);
            let updated = update(dir.as_ref(), Some(&runs.b), Some(&runs.b), &pace());
            let what = format!("{fault:?} at {operation}: {:?}", faulty.log().last());
            assert_eq!(updated.unwrap_err().kind(), ErrorKind::Storage, "{what}");
            for said in runs.said() {
                assert!(said == "a" || said == "b", "{what}: {said}");
            }
            find(&runs.storage, &Wanted::best("runs")).unwrap();
            runs.update(&runs.b, Some(&runs.b)).unwrap();
            assert_eq!(runs.said(), ["b"; 4], "{what}");
            sweep(runs.dir.as_ref(), When::BeforeSave, &pace());
            assert_eq!(runs.hidden(), [""; 0], "{what}");
        }
    }
}

/// Debris of pointers goes at the next save; what only looks like it stays.
#[test]
fn a_sweep_removes_pointers_that_were_not_moved() {
    let runs = Runs::new();
    let id = |n| layout::pointer_temporary(&SaveId::from_bytes([n; 16]));
    runs.dir.create_link(&id(1), "a").unwrap();
    runs.write(&id(2), b"{");
    runs.dir.create_dir(&id(3)).unwrap();
    runs.write(".pointer-1", b"mine");
    put(&runs.storage, Path::new("runs"), "c", 3, 0.0);
    assert_eq!(runs.hidden(), [id(3), ".pointer-1".to_owned()]);
}

#[test]
fn without_links_there_is_json_alone() {
    let runs = Runs::new();
    let odd = odd::Odd { inner: runs.dir.clone(), file_before_rename: None };
    update(&odd, Some(&runs.b), Some(&runs.a), &pace()).unwrap();
    assert_eq!(runs.said(), ["-", "b", "-", "a"]);
    assert_eq!(runs.hidden(), [""; 0]);
    assert_eq!(find(&runs.storage, &Wanted::best("runs")).unwrap().name.as_str(), "a");
}

/// A file of the user's that comes between the look and the rename is not replaced either.
#[test]
fn what_appears_meanwhile_stays() {
    let runs = Runs::new();
    let odd = odd::Odd { inner: runs.dir.clone(), file_before_rename: Some("best.json") };
    let error = update(&odd, None, Some(&runs.a), &pace()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(runs.bytes("best.json"), b"");
    assert_eq!(runs.hidden(), [""; 0]);
}

/// Another job commits or removes under this lock.
#[test]
fn pointers_move_under_the_lock_of_the_directory() {
    let runs = Runs::new();
    let _held = runs.dir.try_lock(layout::LOCK).unwrap().unwrap();
    let error = runs.update(&runs.a, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    assert_eq!(runs.said(), ["-"; 4]);
}

/// Too many metrics for a small file: it still says which checkpoint.
#[test]
fn a_pointer_stays_small() {
    let runs = Runs::new();
    let metrics: BTreeMap<String, f64> =
        (0..40_000).map(|n| (format!("metric {n:030}"), f64::from(n))).collect();
    let many = CheckpointInfo { metrics, ..runs.a.clone() };
    runs.update(&many, None).unwrap();
    assert!(runs.bytes("latest.json").len() < 1000);
    runs.update(&runs.b, None).unwrap();
    assert_eq!(runs.said(), ["b", "b", "-", "-"], "it is known as ours again");
}

#[test]
fn other_tools_follow_the_links() {
    let disk = tempfile::tempdir().unwrap();
    let local = LocalStorage::new();
    let a = put(&local, disk.path(), "a", 1, f64::NEG_INFINITY);
    let dir = local.open_dir(disk.path()).unwrap();
    update(dir.as_ref(), Some(&a), Some(&a), &pace()).unwrap();
    for name in ["latest", "best"] {
        let link = disk.path().join(name);
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("a"));
        assert!(link.join("manifest.bin").is_file());
        let json = std::fs::read_to_string(disk.path().join(format!("{name}.json"))).unwrap();
        assert!(json.contains("\"loss\": \"-inf\""), "{json}");
    }
    let b = put(&local, disk.path(), "b", 2, 1e-300);
    update(dir.as_ref(), Some(&b), Some(&a), &pace()).unwrap();
    assert_eq!(std::fs::read_link(disk.path().join("latest")).unwrap(), Path::new("b"));
    assert_eq!(find(&local, &Wanted::best(disk.path())).unwrap().name.as_str(), "a");
}
