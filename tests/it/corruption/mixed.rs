//! Files of another rank, component, step, save or job in the place of the right one.

use std::path::Path;

use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{ErrorKind, catalog, verify};

use super::loads::Loader;
use super::subject::{Recipe, Shape, Subject, few_tensors};
use super::tally::{Expected, Tally};
use crate::harness::*;

/// The same state by the same ranks, but for what differs.
fn saves(storage: &MemoryStorage) -> [Subject; 5] {
    let recipe = Recipe::new(Shape::Directory, 2, few_tensors());
    [
        recipe.save(storage, "runs/a"),
        // Saved once more: nothing differs but the save id.
        recipe.save(storage, "runs/again"),
        Recipe { generation: 4, ..recipe.clone() }.save(storage, "runs/step"),
        // A job with other content, and one of other ranks.
        Recipe { content: 9, ..recipe.clone() }.save(storage, "other/job"),
        Recipe { ranks: 3, ..recipe }.save(storage, "other/ranks"),
    ]
}

/// What each file holds, without what the names say: lists in the order of the manifest.
fn contents(subject: &Subject) -> Vec<(String, Vec<u8>)> {
    let files = [vec![subject.manifest_path()], subject.data_files(), subject.sums_files()];
    files.concat().into_iter().map(|file| (file.clone(), subject.files[&file].clone())).collect()
}

/// Every file in the place of every other, of its own checkpoint and of four more. Lengths are
/// often the same, content is but for the save id in the header.
#[test]
fn any_file_in_the_place_of_another_is_found() {
    let storage = MemoryStorage::new();
    let all = saves(&storage);
    let right = &all[0];
    let loaders = [Loader::new(right, 1), Loader::new(right, 3)];
    let (mut tally, mut same_len) = (Tally::default(), 0);
    for (file, bytes) in contents(right) {
        for (other, replacement) in all.iter().flat_map(contents) {
            if replacement == bytes {
                continue;
            }
            same_len += u32::from(replacement.len() == bytes.len());
            right.put(&file, &replacement);
            let foreign_manifest = file.ends_with("manifest.bin");
            let paths = if foreign_manifest { Vec::new() } else { vec![file.as_str()] };
            let expected = Expected { paths, spot: None, files_differ: foreign_manifest };
            let damage = right.verify();
            for loader in &loaders {
                let what = || format!("{other} as {file}");
                tally.take(what, (&damage, &loader.load()), &expected);
            }
            right.restore(&file);
        }
    }
    assert!(tally.tried() > 200 && same_len > 20, "{same_len} of {}", tally.tried());
    tally.all_found("files in the place of others");
    loaders.iter().for_each(|loader| loader.load().unwrap());
}

/// Two files that exchanged their names, of all pairs, within a checkpoint and between two.
#[test]
fn files_that_exchanged_their_names_are_found() {
    let storage = MemoryStorage::new();
    let all = saves(&storage);
    let right = &all[0];
    let loader = Loader::new(right, 1);
    let mut tally = Tally::default();
    assert_eq!(contents(right).len(), 5, "a manifest, and data and sums of two ranks");
    for (file, bytes) in contents(right) {
        for (other, replacement) in all[..2].iter().flat_map(contents) {
            if replacement != bytes {
                right.put(&file, &replacement);
                right.put(&other, &bytes);
                let what = || format!("{file} and {other}");
                let expected = Expected { files_differ: true, ..Expected::default() };
                tally.take(what, (&right.verify(), &loader.load()), &expected);
                right.restore(&file);
                right.put(&other, &replacement);
            }
        }
    }
    tally.all_found("files that exchanged their names");
}

/// The index names files, so that one of another save is another file; a text of equal bytes is
/// the same file, wherever it was saved.
#[test]
fn an_index_of_another_save_is_found_and_equal_code_is_the_same_code() {
    let storage = MemoryStorage::new();
    let all = saves(&storage);
    let [right, again, ..] = &all;
    assert_eq!(right.other_files().len(), 2, "the index and one text");
    for (file, other) in right.other_files().iter().zip(again.other_files()) {
        let is_index = file.ends_with(".json");
        right.put(file, &again.files[&other]);
        let damage = right.verify();
        assert_eq!(damage.len(), usize::from(is_index), "{file}: {damage:?}");
        Loader::new(right, 1).load().unwrap();
        right.restore(file);
    }
}

