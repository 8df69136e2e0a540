//! Safetensors files of other tools: whatever their headers claim is checked, their bytes cannot
//! be.

mod distributed;
mod index;
mod pytorch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::files::extents::ExtentDirectory;
use crate::json::check_object;
use crate::layout::{self, EXPORT_COMPONENT, EXPORT_EPOCH, EXPORT_MARKS, EXPORT_STEP};
use crate::manifest::{FileParts, Manifest, PlainParts, PlainTensor};
use crate::pytorch::NameRules;
use crate::shard::{SingleFile, read_single};
use crate::shown::short;
use crate::slice::Slice;
use crate::state::{Value, Values};
use crate::storage::Directory;
use crate::tensor::{Component, TensorName};

pub(crate) use index::{Index, read_index, read_small};

/// Files of other tools as they are read: the directory in which their data is found, and what
/// there is.
pub(crate) struct Foreign {
    pub(crate) dir: Arc<dyn Directory>,
    pub(crate) manifest: Manifest,
    /// The same directory, if its files have sums.
    pub(crate) summed: Option<Arc<ExtentDirectory>>,
    /// Whether it is a directory of `torch.distributed.checkpoint`.
    pub(crate) is_distributed: bool,
}

impl Foreign {
    fn summed((dir, manifest): (Arc<ExtentDirectory>, Manifest), is_distributed: bool) -> Self {
        Self { dir: dir.clone(), manifest, summed: Some(dir), is_distributed }
    }
}

/// What PyTorch wrote under this name, if it did.
///
/// # Errors
/// [`ErrorKind::Corrupt`], [`ErrorKind::Incompatible`], [`ErrorKind::Unsupported`] for what cannot
/// be read of it; [`ErrorKind::Storage`].
pub(crate) fn open_pytorch(
    parent: &Arc<dyn Directory>,
    name: &str,
    rules: NameRules,
) -> Result<Option<Foreign>> {
    match parent.open_file(name) {
        Ok(file)
            if pytorch::is_archive(&*file)
                .map_err(|e| e.with_path(parent.path().join(name)))? =>
        {
            pytorch::open_archive(parent, name, rules)
                .map(|opened| Some(Foreign::summed(opened, false)))
        }
        Ok(_) => Ok(None),
        // What is no file may be a directory; what is neither is told by who looks for one.
        Err(e) if [ErrorKind::NotFound, ErrorKind::Corrupt].contains(&e.kind()) => {
            match parent.open_dir(name) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                dir => Ok(distributed::open_distributed(&dir?, rules)?
                    .map(|opened| Foreign::summed(opened, true))),
            }
        }
        Err(e) => Err(e),
    }
}

/// Longest description of a model that is read.
pub(crate) const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Which components of a directory are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    Model,
    /// Also those that an export wrote beside it.
    All,
}

/// A file of tensors.
pub(super) struct PlainFile {
    name: String,
    component: Component,
    single: SingleFile,
    len: u64,
}

impl PlainFile {
    pub(super) fn new(name: &str, single: SingleFile, len: u64) -> Self {
        Self { name: name.to_owned(), component: Component::model(), single, len }
    }

    fn open(dir: &dyn Directory, name: &str, component: &Component) -> Result<Self> {
        let file = dir.open_file(name).map_err(help_with_links)?;
        let single = read_single(file.as_ref()).map_err(|e| e.with_path(dir.path().join(name)))?;
        Ok(Self { component: component.clone(), ..Self::new(name, single, file.len()) })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.single.header.metadata.get(key).map(String::as_str)
    }
}

