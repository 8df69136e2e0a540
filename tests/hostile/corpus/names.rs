//! Names that a program is handed: of checkpoints, of entries of a directory.

use std::path::Path;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::load::read_tensor;
use tch_checkpoint::storage::{LocalStorage, Storage};

use crate::judge::{refused, unfit, without_a_trace};
use crate::scene::Scene;

pub const COUNT: usize = NAMES.len() + ENTRIES.len();

/// Last components that are no name of a checkpoint.
const NAMES: [&str; 12] = [
    "..",
    "runs/..",
    "/",
    ".",
    "",
    ".hidden",
    "runs/.a.pin",
    "a\0b",
    "a\u{1b}[2Jb",
    "a\nLATEST 9 forged",
    "a\u{9b}31m",
    concat!(
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "xxxxxxxxxxxxxxxxxxxxx"
    ),
];

#[test]
fn names_of_checkpoints_are_one_visible_component() {
    for name in NAMES {
        let errors = [refused(CheckpointPath::parse(name)), refused(Wanted::parse(name).map(drop))];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}: {error}");
            assert_eq!(unfit(&error.to_string()), None, "{name:?}");
        }
    }
}

/// What is no name of an entry, in a directory that has neighbours.
const ENTRIES: [&str; 9] =
    ["..", "../outside/secret", "/etc/passwd", "", ".", "a/b", "a\0b", "./a", "a/../../outside/ck"];

#[test]
fn entries_of_a_directory_are_named_by_one_component() {
    let _alone = crate::alone();
    let scene = Scene::new();
    let ((), trace) = without_a_trace(&scene, || {
        let dir = LocalStorage::new().open_dir(&scene.dir()).unwrap();
        for name in ENTRIES {
            let errors = [
                refused(dir.open_file(name).map(drop)),
                refused(dir.open_dir(name).map(drop)),
                refused(dir.create_file(name).map(drop)),
                refused(dir.create_dir(name).map(drop)),
                refused(dir.remove_file(name)),
                refused(dir.remove_dir(name)),
                refused(dir.open_for_writing(name).map(drop)),
                refused(dir.read_link(name).map(drop)),
                refused(dir.try_lock(name).map(drop)),
                refused(dir.create_link(name, "x")),
                refused(dir.rename(name, "x", tch_checkpoint::storage::Rename::Replace)),
                refused(dir.rename("x", name, tch_checkpoint::storage::Rename::Replace)),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}: {error}");
                assert_eq!(unfit(&error.to_string()), None, "{name:?}");
            }
        }
    });
    assert_eq!(trace, None);
}

#[test]
fn a_tensor_that_is_asked_for_has_a_name() {
    let scene = Scene::new();
    scene.honest();
    let wanted = Wanted::parse(Path::new(&scene.a())).unwrap();
    for name in ["", "\u{1b}[2J", "__metadata__", &"x".repeat(5000)] {
        let error = refused(read_tensor(&LocalStorage::new(), &wanted, name));
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(unfit(&error.to_string()), None, "{name:?}");
    }
}
