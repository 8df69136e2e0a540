//! File systems that become read-only, files that cannot be changed, directories of somebody else.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;
use tch_checkpoint::autosave::Retention;
use tch_checkpoint::retain::keep;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::{Error, ErrorKind, Result};

use crate::full::{Case, Form};
use crate::harness::*;
use crate::hooked::Hooked;
use crate::mount::Tmpfs;
use crate::tier::{self, Need, program};

const NOBODY: u32 = 65534;

fn cases() -> impl Iterator<Item = Case> {
    let forms = [Form::Directory, Form::SingleFile, Form::Beside].into_iter();
    forms.flat_map(|form| [false, true].map(|over| Case { form, over, ignore_space: false }))
}

/// It says which error of the system it was, and what to do.
fn assert_refused(error: &Error, errno: Errno, what: &str) {
    let code = error.os_code();
    assert_eq!(code, Some(errno.raw_os_error()), "{what}: {error:?}");
    assert_eq!(error.kind(), ErrorKind::Storage, "{what}: {error:?}");
    assert!(error.help().is_some() && error.path().is_some(), "{what}: {error:?}");
}

/// The kernel refuses to make a file system read-only while a file of it is open for writing: the
/// save goes on then, and must be whole.
#[test]
fn a_file_system_becomes_read_only_in_the_middle() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let stride = tier::count(3, 1) as usize;
    for case in cases() {
        let mut hit = 0;
        for operation in (1..).step_by(stride) {
            let disk = Arc::new(Tmpfs::mounted());
            case.save_older(&disk);
            let (operations, turned) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
            let (place, done) = (disk.clone(), turned.clone());
            let reached = Arc::new(AtomicBool::new(false));
            let seen = reached.clone();
            let hooked = Hooked::new(&LocalStorage, move |_| {
                if operations.fetch_add(1, Ordering::SeqCst) + 1 == operation {
                    seen.store(true, Ordering::SeqCst);
                    done.store(place.make_read_only(true), Ordering::SeqCst);
                }
                Ok(())
            });
            let verdict = case.save_newer(&disk, Arc::new(hooked));
            let what = format!("{case:?}, read-only at operation {operation}: {verdict:?}");
            check_read_only(case, &disk, &verdict, &what);
            if turned.load(Ordering::SeqCst) {
                hit += 1;
            } else {
                assert!(verdict.is_ok(), "{what}");
            }
            if !reached.load(Ordering::SeqCst) {
                break;
            }
        }
        assert!(hit > 0, "{case:?}: {hit}");
        tier::figure(&format!("read-only in the middle, {case:?}"), hit);
    }
}

fn check_read_only(case: Case, disk: &Tmpfs, verdict: &Result<()>, what: &str) {
    if let Err(error) = verdict {
        assert_refused(error, Errno::ROFS, what);
    }
    case.check(disk, verdict, what);
    assert!(disk.make_read_only(false), "{what}");
    case.check(disk, verdict, what);
    let again = case.save_newer(disk, Arc::new(LocalStorage::new()));
    case.check(disk, &again, what);
    assert!(again.is_ok(), "{what}: {again:?}");
    let mut left = entries(&LocalStorage, disk.runs().to_str().unwrap());
    left.retain(|name| name.starts_with('.'));
    assert!(left.is_empty(), "{what}: {left:?}");
}

/// Something that cannot be changed until this is dropped.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    fn make(path: &'a Path) -> Self {
        let made = program("chattr").arg("+i").arg(path).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self(path)
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        let _ = program("chattr").arg("-i").arg(self.0).status();
    }
}

#[test]
fn what_cannot_be_changed_is_an_error_or_stays() {
    if !tier::has(&[Need::Root, Need::Program("chattr")]) {
        return;
    }
    let storage = || Arc::new(LocalStorage::new());
    for case in cases() {
        let disk = Tmpfs::mounted();
        case.save_older(&disk);
        let runs = disk.runs();
        let frozen = Immutable::make(&runs);
        let verdict = case.save_newer(&disk, storage());
        let what = format!("{case:?} in a directory that cannot be changed");
        assert_refused(verdict.as_ref().unwrap_err(), Errno::PERM, &what);
        case.check(&disk, &verdict, &what);
        drop(frozen);
        // The older one alone: it is neither replaced nor removed, and all else goes on.
        let older = runs.join(Case { over: true, ..case }.name());
        let frozen = Immutable::make(&older);
        let verdict = case.save_newer(&disk, storage());
        let what = format!("{case:?} beside or over what cannot be changed: {verdict:?}");
        assert_eq!(verdict.is_ok(), !case.over, "{what}");
        if let Err(error) = &verdict {
            assert_refused(error, Errno::PERM, &what);
        }
        case.check(&disk, &verdict, &what);
        let rules = Retention { last: Some(1.try_into().unwrap()), ..Retention::default() };
        keep(storage().open_dir(&runs).unwrap().as_ref(), &rules, &[], &pace()).unwrap();
        case.check(&disk, &verdict, &what);
        drop(frozen);
    }
}

/// The command as nobody, from where nobody may start it.
struct AsNobody {
    place: tempfile::TempDir,
}

impl AsNobody {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(place.path(), open).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_tch-checkpoint"), place.path().join("command")).unwrap();
        Self { place }
    }

    fn run(&self, arguments: &[&str], dir: &Path) -> Output {
        Command::new(self.place.path().join("command"))
            .args(arguments)
            .arg("--dir")
            .arg(dir)
            .env("NO_COLOR", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .gid(NOBODY)
            .uid(NOBODY)
            .output()
            .unwrap()
    }
}

/// Neither is what may not be written or read taken for absent or damaged.
#[test]
fn a_directory_of_somebody_else_is_refused_with_a_word_about_permissions() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let nobody = AsNobody::new();
    let runs = nobody.place.path().join("runs");
    let save = ["stress", "save", "--ranks", "2", "--bytes", "100000", "--step"];
    let saved = crate::job::run(&runs, &[&save[..], &["1"]].concat());
    assert!(saved.status.success(), "{saved:?}");
    let said = |output: &Output, what: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{what}: {output:?}");
        assert!(said.contains("ermission"), "{what}: {said}");
    };
    said(&nobody.run(&[&save[..], &["2"]].concat(), &runs), "saving");
    for (closed, mode) in [(runs.join("step-00000001"), 0o700), (runs.clone(), 0o700)] {
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(mode)).unwrap();
        said(&nobody.run(&["stress", "load", "--step", "latest"], &runs), "loading");
        said(&nobody.run(&["latest"], &runs), "looking");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // What a file system has in its top directory is nobody's checkpoint.
    let kept = runs.join("lost+found");
    std::fs::create_dir(&kept).unwrap();
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o700)).unwrap();
    for look in [&["stress", "load", "--step", "latest"][..], &["latest"], &["verify"]] {
        let looked = nobody.run(look, &runs);
        assert!(looked.status.success(), "{looked:?}");
    }
}
