//! Something else in the place of each file of a checkpoint, and of the checkpoint itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::FileType::{BlockDevice, CharacterDevice, Fifo};
use tch_checkpoint::ErrorKind::{Corrupt, NotFound};

use super::{Case, each_is_refused, placed};
use crate::scene::Scene;
use crate::scene::Which::{Code, Data, Manifest, Sums};

const NO_FILE: &str = "not a regular file";

/// A socket that somebody listens on, and has left.
fn socket(scene: &Scene, which: crate::scene::Which) {
    scene.honest();
    scene.remove(which);
    // Names of sockets are short: bound elsewhere, and moved.
    let short = scene.top().join("s");
    drop(UnixListener::bind(&short).unwrap());
    fs::rename(short, scene.file(which)).unwrap();
}

fn dangling(scene: &Scene, which: crate::scene::Which) {
    scene.honest();
    scene.remove(which);
    symlink("nowhere", scene.file(which)).unwrap();
}

fn link_to(scene: &Scene, which: crate::scene::Which, target: &str) {
    scene.honest();
    scene.remove(which);
    symlink(target, scene.file(which)).unwrap();
}

pub const CASES: [Case; 31] = [
    placed("a link to a manifest", Corrupt, NO_FILE, |s| s.linked(Manifest)),
    placed("a link to data", Corrupt, NO_FILE, |s| s.linked(Data)),
    placed("a link to sums", Corrupt, NO_FILE, |s| s.linked(Sums)),
    placed("a dangling link as a manifest", Corrupt, NO_FILE, |s| dangling(s, Manifest)),
    placed("a dangling link as data", Corrupt, NO_FILE, |s| dangling(s, Data)),
    placed("a dangling link as sums", Corrupt, NO_FILE, |s| dangling(s, Sums)),
    placed("a link to itself as data", Corrupt, NO_FILE, |s| {
        let name = crate::forge::data_name();
        link_to(s, Data, &name);
    }),
    placed("an absolute link as sums", Corrupt, NO_FILE, |s| link_to(s, Sums, "/dev/zero")),
    placed("a link that climbs as a manifest", Corrupt, NO_FILE, |s| {
        link_to(s, Manifest, "../../outside/manifest.bin");
    }),
    placed("a FIFO as a manifest", Corrupt, NO_FILE, |s| s.node(Manifest, Fifo)),
    placed("a FIFO as data", Corrupt, NO_FILE, |s| s.node(Data, Fifo)),
    placed("a FIFO as sums", Corrupt, NO_FILE, |s| s.node(Sums, Fifo)),
    placed("a socket as a manifest", Corrupt, NO_FILE, |s| socket(s, Manifest)),
    placed("a socket as data", Corrupt, NO_FILE, |s| socket(s, Data)),
    placed("a socket as sums", Corrupt, NO_FILE, |s| socket(s, Sums)),
    placed("a device as a manifest", Corrupt, NO_FILE, |s| s.node(Manifest, CharacterDevice)),
    placed("a device as data", Corrupt, NO_FILE, |s| s.node(Data, CharacterDevice)),
    placed("a device as sums", Corrupt, NO_FILE, |s| s.node(Sums, CharacterDevice)),
    placed("a disk that is not there as data", Corrupt, NO_FILE, |s| s.node(Data, BlockDevice)),
    placed("a directory as a manifest", Corrupt, NO_FILE, |s| s.directory(Manifest)),
    placed("a directory as data", Corrupt, NO_FILE, |s| s.directory(Data)),
    placed("a directory as sums", Corrupt, NO_FILE, |s| s.directory(Sums)),
    placed("another file of the disk as data", Corrupt, "extended", |s| {
        s.honest();
        s.remove(Data);
        let large = s.top().join("large");
        fs::write(&large, [1; 50_000]).unwrap();
        fs::hard_link(large, s.file(Data)).unwrap();
    }),
    placed("a link to a checkpoint", NotFound, "no checkpoint here", |s| {
        symlink(s.outside().join("ck"), s.a()).unwrap();
    }),
    placed("a relative link to a checkpoint", NotFound, "no checkpoint here", |s| {
        symlink("../outside/ck", s.a()).unwrap();
    }),
    placed("a link to itself", NotFound, "no checkpoint here", |s| symlink("a", s.a()).unwrap()),
    placed("a FIFO as a checkpoint", NotFound, "no checkpoint here", |s| {
        let mode = 0o600.into();
        rustix::fs::mknodat(rustix::fs::CWD, s.a(), Fifo, mode, 0).unwrap();
    }),
    placed("a device as a checkpoint", NotFound, "no checkpoint here", |s| {
        let (mode, zero) = (0o600.into(), rustix::fs::makedev(1, 5));
        rustix::fs::mknodat(rustix::fs::CWD, s.a(), CharacterDevice, mode, zero).unwrap();
    }),
    placed("an empty file as a checkpoint", NotFound, "this file is no checkpoint", |s| {
        fs::write(s.a(), b"").unwrap();
    }),
    placed("an empty directory as a checkpoint", NotFound, "no checkpoint here", |s| {
        fs::create_dir(s.a()).unwrap();
    }),
    placed("a link to a file of tensors", NotFound, "no checkpoint here", |s| {
        symlink(s.outside().join("x.safetensors"), s.a()).unwrap();
    }),
];

#[test]
fn what_is_no_file_is_not_read() {
    each_is_refused("places", &CASES);
}

/// Code is not loaded, and `verify` looks at it: no link is followed there, nor to its folder.
#[test]
fn code_is_not_read_from_elsewhere() {
    use tch_checkpoint::catalog::{Wanted, find, read_other};
    use tch_checkpoint::storage::LocalStorage;
    let makes: [fn(&Scene); 5] = [
        |s| s.linked(Code),
        |s| s.node(Code, Fifo),
        |s| s.directory(Code),
        |s| {
            s.honest();
            let folder = s.a().join("code");
            let moved = s.outside().join("code");
            fs::rename(&folder, &moved).unwrap();
            symlink(moved, folder).unwrap();
        },
        |s| s.cut(Code, |_| 1 << 40),
    ];
    let _alone = crate::alone();
    for (number, make) in makes.iter().enumerate() {
        let scene = Scene::new();
        make(&scene);
        let wanted = Wanted::parse(scene.a()).unwrap();
        let ((), trace) = crate::judge::without_a_trace(&scene, || {
            let found = find(&LocalStorage::new(), &wanted).unwrap();
            let record = &found.manifest.other_files()[0];
            let error = read_other(&found.dir, record).unwrap_err();
            assert!(matches!(error.kind(), Corrupt | NotFound), "{number}: {error}");
            let path = scene.a();
            let path = path.to_str().unwrap();
            assert_eq!(crate::judge::command_fault(&["verify", path], true), None);
            assert_eq!(crate::judge::command_fault(&["code", path], true), None);
        });
        assert_eq!(trace, None, "{number}");
    }
}
