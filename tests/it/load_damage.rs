//! Files that are cut, zeroed or removed while a load reads them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::{ErrorKind, Result};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::load_faults::{Live, tensors};
use crate::tier;

/// What happens to a file while a load goes on.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 4] = [
    ("cut in half", |path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }),
    ("cut to nothing", |path| {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    }),
    ("removed", |path| std::fs::remove_file(path).unwrap()),
    ("zeroed", |path| {
        let zeros = vec![0; std::fs::metadata(path).unwrap().len() as usize];
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all(&zeros).unwrap();
    }),
];

/// Loads while `damage` is done to `file` before operation number `operation` of rank 1; whether
/// the load came so far, and its results.
fn load_while_damaged(
    dir: &Path,
    file: &Path,
    damage: Damage,
    operation: u64,
    atomicity: Atomicity,
) -> (bool, Vec<Result<()>>) {
    let count = Arc::new(AtomicU64::new(0));
    let (counted, file) = (Arc::clone(&count), file.to_owned());
    let hooked = Hooked::new(&LocalStorage::new(), move |_| {
        if counted.fetch_add(1, SeqCst) + 1 == operation {
            damage(&file);
        }
        Ok(())
    });
    let at = dir.join("a").to_str().unwrap().to_owned();
    let results = on_ranks(2, move |group| {
        let mut live = Live::new(&group);
        let plain = LocalStorage::new();
        let storage: &dyn Storage = if group.rank().get() == 1 { &hooked } else { &plain };
        let result = live.load(&group, storage, &at, atomicity);
        match &result {
            Ok(()) => assert!(live.is_loaded(&group, 1), "half a load was taken for a whole"),
            Err(error) => {
                let may_change = atomicity == Atomicity::InPlace;
                assert!(may_change || live.is_untouched(), "changed by {error}");
            }
        }
        result
    });
    (count.load(SeqCst) >= operation, results)
}

/// Nothing is mapped into memory, so that a file that shrinks is an error and no signal.
#[test]
fn files_that_are_cut_or_vanish_during_a_load_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    saved(LocalStorage::new(), 2, whole.join("a").to_str().unwrap(), &tensors(), 1);
    let files: Vec<_> = std::fs::read_dir(whole.join("a")).unwrap().map(|e| e.unwrap()).collect();
    let (mut found, mut number) = (0, 0);
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        for (how, damage) in DAMAGES {
            let found_before = found;
            for file in files.iter().map(std::fs::DirEntry::file_name) {
                for operation in 1.. {
                    number += 1;
                    let copy = dir.path().join(number.to_string());
                    std::fs::create_dir_all(copy.join("a")).unwrap();
                    for file in &files {
                        std::fs::copy(file.path(), copy.join("a").join(file.file_name())).unwrap();
                    }
                    let path = copy.join("a").join(&file);
                    let (reached, results) =
                        load_while_damaged(&copy, &path, damage, operation, atomicity);
                    std::fs::remove_dir_all(&copy).unwrap();
                    if results.iter().any(Result::is_err) {
                        let error = one_error(&results, how);
                        let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound, ErrorKind::NotShared];
                        assert!(kinds.contains(&error.kind()), "{how} {file:?}: {error}");
                        found += 1;
                    }
                    if !reached {
                        break;
                    }
                }
            }
            assert!(found > found_before + 5, "{how}, {atomicity:?}: {}", found - found_before);
        }
    }
    assert!(found > 30, "{found} of {number} loads met the damage");
    tier::figure("loads that met a file that was cut, removed or zeroed", found);
}