#[test]
fn deleted_files_are_found_by_name() {
    let subject = Recipe::new(Shape::Directory, 2, few_tensors()).saved();
    let dir = subject.storage.open_dir(Path::new(&subject.at)).unwrap();
    let loader = Loader::new(&subject, 2);
    assert_eq!((contents(&subject).len(), subject.other_files().len()), (5, 2));
    for (file, _) in contents(&subject) {
        let name = Path::new(&file).file_name().unwrap().to_str().unwrap();
        dir.remove_file(name).unwrap();
        let (damage, error) = (subject.verify(), loader.fault(|| file.clone()));
        assert!(!damage.is_empty(), "{file}");
        if name == "manifest.bin" {
            assert_eq!(
                (damage[0].kind(), error.kind()),
                (ErrorKind::NotFound, ErrorKind::NotFound)
            );
        } else {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert_eq!(error.path(), Some(file.as_str()));
            assert!(damage.iter().all(|e| e.path() == Some(file.as_str())), "{damage:?}");
        }
        subject.restore(&file);
    }
    for file in subject.other_files() {
        let (folder, name) = file.rsplit_once('/').unwrap();
        subject.storage.open_dir(Path::new(folder)).unwrap().remove_file(name).unwrap();
        let damage = subject.verify();
        assert_eq!(damage.len(), 1, "{file}: {damage:?}");
        assert_eq!(damage[0].path(), Some(file.as_str()));
        loader.load().unwrap();
        subject.restore(&file);
    }
    assert_eq!(subject.verify(), []);
}

/// What lies in the directory beside its files is told, is no damage and changes no load.
#[test]
fn foreign_files_are_told_and_are_no_damage() {
    let storage = MemoryStorage::new();
    let all = saves(&storage);
    let [right, again, ..] = &all;
    let mut strangers = Vec::new();
    for (file, bytes) in contents(again).into_iter().skip(1) {
        let name = Path::new(&file).file_name().unwrap().to_str().unwrap().to_owned();
        right.put(&right.path_of(&name), &bytes);
        strangers.push(name);
    }
    for name in ["core.1234", ".hidden", "code/notes.txt", "manifest.bin.bak"] {
        right.put(&right.path_of(name), b"x");
        strangers.push(name.to_owned());
    }
    strangers.sort();
    let found = catalog::find(&storage, &wanted("runs/a")).unwrap();
    let verified = verify::verify(&found, &mut |_| {}).unwrap();
    assert_eq!((verified.damage, verified.foreign), (Vec::new(), strangers));
    Loader::new(right, 2).load().unwrap();
}

/// The name of a directory is not part of a checkpoint: renamed it is as good, and under the name
/// of another one it is what it was saved as.
#[test]
fn a_renamed_checkpoint_is_the_same_checkpoint() {
    let storage = MemoryStorage::new();
    let [first, _, _, other, _] = saves(&storage);
    let runs = storage.open_dir(Path::new("runs")).unwrap();
    let rename = |from: &str, to: &str| {
        runs.rename(from, to, tch_checkpoint::storage::Rename::NoReplace).unwrap();
    };
    rename("a", "b");
    let renamed = Subject { at: "runs/b".to_owned(), ..first };
    Loader::new(&renamed, 2).load().unwrap();
    assert_good(&storage, "runs/b");
    rename("again", "a");
    let found = catalog::find(&storage, &wanted("runs/a")).unwrap();
    assert_ne!(found.manifest.save_id(), renamed.found.manifest.save_id());
    // Content of another job is what that one saved: nothing is compared with the name.
    Loader::new(&other, 1).load().unwrap();
}

/// One file per component: of two saves of equal content they do not belong together.
#[test]
fn a_component_of_another_save_is_found() {
    let recipe = Recipe::new(Shape::FilePerComponent, 2, few_tensors());
    let (subject, again) = (recipe.saved(), recipe.saved());
    let loader = Loader::new(&subject, 1);
    let mut tally = Tally::default();
    for file in subject.files.keys() {
        subject.put(file, &again.files[file]);
        let expected = Expected { files_differ: true, ..Expected::default() };
        tally.take(|| file.clone(), (&subject.verify(), &loader.load()), &expected);
        subject.restore(file);
    }
    assert_eq!(tally.tried(), 2);
    tally.all_found("components of another save");
}

/// The beginning of one file before the data of another.
#[test]
fn a_header_of_another_save_of_a_single_file_is_found() {
    let recipe = Recipe::new(Shape::OneFile, 2, few_tensors());
    let other = Recipe { content: 9, ..recipe.clone() };
    let (subject, other) = (recipe.saved(), other.saved());
    let (loader, file) = (Loader::new(&subject, 1), subject.at.clone());
    let start = subject.found.manifest.data_files()[0].data_start as usize;
    let mut mixed = other.files[&file][..start].to_vec();
    mixed.extend(&subject.files[&file][start..]);
    subject.put(&file, &mixed);
    let mut tally = Tally::default();
    tally.take(|| file.clone(), (&subject.verify(), &loader.load()), &Expected::at(&file));
    tally.all_found("data under the header of another save");
}
