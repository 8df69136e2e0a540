//! Names, lists, renames, removals and links.

use super::*;
use crate::storage::{DirEntry, EntryKind};

on_every_storage!(
    a_name_is_one_component,
    a_list_tells_kinds,
    rename_without_replacing,
    rename_replacing,
    rename_exchanging,
    removing_files,
    removing_directories,
    links_are_texts,
);

fn a_name_is_one_component(place: &Place) {
    let dir = place.dir().create_dir("inner").unwrap();
    put(&*place.dir(), "outside", b"x");
    let too_long = "n".repeat(256);
    for bad in ["", ".", "..", "/", "../outside", "a/b", "a\0b", &too_long] {
        let results = [
            dir.create_dir(bad).map(drop),
            dir.open_dir(bad).map(drop),
            dir.create_file(bad).map(drop),
            dir.open_file(bad).map(drop),
            dir.rename(bad, "new", Rename::Replace),
            dir.rename("old", bad, Rename::Replace),
            dir.remove_file(bad),
            dir.remove_dir(bad),
            dir.try_lock(bad).map(drop),
            dir.create_link(bad, "target"),
            dir.read_link(bad).map(drop),
        ];
        for (method, result) in results.into_iter().enumerate() {
            let what = format!("method {method} with {bad:?}");
            assert_eq!(kind(result, &what), ErrorKind::InvalidInput, "{what}");
        }
    }
    let longest = "n".repeat(255);
    put(&*dir, &longest, b"x");
    assert_eq!(names(&*dir), [longest]);
}

fn a_list_tells_kinds(place: &Place) {
    let dir = place.dir();
    dir.create_dir("d").unwrap();
    put(&*dir, "f", b"x");
    dir.create_link("l", "nowhere").unwrap();
    put(&*dir, ".hidden", b"x");
    let mut listed = dir.list().unwrap();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let entry = |name: &str, kind| DirEntry { name: name.into(), kind };
    let wanted = [
        entry(".hidden", EntryKind::File),
        entry("d", EntryKind::Directory),
        entry("f", EntryKind::File),
        entry("l", EntryKind::Link),
    ];
    assert_eq!(listed, wanted);
    assert_eq!(dir.list().unwrap().len(), 4, "a second list starts at the first entry");
}

fn rename_without_replacing(place: &Place) {
    let dir = place.dir();
    put(&*dir, "a", b"a");
    put(&*dir, "b", b"b");
    dir.create_dir("d").unwrap();
    dir.create_link("l", "nowhere").unwrap();
    for taken in ["b", "d", "l", "a"] {
        let renamed = dir.rename("a", taken, Rename::NoReplace);
        assert_eq!(kind(renamed, taken), ErrorKind::AlreadyExists, "{taken}");
    }
    let renamed = dir.rename("missing", "free", Rename::NoReplace);
    assert_eq!(kind(renamed, "missing"), ErrorKind::NotFound);
    dir.rename("a", "free", Rename::NoReplace).unwrap();
    dir.rename("l", "link", Rename::NoReplace).unwrap();
    assert_eq!(names(&*dir), ["b", "d", "free", "link"]);
    assert_eq!((get(&*dir, "free"), get(&*dir, "b")), (b"a".to_vec(), b"b".to_vec()));
}

