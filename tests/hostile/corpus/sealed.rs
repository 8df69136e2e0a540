//! What is not even the manifest that somebody sealed: its envelope, and files that are not what it
//! says of them.

use std::fs;

use tch_checkpoint::ErrorKind::{Corrupt, Incompatible};

use super::{Case, each_is_refused, placed};
use crate::forge::{Forge, enveloped, resealed};
use crate::scene::Which::{Data, Manifest, Sums};
use crate::scene::{Scene, Which};

fn manifest(scene: &Scene, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    scene.honest();
    let path = scene.file(Manifest);
    fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
}

fn sparse(scene: &Scene, which: Which, len: u64) {
    scene.cut(which, |_| len);
}

/// A file of another tool, or of another magic, in the place of the manifest.
fn as_manifest(scene: &Scene, bytes: &[u8]) {
    manifest(scene, |_| bytes.to_vec());
}

pub const CASES: [Case; 31] = [
    placed("an empty manifest", Corrupt, "manifest", |s| as_manifest(s, b"")),
    placed("a manifest of a few bytes", Corrupt, "cut short", |s| as_manifest(s, b"TCHCKPT\n\x02")),
    placed("a manifest without its checksum", Corrupt, "bytes, not", |s| {
        manifest(s, |bytes| bytes[..bytes.len() - 32].to_vec());
    }),
    placed("a bit of a manifest", Corrupt, "checksum", |s| s.flip(Manifest, 100)),
    placed("a bit of a manifest's checksum", Corrupt, "checksum", |s| {
        manifest(s, |mut bytes| {
            *bytes.last_mut().unwrap() ^= 0x80;
            bytes
        });
    }),
    placed("a byte behind a manifest", Corrupt, "bytes, not", |s| {
        manifest(s, |bytes| [bytes.as_slice(), b"\n"].concat());
    }),
    placed("a body that claims 2^64 - 1 bytes", Corrupt, "not 18446744073709551615", |s| {
        manifest(s, |mut bytes| {
            bytes[12..20].fill(0xff);
            bytes.truncate(bytes.len() - 32);
            resealed(bytes)
        });
    }),
    placed("version 0", Incompatible, "version 0", |s| {
        as_manifest(s, &enveloped(b"TCHCKPT\n", 0, b"x"));
    }),
    placed("version 2^32 - 1", Incompatible, "version 4294967295", |s| {
        as_manifest(s, &enveloped(b"TCHCKPT\n", u32::MAX, b"x"));
    }),
    placed("the manifest of a file in a directory", Corrupt, "decoded", |s| {
        let bytes = Forge::honest(2, 0).sealed();
        let body = &bytes[20..bytes.len() - 32];
        as_manifest(s, &enveloped(b"TCHSNGL\n", 2, body));
    }),
    placed("a manifest that is never on disk", Corrupt, "files that this form", |s| {
        let bytes = Forge::honest(2, 0).sealed();
        let body = &bytes[20..bytes.len() - 32];
        as_manifest(s, &enveloped(b"TCHPLAI\n", 2, body));
    }),
    placed("pickle as a manifest", Corrupt, "not a checkpoint manifest", |s| {
        as_manifest(s, b"\x80\x02cposix\nsystem\nq\x00X\x05\x00\x00\x00touch\x85R.");
    }),
    placed("an archive as a manifest", Corrupt, "not a checkpoint manifest", |s| {
        as_manifest(s, &[b"PK\x03\x04".as_slice(), &[0; 100]].concat());
    }),
    placed("a manifest of a terabyte of nothing", Corrupt, "claims", |s| {
        sparse(s, Manifest, 1 << 40);
    }),
    placed("a manifest of a gigabyte of nothing", Corrupt, "manifest", |s| {
        as_manifest(s, b"");
        let file = fs::OpenOptions::new().write(true).open(s.file(Manifest)).unwrap();
        file.set_len(1 << 30).unwrap();
    }),
    placed("a manifest with a gigabyte of nothing behind it", Corrupt, "bytes, not", |s| {
        sparse(s, Manifest, 1 << 30);
    }),
    placed("data of a terabyte of nothing", Corrupt, "extended", |s| sparse(s, Data, 1 << 40)),
    placed("sums of a terabyte of nothing", Corrupt, "extended", |s| sparse(s, Sums, 1 << 40)),
    placed("data cut to nothing", Corrupt, "truncated", |s| sparse(s, Data, 0)),
    placed("data cut in its header", Corrupt, "truncated", |s| sparse(s, Data, 100)),
    placed("data cut by one byte", Corrupt, "truncated", |s| s.cut(Data, |len| len - 1)),
    placed("data grown by one byte", Corrupt, "extended", |s| s.cut(Data, |len| len + 1)),
    placed("sums cut to nothing", Corrupt, "truncated", |s| sparse(s, Sums, 0)),
    placed("sums grown by one sum", Corrupt, "extended", |s| s.cut(Sums, |len| len + 16)),
    placed("a bit of data", Corrupt, "block", |s| s.flip(Data, 5000)),
    placed("a bit of a header", Corrupt, "header", |s| s.flip(Data, 30)),
    placed("a bit of the sums", Corrupt, "sums", |s| s.flip(Sums, 40)),
    placed("a bit in front of the sums", Corrupt, "sums", |s| s.flip(Sums, 2)),
    placed("sums of another save", Corrupt, "sums", |s| s.flip(Sums, 20)),
    placed("data that is a hole", Corrupt, "not what was saved", |s| {
        sparse(s, Data, 0);
        let file = fs::OpenOptions::new().write(true).open(s.file(Data)).unwrap();
        file.set_len(4096 + 17_920 + 100).unwrap();
    }),
    placed("no manifest", tch_checkpoint::ErrorKind::NotFound, "no checkpoint here", |s| {
        s.honest();
        s.remove(Manifest);
    }),
];

