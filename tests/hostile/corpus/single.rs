//! Files that hold their own manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use tch_checkpoint::ErrorKind::{Corrupt, Incompatible, Mismatch};
use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::save::SaveOptions;
use tch_checkpoint::single::{save_multi_files, save_single_file};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ErrorKind, ProcessGroup};

use super::{Case, Make, each_is_refused};
use crate::forge::{V_SHAPE, W_SHAPE, enveloped, header_of, resealed};
use crate::scene::Scene;

const FILE: &str = "a.safetensors";
const MODEL: &str = "m_model.safetensors";
const OPTIMIZER: &str = "m_optimizer.safetensors";

const fn file(rule: &'static str, kind: ErrorKind, word: &'static str, make: fn(&Scene)) -> Case {
    Case { rule, kind, word, at: FILE, unverified: false, make: Make::Placed(make) }
}

const fn several(
    rule: &'static str,
    kind: ErrorKind,
    word: &'static str,
    make: fn(&Scene),
) -> Case {
    Case { rule, kind, word, at: MODEL, unverified: false, make: Make::Placed(make) }
}

fn state(has_optimizer: bool) -> StateDict {
    let mut state = StateDict::new();
    let mut add = |component: Component, name: &str, dtype, shape: &[u64]| {
        let spec = TensorSpec::new(dtype, shape).unwrap();
        let bytes = Arc::new(vec![7; spec.size_bytes() as usize]);
        state.add(&component, TensorName::new(name).unwrap(), spec, bytes).unwrap();
    };
    add(Component::model(), "w", Dtype::F32, &W_SHAPE);
    add(Component::model(), "v", Dtype::U8, &V_SHAPE);
    if has_optimizer {
        add(Component::optimizer(), "w.moment", Dtype::F32, &W_SHAPE);
    }
    state
}

fn saved(scene: &Scene) {
    let path = CheckpointPath::parse(scene.dir().join(FILE)).unwrap();
    let (solo, options) = (ProcessGroup::solo(), SaveOptions::default());
    save_single_file(&solo, &LocalStorage::new(), &path, &state(false), &options).unwrap();
}

/// Two files of one stem, and two of another save beside them.
fn saved_as_several(scene: &Scene) {
    for stem in ["m", "n"] {
        let path = CheckpointPath::parse(scene.dir().join(stem)).unwrap();
        let (solo, options) = (ProcessGroup::solo(), SaveOptions::default());
        save_multi_files(&solo, &LocalStorage::new(), &path, &state(true), &options).unwrap();
    }
}

/// The keys of the metadata, for a file whose JSON is `json`.
type Metadata = BTreeMap<String, String>;

/// Splits a file into JSON and data.
fn parts(path: &Path) -> (serde_json::Map<String, serde_json::Value>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let json = serde_json::from_slice(&bytes[8..end]).unwrap();
    (json, bytes[end..].to_vec())
}

fn metadata(scene: &Scene, change: impl FnOnce(&mut Metadata)) {
    saved(scene);
    let path = scene.dir().join(FILE);
    let (mut json, data) = parts(&path);
    let mut texts: Metadata = serde_json::from_value(json["__metadata__"].clone()).unwrap();
    change(&mut texts);
    json["__metadata__"] = serde_json::to_value(texts).unwrap();
    let text = serde_json::to_string(&json).unwrap();
    fs::write(path, [header_of(&text), data].concat()).unwrap();
}

const MANIFEST: &str = "tch_checkpoint.manifest";
const SUMS: &str = "tch_checkpoint.sums";

/// Changes the bytes of the manifest in the header.
fn manifest(scene: &Scene, change: fn(Vec<u8>) -> Vec<u8>) {
    metadata(scene, |texts| {
        let bytes = Base64::decode_vec(&texts[MANIFEST]).unwrap();
        texts.insert(MANIFEST.to_owned(), Base64::encode_string(&change(bytes)));
    });
}

fn set(texts: &mut Metadata, key: &str, text: &str) {
    texts.insert(key.to_owned(), text.to_owned());
}

