//! What is linked, in all the ways in which a checkpoint is saved.

use std::sync::Arc;

use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::save::{SaveOptions, save, save_async};
use tch_checkpoint::storage::{LocalStorage, Storage};

use super::{Job, bytes_of, files_of, names};
use crate::harness::{on_ranks, path};

#[test]
fn a_trunk_that_stays_is_linked_and_the_rest_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(3, move |group| {
        let (first, second) = (Job::usual(), Job::usual().step());
        let (a, b) = (root.join("a"), root.join("b"));
        assert_eq!(first.save(&group, &a).report.linked_bytes, 0);
        let saved = second.save(&group, &b);
        let trunk = bytes_of(&b, "trunk");
        assert_eq!(saved.report.linked_bytes, trunk);
        assert!(saved.report.file_bytes < trunk / 4, "{:?}", saved.report);
        assert_eq!(files_of(&b, "trunk").len(), 3, "every rank's share");
        assert!(names(&files_of(&b, "trunk")).iter().all(|names| *names == 2));
        assert!(names(&files_of(&b, "head")).iter().all(|names| *names == 1));
        let storage = LocalStorage::new();
        first.check(&group, &storage, &a);
        second.check(&group, &storage, &b);
    });
}

#[test]
fn whatever_is_deleted_breaks_no_other_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (group, storage) = (ProcessGroup::solo(), LocalStorage::new());
    let mut jobs = vec![Job::usual()];
    for n in 0..4 {
        jobs.push(jobs[n].clone().step());
    }
    for (n, job) in jobs.iter().enumerate() {
        job.save(&group, &dir.path().join(n.to_string()));
    }
    let trunk = |n: usize| names(&files_of(&dir.path().join(n.to_string()), "trunk"));
    assert_eq!(trunk(0), [5]);
    for gone in [0, 3, 1, 4] {
        std::fs::remove_dir_all(dir.path().join(gone.to_string())).unwrap();
        for (n, job) in jobs.iter().enumerate() {
            let at = dir.path().join(n.to_string());
            if at.exists() {
                job.check(&group, &storage, &at);
            }
        }
    }
    assert_eq!(trunk(2), [1]);
}

#[test]
fn a_process_that_starts_anew_links_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::usual();
    job.save(&ProcessGroup::solo(), &dir.path().join("a"));
    let again = job.step();
    let saved = again.save(&ProcessGroup::solo(), &dir.path().join("b"));
    assert_eq!(saved.report.linked_bytes, bytes_of(&dir.path().join("b"), "trunk"));
}

#[test]
fn what_is_replaced_gives_its_files_to_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let (group, storage, at) = (ProcessGroup::solo(), LocalStorage::new(), dir.path().join("a"));
    let mut job = Job::usual();
    for _ in 0..3 {
        job = job.step();
        job.save(&group, &at);
    }
    assert_eq!(names(&files_of(&at, "trunk")), [1], "the others are gone");
    job.check(&group, &storage, &at);
    let left = std::fs::read_dir(dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "checkpoint and lock: {left:?}");
}

#[test]
fn nothing_that_has_changed_is_nothing_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let job = Job::usual();
        job.save(&group, &root.join("a"));
        let saved = job.save(&group, &root.join("b"));
        assert_eq!(saved.report.file_bytes, 0);
        job.check(&group, &LocalStorage::new(), &root.join("b"));
    });
}

#[test]
fn another_number_of_ranks_links_what_all_of_them_hold() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let (of_four, of_two) = (root.join("four"), root.join("two"));
    let at = of_four.clone();
    on_ranks(4, move |group| drop(Job::usual().save(&group, &at)));
    on_ranks(2, move |group| {
        let job = Job::usual().step();
        let saved = job.save(&group, &of_two);
        assert_eq!(saved.report.linked_bytes, bytes_of(&of_two, "trunk"));
        assert_eq!(files_of(&of_two, "trunk").len(), 4, "as four ranks wrote them");
        job.check(&group, &LocalStorage::new(), &of_two);
    });
}

#[test]
fn shares_of_ranks_are_linked_by_as_many_ranks_and_written_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let job = |steps: u64| {
        let mut job = Job::usual();
        job.tensor("trunk.0.weight").is_sharded = true;
        job.tensor("head.weight").generation += steps;
        job
    };
    let (a, b, c) = (root.join("a"), root.join("b"), root.join("c"));
    let at = b.clone();
    on_ranks(3, move |group| {
        job(0).save(&group, &a);
        let saved = job(1).save(&group, &at);
        assert_eq!(saved.report.linked_bytes, bytes_of(&at, "trunk") + bytes_of(&at, "optimizer"));
        job(1).check(&group, &LocalStorage::new(), &at);
    });
    on_ranks(2, move |group| {
        let saved = job(1).save(&group, &c);
        let linked = saved.report.linked_bytes;
        assert_eq!(linked, bytes_of(&c, "head") + bytes_of(&c, "optimizer"));
        job(1).check(&group, &LocalStorage::new(), &c);
    });
}

