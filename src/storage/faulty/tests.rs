use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::error::ErrorKind;
use crate::storage::{MemoryStorage, Rename};

const FULL: i32 = rustix::io::Errno::NOSPC.raw_os_error();

fn faulty() -> (FaultyStorage, MemoryStorage) {
    let memory = MemoryStorage::new();
    (FaultyStorage::new(Arc::new(memory.clone())), memory)
}

/// Every operation once, in the order of `ALL`; stops at the first error.
fn use_all(storage: &FaultyStorage) -> Result<()> {
    storage.create_dir_all(Path::new("r"))?;
    let dir = storage.open_dir(Path::new("r"))?;
    let lock = dir.try_lock("lock")?;
    dir.create_dir("d")?;
    dir.open_dir("d")?;
    let file = dir.create_file("f")?;
    file.reserve(4)?;
    file.write_at(0, b"abcd")?;
    file.finish()?;
    dir.open_file("f")?.read_at(1, &mut [0; 2])?;
    dir.sync()?;
    dir.rename("f", "g", Rename::NoReplace)?;
    dir.create_link("l", "g")?;
    dir.read_link("l")?;
    dir.list()?;
    dir.remove_file("g")?;
    dir.remove_dir("d")?;
    drop(lock);
    Ok(())
}

const ALL: [&str; 18] = [
    "create_dir_all r",
    "open_dir r",
    "try_lock r/lock",
    "create_dir r/d",
    "open_dir r/d",
    "create_file r/f",
    "reserve r/f",
    "write_at r/f",
    "finish r/f",
    "open_file r/f",
    "read_at r/f",
    "sync r",
    "rename r/f -> g",
    "create_link r/l",
    "read_link r/l",
    "list r",
    "remove_file r/g",
    "remove_dir r/d",
];

#[test]
fn every_operation_is_counted_and_logged() {
    let (storage, _) = faulty();
    use_all(&storage).unwrap();
    assert_eq!(storage.log(), ALL);
    assert_eq!(storage.operations(), 18);
    storage.reset();
    assert_eq!((storage.operations(), storage.log()), (0, vec![]));
}

#[test]
fn each_operation_can_fail_and_then_does_nothing() {
    for operation in 1..=18u64 {
        let (storage, memory) = faulty();
        storage.fail_at(operation, Fault::Error(FULL), false);
        let error = use_all(&storage).unwrap_err();
        assert_eq!((error.kind(), error.os_code()), (ErrorKind::Storage, Some(FULL)));
        assert!(error.message().contains(&format!("operation {operation},")), "{error}");
        assert_eq!(storage.operations(), operation, "stopped there");
        assert_untouched(&memory, operation);
    }
}

/// What the failed operation would have done is not there.
fn assert_untouched(memory: &MemoryStorage, operation: u64) {
    let names: Vec<String> = match memory.open_dir(Path::new("r")) {
        Ok(dir) => dir.list().unwrap().into_iter().map(|entry| entry.name).collect(),
        Err(_) => vec!["no directory".into()],
    };
    let wanted: &[&str] = match operation {
        1 => &["no directory"],
        2..=3 => &[],
        4 => &["lock"],
        5..=6 => &["d", "lock"],
        7..=13 => &["d", "f", "lock"],
        14 => &["d", "g", "lock"],
        15..=17 => &["d", "g", "l", "lock"],
        _ => &["d", "l", "lock"],
    };
    assert_eq!(names, wanted, "operation {operation}");
    if operation == 8 {
        assert_eq!(memory.read(Path::new("r/f")).unwrap(), b"", "nothing was written");
    }
}

#[test]
fn a_single_fault_passes_and_a_persistent_one_stays() {
    for (fault, persistent, later) in [
        (Fault::Error(FULL), false, None),
        (Fault::Torn, false, None),
        (Fault::Error(FULL), true, Some(FULL)),
        (Fault::Torn, true, Some(IO_ERROR)),
    ] {
        let (storage, _) = faulty();
        let dir = storage.create_dir_all(Path::new("r")).unwrap();
        storage.fail_at(3, fault, persistent);
        dir.sync().unwrap();
        dir.sync().unwrap_err();
        for _ in 0..3 {
            let code = dir.clone().sync().err().map(|error| error.os_code().unwrap());
            assert_eq!(code, later, "{fault:?} {persistent}");
        }
        assert_eq!(storage.operations(), 6);
    }
}

