//! The contract of [`Storage`](super::Storage), checked on every storage alike.

mod directories;
mod entries;
mod files;
mod links;
mod locks;

use std::path::PathBuf;
use std::sync::Arc;

use super::{Directory, FaultyStorage, LocalStorage, MemoryStorage, Rename, Storage};
use crate::error::{ErrorKind, Result};

/// An empty place in a storage.
struct Place {
    storage: Arc<dyn Storage>,
    root: PathBuf,
    /// Deleted with the place.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn local() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().to_owned();
        Self { storage: Arc::new(LocalStorage::new()), root, _temporary: Some(temporary) }
    }

    fn memory() -> Self {
        let place = Self {
            storage: Arc::new(MemoryStorage::new()),
            root: PathBuf::from("/root"),
            _temporary: None,
        };
        place.storage.create_dir_all(&place.root).unwrap();
        place
    }

    /// A wrapper that is told to fail nothing is as good as what it wraps.
    fn wrapped() -> Self {
        let memory = Self::memory();
        Self { storage: Arc::new(FaultyStorage::new(memory.storage)), ..memory }
    }

    fn dir(&self) -> Arc<dyn Directory> {
        self.storage.open_dir(&self.root).unwrap()
    }
}

/// Runs each check on each storage, as a test of its own.
macro_rules! on_every_storage {
    ($($check:ident),+ $(,)?) => {
        mod local {
            $(#[test] fn $check() { super::$check(&super::super::Place::local()); })+
        }
        mod memory {
            $(#[test] fn $check() { super::$check(&super::super::Place::memory()); })+
        }
        mod wrapped {
            $(#[test] fn $check() { super::$check(&super::super::Place::wrapped()); })+
        }
    };
}
use on_every_storage;

fn put(directory: &dyn Directory, name: &str, bytes: &[u8]) {
    let file = directory.create_file(name).unwrap();
    file.write_at(0, bytes).unwrap();
    file.finish().unwrap();
}

fn get(directory: &dyn Directory, name: &str) -> Vec<u8> {
    let file = directory.open_file(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The kind of the error; what was expected instead of a success says `what`.
fn kind<T>(result: Result<T>, what: &str) -> ErrorKind {
    match result {
        Ok(_) => panic!("{what}: succeeded"),
        Err(error) => {
            assert!(error.path().is_some(), "{what}: {error} names no path");
            error.kind()
        }
    }
}

fn names(directory: &dyn Directory) -> Vec<String> {
    let mut names: Vec<_> = directory.list().unwrap().into_iter().map(|e| e.name).collect();
    names.sort();
    names
}