/// A directory as Hugging Face tools write it: an index and the files that it names, or one file.
/// `None` for any other directory.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for anything malformed, for files that the index names and that are not
/// there, and for tensors that are not where the index says; [`ErrorKind::Incompatible`] for an
/// unknown dtype; [`ErrorKind::Storage`].
pub(crate) fn open_directory(dir: &dyn Directory, parts: Parts) -> Result<Option<Manifest>> {
    let mut files = of_component(dir, &Component::model())?;
    if parts == Parts::All {
        let names = dir.list()?.into_iter().filter_map(|entry| layout::parse_hf_file(&entry.name));
        let others: BTreeSet<Component> = names.filter(|c| *c != Component::model()).collect();
        for component in others {
            files.extend(of_component(dir, &component)?);
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    manifest_of(files, values(dir)?).map(Some)
}

/// The files of one component; none if there are none, or if its name is that of a component by
/// chance.
fn of_component(dir: &dyn Directory, component: &Component) -> Result<Vec<PlainFile>> {
    let is_model = *component == Component::model();
    let index_name = layout::hf_index(component);
    let index = read_index(dir, &index_name)?.filter(|index| is_model || index.is_ours());
    let alone = layout::hf_file(component, 1, 1);
    let mut files = Vec::new();
    for name in index::files_of(index.as_ref(), &alone) {
        match PlainFile::open(dir, &name, component) {
            Err(e) if e.kind() == ErrorKind::NotFound && index.is_none() => return Ok(Vec::new()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(e.with_kind(ErrorKind::Corrupt).with_help("the index names it"));
            }
            opened => files.push(opened?),
        }
    }
    let is_marked = |file: &PlainFile| file.text(EXPORT_COMPONENT) == Some(component.as_str());
    if !is_model && !files.iter().all(is_marked) {
        return Ok(Vec::new());
    }
    if let Some(index) = &index {
        check_index(index, &files).map_err(|e| e.with_path(dir.path().join(index_name)))?;
    }
    Ok(files)
}

/// Whether tensors are where the index says; `files` are its files, in order.
fn check_index(index: &Index, files: &[PlainFile]) -> Result<()> {
    for (number, file) in files.iter().enumerate() {
        let tensors = &file.single.header.tensors;
        let present: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some(absent) = index.tensors_of(number).find(|tensor| !present.contains(tensor)) {
            let message = format!("the index says that it is in `{}`, where it is not", file.name);
            return Err(Error::new(ErrorKind::Corrupt, message).with_tensor(short(absent)));
        }
    }
    Ok(())
}

/// The values that a directory stands for: the description of the model.
fn values(dir: &dyn Directory) -> Result<Values> {
    let mut values = Values::new();
    let name = layout::HF_CONFIG;
    let Some(bytes) = read_small(dir, name, CONFIG_BYTES_MAX, "a description of a model")? else {
        return Ok(values);
    };
    let malformed = |what: &str| {
        let message = format!("the description of the model is malformed: {}", short(what));
        Error::new(ErrorKind::Corrupt, message).with_path(dir.path().join(name))
    };
    let text = String::from_utf8(bytes).map_err(|e| malformed(&e.to_string()))?;
    check_object(&text).map_err(|what| malformed(&what))?;
    values.set(layout::MODEL_CONFIG, Value::Json(text));
    Ok(values)
}

/// What one file holds, as far as its header says.
///
/// # Errors
/// As [`open_directory`].
pub(super) fn of_file(file: PlainFile) -> Result<Manifest> {
    manifest_of(vec![file], Values::new())
}

/// # Errors
/// [`ErrorKind::Corrupt`] for a tensor in two files.
fn manifest_of(files: Vec<PlainFile>, values: Values) -> Result<Manifest> {
    let number = |key: &str| files.iter().find_map(|file| file.text(key)?.parse().ok());
    let (step, epoch) = (number(EXPORT_STEP).unwrap_or(0), number(EXPORT_EPOCH).unwrap_or(0));
    let (mut parts, mut tensors, mut texts) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (PlainFile { name, component, single, len }, index) in files.into_iter().zip(0u32..) {
        let data_start = single.header.data_start;
        for tensor in single.header.tensors {
            let whole = Slice::full(tensor.spec.shape());
            let boxes = vec![(whole, index, data_start + tensor.begin)];
            let placed = PlainTensor { spec: tensor.spec, component: component.clone(), boxes };
            if tensors.insert(tensor.name.clone(), placed).is_some() {
                let message = format!("it is in `{name}` and in another file");
                let error = Error::new(ErrorKind::Corrupt, message);
                return Err(error.with_tensor(tensor.name.as_str()));
            }
        }
        texts.extend(single.header.metadata);
        let header_hash = single.whole_hash;
        let file = FileParts { len, data_start, header_hash, sums_hash: [0; 16] };
        parts.push((name, component, file));
    }
    let is_name = |(key, _): &(String, String)| key != "format" && !key.starts_with(EXPORT_MARKS);
    // As `safetensors.torch.save_model` writes them: a tied name, and the one that was kept.
    let aliases = texts.into_iter().filter(is_name).filter_map(|(key, kept)| {
        let (alias, kept) = (TensorName::new(key).ok()?, TensorName::new(kept).ok()?);
        (!tensors.contains_key(&alias) && tensors.contains_key(&kept)).then_some((alias, kept))
    });
    let aliases = aliases.collect();
    Manifest::of_plain(PlainParts { files: parts, tensors, aliases, values, step, epoch })
}

/// Directories of downloads are often full of links.
pub(super) fn help_with_links(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Corrupt => error.with_help(
            "links are not followed: give a directory that holds the files themselves (`cp -rL` \
             makes one)",
        ),
        _ => error,
    }
}
