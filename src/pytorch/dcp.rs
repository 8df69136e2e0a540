//! Directories of `torch.distributed.checkpoint`: what `.metadata` says.
//!
//! Sources: `metadata.py`, `filesystem.py` and `_nested_dict.py` of that package (version "1.0.0" of
//! the metadata, PyTorch 2.x).

mod tree;
mod write;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use smallvec::SmallVec;

use super::{Key, counts, dtype, is_known};
use crate::error::{Error, ErrorKind, Result};
use crate::pickle::{Pickle, View};
use crate::plan::cover::check_cover;
use crate::shown::short;
use crate::slice::Slice;
use crate::tensor::{NAME_BYTES_MAX, TensorSpec};

pub(crate) use tree::nested;
pub(crate) use write::metadata;

/// The file that commits such a directory.
pub(crate) const METADATA: &str = ".metadata";
/// What names of its data files end in.
pub(crate) const DISTCP: &str = ".distcp";
/// Longest path from the top of a state dict to a value.
const PATH_MAX: usize = 64;
/// Most fields of an object of the metadata; they have up to five.
const FIELDS_MAX: usize = 16;
/// How much may come of each byte of the metadata: parts that are shared come up again wherever they
/// are held, and nobody's pickle shares so much.
const SHARED_MAX: usize = 16;
/// What a part of a tensor costs of that.
const PART_COST: usize = 64;

/// One entry of the state dict.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// Its name in the flattened state dict.
    pub(crate) name: String,
    /// Where it belongs in the nested one.
    pub(crate) path: Vec<Key>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Content {
    /// Boxes that cover it exactly, each with where it is.
    Tensor(TensorSpec, Vec<(Slice, Place)>),
    /// Anything else, pickled.
    Bytes(Place),
}

/// Where an item is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// A file of the directory.
    pub(crate) file: String,
    pub(crate) begin: u64,
    pub(crate) bytes: u64,
}

/// Names that are expected in `.metadata`.
fn is_expected(module: &str, name: &str) -> bool {
    const CLASSES: [&str; 8] = [
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "BytesStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ];
    match module {
        "torch.distributed.checkpoint.metadata" => CLASSES.contains(&name),
        "torch.distributed.checkpoint.filesystem" => name == "_StorageInfo",
        // Before PyTorch 2.3.
        "torch.distributed._shard.sharded_tensor.metadata" => {
            ["TensorProperties", "MEM_FORMAT_ENCODING"].contains(&name)
        }
        "torch.serialization" => name == "_get_layout",
        "pathlib" | "pathlib._local" => {
            ["PosixPath", "PurePosixPath", "WindowsPath"].contains(&name)
        }
        _ => is_known(module, name),
    }
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// Reads `.metadata`.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for anything malformed, and for tensors whose boxes do not cover them or
/// are nowhere; [`ErrorKind::Incompatible`] for a dtype that checkpoints do not hold;
/// [`ErrorKind::Unsupported`] for items that were transformed.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
    let (pickle, len) = Pickle::read(bytes, &is_expected)?;
    let mut budget = Budget(len.saturating_mul(SHARED_MAX));
    let root = state_of(pickle.root(), "Metadata")?;
    let places = places(root)?;
    let paths = paths(root, &mut budget)?;
    let stored = root.get("state_dict_metadata").and_then(View::entries);
    let stored = stored.ok_or_else(|| corrupt("no state dict in its metadata"))?;
    let mut entries = Vec::with_capacity(stored.len());
    let mut seen = std::collections::HashSet::new();
    for (key, value) in stored {
        let name = name_of(Some(key))?;
        if !seen.insert(name) {
            return Err(corrupt("it is there twice").with_tensor(short(name)));
        }
        let content = content(name, value, &places, &mut budget);
        let content = content.map_err(|e| e.with_tensor(short(name)))?;
        let path = paths.get(name).cloned().unwrap_or_else(|| vec![Key::Text(name.to_owned())]);
        entries.push(Entry { name: name.to_owned(), path, content });
    }
    Ok(entries)
}

/// Whether an export from here wrote this `.metadata`.
pub(crate) fn is_ours(bytes: &[u8]) -> bool {
    let Ok((pickle, _)) = Pickle::read(bytes, &is_expected) else { return false };
    let root = state_of(pickle.root(), "Metadata").ok();
    let stored = root.and_then(|root| root.get("storage_meta"));
    let stored = stored.and_then(|stored| state_of(stored, "StorageMeta").ok());
    let id = stored.and_then(|stored| stored.get("save_id")).and_then(View::text);
    id.is_some_and(write::is_ours)
}

/// What an object of this class of the metadata was filled with.
fn state_of<'p>(view: View<'p>, class: &str) -> Result<View<'p>> {
    let made = view.made().filter(|made| made.name == class);
    let state = made.and_then(|made| made.state);
    let is_small = |state: &View<'_>| match (state.entries(), state.items()) {
        (Some(fields), _) => fields.len() <= FIELDS_MAX,
        (_, Some(fields)) => fields.len() <= FIELDS_MAX,
        _ => true,
    };
    state.filter(is_small).ok_or_else(|| corrupt(format!("{} instead of `{class}`", view.what())))
}

