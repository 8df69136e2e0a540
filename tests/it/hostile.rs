//! Damage to a committed checkpoint: one typed error on every rank that names the place, nothing
//! changed by the load, and `verify` sees it too.

use std::path::{Path, PathBuf};

use tch_checkpoint::catalog::{self, Found};
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind};

use crate::harness::*;

const BLOCK: u64 = tch_checkpoint::manifest::BLOCK_BYTES;

/// Split over both ranks, with blocks that are whole, short, and shared by no two tensors.
fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("big", Dtype::F32, &[290, 131], None),
        TestTensor::new("even", Dtype::BF16, &[2, 500], Some(0)),
        TestTensor::new("scalar", Dtype::F64, &[], None),
        TestTensor::new("empty", Dtype::I64, &[0, 3], None),
    ]
}

/// Checkpoint `runs/a` of generation 1, saved by two ranks.
struct Victim {
    storage: MemoryStorage,
    tensors: Vec<TestTensor>,
    found: Found,
}

impl Victim {
    fn new() -> Self {
        Self::of(tensors())
    }

    fn of(tensors: Vec<TestTensor>) -> Self {
        let storage = MemoryStorage::new();
        saved(storage.clone(), 2, "runs/a", &tensors, 1);
        let found = catalog::find(&storage, &wanted("runs/a")).unwrap();
        Self { storage, tensors, found }
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("runs/a").join(name)
    }

    fn data_file(&self, index: usize) -> String {
        self.found.manifest.data_files()[index].name.clone()
    }

