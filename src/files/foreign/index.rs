//! The index of a directory that Hugging Face tools wrote: nobody vouches for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, HF_FILES_MAX};
use crate::memory::zeroed;
use crate::shown::short;
use crate::storage::Directory;

/// Longest index that is read.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Which tensor is in which file.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(rename = "weight_map")]
    map: Map,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    /// The save that an export came from.
    #[serde(default, rename = "tch_checkpoint.source_save_id")]
    source: Option<String>,
}

/// Each tensor with the number of its file, and the files in order.
#[derive(Debug)]
struct Map {
    tensors: Vec<(String, u32)>,
    files: Vec<String>,
}

impl Index {
    /// Whether an export wrote it.
    pub(crate) fn is_ours(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.source.is_some())
    }

    /// The files that it names; each is the name of a file in its own directory.
    pub(crate) fn files(&self) -> &[String] {
        &self.map.files
    }

    /// The tensors that are said to be in file number `file`.
    pub(super) fn tensors_of(&self, file: usize) -> impl Iterator<Item = &str> {
        let all = &self.map.tensors;
        let begin = all.partition_point(|(_, of)| (*of as usize) < file);
        let from = all.get(begin..).unwrap_or_default().iter();
        from.take_while(move |(_, of)| *of as usize == file).map(|(tensor, _)| tensor.as_str())
    }
}

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Map;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map, A::Error> {
                let (mut tensors, mut files) = (BTreeMap::new(), BTreeMap::new());
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    let next = u32::try_from(files.len()).unwrap_or(u32::MAX);
                    let number = *files.entry(file).or_insert(next);
                    if files.len() > HF_FILES_MAX {
                        return Err(A::Error::custom(format!("more than {HF_FILES_MAX} files")));
                    }
                    if tensors.insert(tensor, number).is_some() {
                        return Err(A::Error::custom("a tensor appears twice"));
                    }
                }
                Ok(Map::new(tensors, files))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Map {
    /// Numbers the files in their order, and puts tensors into that order.
    fn new(tensors: BTreeMap<String, u32>, files: BTreeMap<String, u32>) -> Self {
        let place: BTreeMap<u32, u32> = files.values().copied().zip(0..).collect();
        let of = |number: u32| place.get(&number).copied().unwrap_or(number);
        let mut tensors: Vec<_> = tensors.into_iter().map(|(name, n)| (name, of(n))).collect();
        tensors.sort_by_key(|(_, file)| *file);
        Self { tensors, files: files.into_keys().collect() }
    }
}

/// Reads an index; `None` if there is none of that name.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for one that is too long or malformed, and for one that names a file
/// outside its directory; as [`Directory::open_file`].
pub(crate) fn read_index(dir: &dyn Directory, name: &str) -> Result<Option<Index>> {
    let Some(bytes) = read_small(dir, name, INDEX_BYTES_MAX, "an index")? else { return Ok(None) };
    let corrupt =
        |what: String| Error::new(ErrorKind::Corrupt, what).with_path(dir.path().join(name));
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|e| corrupt(format!("the index is malformed: {}", short(&e.to_string()))))?;
    if index.files().is_empty() {
        return Err(corrupt("the index names no file".to_owned()));
    }
    match index.files().iter().find(|file| !layout::is_file_name(file)) {
        Some(file) => {
            let file = short(file);
            Err(corrupt(format!("the index names a file outside its directory: `{file}`")))
        }
        None => Ok(Some(index)),
    }
}

/// All of a file that is to be small; `None` if there is none of that name.
pub(crate) fn read_small(
    dir: &dyn Directory,
    name: &str,
    bytes_max: u64,
    what: &str,
) -> Result<Option<Vec<u8>>> {
    let file = match dir.open_file(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(super::help_with_links)?,
    };
    if file.len() > bytes_max {
        let message = format!("{what} of {} bytes", file.len());
        return Err(Error::new(ErrorKind::Corrupt, message).with_path(dir.path().join(name)));
    }
    let mut bytes = zeroed(file.len())?;
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

/// The files of an index, or else the one file of this name.
pub(super) fn files_of(index: Option<&Index>, alone: &str) -> BTreeSet<String> {
    match index {
        Some(index) => index.files().iter().cloned().collect(),
        None => BTreeSet::from([alone.to_owned()]),
    }
}