/// How much may still be looked at.
struct Budget(usize);

impl Budget {
    fn spend(&mut self, cost: usize) -> Result<()> {
        self.0 = self.0.checked_sub(cost).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "the same things over and over again")
        })?;
        Ok(())
    }
}

/// A name in the flattened state dict.
fn name_of(view: Option<View<'_>>) -> Result<&str> {
    let name = view.and_then(View::text).ok_or_else(|| corrupt("an entry without a name"))?;
    if name.len() > NAME_BYTES_MAX {
        let message = format!("a name of {} bytes, at most {NAME_BYTES_MAX}", name.len());
        return Err(Error::new(ErrorKind::Unsupported, message).with_tensor(short(name)));
    }
    Ok(name)
}

type Places<'p> = HashMap<(&'p str, Option<Vec<u64>>), Place>;

fn places(root: View<'_>) -> Result<Places<'_>> {
    let stored = root.get("storage_data").and_then(View::entries);
    let stored = stored.ok_or_else(|| corrupt("its metadata does not say where anything is"))?;
    let mut places = HashMap::with_capacity(stored.len());
    for (index, info) in stored {
        let index = state_of(index, "MetadataIndex")?;
        let name = name_of(index.get("fqn"))?;
        let place = place(info).map_err(|e| e.with_tensor(short(name)))?;
        let offset = match index.get("offset") {
            Some(offset) if !offset.is_none() => {
                let at = counts(offset).ok_or_else(|| corrupt("offsets that cannot be"))?;
                Some(at)
            }
            _ => None,
        };
        if places.insert((name, offset), place).is_some() {
            return Err(corrupt("a part of it is in two places").with_tensor(short(name)));
        }
    }
    Ok(places)
}

fn place(info: View<'_>) -> Result<Place> {
    let info = state_of(info, "_StorageInfo")?;
    let transforms = info.get("transform_descriptors").filter(|view| !view.is_none());
    if transforms.and_then(View::items).is_some_and(|items| items.len() > 0) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "it is compressed, or transformed otherwise",
        )
        .with_help("save it without extensions"));
    }
    let file = info.get("relative_path").and_then(View::text);
    let number = |name: &str| info.get(name).and_then(View::count);
    let (Some(file), Some(begin), Some(bytes)) = (file, number("offset"), number("length")) else {
        return Err(corrupt("a place that is none"));
    };
    let is_plain = !file.is_empty()
        && file.len() <= 255
        && !file.starts_with('.')
        && !file.contains(['/', '\\', '\0']);
    if !is_plain {
        return Err(corrupt(format!("it is in `{}`, which is no file beside it", short(file))));
    }
    let end = begin.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| corrupt("a place beyond any file"))?;
    Ok(Place { file: file.to_owned(), begin, bytes })
}

