//! What only a real file system has. The contract itself is in the conformance suite.

use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::FileType;

use super::direct::is_known;
use super::file::LocalWriteFile;
use super::read_file::LocalReadFile;
use super::*;
use crate::memory::buffers::Buffer;
use crate::storage::{EntryKind, ReadFile, WriteFile};

const DEADLINE: Duration = Duration::from_secs(60);

fn place() -> (tempfile::TempDir, Arc<dyn Directory>) {
    let temporary = tempfile::tempdir().unwrap();
    let dir = LocalStorage::new().open_dir(temporary.path()).unwrap();
    (temporary, dir)
}

fn make_fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

#[test]
fn what_is_no_regular_file_is_refused_without_blocking() {
    let (temporary, dir) = place();
    make_fifo(&temporary.path().join("fifo"));
    let _listener = UnixListener::bind(temporary.path().join("socket")).unwrap();
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        for name in ["fifo", "socket"] {
            let kind = |error: Error| error.kind();
            let opened = dir.open_file(name).err().map(kind);
            let locked = dir.try_lock(name).err().map(kind);
            let made = dir.create_file(name).err().map(kind);
            done.send((name, opened, locked, made)).unwrap();
        }
    });
    for _ in 0..2 {
        let (name, opened, locked, made) = wait.recv_timeout(DEADLINE).expect("blocked");
        assert_eq!(opened, Some(ErrorKind::Corrupt), "{name}");
        assert_eq!(locked, Some(ErrorKind::Storage), "{name}");
        assert_eq!(made, Some(ErrorKind::AlreadyExists), "{name}");
    }
}

#[test]
fn a_list_shows_strange_entries() {
    let (temporary, dir) = place();
    make_fifo(&temporary.path().join("fifo"));
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    std::fs::write(temporary.path().join(odd), b"").unwrap();
    let mut listed = dir.list().unwrap();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let listed: Vec<_> = listed.iter().map(|e| (e.name.as_str(), e.kind)).collect();
    assert_eq!(listed, [("fifo", EntryKind::Other), ("odd\u{fffd}", EntryKind::File)]);
}

#[test]
fn a_path_may_lead_through_links_but_not_to_nowhere() {
    let (temporary, dir) = place();
    dir.create_dir("real").unwrap();
    let root = temporary.path();
    symlink("real", root.join("link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let storage = LocalStorage::new();
    storage.create_dir_all(&root.join("link/below")).unwrap();
    storage.open_dir(&root.join("real/below")).unwrap();
    let error = storage.create_dir_all(&root.join("dangling/below")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(!root.join("nowhere").exists());
}

#[test]
fn relative_paths_start_at_the_working_directory() {
    let here = std::env::current_dir().unwrap();
    let inode = std::fs::metadata(here).unwrap().ino();
    for path in ["", "."] {
        for fd in [open_dir_fd(CWD, Path::new(path)).unwrap(), create_all(Path::new(path)).unwrap()]
        {
            assert_eq!(rustix::fs::fstat(fd).unwrap().st_ino, inode, "{path:?}");
        }
    }
}

#[test]
fn a_rename_without_the_system_call_still_replaces_nothing() {
    let (temporary, dir) = place();
    for name in ["a", "b"] {
        std::fs::write(temporary.path().join(name), name).unwrap();
    }
    symlink("nowhere", temporary.path().join("dangling")).unwrap();
    drop(dir);
    let fd = open_dir_fd(CWD, temporary.path()).unwrap();
    let dir = LocalDir::new(fd, temporary.path().to_owned());
    assert_eq!(dir.rename_checked("a", "b"), Err(Errno::EXIST));
    assert_eq!(dir.rename_checked("a", "dangling"), Err(Errno::EXIST));
    assert_eq!(dir.rename_checked("missing", "c"), Err(Errno::NOENT));
    assert_eq!(dir.rename_checked("a", "c"), Ok(()));
    let read = |name: &str| std::fs::read(temporary.path().join(name)).unwrap();
    assert_eq!((read("b"), read("c")), (b"b".to_vec(), b"a".to_vec()));
}

#[test]
fn a_file_whose_write_failed_is_never_finished() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let file = Box::new(LocalWriteFile::new(full.into(), "full".into()));
    let error = file.write_at(7, b"x").unwrap_err();
    assert_eq!(error.os_code(), Some(Errno::NOSPC.raw_os_error()));
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Storage, Some(7)));
    assert!(error.help().unwrap().contains("free space"), "{error}");
    let error = file.finish().unwrap_err();
    assert_eq!(error.message(), "an earlier write failed");
}

