//! Opening and creating directories, and handles that outlive names.

use std::sync::{Arc, Barrier};

use super::*;

on_every_storage!(
    opening_by_path_needs_a_directory,
    creating_by_path_makes_what_is_missing,
    creating_by_path_over_a_file_fails,
    creating_by_path_may_race,
    a_directory_is_created_once,
    opening_by_name_follows_nothing,
    a_handle_survives_a_rename,
    a_removed_directory_takes_nothing,
);

fn opening_by_path_needs_a_directory(place: &Place) {
    put(&*place.dir(), "file", b"x");
    for name in ["missing", "missing/below", "file", "file/below"] {
        let opened = place.storage.open_dir(&place.root.join(name));
        assert_eq!(kind(opened, name), ErrorKind::NotFound, "{name}");
    }
    assert_eq!(place.dir().path(), place.root);
}

fn creating_by_path_makes_what_is_missing(place: &Place) {
    let path = place.root.join("a/b/c");
    let made = place.storage.create_dir_all(&path).unwrap();
    assert_eq!(made.path(), path);
    put(&*made, "kept", b"1");
    let again = place.storage.create_dir_all(&path).unwrap();
    assert_eq!(get(&*again, "kept"), b"1");
    assert_eq!(names(&*place.dir()), ["a"]);
    place.storage.create_dir_all(&place.root.join("d/../e")).unwrap();
    place.storage.open_dir(&place.root.join("e")).unwrap();
}

fn creating_by_path_over_a_file_fails(place: &Place) {
    put(&*place.dir(), "file", b"x");
    for name in ["file", "file/below"] {
        let made = place.storage.create_dir_all(&place.root.join(name));
        assert_eq!(kind(made, name), ErrorKind::Storage, "{name}");
    }
}

fn creating_by_path_may_race(place: &Place) {
    for round in 0..20 {
        let path = place.root.join(format!("{round}/b/c/d"));
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for rank in 0..4 {
                let (start, path) = (&start, &path);
                scope.spawn(move || {
                    start.wait();
                    let made = place.storage.create_dir_all(path).unwrap();
                    put(&*made, &format!("rank{rank}"), b"");
                });
            }
        });
        let made = place.storage.open_dir(&path).unwrap();
        assert_eq!(names(&*made), ["rank0", "rank1", "rank2", "rank3"]);
    }
}

fn a_directory_is_created_once(place: &Place) {
    let dir = place.dir();
    let made = dir.create_dir("a").unwrap();
    assert_eq!(made.path(), place.root.join("a"));
    put(&*made, "kept", b"1");
    assert_eq!(kind(dir.create_dir("a"), "again"), ErrorKind::AlreadyExists);
    put(&*dir, "file", b"x");
    assert_eq!(kind(dir.create_dir("file"), "a file"), ErrorKind::AlreadyExists);
    assert_eq!(get(&*dir.open_dir("a").unwrap(), "kept"), b"1");
}

fn opening_by_name_follows_nothing(place: &Place) {
    let dir = place.dir();
    dir.create_dir("real").unwrap();
    dir.create_link("link", "real").unwrap();
    put(&*dir, "file", b"x");
    for name in ["missing", "link", "file"] {
        assert_eq!(kind(dir.open_dir(name), name), ErrorKind::NotFound, "{name}");
    }
    dir.open_dir("real").unwrap();
}

fn a_handle_survives_a_rename(place: &Place) {
    let dir = place.dir();
    let handle = dir.create_dir("partial").unwrap();
    dir.rename("partial", "final", Rename::NoReplace).unwrap();
    dir.create_dir("partial").unwrap();
    put(&*handle, "late", b"1");
    handle.sync().unwrap();
    assert_eq!(get(&*dir.open_dir("final").unwrap(), "late"), b"1");
    assert_eq!(names(&*dir.open_dir("partial").unwrap()), [""; 0]);
}

fn a_removed_directory_takes_nothing(place: &Place) {
    let dir = place.dir();
    let handle = Arc::clone(&dir.create_dir("gone").unwrap());
    dir.remove_dir("gone").unwrap();
    assert_eq!(kind(handle.create_file("a"), "create_file"), ErrorKind::Storage);
    assert_eq!(kind(handle.create_dir("a"), "create_dir"), ErrorKind::Storage);
    assert_eq!(kind(handle.try_lock("a"), "try_lock"), ErrorKind::Storage);
    assert_eq!(kind(handle.create_link("a", "b"), "create_link"), ErrorKind::Storage);
    assert_eq!(kind(handle.open_file("a"), "open_file"), ErrorKind::NotFound);
}