/// Where entries belong in the nested state dict, if that is said.
fn paths<'p>(root: View<'p>, budget: &mut Budget) -> Result<HashMap<&'p str, Vec<Key>>> {
    let said = root.get("planner_data").and_then(View::entries);
    let mut paths = HashMap::new();
    for (name, path) in said.into_iter().flatten() {
        let name = name_of(Some(name))?;
        let key = |part: View<'_>| match (part.text(), part.int()) {
            (Some(text), _) => Some(Key::Text(text.to_owned())),
            (_, Some(int)) => Some(Key::Int(int)),
            _ => None,
        };
        let parts = path.items().filter(|parts| (1..=PATH_MAX).contains(&parts.len()));
        for part in path.items().into_iter().flatten().take(PATH_MAX) {
            budget.spend(part.text().map_or(1, |text| text.len() + 1))?;
        }
        let keys: Option<Vec<Key>> = parts.and_then(|parts| parts.map(key).collect());
        let wrong = |what: &str| corrupt(what).with_tensor(short(name));
        let keys = keys.ok_or_else(|| wrong("its path in the state dict is none"))?;
        if paths.insert(name, keys).is_some() {
            return Err(wrong("two paths in the state dict"));
        }
    }
    Ok(paths)
}

fn content(
    name: &str,
    value: View<'_>,
    places: &Places<'_>,
    budget: &mut Budget,
) -> Result<Content> {
    let nowhere = || corrupt("its metadata does not say where it is");
    if value.made().is_some_and(|made| made.name == "BytesStorageMetadata") {
        let place = places.get(&(name, None)).ok_or_else(nowhere)?;
        return Ok(Content::Bytes(place.clone()));
    }
    let state = state_of(value, "TensorStorageMetadata")?;
    let spec = spec(state)?;
    let chunks = state.get("chunks").and_then(View::items);
    let mut boxes = Vec::new();
    for chunk in chunks.ok_or_else(|| corrupt("a tensor without parts"))? {
        budget.spend(PART_COST)?;
        let chunk = state_of(chunk, "ChunkStorageMetadata")?;
        let numbers = |name: &str| chunk.get(name).and_then(counts);
        let (Some(offsets), Some(sizes)) = (numbers("offsets"), numbers("sizes")) else {
            return Err(corrupt("a part without offsets or sizes"));
        };
        let slice =
            Slice::new(offsets.clone(), sizes).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
        // Of a tensor without elements every part is as good as another, but for its shape.
        let is_odd = spec.elements() == 0 && boxes.is_empty() && !slice.is_full(spec.shape());
        if !slice.fits(spec.shape()) || is_odd {
            return Err(corrupt(format!("part {slice} is not inside {spec}")));
        }
        // Ranks without a share of it say so.
        if slice.elements() == 0 && (spec.elements() > 0 || !boxes.is_empty()) {
            continue;
        }
        let key = (name, Some(offsets));
        let place = places.get(&key).or_else(|| {
            // What is whole needs no offsets.
            places.get(&(name, None)).filter(|_| slice.is_full(spec.shape()))
        });
        boxes.push((slice, place.ok_or_else(nowhere)?.clone()));
    }
    covers(&spec, &boxes)?;
    Ok(Content::Tensor(spec, boxes))
}

fn covers(spec: &TensorSpec, boxes: &[(Slice, Place)]) -> Result<()> {
    let slices: SmallVec<[_; 4]> = boxes.iter().map(|(slice, _)| slice).collect();
    check_cover(spec.shape(), &slices).map_err(corrupt)
}

fn spec(state: View<'_>) -> Result<TensorSpec> {
    let properties = state.get("properties").and_then(View::made).and_then(|made| made.state);
    // A tuple as PyTorch writes it, by name in what others may write.
    let kind = properties.and_then(|properties| match properties.items() {
        Some(mut items) => items.next(),
        None => properties.get("dtype"),
    });
    let kind = kind.and_then(View::global).filter(|(module, _)| *module == "torch");
    let (_, kind) = kind.ok_or_else(|| corrupt("a tensor without a dtype"))?;
    let dtype = dtype(kind).ok_or_else(|| {
        let message = format!("dtype `torch.{}`, which checkpoints do not hold", short(kind));
        Error::new(ErrorKind::Incompatible, message)
    })?;
    let size = state.get("size").and_then(counts);
    let size = size.ok_or_else(|| corrupt("a tensor without a size"))?;
    TensorSpec::new(dtype, size).map_err(|e| e.with_kind(ErrorKind::Corrupt))
}
