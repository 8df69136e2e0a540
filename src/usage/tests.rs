use std::fs;
use std::path::PathBuf;

use super::*;
use crate::storage::{LocalStorage, MemoryStorage};

/// Attempts with these names, of files of 100 000 bytes each.
fn attempts<const N: usize>(names: [&str; N], files: &[&str]) -> (tempfile::TempDir, [PathBuf; N]) {
    let folder = tempfile::tempdir().unwrap();
    let made = names.map(|name| {
        let entry = format!(".{name}.00112233445566778899aabbccddeeff.partial");
        let path = folder.path().join(entry);
        fs::create_dir_all(path.join("code")).unwrap();
        for file in files {
            fs::write(path.join(file), vec![1u8; 100_000]).unwrap();
        }
        path
    });
    (folder, made)
}

fn measured(folder: &tempfile::TempDir) -> Usage {
    usage(&LocalStorage::new(), folder.path()).unwrap()
}

/// What a file of 100 000 bytes takes.
fn one(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn hard_links_count_once_and_sparse_files_by_what_they_take() {
    let (folder, [attempt]) = attempts(["a"], &["x"]);
    fs::hard_link(attempt.join("x"), attempt.join("code/y")).unwrap();
    fs::File::create(attempt.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    std::os::unix::fs::symlink("/", attempt.join("link")).unwrap();
    fs::write(folder.path().join("notes.txt"), "foreign").unwrap();
    let usage = measured(&folder);
    let [entry] = &usage.entries[..] else { panic!("{usage:?}") };
    assert_eq!(entry.what, Held::Unreferenced(Other::Attempt));
    assert_eq!(entry.bytes, 200_000 + (1 << 30));
    assert!((100_000..200_000).contains(&entry.on_disk), "{entry:?}");
    assert_eq!((entry.unique, entry.shared), (entry.on_disk, 0), "both names are here");
    assert_eq!((usage.on_disk, usage.unreferenced), (entry.on_disk, entry.on_disk));
    assert_eq!(usage.foreign, 1);
}

#[test]
fn what_two_entries_share_neither_frees_and_the_total_counts_once() {
    let (folder, [a, b, c]) = attempts(["a", "b", "c"], &["own"]);
    fs::write(a.join("trunk"), vec![2u8; 100_000]).unwrap();
    fs::hard_link(a.join("trunk"), b.join("trunk")).unwrap();
    let one = one(&a.join("trunk"));
    let facts = |usage: &Usage| {
        let entries = usage.entries.iter();
        entries.map(|e| (e.on_disk / one, e.unique / one, e.shared / one)).collect::<Vec<_>>()
    };
    let usage = measured(&folder);
    assert_eq!(facts(&usage), [(2, 1, 1), (2, 1, 1), (1, 1, 0)]);
    assert_eq!((usage.on_disk, usage.unreferenced), (4 * one, 4 * one));
    fs::remove_dir_all(&a).unwrap();
    let usage = measured(&folder);
    assert_eq!(facts(&usage), [(2, 2, 0), (1, 1, 0)], "the last name has it alone");
    assert_eq!(usage.on_disk, 3 * one);
    drop(c);
}

#[test]
fn what_has_a_name_outside_is_not_freed_by_any_entry() {
    let (folder, [a, b]) = attempts(["a", "b"], &["own"]);
    let outside = tempfile::tempdir().unwrap();
    let file = a.join("trunk");
    fs::write(&file, vec![2u8; 100_000]).unwrap();
    for to in [b.join("trunk"), a.join("code/trunk"), outside.path().join("kept")] {
        fs::hard_link(&file, to).unwrap();
    }
    let (usage, one) = (measured(&folder), one(&file));
    for entry in &usage.entries {
        assert_eq!((entry.on_disk, entry.unique, entry.shared), (2 * one, one, one), "{entry:?}");
    }
    assert_eq!((usage.on_disk, usage.unreferenced), (3 * one, 2 * one));
}

#[test]
fn a_storage_that_does_not_tell_is_measured_by_lengths() {
    let storage = MemoryStorage::new();
    let dir = storage.create_dir_all(Path::new("runs")).unwrap();
    dir.create_file(".tch-checkpoint.lock").unwrap().finish().unwrap();
    let file = dir.create_file(".a.pin").unwrap();
    file.write_at(0, b"12345").unwrap();
    file.finish().unwrap();
    let usage = usage(&storage, Path::new("runs")).unwrap();
    assert_eq!((usage.entries.len(), usage.on_disk, usage.foreign), (2, 5, 0));
    assert!(usage.entries.iter().all(|entry| entry.what == Held::Own));
    assert_eq!(usage.entries.iter().map(|entry| entry.unique).sum::<u64>(), 5);
}