fn rename_replacing(place: &Place) {
    let dir = place.dir();
    for name in ["a", "b", "c"] {
        put(&*dir, name, name.as_bytes());
    }
    dir.create_link("l", "b").unwrap();
    let reader = dir.open_file("b").unwrap();
    dir.rename("a", "b", Rename::Replace).unwrap();
    dir.rename("c", "l", Rename::Replace).unwrap();
    assert_eq!(names(&*dir), ["b", "l"]);
    assert_eq!(get(&*dir, "b"), b"a", "the link was replaced, not what it points to");
    assert_eq!(get(&*dir, "l"), b"c");
    let mut old = [0];
    reader.read_at(0, &mut old).unwrap();
    assert_eq!(&old, b"b", "who has the old file open keeps reading it");

    dir.create_dir("full").unwrap().create_dir("x").unwrap();
    dir.create_dir("d").unwrap();
    assert_eq!(kind(dir.rename("b", "d", Rename::Replace), "dir"), ErrorKind::Storage);
    assert_eq!(kind(dir.rename("d", "b", Rename::Replace), "file"), ErrorKind::Storage);
    assert_eq!(kind(dir.rename("d", "full", Rename::Replace), "full"), ErrorKind::AlreadyExists);
    assert_eq!(kind(dir.rename("no", "b", Rename::Replace), "no"), ErrorKind::NotFound);
    dir.rename("b", "b", Rename::Replace).unwrap();
    assert_eq!(names(&*dir), ["b", "d", "full", "l"]);
}

fn rename_exchanging(place: &Place) {
    let dir = place.dir();
    put(&*dir.create_dir("old").unwrap(), "which", b"old");
    put(&*dir.create_dir("new").unwrap(), "which", b"new");
    put(&*dir, "file", b"file");
    dir.rename("new", "old", Rename::Exchange).unwrap();
    assert_eq!(get(&*dir.open_dir("old").unwrap(), "which"), b"new");
    assert_eq!(get(&*dir.open_dir("new").unwrap(), "which"), b"old");
    dir.rename("new", "file", Rename::Exchange).unwrap();
    assert_eq!(get(&*dir, "new"), b"file");
    for (from, to) in [("old", "missing"), ("missing", "old")] {
        let renamed = dir.rename(from, to, Rename::Exchange);
        assert_eq!(kind(renamed, to), ErrorKind::NotFound, "{from} {to}");
    }
    assert_eq!(names(&*dir), ["file", "new", "old"]);
}

fn removing_files(place: &Place) {
    let dir = place.dir();
    put(&*dir, "target", b"x");
    dir.create_link("link", "target").unwrap();
    dir.create_dir("d").unwrap();
    dir.remove_file("link").unwrap();
    assert_eq!(names(&*dir), ["d", "target"]);
    dir.remove_file("target").unwrap();
    assert_eq!(kind(dir.remove_file("target"), "again"), ErrorKind::NotFound);
    assert_eq!(kind(dir.remove_file("d"), "a directory"), ErrorKind::Storage);
    assert_eq!(names(&*dir), ["d"]);
}

fn removing_directories(place: &Place) {
    let dir = place.dir();
    let inner = dir.create_dir("d").unwrap();
    dir.create_link("link", "d").unwrap();
    put(&*inner, "f", b"x");
    assert_eq!(kind(dir.remove_dir("d"), "full"), ErrorKind::Storage);
    assert_eq!(kind(dir.remove_dir("link"), "link"), ErrorKind::Storage);
    inner.remove_file("f").unwrap();
    dir.remove_dir("d").unwrap();
    assert_eq!(kind(dir.remove_dir("d"), "again"), ErrorKind::NotFound);
    assert_eq!(names(&*dir), ["link"]);
}

fn links_are_texts(place: &Place) {
    let dir = place.dir();
    put(&*dir, "file", b"x");
    for (name, text) in [("a", "file"), ("b", "../../etc"), ("c", "nowhere é")] {
        dir.create_link(name, text).unwrap();
        assert_eq!(dir.read_link(name).unwrap(), text);
    }
    for taken in ["a", "file"] {
        let made = dir.create_link(taken, "other");
        assert_eq!(kind(made, taken), ErrorKind::AlreadyExists, "{taken}");
    }
    assert_eq!(dir.read_link("a").unwrap(), "file");
    for none in ["file", "missing"] {
        assert_eq!(kind(dir.read_link(none), none), ErrorKind::NotFound, "{none}");
    }
    for bad in ["", "a\0b"] {
        assert_eq!(kind(dir.create_link("d", bad), bad), ErrorKind::InvalidInput, "{bad:?}");
    }
}
