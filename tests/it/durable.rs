//! The order of fsyncs, renames and unlinks, which is what a power cut leaves to rely on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tch_checkpoint::layout::{self, SaveId};
use tch_checkpoint::storage::{FaultyStorage, MemoryStorage, Storage};

use crate::harness::*;
use crate::hooked::Hooked;

/// The operations of one save over an existing checkpoint, in order; `ID` stands for its save id.
fn operations_of_a_replacement() -> Vec<String> {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &usual_tensors(), 1);
    let faulty = FaultyStorage::new(Arc::new(memory));
    let id = saved(faulty.clone(), 1, "runs/a", &usual_tensors(), 2).save_id.to_string();
    faulty.log().into_iter().map(|operation| operation.replace(&id, "ID")).collect()
}

/// Places of the operations that begin with `start`; there is at least one.
fn places(log: &[String], start: &str) -> Vec<usize> {
    let all: Vec<_> = (0..log.len()).filter(|i| log[*i].starts_with(start)).collect();
    assert!(!all.is_empty(), "no `{start}` in {log:#?}");
    all
}

fn first(log: &[String], start: &str) -> usize {
    places(log, start)[0]
}

fn last(log: &[String], start: &str) -> usize {
    *places(log, start).last().unwrap()
}

#[test]
fn a_save_is_durable_step_by_step() {
    let log = operations_of_a_replacement();
    let partial = "runs/.a.ID.partial";
    let manifest = format!("{partial}/manifest.bin");
    let renamed = first(&log, "rename runs/.a.ID.partial");
    let data = last(&log, &format!("finish {partial}/model-"));
    let sums = last(&log, &format!("finish {partial}/sums-"));
    let index = last(&log, &format!("finish {partial}/model.safetensors.index"));
    let record = first(&log, &format!("create_file {manifest}"));
    assert!(data.max(sums).max(index) < record, "the manifest comes last: {log:#?}");
    let recorded = first(&log, &format!("finish {manifest}"));
    let entries = last(&log, &format!("sync {partial}"));
    assert!(recorded < entries && entries < renamed, "entries before the rename: {log:#?}");
    let touched = last(&log, &format!("write_at {partial}"));
    assert!(touched < entries, "written after the fsync: {log:#?}");
    let committed = places(&log, "sync runs").into_iter().find(|i| *i > renamed).unwrap();
    let unlinked = first(&log, "remove_file");
    assert!(committed < unlinked, "unlinked before the commit was durable: {log:#?}");
    let hidden = places(&log, "rename").into_iter().find(|i| *i > committed).unwrap();
    let durable = places(&log, "sync runs").into_iter().find(|i| *i > hidden).unwrap();
    assert!(hidden < durable && durable < unlinked, "out of sight first: {log:#?}");
}

/// Every file that is created is also fsynced and closed, on every rank.
#[test]
fn every_file_is_finished() {
    let log = operations_of_a_replacement();
    let of = |start: &str| {
        let mut files: Vec<_> = log.iter().filter_map(|line| line.strip_prefix(start)).collect();
        files.sort_unstable();
        files
    };
    assert_eq!(of("create_file "), of("finish "));
    assert_eq!(of("create_file ").len(), 4);
}

/// A deletion that was cut short before its rename was made durable: what is in the trash may
/// come back under its old name after a power cut, so no file goes before the next fsync.
#[test]
fn interrupted_deletions_are_made_durable_before_they_are_finished() {
    let storage = MemoryStorage::new();
    let trash = layout::trash_dir(&SaveId::from_bytes([1; 16]));
    let dir = storage.create_dir_all(&Path::new("runs").join(&trash)).unwrap();
    dir.create_file("manifest.bin").unwrap().finish().unwrap();
    let synced = AtomicBool::new(false);
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let count = counts.clone();
    let hooked = Hooked::new(&storage, move |call| {
        if call.operation == "sync" && call.path == Path::new("runs") {
            synced.store(true, Ordering::Relaxed);
        }
        if call.operation.starts_with("remove") {
            count[usize::from(synced.load(Ordering::Relaxed))].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    saved(hooked, 1, "runs/a", &usual_tensors(), 1);
    let [early, late] = [&counts[0], &counts[1]].map(|count| count.load(Ordering::Relaxed));
    assert_eq!((early, late), (0, 2), "removals before and after an fsync of the directory");
    assert_eq!(entries(&storage, "runs"), ["a"]);
}