#[test]
fn a_torn_write_leaves_its_first_half() {
    let (storage, memory) = faulty();
    let dir = storage.create_dir_all(Path::new("r")).unwrap();
    let file = dir.create_file("f").unwrap();
    storage.fail_at(4, Fault::Torn, true);
    file.write_at(0, b"ab").unwrap();
    let error = file.write_at(2, b"cdefg").unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Storage, Some(2)));
    file.write_at(9, b"dead").unwrap_err();
    file.finish().unwrap_err();
    assert_eq!(memory.read(Path::new("r/f")).unwrap(), b"abcd");
}

#[test]
fn a_lost_answer_is_an_error_of_something_that_was_done() {
    for operation in [1, 4, 6, 8, 9, 12, 13, 14, 17, 18] {
        let (storage, memory) = faulty();
        storage.fail_at(operation, Fault::Lost(FULL), true);
        assert_eq!(use_all(&storage).unwrap_err().os_code(), Some(FULL), "{operation}");
        let later = storage.open_dir(Path::new("r")).unwrap_err();
        assert_eq!(later.os_code(), Some(FULL), "nothing is done from then on");
        let (counting, done) = faulty();
        counting.fail_at(operation + 1, Fault::Error(FULL), false);
        drop(use_all(&counting));
        let names = |storage: &MemoryStorage| storage.open_dir(Path::new("r"))?.list();
        assert_eq!(names(&memory).unwrap(), names(&done).unwrap(), "{operation}");
        assert_eq!(memory.read(Path::new("r/f")).ok(), done.read(Path::new("r/f")).ok());
    }
}

#[test]
fn a_panic_comes_once_and_then_errors() {
    let (storage, memory) = faulty();
    let dir = storage.create_dir_all(Path::new("r")).unwrap();
    storage.fail_at(2, Fault::Panic, true);
    let caught = catch_unwind(AssertUnwindSafe(|| dir.create_dir("d"))).unwrap_err();
    let message = caught.downcast_ref::<String>().unwrap();
    assert_eq!(message, "injected panic in operation 2: create_dir r/d");
    assert_eq!(dir.create_dir("d").unwrap_err().os_code(), Some(IO_ERROR));
    let left = memory.open_dir(Path::new("r")).unwrap().list().unwrap();
    assert_eq!(left, []);
}

#[test]
fn clones_share_the_count_and_ranks_do_not() {
    let memory = MemoryStorage::new();
    let first = FaultyStorage::new(Arc::new(memory.clone()));
    let second = FaultyStorage::new(Arc::new(memory));
    let clone = first.clone();
    first.fail_at(2, Fault::Error(FULL), true);
    first.create_dir_all(Path::new("r")).unwrap();
    clone.open_dir(Path::new("r")).unwrap_err();
    second.open_dir(Path::new("r")).unwrap();
    assert_eq!((first.operations(), second.operations()), (2, 1));
    clone.reset();
    first.open_dir(Path::new("r")).unwrap();
}

/// Beside the list of all operations, which every save makes.
#[test]
fn a_second_name_is_counted_and_fails_like_the_others() {
    let link = |fault: Option<Fault>| {
        let (storage, memory) = faulty();
        let dir = storage.create_dir_all(Path::new("r")).unwrap();
        dir.create_dir("a").unwrap().create_file("f").unwrap().finish().unwrap();
        let b = dir.create_dir("b").unwrap();
        if let Some(fault) = fault {
            storage.fail_at(6, fault, false);
        }
        let linked = dir.link_file("a", "b", "f");
        assert_eq!(storage.log().last().unwrap(), "link_file r/a/f -> b");
        assert_eq!(linked.err().map(|error| error.os_code()), fault.map(|_| Some(FULL)));
        drop(b);
        memory.read(Path::new("r/b/f")).is_ok()
    };
    assert!(link(None));
    assert!(link(Some(Fault::Lost(FULL))), "done, and an error");
    assert!(!link(Some(Fault::Error(FULL))), "not done");
}
