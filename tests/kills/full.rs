//! Disks that run full: from nothing left to more than enough, in pages and in inodes, known before
//! the save or found in the middle of it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tch_checkpoint::autosave::Retention;
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::retain::keep;
use tch_checkpoint::save::save_async;
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{
    CheckpointPath, Error, ErrorKind, OnExisting, ProcessGroup, Result, SaveOptions, save, sweep,
};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::mount::{PAGE, Tmpfs, Usage};
use crate::tier::{self, Need};

const RANKS: u32 = 2;

fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("w", Dtype::F32, &[170, 257], None),
        TestTensor::new("rows", Dtype::F64, &[97, 11], Some(0)),
    ]
}

/// How a save is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Directory,
    SingleFile,
    Beside,
}

/// A save that meets a disk that may be too small.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub form: Form,
    /// Over the older checkpoint, and not beside it.
    pub over: bool,
    /// Tried even if it seems not to fit.
    pub ignore_space: bool,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let forms = [Form::Directory, Form::SingleFile, Form::Beside];
        let switches = [(false, false), (false, true), (true, false), (true, true)];
        forms.into_iter().flat_map(move |form| {
            switches.map(|(over, ignore_space)| Self { form, over, ignore_space })
        })
    }

    fn older(self) -> &'static str {
        if self.form == Form::SingleFile { "older.safetensors" } else { "older" }
    }

    pub fn name(self) -> &'static str {
        match (self.over, self.form) {
            (true, _) => self.older(),
            (false, Form::SingleFile) => "newer.safetensors",
            (false, _) => "newer",
        }
    }

    fn save(
        self,
        group: &ProcessGroup,
        storage: &Arc<dyn Storage>,
        at: &Path,
        step: u64,
    ) -> Result<()> {
        let path = CheckpointPath::parse(at).unwrap();
        let state = state(&tensors(), group, step);
        let options = SaveOptions {
            step,
            on_existing: OnExisting::Replace,
            ignore_space: self.ignore_space,
            ..SaveOptions::default()
        };
        match self.form {
            Form::Directory => save(group, storage.as_ref(), &path, &state, &options).map(drop),
            Form::SingleFile => {
                save_single_file(group, storage.as_ref(), &path, &state, &options).map(drop)
            }
            Form::Beside => save_async(group, storage, &path, &state, &options, Box::new(|_| ()))?
                .wait()
                .map(drop),
        }
    }

    /// Step 1, without any limit.
    pub fn save_older(self, disk: &Tmpfs) {
        self.save_on(disk, Arc::new(LocalStorage::new()), self.older(), 1).unwrap();
    }

    /// Step 2; the one verdict of all ranks.
    pub fn save_newer(self, disk: &Tmpfs, storage: Arc<dyn Storage>) -> Result<()> {
        self.save_on(disk, storage, self.name(), 2)
    }

    fn save_on(self, disk: &Tmpfs, storage: Arc<dyn Storage>, name: &str, step: u64) -> Result<()> {
        let at = disk.runs().join(name);
        let verdicts = on_ranks(RANKS, move |group| self.save(&group, &storage, &at, step));
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
        verdicts.into_iter().next().unwrap()
    }

    /// The verdict is true of the disk, nothing else is visible, and the older one is whole.
    pub fn check(self, disk: &Tmpfs, verdict: &Result<()>, what: &str) {
        let step_at = |name: &str| {
            let at = disk.runs().join(name);
            assert_good(&LocalStorage, at.to_str().unwrap());
            let found = tch_checkpoint::catalog::find(&LocalStorage, &wanted(at.to_str().unwrap()));
            found.unwrap().manifest.step()
        };
        let committed = verdict.is_ok();
        if self.over {
            assert_eq!(step_at(self.older()), 1 + u64::from(committed), "{what}");
        } else {
            assert_eq!(step_at(self.older()), 1, "{what}");
        }
        if committed {
            assert_eq!(step_at(self.name()), 2, "{what}");
        }
        let mut expected = vec![self.older()];
        if committed && !self.over {
            expected.insert(0, self.name());
        }
        let mut visible = entries(&LocalStorage, disk.runs().to_str().unwrap());
        visible.retain(|name| !name.starts_with('.'));
        assert_eq!(visible, expected, "{what}");
    }

    /// After a failure a later sweep leaves the disk as it was before, within a page.
    ///
    /// Not at once: a process that another test starts has our open files until it runs its own
    /// program.
    fn check_space(self, disk: &Tmpfs, verdict: &Result<()>, before: Usage, what: &str) {
        if verdict.is_ok() {
            return;
        }
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let runs = LocalStorage.open_dir(&disk.runs()).unwrap();
            keep(runs.as_ref(), &Retention::default(), &[], &pace()).unwrap();
            let after = disk.usage();
            let pages = after.used_pages <= before.used_pages + 1;
            if pages && after.used_inodes == before.used_inodes {
                return;
            }
            let left = entries(&LocalStorage, disk.runs().to_str().unwrap());
            assert!(Instant::now() < until, "{what}: {before:?}, {after:?}: {left:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Back to the older one alone.
    fn reset(self, disk: &Tmpfs, verdict: &Result<()>) {
        disk.leave(None, None);
        let runs = LocalStorage.open_dir(&disk.runs()).unwrap();
        match (verdict, self.over) {
            (Err(_), _) => {}
            (Ok(()), true) => self.save_older(disk),
            (Ok(()), false) if self.form == Form::SingleFile => {
                runs.remove_file(self.name()).unwrap();
            }
            (Ok(()), false) => {
                let name = CheckpointName::new(self.name()).unwrap();
                let at = disk.runs().join(self.name());
                let found =
                    tch_checkpoint::catalog::find(&LocalStorage, &wanted(at.to_str().unwrap()));
                let save_id = found.unwrap().manifest.save_id();
                sweep::remove(runs.as_ref(), &name, &save_id, &pace()).unwrap();
            }
        }
    }
}

/// A full disk is said to be one.
fn assert_full(error: &Error, what: &str) {
    let full = error.kind() == ErrorKind::NoSpace
        || (error.kind() == ErrorKind::Storage && error.os_code() == Some(28));
    assert!(full && error.help().is_some(), "{what}: {error:?}");
}

/// How many pages the save takes while it is under way, at most.
fn need(case: Case) -> u64 {
    let disk = Tmpfs::mounted();
    case.save_older(&disk);
    let before = disk.usage().used_pages;
    Case { over: false, ..case }.save_newer(&disk, Arc::new(LocalStorage::new())).unwrap();
    disk.usage().used_pages - before
}

/// How saves ended.
#[derive(Default)]
struct Ends {
    committed: u64,
    refused: u64,
}

fn sweep_room(case: Case, rooms: impl Iterator<Item = (Option<u64>, Option<u64>)>) -> Ends {
    let disk = Tmpfs::mounted();
    case.save_older(&disk);
    let mut ends = Ends::default();
    for (pages, inodes) in rooms {
        disk.leave(pages, inodes);
        let before = disk.usage();
        let verdict = case.save_newer(&disk, Arc::new(LocalStorage::new()));
        let what = format!("{case:?}, {pages:?} pages and {inodes:?} inodes left: {verdict:?}");
        match &verdict {
            Ok(()) => ends.committed += 1,
            Err(error) => {
                assert_full(error, &what);
                ends.refused += 1;
            }
        }
        case.check(&disk, &verdict, &what);
        case.check_space(&disk, &verdict, before, &what);
        case.reset(&disk, &verdict);
    }
    ends
}

fn report(what: &str, all: &Ends) {
    tier::figure(what, format!("{} refused, {} committed", all.refused, all.committed));
    assert!(all.refused > 0 && all.committed > 0, "{what}: the sweep misses the edge");
}

#[test]
fn room_from_nothing_to_more_than_enough() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let stride = tier::count(8, 1) as usize;
    for case in Case::all() {
        let most = need(case) * 13 / 10 + 8;
        let ends = sweep_room(case, (0..=most).step_by(stride).map(|pages| (Some(pages), None)));
        report(&format!("room by pages, {case:?}"), &ends);
    }
}