#[test]
fn nothing_but_a_regular_file_gets_a_second_name() {
    let (temporary, dir) = place();
    for name in ["a", "b"] {
        dir.create_dir(name).unwrap();
    }
    make_fifo(&temporary.path().join("a/fifo"));
    let _listener = UnixListener::bind(temporary.path().join("a/socket")).unwrap();
    for name in ["fifo", "socket"] {
        let error = dir.link_file("a", "b", name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.path().unwrap().ends_with(&format!("a/{name}")), "{error}");
    }
    assert!(dir.open_dir("b").unwrap().list().unwrap().is_empty());
}

#[test]
fn a_link_that_a_signal_interrupted_is_made_once() {
    let made = Cell::new(false);
    // The first call is interrupted, before or after it has done its work.
    for is_done_at_first in [false, true] {
        made.set(false);
        let mut calls = 0;
        let call = || {
            calls += 1;
            let was_made = made.replace(made.get() || is_done_at_first || calls > 1);
            match (calls, was_made) {
                (1, _) => Err(Errno::INTR),
                (_, true) => Err(Errno::EXIST),
                _ => Ok(()),
            }
        };
        assert_eq!(second_name::carried_out_once(call, || made.get()), Ok(()));
        assert_eq!((calls, made.get()), (2, true), "{is_done_at_first}");
    }
    let mut answers = [Errno::EXIST, Errno::INTR].into_iter();
    let call = || Err(answers.next_back().unwrap());
    let of_somebody_else = second_name::carried_out_once(call, || false);
    assert_eq!(of_somebody_else, Err(Errno::EXIST));
    let uninterrupted = second_name::carried_out_once(|| Err(Errno::EXIST), || true);
    assert_eq!(uninterrupted, Err(Errno::EXIST), "its own from an earlier time");
    let for_ever = second_name::carried_out_once(|| Err(Errno::INTR), || false);
    assert_eq!(for_ever, Err(Errno::INTR));
}

#[test]
fn files_that_can_have_one_name_only_are_unsupported() {
    let refusals = [Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP, Errno::MLINK, Errno::XDEV];
    for errno in refusals {
        let error = second_name::refused(errno, Path::new("f"));
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.os_code(), Some(errno.raw_os_error()));
    }
    for (errno, kind) in [
        (Errno::EXIST, ErrorKind::AlreadyExists),
        (Errno::NOENT, ErrorKind::NotFound),
        (Errno::NOSPC, ErrorKind::Storage),
        (Errno::ACCESS, ErrorKind::Storage),
        (Errno::IO, ErrorKind::Storage),
    ] {
        assert_eq!(second_name::refused(errno, Path::new("f")).kind(), kind, "{errno}");
    }
}

#[test]
fn a_failed_fsync_is_an_error() {
    let (_reader, pipe) = std::io::pipe().unwrap();
    let file = Box::new(LocalWriteFile::new(pipe.into(), "pipe".into()));
    let error = file.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.message().starts_with("fsyncing"), "{error}");
}

#[test]
fn a_failed_read_names_its_offset() {
    let directory = open_dir_fd(CWD, Path::new("/")).unwrap();
    let file = LocalReadFile::new(directory, "dir".into(), 8);
    let error = file.read_at(3, &mut [0; 2]).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Storage, Some(3)), "{error}");
}

#[test]
fn locks_that_do_not_work_are_unsupported() {
    for errno in [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK] {
        let error = lock::refused(&errno.into(), Path::new("l"));
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.os_code(), Some(errno.raw_os_error()));
    }
    let error = lock::refused(&Errno::IO.into(), Path::new("l"));
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
}

/// Names the directory in which a child of [`modes_are_what_the_umask_leaves`] creates things.
const CHILD_DIR: &str = "TCH_CHECKPOINT_TEST_UMASK_DIR";