#[test]
fn a_save_beside_training_links_what_it_does_not_copy() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
        let mut job = Job::usual();
        for n in 0..3 {
            let at = root.join(n.to_string());
            let (options, to) = (SaveOptions::default(), path(at.to_str().unwrap()));
            let state = job.state(&group);
            let pending =
                save_async(&group, &storage, &to, &state, &options, Box::new(|_| ())).unwrap();
            drop(state);
            let saved = pending.wait().unwrap();
            let linked = if n == 0 { 0 } else { bytes_of(&at, "trunk") };
            assert_eq!(saved.report.linked_bytes, linked);
            job.check(&group, storage.as_ref(), &at);
            job = job.step();
        }
    });
}

#[test]
fn going_back_to_older_weights_links_the_older_ones() {
    let dir = tempfile::tempdir().unwrap();
    let group = ProcessGroup::solo();
    let (old, new) = (Job::usual(), Job::usual().step());
    old.save(&group, &dir.path().join("a"));
    new.save(&group, &dir.path().join("b"));
    let saved = old.save(&group, &dir.path().join("c"));
    assert_eq!(saved.report.file_bytes, 0, "all of it is in the first");
    old.check(&group, &LocalStorage::new(), &dir.path().join("c"));
}

#[test]
fn parts_of_several_checkpoints_come_together() {
    let dir = tempfile::tempdir().unwrap();
    let (group, storage) = (ProcessGroup::solo(), LocalStorage::new());
    let only = |component: &str| {
        let mut job = Job::usual();
        job.tensors.retain(|tensor| tensor.component == component);
        job
    };
    only("trunk").save(&group, &dir.path().join("trunk"));
    only("head").save(&group, &dir.path().join("head"));
    let job = Job::usual();
    let at = dir.path().join("all");
    let saved = job.save(&group, &at);
    assert_eq!(saved.report.linked_bytes, bytes_of(&at, "trunk") + bytes_of(&at, "head"));
    job.check(&group, &storage, &at);
}

#[test]
fn tied_tensors_stay_tied() {
    let dir = tempfile::tempdir().unwrap();
    let (group, storage) = (ProcessGroup::solo(), LocalStorage::new());
    let mut job = Job::usual();
    job.aliases.push(("trunk.tied", "trunk.0.bias"));
    job.aliases.push(("head.tied", "head.weight"));
    job.save(&group, &dir.path().join("a"));
    let job = job.step();
    let at = dir.path().join("b");
    assert_eq!(job.save(&group, &at).report.linked_bytes, bytes_of(&at, "trunk"));
    job.check(&group, &storage, &at);
    let found = super::catalog::find(&storage, &crate::harness::wanted(at.to_str().unwrap()));
    let aliases: Vec<_> = found.unwrap().manifest.aliases().to_vec();
    let aliases: Vec<_> = aliases.iter().map(|(a, t)| (a.as_str(), t.as_str())).collect();
    assert_eq!(aliases, [("head.tied", "head.weight"), ("trunk.tied", "trunk.0.bias")]);
}

#[test]
fn the_index_names_linked_files() {
    let dir = tempfile::tempdir().unwrap();
    let group = ProcessGroup::solo();
    let mut job = Job::usual();
    job.tensors.iter_mut().filter(|t| t.component == "trunk").for_each(|t| t.component = "model");
    job.save(&group, &dir.path().join("a"));
    job.tensor("head.weight").generation += 1;
    let at = dir.path().join("b");
    job.save(&group, &at);
    let index = std::fs::read_to_string(at.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), 3);
    for file in map.values() {
        assert!(at.join(file.as_str().unwrap()).exists(), "{file}");
    }
    assert_eq!(names(&files_of(&at, "model")), [2]);
}

#[test]
fn asked_to_copy_a_save_shares_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (group, storage, job) = (ProcessGroup::solo(), LocalStorage::new(), Job::usual());
    job.save(&group, &dir.path().join("a"));
    let at = dir.path().join("b");
    let options = SaveOptions { copy_unchanged: true, ..SaveOptions::default() };
    let to = path(at.to_str().unwrap());
    let saved = save(&group, &storage, &to, &job.state(&group), &options).unwrap();
    assert_eq!(saved.report.linked_bytes, 0);
    for component in ["trunk", "head", "optimizer"] {
        assert_eq!(names(&files_of(&at, component)), [1], "{component}");
    }
}