    fn sums_file(&self, index: usize) -> String {
        self.found.manifest.sums_files()[index].name.clone()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        self.storage.read(&self.file(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        self.storage.write(&self.file(name), bytes).unwrap();
    }

    /// The error of a load on two ranks; `load_state` checks that nothing was changed.
    fn load_error(&self, what: &str) -> Error {
        one_error(&loaded(self.storage.clone(), 2, "runs/a", &self.tensors, 1), what)
    }

    fn damage(&self) -> Vec<Error> {
        damage_of(&self.storage, "runs/a")
    }

    /// Load and `verify` both say that `file` is corrupt; gives the error of the load.
    fn assert_corrupt(&self, file: &str, what: &str) -> Error {
        let error = self.load_error(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert_names(&error, file, what);
        let damage = self.damage();
        assert!(!damage.is_empty(), "{what}: verify finds nothing");
        let there = damage.iter().any(|e| e.path().is_some_and(|path| path.ends_with(file)));
        assert!(there, "{what}: verify does not name {file}: {damage:?}");
        error
    }

    /// Undoes a change of one file.
    fn with_changed(&self, name: &str, changed: &[u8], check: impl FnOnce(&Self)) {
        let good = self.read(name);
        assert_ne!(good, changed, "no damage done");
        self.write(name, changed);
        check(self);
        self.write(name, &good);
    }
}

/// The damage that `verify` lists, or the error of a manifest that cannot be read.
fn damage_of(storage: &dyn Storage, at: &str) -> Vec<Error> {
    match catalog::find(storage, &wanted(at)) {
        Ok(found) => tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap().damage,
        Err(error) => vec![error],
    }
}

fn assert_names(error: &Error, file: &str, what: &str) {
    let named = error.path().is_some_and(|path| path.ends_with(file));
    assert!(named, "{what}: does not name {file}: {error}");
}

fn flipped(bytes: &[u8], at: usize, bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << bit;
    bytes
}

#[test]
fn a_manifest_of_another_length() {
    let victim = Victim::new();
    let good = victim.read("manifest.bin");
    let len = good.len();
    for cut in [0, 1, 7, 8, 12, 19, 20, 51, 52, len / 2, len - 33, len - 32, len - 1] {
        victim.with_changed("manifest.bin", &good[..cut], |victim| {
            victim.assert_corrupt("manifest.bin", &format!("cut to {cut}"));
        });
    }
    victim.with_changed("manifest.bin", &[good.as_slice(), &[0]].concat(), |victim| {
        victim.assert_corrupt("manifest.bin", "one byte more");
    });
    assert_good(&victim.storage, "runs/a");
}

#[test]
fn every_byte_of_a_manifest_flipped() {
    let victim = Victim::new();
    let good = victim.read("manifest.bin");
    for at in 0..good.len() {
        victim.write("manifest.bin", &flipped(&good, at, at % 8));
        let error = catalog::find(&victim.storage, &wanted("runs/a")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
        assert_names(&error, "manifest.bin", &format!("byte {at}"));
        if at % 97 == 0 {
            victim.assert_corrupt("manifest.bin", &format!("byte {at}"));
        }
    }
}

#[test]
fn the_manifest_of_another_checkpoint() {
    let victim = Victim::new();
    saved(victim.storage.clone(), 2, "runs/b", &tensors(), 2);
    let other = victim.storage.read(Path::new("runs/b/manifest.bin")).unwrap();
    let names: Vec<String> = victim.found.dir.list().unwrap().into_iter().map(|e| e.name).collect();
    victim.write("manifest.bin", &other);
    let error = victim.load_error("another manifest");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let found = catalog::find(&victim.storage, &wanted("runs/a")).unwrap();
    let verified = tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap();
    assert_eq!(verified.damage.len(), 4, "{:?}", verified.damage);
    assert_eq!(verified.foreign.len(), names.len() - 1, "all but the manifest");
}

/// A flip in the data is reported with its tensor and the offset of its block, by load and
/// `verify` alike; nothing else is reported.
#[test]
fn flips_in_the_data() {
    let victim = Victim::new();
    let manifest = &victim.found.manifest;
    let mut tensors_hit = std::collections::BTreeSet::new();
    for (index, file) in manifest.data_files().iter().enumerate() {
        let good = victim.read(&file.name);
        for (tensor, piece) in manifest.pieces_of_file(index) {
            let len = tensor.piece_bytes(piece);
            let edges = [0, 1, BLOCK - 1, BLOCK, len.saturating_sub(1)];
            let sampled = (0..24).map(|i| i * 2_654_435_761 % len.max(1));
            for at in edges.into_iter().chain(sampled).filter(|at| *at < len) {
                let what = format!("{} {} + {at}", file.name, tensor.name);
                let place = (piece.begin + at) as usize;
                let changed = flipped(&good, place, (at % 8) as usize);
                victim.with_changed(&file.name, &changed, |victim| {
                    let error = victim.assert_corrupt(&file.name, &what);
                    let damage = victim.damage();
                    assert_eq!(damage.len(), 1, "{what}: {damage:?}");
                    for error in [&error, &damage[0]] {
                        assert_eq!(error.tensor(), Some(tensor.name.as_str()), "{what}: {error}");
                        let block = piece.begin + at / BLOCK * BLOCK;
                        assert_eq!(error.offset(), Some(block), "{what}: {error}");
                    }
                });
                tensors_hit.insert(tensor.name.to_string());
            }
        }
    }
    assert_eq!(tensors_hit.into_iter().collect::<Vec<_>>(), ["big", "even", "scalar"]);
    assert_good(&victim.storage, "runs/a");
}

/// Straight into the destination, which is then undefined: the error is the same.
#[test]
fn a_flip_under_an_in_place_load() {
    let victim = Victim::new();
    victim.storage.corrupt(&victim.file(&victim.data_file(1)), 4096, 1).unwrap();
    let staged = victim.load_error("staged");
    let storage = victim.storage.clone();
    let verdicts = on_ranks(2, move |group| {
        load_state(&group, &storage, "runs/a", &tensors(), 1, Atomicity::InPlace)
    });
    let direct = one_error(&verdicts, "in place");
    assert_eq!((direct.kind(), direct.path()), (ErrorKind::Corrupt, staged.path()));
    assert_eq!((direct.tensor(), direct.offset()), (staged.tensor(), Some(4096)));
}

#[test]
fn flips_in_a_header() {
    let victim = Victim::new();
    let file = victim.data_file(1);
    let good = victim.read(&file);
    for at in (0..20).chain((20..4096).step_by(131)) {
        let what = format!("header byte {at}");
        victim.with_changed(&file, &flipped(&good, at, at % 8), |victim| {
            let error = victim.assert_corrupt(&file, &what);
            assert_eq!(error.offset(), Some(0), "{what}: {error}");
        });
    }
}

#[test]
fn data_files_of_another_length() {
    let victim = Victim::new();
    for index in 0..2 {
        let file = victim.data_file(index);
        let good = victim.read(&file);
        for cut in [0, 1, 8, 4095, 4096, good.len() / 2, good.len() - 1] {
            victim.with_changed(&file, &good[..cut], |victim| {
                let error = victim.assert_corrupt(&file, &format!("cut to {cut}"));
                assert!(error.message().contains("truncated"), "{error}");
            });
        }
        victim.with_changed(&file, &[good.as_slice(), &[0]].concat(), |victim| {
            let error = victim.assert_corrupt(&file, "one byte more");
            assert!(error.message().contains("extended"), "{error}");
        });
    }
}

#[test]
fn any_file_removed() {
    let victim = Victim::new();
    let files =
        [victim.data_file(0), victim.data_file(1), victim.sums_file(0), victim.sums_file(1)];
    for file in &files {
        let good = victim.read(file);
        victim.found.dir.remove_file(file).unwrap();
        let error = victim.assert_corrupt(file, "removed");
        assert!(error.help().is_some_and(|help| help.contains("gone")), "{error}");
        victim.write(file, &good);
    }
    assert_good(&victim.storage, "runs/a");
    victim.found.dir.remove_file("manifest.bin").unwrap();
    let error = victim.load_error("no manifest");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_names(&error, "runs/a", "no manifest");
}

/// Same tensors, same shapes, same lengths: only the save differs.
#[test]
fn files_of_another_save_in_place() {
    let victim = Victim::new();
    saved(victim.storage.clone(), 2, "runs/b", &tensors(), 2);
    let other = catalog::find(&victim.storage, &wanted("runs/b")).unwrap();
    let read_other = |name: &str| victim.storage.read(&Path::new("runs/b").join(name)).unwrap();
    for index in 0..2 {
        let file = victim.data_file(index);
        let theirs = read_other(&other.manifest.data_files()[index].name);
        assert_eq!(victim.read(&file).len(), theirs.len());
        victim.with_changed(&file, &theirs, |victim| {
            victim.assert_corrupt(&file, "data of another save");
        });
        let sums = victim.sums_file(index);
        let theirs = read_other(&other.manifest.sums_files()[index].name);
        victim.with_changed(&sums, &theirs, |victim| {
            victim.assert_corrupt(&sums, "sums of another save");
        });
    }
    assert_good(&victim.storage, "runs/a");
}

#[test]
fn files_of_two_ranks_swapped() {
    let halves = TestTensor::new("halves", Dtype::F32, &[290, 131], None);
    let victim = Victim::of(vec![halves]);
    for files in [[0, 1].map(|i| victim.data_file(i)), [0, 1].map(|i| victim.sums_file(i))] {
        let [first, second] = files.each_ref().map(|file| victim.read(file));
        assert_eq!(first.len(), second.len(), "only then is a swap hard to see");
        victim.with_changed(&files[0], &second, |victim| {
            victim.with_changed(&files[1], &first, |victim| {
                victim.assert_corrupt(&files[0], "swapped between ranks");
                assert!(victim.damage().iter().any(|e| e.path().unwrap().ends_with(&files[1])));
            });
        });
    }
    assert_good(&victim.storage, "runs/a");
}

#[test]
fn sums_files_damaged() {
    let victim = Victim::new();
    for index in 0..2 {
        let file = victim.sums_file(index);
        let good = victim.read(&file);
        for at in 0..good.len() {
            victim.with_changed(&file, &flipped(&good, at, at % 8), |victim| {
                victim.assert_corrupt(&file, &format!("sums byte {at}"));
            });
        }
        for len in [0, 8, 31, 32, good.len() - 16, good.len() - 1] {
            victim.with_changed(&file, &good[..len], |victim| {
                victim.assert_corrupt(&file, &format!("sums cut to {len}"));
            });
        }
        victim.with_changed(&file, &[good.as_slice(), &[0; 16]].concat(), |victim| {
            victim.assert_corrupt(&file, "one sum more");
        });
    }
}

/// What stands in the place of a file of a checkpoint in a real directory.
type Impostor = fn(&Path, &Path);

const IMPOSTORS: [(&str, Impostor); 4] = [
    ("a link to a good copy", |copy, place| std::os::unix::fs::symlink(copy, place).unwrap()),
    ("a dangling link", |_, place| std::os::unix::fs::symlink("nowhere", place).unwrap()),
    ("a directory", |_, place| std::fs::create_dir(place).unwrap()),
    ("a FIFO", |_, place| {
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, place, fifo, 0o600.into(), 0).unwrap();
    }),
];

/// Nothing but a regular file is read, and a FIFO makes nobody wait.
#[test]
fn impostors_in_the_place_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a");
    let text = at.to_str().unwrap().to_owned();
    let local = LocalStorage::new();
    saved(local, 2, &text, &tensors(), 1);
    let manifest = catalog::find(&local, &wanted(&text)).unwrap().manifest;
    let (data, sums) = (&manifest.data_files()[1].name, &manifest.sums_files()[0].name);
    for file in ["manifest.bin", data, sums] {
        let (place, copy) = (at.join(file), dir.path().join("copy"));
        std::fs::rename(&place, &copy).unwrap();
        for (kind, make) in IMPOSTORS {
            let what = format!("{kind} as {file}");
            make(&copy, &place);
            let error = one_error(&loaded(local, 2, &text, &tensors(), 1), &what);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
            assert_names(&error, file, &what);
            let text = text.clone();
            let damage = on_ranks(1, move |_| damage_of(&LocalStorage::new(), &text)).remove(0);
            assert!(damage.iter().any(|e| e.path().unwrap().ends_with(file)), "{what}: {damage:?}");
            if kind == "a directory" {
                std::fs::remove_dir(&place).unwrap();
            } else {
                std::fs::remove_file(&place).unwrap();
            }
        }
        std::fs::rename(&copy, &place).unwrap();
    }
    assert_good(&local, &text);
}

#[test]
fn paths_that_are_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(dir.path().join("file"), "text").unwrap();
    std::os::unix::fs::symlink(".", dir.path().join("loop")).unwrap();
    for place in ["empty", "file", "missing", "loop", "missing/deeper", "file/deeper"] {
        let at = dir.path().join(place).to_str().unwrap().to_owned();
        let error = one_error(&loaded(LocalStorage::new(), 2, &at, &tensors(), 1), place);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{place}: {error}");
        let parent = dir.path().to_str().unwrap();
        assert!(error.path().is_some_and(|path| path.starts_with(parent)), "{place}: {error}");
        assert!(error.help().is_some(), "{place}: {error}");
    }
    for place in ["..", "a/..", "/", ""] {
        let error = catalog::Wanted::parse(place).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{place}: {error}");
    }
}
