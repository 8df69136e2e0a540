//! What cannot be linked is written: a checkpoint that is gone or damaged, and a storage whose files
//! have one name only.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{Fault, FaultyStorage, LocalStorage, MemoryStorage};
use tch_checkpoint::tensor::Component;
use tch_checkpoint::{Error, ErrorKind, Result};

use super::{Job, bytes_of, files_of, names};
use crate::harness::{content, name, on_ranks, path};
use crate::hooked::{Hooked, unsupported};

#[test]
fn a_checkpoint_that_is_gone_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (group, storage) = (ProcessGroup::solo(), LocalStorage::new());
    let job = Job::usual();
    job.save(&group, &dir.path().join("a"));
    std::fs::remove_dir_all(dir.path().join("a")).unwrap();
    let job = job.step();
    let saved = job.save(&group, &dir.path().join("b"));
    assert_eq!(saved.report.linked_bytes, 0);
    job.check(&group, &storage, &dir.path().join("b"));
}

/// Between the comparison and the link: ranks plan again, and all is written.
#[test]
fn a_checkpoint_that_goes_while_it_is_linked_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let job = Job::usual();
        job.save(&group, &root.join("a"));
        let base = root.join("a");
        let storage = Hooked::new(&LocalStorage::new(), move |call| {
            if call.operation == "link_file" {
                let _ = std::fs::remove_dir_all(&base);
            }
            Ok(())
        });
        let job = job.step();
        let saved = job.save_on(&group, &storage, &root.join("b")).unwrap();
        assert_eq!(saved.report.linked_bytes, 0);
        job.check(&group, &storage, &root.join("b"));
    });
}

#[test]
fn where_files_have_one_name_everything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(3, move |group| {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let storage = Hooked::new(&LocalStorage::new(), move |call| match call.operation {
            "link_file" => {
                count.fetch_add(1, Relaxed);
                Err(unsupported())
            }
            _ => Ok(()),
        });
        let mut job = Job::usual();
        for n in 0..5 {
            let at = root.join(n.to_string());
            let saved = job.save_on(&group, &storage, &at).unwrap();
            assert_eq!(saved.report.linked_bytes, 0);
            job.check(&group, &storage, &at);
            job = job.step();
        }
        let twice = if group.is_coordinator() { 2 } else { 0 };
        assert_eq!(asked.load(Relaxed), twice, "it is not tried for ever");
    });
}

/// The state is whole where the disk is not: what is there is not taken over.
#[test]
fn a_damaged_file_is_not_linked_if_length_or_header_tell() {
    let damages: [fn(&Path); 3] = [
        |file| {
            let whole = std::fs::read(file).unwrap();
            std::fs::write(file, &whole[..whole.len() - 1]).unwrap();
        },
        |file| {
            let mut whole = std::fs::read(file).unwrap();
            whole[100] ^= 1;
            std::fs::write(file, whole).unwrap();
        },
        |file| std::fs::remove_file(file).unwrap(),
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        let (group, storage) = (ProcessGroup::solo(), LocalStorage::new());
        let job = Job::usual();
        job.save(&group, &dir.path().join("a"));
        damage(&files_of(&dir.path().join("a"), "trunk")[0]);
        let job = job.step();
        let at = dir.path().join("b");
        job.save(&group, &at);
        assert_eq!(names(&files_of(&at, "trunk")), [1]);
        job.check(&group, &storage, &at);
    }
}

#[test]
fn damaged_sums_are_not_linked() {
    for flipped in [20, 40, 200] {
        let dir = tempfile::tempdir().unwrap();
        let (group, storage) = (ProcessGroup::solo(), LocalStorage::new());
        let job = Job::usual();
        job.save(&group, &dir.path().join("a"));
        let sums = &files_of(&dir.path().join("a"), "sums")[0];
        let mut bytes = std::fs::read(sums).unwrap();
        bytes[flipped] ^= 1;
        std::fs::write(sums, bytes).unwrap();
        let job = job.step();
        let at = dir.path().join("b");
        let saved = job.save(&group, &at);
        assert!(saved.report.linked_bytes < bytes_of(&at, "trunk"), "byte {flipped}");
        job.check(&group, &storage, &at);
    }
}

/// Each operation of a save that links fails in turn: a checkpoint is whole, or is not there.
#[test]
fn whatever_fails_while_linking_leaves_whole_checkpoints() {
    let (first, second) = (Job::usual(), Job::usual().step());
    let (a, b) = (Path::new("runs/a"), Path::new("runs/b"));
    for fault in [Fault::Error(5), Fault::Lost(5), Fault::Panic, Fault::Torn] {
        let mut at = 1;
        loop {
            let (group, disk) = (ProcessGroup::solo(), MemoryStorage::new());
            first.save_on(&group, &disk, a).unwrap();
            let storage = FaultyStorage::new(std::sync::Arc::new(disk.clone()));
            storage.fail_at(at, fault, false);
            let saved = second.save_on(&group, &storage, b);
            let is_over = storage.operations() < at;
            first.check(&group, &disk, a);
            match saved {
                Ok(_) => second.check(&group, &disk, b),
                Err(error) => {
                    let visible =
                        tch_checkpoint::catalog::find(&disk, &crate::harness::wanted("runs/b"));
                    let unsure = [ErrorKind::DurabilityUncertain, ErrorKind::OutcomeUnknown];
                    assert_eq!(visible.is_ok(), unsure.contains(&error.kind()), "{at}: {error}");
                }
            }
            // The next one goes as if nothing had been.
            second.save_on(&group, &disk, b).unwrap();
            second.check(&group, &disk, b);
            if is_over {
                break;
            }
            at += 1;
        }
        assert!(at > 20, "so few operations: {at}");
    }
}

/// A box that can be read up to its first block, and then is off the bus, or panics.
struct Failing {
    bytes: Vec<u8>,
    panics: bool,
}

impl TensorSource for Failing {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let begin = offset as usize;
        if out.len() > 16 * 1024 || begin > 0 {
            assert!(!self.panics, "off the bus");
            return Err(Error::new(ErrorKind::Device, "off the bus"));
        }
        out.copy_from_slice(&self.bytes[begin..begin + out.len()]);
        Ok(())
    }
}

#[test]
fn a_state_that_cannot_be_read_while_it_is_compared_is_every_ranks_error() {
    for panics in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_path_buf();
        let errors = on_ranks(2, move |group| {
            let job = Job::usual();
            job.save(&group, &root.join("a"));
            let mut state = StateDict::new();
            for held in &job.tensors {
                let slice = held.of(&group);
                let bytes = content(&held.name, &held.spec(), &slice, held.generation);
                let fails = group.rank().get() == 1 && held.name == "trunk.1.weight";
                let source: Arc<dyn TensorSource> =
                    if fails { Arc::new(Failing { bytes, panics }) } else { Arc::new(bytes) };
                let component = Component::new(held.component).unwrap();
                state.add(&component, name(&held.name), held.spec(), source).unwrap();
            }
            let (to, options) = (path(root.join("b").to_str().unwrap()), SaveOptions::default());
            let error = save(&group, &LocalStorage::new(), &to, &state, &options).unwrap_err();
            job.check(&group, &LocalStorage::new(), &root.join("a"));
            assert!(!root.join("b").exists());
            (error.kind(), error.phase().map(str::to_owned), error.rank().map(|rank| rank.get()))
        });
        let kind = if panics { ErrorKind::Panic } else { ErrorKind::Device };
        for error in errors {
            assert_eq!(error, (kind, Some("compare".to_owned()), Some(1)));
        }
    }
}
