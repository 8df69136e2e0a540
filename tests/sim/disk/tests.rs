//! The disk keeps what was fsynced, and of the rest now this and now that.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::storage::{Directory, Rename, Storage};

use super::{Disk, Lie, SimStorage};
use crate::rng::Rng;

/// The names in `run`, and the content of the file `a`, after a power cut for each of many seeds.
fn left(prepare: impl Fn(&dyn Directory)) -> BTreeSet<(Vec<String>, Option<Vec<u8>>)> {
    (0..400).map(|seed| after_cut(seed, &prepare)).collect()
}

fn after_cut(seed: u64, prepare: &impl Fn(&dyn Directory)) -> (Vec<String>, Option<Vec<u8>>) {
    let disk = Disk::new(true, Lie::None);
    let storage = SimStorage(disk.clone());
    prepare(storage.create_dir_all(Path::new("run")).unwrap().as_ref());
    disk.lock().cut(&mut Rng::new(seed));
    let run = storage.open_dir(Path::new("run")).unwrap();
    let names = run.list().unwrap().into_iter().map(|entry| entry.name).collect();
    let read = run.open_file("a").ok().map(|file| {
        let mut bytes = vec![0; file.len() as usize];
        file.read_at(0, &mut bytes).unwrap();
        bytes
    });
    (names, read)
}

fn write(dir: &dyn Directory, name: &str, bytes: &[u8], is_synced: bool) {
    let file = dir.create_file(name).unwrap();
    file.write_at(0, bytes).unwrap();
    if is_synced {
        file.finish().unwrap();
    }
}

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn what_was_fsynced_is_there() {
    let left = left(|run| {
        write(run, "a", &[7; 1500], true);
        run.sync().unwrap();
    });
    assert_eq!(left, BTreeSet::from([(names(&["a"]), Some(vec![7; 1500]))]));
}

/// Content without entry, entry without content, and sectors of it.
#[test]
fn of_the_rest_anything_may_be_there() {
    let only_synced = left(|run| write(run, "a", &[7; 1500], true));
    let lost = (Vec::new(), None);
    assert_eq!(only_synced, BTreeSet::from([lost, (names(&["a"]), Some(vec![7; 1500]))]));
    let only_named = left(|run| {
        write(run, "a", &[7; 1500], false);
        run.sync().unwrap();
    });
    let contents: BTreeSet<_> = only_named.into_iter().filter_map(|(_, read)| read).collect();
    let torn = [[7; 512], [0; 512], [7; 512]].concat()[..1500].to_vec();
    for possible in [Vec::new(), vec![0; 1500], vec![7; 1500], torn] {
        assert!(contents.contains(&possible), "{:?}", &possible[..possible.len().min(4)]);
    }
    let of_sectors = |bytes: &Vec<u8>| bytes.chunks(512).all(|s| s.iter().all(|b| *b == s[0]));
    assert!(contents.iter().all(of_sectors), "a sector is whole");
}

/// An exchange is one step, and nothing comes before what it builds on.
#[test]
fn entries_change_in_steps() {
    let left = left(|run| {
        write(run, "a", b"old", true);
        write(run, "b", b"new", true);
        run.sync().unwrap();
        run.rename("b", "a", Rename::Exchange).unwrap();
        run.remove_file("b").unwrap();
    });
    let (old, new) = (Some(b"old".to_vec()), Some(b"new".to_vec()));
    let both = names(&["a", "b"]);
    assert_eq!(
        left,
        BTreeSet::from([(both.clone(), old), (both, new.clone()), (names(&["a"]), new)])
    );
}

/// The blocks of a file that has no name any more are free; if the name comes back, they may hold
/// what was written since.
#[test]
fn a_file_that_comes_back_may_hold_other_bytes() {
    let left = left(|run| {
        write(run, "a", &[1; 600], true);
        run.sync().unwrap();
        run.remove_file("a").unwrap();
        write(run, "b", &[2; 600], true);
    });
    let contents: BTreeSet<_> = left.into_iter().filter_map(|(_, read)| read).collect();
    assert!(contents.contains(&vec![1; 600]), "as it was");
    assert!(contents.iter().any(|bytes| bytes.contains(&2)), "reused");
}

/// The content is durable with the link, the name with its directory, and bytes of a file that has
/// another name are given to nobody.
#[test]
fn a_second_name_is_lost_or_there_with_all_bytes() {
    let left = |is_named: bool| -> BTreeSet<Option<Vec<u8>>> {
        let prepare = |run: &dyn Directory| {
            let from = run.create_dir("from").unwrap();
            let to = run.create_dir("to").unwrap();
            run.sync().unwrap();
            write(from.as_ref(), "f", &[7; 1500], false);
            run.link_file("from", "to", "f").unwrap();
            if is_named {
                to.sync().unwrap();
            }
            from.remove_file("f").unwrap();
            from.sync().unwrap();
            write(run, "other", &[9; 1500], false);
        };
        (0..400).map(|seed| linked_after_cut(seed, &prepare)).collect()
    };
    assert_eq!(left(true), BTreeSet::from([Some(vec![7; 1500])]));
    assert_eq!(left(false), BTreeSet::from([None, Some(vec![7; 1500])]));
}

/// What `to/f` holds after a power cut.
fn linked_after_cut(seed: u64, prepare: &impl Fn(&dyn Directory)) -> Option<Vec<u8>> {
    let disk = Disk::new(true, Lie::None);
    let storage = SimStorage(disk.clone());
    prepare(storage.create_dir_all(Path::new("run")).unwrap().as_ref());
    disk.lock().cut(&mut Rng::new(seed));
    let file = storage.open_dir(Path::new("run/to")).unwrap().open_file("f").ok()?;
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(0, &mut bytes).unwrap();
    Some(bytes)
}

/// After a failed fsync the cache is clean, and what it lost is lost.
#[test]
fn a_failed_fsync_loses_what_it_had_to_write() {
    let bytes = (0..20).map(|seed| {
        let disk = Disk::new(true, Lie::None);
        let run = SimStorage(disk.clone()).create_dir_all(Path::new("run")).unwrap();
        write(run.as_ref(), "a", &[7; 2048], false);
        run.sync().unwrap();
        let mut rng = Rng::new(seed);
        let mut locked = disk.lock();
        let id = locked.next - 1;
        locked.file(id).unwrap().sync_badly(&mut rng);
        locked.sync_file(id).unwrap();
        locked.cut(&mut rng);
        locked.file(id).unwrap().bytes.clone()
    });
    let bytes: BTreeSet<Vec<u8>> = bytes.collect();
    assert!(bytes.iter().any(|left| *left != [7; 2048]), "lost, although fsynced again");
}

#[test]
fn locks_are_given_back_and_taken_from_the_dead() {
    let disk = Disk::new(true, Lie::None);
    let run: Arc<dyn Directory> = SimStorage(disk.clone()).create_dir_all(Path::new("r")).unwrap();
    let held = run.try_lock("lock").unwrap().expect("free");
    assert!(run.try_lock("lock").unwrap().is_none() && run.try_lock_self().unwrap().is_some());
    drop(held);
    let held = run.try_lock("lock").unwrap().expect("given back");
    disk.lock().release_locks_of(0);
    let other = run.try_lock("lock").unwrap().expect("its holder is dead");
    drop(held);
    assert!(run.try_lock("lock").unwrap().is_none(), "the lock of another is not given back");
    drop(other);
}