#[test]
fn inodes_from_none_to_more_than_enough() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let stride = tier::count(2, 1) as usize;
    for case in Case::all() {
        let ends = sweep_room(case, (0..=40).step_by(stride).map(|inodes| (None, Some(inodes))));
        report(&format!("room by inodes, {case:?}"), &ends);
    }
}

/// Takes all that is left, as a neighbour would.
fn fill(disk: &Tmpfs) {
    let mut file = std::fs::File::create(disk.path().join("neighbour")).unwrap();
    while file.write_all(&[0; PAGE as usize]).is_ok() {}
}

/// It fits when the save begins; then, at each operation in turn, somebody else takes the rest.
#[test]
fn a_neighbour_fills_the_disk_in_the_middle() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let stride = tier::count(3, 1);
    for case in Case::all().filter(|case| !case.ignore_space) {
        let disk = Arc::new(Tmpfs::mounted());
        case.save_older(&disk);
        disk.leave(Some(1000), None);
        let mut ends = Ends::default();
        for operation in (1..).step_by(stride as usize) {
            let before = disk.usage();
            let operations = Arc::new(AtomicU64::new(0));
            let (count, place) = (operations.clone(), disk.clone());
            let hooked = Hooked::new(&LocalStorage, move |_| {
                if count.fetch_add(1, Ordering::SeqCst) + 1 == operation {
                    fill(&place);
                }
                Ok(())
            });
            let verdict = case.save_newer(&disk, Arc::new(hooked));
            let what = format!("{case:?}, full at operation {operation}: {verdict:?}");
            let is_filled = std::fs::remove_file(disk.path().join("neighbour")).is_ok();
            if let Err(error) = &verdict {
                assert_full(error, &what);
                ends.refused += 1;
            } else {
                ends.committed += 1;
            }
            case.check(&disk, &verdict, &what);
            case.check_space(&disk, &verdict, before, &what);
            case.reset(&disk, &verdict);
            disk.leave(Some(1000), None);
            if !is_filled {
                break;
            }
        }
        report(&format!("full in the middle, {case:?}"), &ends);
    }
}