#[test]
fn modes_are_what_the_umask_leaves() {
    if let Some(path) = std::env::var_os(CHILD_DIR) {
        let dir = LocalStorage::new().create_dir_all(&Path::new(&path).join("dir/all")).unwrap();
        dir.create_dir("dir").unwrap();
        dir.create_file("file").unwrap().finish().unwrap();
        dir.try_lock("lock").unwrap().expect("free");
        return;
    }
    // The umask belongs to the whole process: other tests run in this one.
    for umask in [0o000u32, 0o022, 0o077] {
        let temporary = tempfile::tempdir().unwrap();
        let script = format!("umask {umask:o} && exec \"$0\" modes_are_what_the_umask_leaves");
        let child = Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env(CHILD_DIR, temporary.path())
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        for (name, wanted) in [
            ("dir", 0o777),
            ("dir/all", 0o777),
            ("dir/all/dir", 0o777),
            ("dir/all/file", 0o666),
            ("dir/all/lock", 0o666),
        ] {
            let mode = std::fs::metadata(temporary.path().join(name)).unwrap().mode() & 0o777;
            assert_eq!(mode, wanted & !umask, "{name} under umask {umask:03o}");
        }
    }
}

/// Writes what `lens` say, one part after the other, from memory that is aligned as the file is.
fn write_parts(dir: &Path, bytes: &[u8], lens: &[usize]) -> bool {
    let path = dir.join("file");
    let made = std::fs::File::create_new(&path).unwrap();
    let file = LocalWriteFile::new(made.into(), path.clone());
    let (mut rest, mut at) = (bytes, 0);
    for len in lens {
        let (part, after) = rest.split_at((*len).min(rest.len()));
        let mut buffer = Buffer::new().unwrap();
        buffer.clear_to(at % 4096);
        buffer.take(part.len()).copy_from_slice(part);
        file.write_at(at as u64, buffer.bytes()).unwrap();
        (rest, at) = (after, at + part.len());
    }
    let is_direct = file.is_direct();
    Box::new(file).finish().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes, "{lens:?}");
    std::fs::remove_file(path).unwrap();
    is_direct
}

/// Directories on a disk, and in memory alone: the second has no direct I/O.
fn disk_and_memory() -> [tempfile::TempDir; 2] {
    [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()]
}

#[test]
fn writes_give_the_same_bytes_directly_and_through_the_cache() {
    const MIB: usize = 1 << 20;
    let lens: [&[usize]; 9] = [
        &[0],
        &[1],
        &[4095, 4097],
        &[MIB],
        &[MIB - 1],
        &[MIB + 1],
        &[2 * MIB, MIB, 64 << 10, 4096, 511],
        &[100, 2 * MIB, 3 * MIB + 4000, 1],
        &[4096, MIB + 4095, 8192, 2 * MIB - 3],
    ];
    for place in disk_and_memory() {
        for lens in lens {
            let bytes: Vec<u8> = (0..=250).cycle().take(lens.iter().sum()).collect();
            let is_direct = write_parts(place.path(), &bytes, lens);
            let opened = std::fs::File::open(place.path()).unwrap();
            let is_known = is_known(rustix::fs::fstatfs(&opened).unwrap().f_type as u64);
            let is_large = lens.iter().any(|len| *len > MIB + 4095 || *len == MIB);
            // A refusal of the device shows in another test; where there is none, it is direct.
            assert!(!is_direct || is_known && lens.iter().any(|len| *len >= MIB), "{lens:?}");
            assert!(is_direct || !is_known || !is_large, "{lens:?}: through the cache");
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn writes_of_any_lengths_give_the_same_bytes(
        lens in proptest::collection::vec(0usize..3_000_000, 1..4),
        aligned in 0usize..4,
    ) {
        let mut lens = lens;
        if let Some(len) = lens.get_mut(aligned) {
            *len -= *len % 4096;
        }
        let bytes: Vec<u8> = (0..=250).cycle().take(lens.iter().sum()).collect();
        for place in disk_and_memory() {
            write_parts(place.path(), &bytes, &lens);
        }
    }
}