/// `w` as a terabyte, all of which the files could hold.
fn terabyte(forge: &mut Forge) {
    const BYTES: u64 = 1 << 40;
    let w = &mut forge.body.tensors[crate::forge::W];
    w.shape = vec![BYTES / 4];
    w.pieces[0].offsets = vec![0];
    w.pieces[0].lengths = vec![BYTES / 4];
    forge.body.data_files[0].len = 4096 + BYTES + 100;
    forge.body.tensors[crate::forge::V].pieces[0].begin = 4096 + BYTES;
    forge.body.sums_files[0].len = 32 + 16 * (BYTES / forge.block + 1);
}

#[test]
fn files_that_are_not_what_was_sealed_are_refused() {
    each_is_refused("envelopes and files", &CASES);
}

/// Nothing on disk contradicts its manifest but what is in the blocks: whoever looks at it hears
/// that there is no memory for a terabyte, or that the sums are wrong.
#[test]
fn a_terabyte_of_holes_that_agrees_with_its_manifest_is_an_error() {
    let _alone = crate::alone();
    let scene = Scene::new();
    let mut forge = Forge::honest(2, 0);
    terabyte(&mut forge);
    forge.write(&scene.a());
    let set = |which, len| {
        let file = fs::OpenOptions::new().write(true).open(scene.file(which)).unwrap();
        file.set_len(len).unwrap();
    };
    set(Data, forge.body.data_files[0].len);
    set(Sums, forge.body.sums_files[0].len);
    let wanted = tch_checkpoint::catalog::Wanted::parse(scene.a()).unwrap();
    let storage = tch_checkpoint::storage::LocalStorage::new();
    let read = tch_checkpoint::load::read_tensor(&storage, &wanted, "w");
    let error = crate::judge::refused(read);
    let kinds = [Corrupt, tch_checkpoint::ErrorKind::Storage];
    assert!(kinds.contains(&error.kind()), "{error}");
}
