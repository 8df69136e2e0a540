//! Safetensors files of other tools: whatever their headers claim is checked, their bytes cannot
//! be.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};
use crate::layout;
use crate::manifest::{FileParts, Manifest};
use crate::memory::zeroed;
use crate::shard::{SingleFile, read_single};
use crate::shown::short;
use crate::storage::Directory;

/// The name under which Hugging Face tools keep a model that fits into one file.
const HF_SINGLE: &str = "model.safetensors";
/// Longest index that is read.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Most files that an index may name.
const FILES_MAX: usize = 10_000;

/// The part of an index that says where tensors are.
#[derive(Deserialize)]
struct Index {
    weight_map: Files,
}

/// The files that a map of tensors names, each tensor once.
struct Files(BTreeSet<String>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Files;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let (mut tensors, mut files) = (HashSet::new(), BTreeSet::new());
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if !tensors.insert(tensor) {
                        return Err(A::Error::custom("a tensor appears twice"));
                    }
                    files.insert(file);
                    if files.len() > FILES_MAX {
                        return Err(A::Error::custom(format!("more than {FILES_MAX} files")));
                    }
                }
                Ok(Files(files))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// A directory as Hugging Face tools write it: an index and the files that it names, or one file.
/// `None` for any other directory.
pub(super) fn open_directory(dir: &dyn Directory) -> Result<Option<Manifest>> {
    let names = match read_index(dir)? {
        Some(index) => index.weight_map.0,
        None => BTreeSet::from([HF_SINGLE.to_owned()]),
    };
    let mut files = Vec::new();
    for name in names {
        if !layout::is_file_name(&name) {
            let message =
                format!("the index names a file outside its directory: `{}`", short(&name));
            return Err(Error::new(ErrorKind::Corrupt, message)
                .with_path(dir.path().join(layout::HF_INDEX)));
        }
        let path = dir.path().join(&name);
        let file = match dir.open_file(&name) {
            Err(e) if e.kind() == ErrorKind::NotFound && name == HF_SINGLE => return Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(e.with_kind(ErrorKind::Corrupt).with_help("the index names it"));
            }
            opened => opened?,
        };
        let single = read_single(file.as_ref()).map_err(|e| e.with_path(path))?;
        files.push((name, single, file.len()));
    }
    manifest_of(files).map(Some)
}

fn read_index(dir: &dyn Directory) -> Result<Option<Index>> {
    let path = dir.path().join(layout::HF_INDEX);
    let file = match dir.open_file(layout::HF_INDEX) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let corrupt = |what: String| Error::new(ErrorKind::Corrupt, what).with_path(&path);
    if file.len() > INDEX_BYTES_MAX {
        return Err(corrupt(format!("an index of {} bytes", file.len())));
    }
    let mut bytes = zeroed(file.len())?;
    file.read_at(0, &mut bytes)?;
    let index = serde_json::from_slice(&bytes);
    index
        .map(Some)
        .map_err(|e| corrupt(format!("the index is malformed: {}", short(&e.to_string()))))
}

/// What such files hold, as far as their headers say.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a tensor in two files.
pub(super) fn manifest_of(files: Vec<(String, SingleFile, u64)>) -> Result<Manifest> {
    let (mut parts, mut tensors) = (Vec::new(), BTreeMap::new());
    for ((name, single, len), index) in files.into_iter().zip(0u32..) {
        let data_start = single.header.data_start;
        for tensor in single.header.tensors {
            let place = (index, tensor.spec, data_start + tensor.begin);
            if tensors.insert(tensor.name.clone(), place).is_some() {
                let message = format!("it is in `{name}` and in another file");
                let error = Error::new(ErrorKind::Corrupt, message);
                return Err(error.with_tensor(tensor.name.as_str()));
            }
        }
        let header_hash = single.whole_hash;
        parts.push((name, FileParts { len, data_start, header_hash, sums_hash: [0; 16] }));
    }
    Manifest::of_plain(parts, tensors)
}