pub const CASES: [Case; 20] = [
    file("a form without a manifest", Corrupt, "manifest", |s| {
        metadata(s, |texts| drop(texts.remove(MANIFEST)));
    }),
    file("a manifest that is no base64", Corrupt, "text of the manifest", |s| {
        metadata(s, |texts| set(texts, MANIFEST, "!!!!"));
    }),
    file("a manifest of no bytes", Corrupt, "not a checkpoint manifest", |s| {
        metadata(s, |texts| set(texts, MANIFEST, ""));
    }),
    file("a megabyte as a manifest", Corrupt, "not a checkpoint manifest", |s| {
        metadata(s, |texts| set(texts, MANIFEST, &"A".repeat(1_000_000)));
    }),
    file("sums that are no base64", Corrupt, "header is not what was saved", |s| {
        metadata(s, |texts| set(texts, SUMS, "\u{1b}[2J"));
    }),
    file("no sums", Corrupt, "header is not what was saved", |s| {
        metadata(s, |texts| drop(texts.remove(SUMS)));
    }),
    file("one more text", Corrupt, "header is not what was saved", |s| {
        metadata(s, |texts| set(texts, "more", "x"));
    }),
    file("the manifest of a directory in a file", Corrupt, "decoded", |s| {
        manifest(s, |bytes| enveloped(b"TCHCKPT\n", 2, &bytes[20..bytes.len() - 32]));
    }),
    file("a version to come in a file", Incompatible, "version 9", |s| {
        manifest(s, |bytes| enveloped(b"TCHSNGL\n", 9, &bytes[20..bytes.len() - 32]));
    }),
    file("a bit of the manifest in a file", Corrupt, "checksum", |s| {
        manifest(s, |mut bytes| {
            bytes[60] ^= 1;
            bytes
        });
    }),
    file("a manifest in a file that claims 2^63 components", Corrupt, "decoded", |s| {
        manifest(s, |mut bytes| {
            bytes.truncate(bytes.len() - 32);
            // Behind the block.
            bytes[28..36].copy_from_slice(&(1u64 << 63).to_le_bytes());
            resealed(bytes)
        });
    }),
    file("a file cut by one byte", Corrupt, "the file has", |s| {
        saved(s);
        let file = fs::OpenOptions::new().write(true).open(s.dir().join(FILE)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    }),
    file("a file of a terabyte", Corrupt, "the file has", |s| {
        saved(s);
        let file = fs::OpenOptions::new().write(true).open(s.dir().join(FILE)).unwrap();
        file.set_len(1 << 40).unwrap();
    }),
    file("a bit of data of a file", Corrupt, "block", |s| {
        saved(s);
        let path = s.dir().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        bytes[start..].fill(0);
        fs::write(path, bytes).unwrap();
    }),
    file("another tensor in the header than in the manifest", Corrupt, "not what was saved", |s| {
        saved(s);
        let path = s.dir().join(FILE);
        let bytes = fs::read(&path).unwrap();
        let end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let json = std::str::from_utf8(&bytes[8..end]).unwrap().replace("\"w\"", "\"u\"");
        fs::write(path, [&bytes[..8], json.as_bytes(), &bytes[end..]].concat()).unwrap();
    }),
    several("a component whose file is gone", Corrupt, "gone", |s| {
        saved_as_several(s);
        fs::remove_file(s.dir().join(OPTIMIZER)).unwrap();
    }),
    several("a component of another save", Mismatch, "of save", |s| {
        saved_as_several(s);
        fs::rename(s.dir().join("n_optimizer.safetensors"), s.dir().join(OPTIMIZER)).unwrap();
    }),
    several("a link to a component", Corrupt, "gone", |s| {
        saved_as_several(s);
        let moved = s.outside().join("moved");
        fs::rename(s.dir().join(OPTIMIZER), &moved).unwrap();
        std::os::unix::fs::symlink(moved, s.dir().join(OPTIMIZER)).unwrap();
    }),
    several("the model as its own component", Corrupt, "", |s| {
        saved_as_several(s);
        fs::copy(s.dir().join(MODEL), s.dir().join(OPTIMIZER)).unwrap();
    }),
    file("several files under a name of one", Corrupt, "cannot be found under this name", |s| {
        saved_as_several(s);
        fs::rename(s.dir().join(MODEL), s.dir().join(FILE)).unwrap();
    }),
];

#[test]
fn files_with_a_manifest_that_break_a_rule_are_refused() {
    each_is_refused("single files", &CASES);
}
