//! The advisory lock.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

on_every_storage!(
    a_lock_has_one_holder,
    a_lock_needs_a_regular_file,
    a_lock_is_on_what_the_name_means,
    one_of_many_threads_gets_the_lock,
    a_directory_locks_itself,
);

fn a_lock_has_one_holder(place: &Place) {
    let (first, second) = (place.dir(), place.dir());
    let held = first.try_lock("lock").unwrap().expect("free");
    assert_eq!(names(&*first), ["lock"]);
    assert!(second.try_lock("lock").unwrap().is_none(), "held by another handle");
    assert!(first.try_lock("lock").unwrap().is_none(), "held by the same handle");
    assert!(second.try_lock("other").unwrap().is_some(), "each file has its own");
    drop(held);
    assert!(second.try_lock("lock").unwrap().is_some(), "given back");
    put(&*first, "data", b"kept");
    drop(first.try_lock("data").unwrap().expect("free"));
    assert_eq!(get(&*first, "data"), b"kept");
}

fn a_lock_needs_a_regular_file(place: &Place) {
    let dir = place.dir();
    dir.create_dir("d").unwrap();
    dir.create_link("dangling", "behind").unwrap();
    for other in ["d", "dangling"] {
        assert_eq!(kind(dir.try_lock(other), other), ErrorKind::Storage, "{other}");
    }
    assert_eq!(names(&*dir), ["d", "dangling"], "nothing behind the link");
}

fn a_directory_locks_itself(place: &Place) {
    let parent = place.dir();
    parent.create_dir("d").unwrap();
    let (first, second) = (parent.open_dir("d").unwrap(), parent.open_dir("d").unwrap());
    let held = first.try_lock_self().unwrap().expect("free");
    assert!(second.try_lock_self().unwrap().is_none(), "held by another handle");
    parent.rename("d", "e", Rename::NoReplace).unwrap();
    let renamed = parent.open_dir("e").unwrap();
    assert!(renamed.try_lock_self().unwrap().is_none(), "the lock goes with the directory");
    drop(held);
    assert!(renamed.try_lock_self().unwrap().is_some(), "given back");
    assert_eq!(names(&*renamed), [""; 0], "no file is left");
}

fn a_lock_is_on_what_the_name_means(place: &Place) {
    let dir = place.dir();
    let old = dir.try_lock("lock").unwrap().expect("free");
    dir.remove_file("lock").unwrap();
    let new = dir.try_lock("lock").unwrap().expect("another file");
    drop(old);
    assert!(dir.try_lock("lock").unwrap().is_none(), "the new one is still held");
    drop(new);
}

fn one_of_many_threads_gets_the_lock(place: &Place) {
    let dir = place.dir();
    let (start, tried) = (Barrier::new(4), Barrier::new(4));
    let held_count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                let held = dir.try_lock("lock");
                // Before anything that may panic: the others would wait forever.
                tried.wait();
                held_count.fetch_add(usize::from(held.unwrap().is_some()), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(held_count.into_inner(), 1);
}
