//! What PyTorch opens: one file of `torch.save`, or a directory of `torch.distributed.checkpoint`.

mod feed;
mod flat;

use serde::{Deserialize, Serialize};

use super::ExportedFile;
use super::draft::Draft;
use super::options::Rules;
use super::plan::{Names, PlannedTensor, planned};
use crate::catalog::Found;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{EXPORT_SAVE_ID, SaveId};
use crate::manifest::Manifest;
use crate::pytorch::dcp::{self, Content, Entry, METADATA, Place};
use crate::pytorch::{NamedTensor, Tree, Whole, ZipWriter, pickled, tree_of};
use crate::slice::Slice;
use crate::storage::WriteFile;
use crate::sweep::Pace;
use crate::tensor::Component;

use feed::Feed;
use flat::flat;

/// Most bytes of tensors in a data file, unless one tensor has more.
const SHARD_BYTES: u64 = 5_000_000_000;
/// About what an archive takes beside a tensor.
const OVERHEAD: u64 = 2048;

/// A file or directory that PyTorch opens, with all that it needs to go on training: model,
/// optimizer, counters and values, as one nested state dict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PyTorch {
    /// Which of both.
    pub form: PyTorchForm,
    /// The names of the model's parameters in the order of `model.parameters()`, by which the
    /// optimizer's state is numbered as `torch.optim` does it. Default: it goes by names, as
    /// `torch.distributed.checkpoint.state_dict` has it.
    #[serde(default)]
    pub parameters: Option<Vec<String>>,
    /// Most bytes of a data file of a directory; a tensor that is larger has a file of its own.
    /// Default: 5 GB (5·10⁹ bytes).
    #[serde(default = "data_file_bytes")]
    pub max_file_bytes: u64,
}

fn data_file_bytes() -> u64 {
    SHARD_BYTES
}

impl PyTorch {
    /// This form, the optimizer by names, and data files of the usual size.
    #[must_use]
    pub fn new(form: PyTorchForm) -> Self {
        Self { form, parameters: None, max_file_bytes: SHARD_BYTES }
    }
}

/// What PyTorch opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PyTorchForm {
    /// One file, for `torch.load`.
    Pt,
    /// A directory, for `torch.distributed.checkpoint.load`.
    Dcp,
}

/// Everything that is written, but for the bytes of tensors.
pub(super) struct PyTorchPlan {
    tree: Tree<usize>,
    tensors: Vec<PlannedTensor>,
    form: PyTorchForm,
    max_file_bytes: u64,
    save_id: SaveId,
}

pub(super) fn plan(
    manifest: &Manifest,
    rules: &Rules<'_>,
    asked: &PyTorch,
    names: &Names<'_>,
) -> Result<PyTorchPlan> {
    let mut tensors: Vec<PlannedTensor> = Vec::new();
    let mut numbers = std::collections::BTreeMap::new();
    let mut named = Vec::with_capacity(names.len());
    let mut order: Vec<_> = names.iter().collect();
    // The name that a tensor is stored under comes first, which a way back takes for it.
    order.sort_by_key(|(_, source)| source.is_alias);
    for (name, source) in order {
        // Steps are counted in float32 whatever the parameters are.
        let is_count = source.record.component == Component::optimizer() && name.ends_with(".step");
        let cast = rules.options.cast.filter(|_| !is_count);
        let own = || planned(name, source.record, cast);
        let known = numbers.get(&source.record.name).copied();
        let number = match known.filter(|_| !rules.options.repeat_tied) {
            Some(number) => number,
            None => {
                tensors.push(own()?);
                numbers.insert(&source.record.name, tensors.len() - 1);
                tensors.len() - 1
            }
        };
        named.push(NamedTensor { name, component: &source.record.component, number });
    }
    let asks_for = |list: &Vec<Component>| list.contains(&Component::optimizer());
    let has_optimizer = rules.options.components.as_ref().is_none_or(asks_for);
    let tree = tree_of(manifest, &named, asked.parameters.as_deref(), has_optimizer)?;
    let (form, max_file_bytes) = (asked.form, asked.max_file_bytes);
    Ok(PyTorchPlan { tree, tensors, form, max_file_bytes, save_id: manifest.save_id() })
}

impl PyTorchPlan {
    /// About how long its files are, all together.
    pub(super) fn bytes(&self) -> u64 {
        let own = |tensor: &PlannedTensor| tensor.spec.size_bytes().saturating_add(OVERHEAD);
        self.tensors.iter().map(own).fold(OVERHEAD, u64::saturating_add)
    }

    /// Writes everything; each file is durable.
    pub(super) fn write(
        &self,
        found: &Found,
        draft: &mut Draft<'_>,
        pace: &Pace,
    ) -> Result<(Vec<ExportedFile>, Vec<std::path::PathBuf>)> {
        let mut feed = Feed::open(found, &self.tensors, pace)?;
        match self.form {
            PyTorchForm::Pt => Ok((vec![self.archive(&mut feed, draft)?], Vec::new())),
            PyTorchForm::Dcp => self.directory(&mut feed, draft),
        }
    }

    fn archive(&self, feed: &mut Feed<'_>, draft: &mut Draft<'_>) -> Result<ExportedFile> {
        let file = draft.create(None)?;
        let mut zip = ZipWriter::new(file.as_ref(), 0);
        let whole = |number: usize| self.whole(number, &number.to_string());
        let pickle = pickled(&mapped(&self.tree, &whole)?)?;
        begin_archive(&mut zip, &pickle)?;
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (number, tensor) in self.tensors.iter().enumerate() {
            tensors.push(feed.tensor(tensor, &mut zip, &format!("data/{number}"))?);
        }
        end_archive(&mut zip, &self.save_id)?;
        let bytes = zip.finish()?;
        file.finish()?;
        Ok(ExportedFile { path: draft.path_of(None), bytes, tensors })
    }

    fn whole(&self, number: usize, key: &str) -> Result<Whole> {
        let tensor = self.tensors.get(number);
        let spec = tensor.map(|tensor| tensor.spec.clone());
        let spec = spec.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "no such tensor"))?;
        Ok(Whole { spec, key: key.to_owned() })
    }

    fn directory(
        &self,
        feed: &mut Feed<'_>,
        draft: &mut Draft<'_>,
    ) -> Result<(Vec<ExportedFile>, Vec<std::path::PathBuf>)> {
        let leaves = flat(&self.tree);
        let mut shards = Shards {
            files: Vec::new(),
            open: None,
            bytes: 0,
            most: self.max_file_bytes,
            save_id: self.save_id,
        };
        let mut contents: Vec<Option<Content>> = Vec::with_capacity(leaves.len());
        for (_, _, leaf) in &leaves {
            contents.push(match leaf {
                Tree::Tensor(_) => None,
                value => {
                    let pickle = pickled(&mapped(value, &|number| self.whole(number, "0"))?)?;
                    Some(Content::Bytes(shards.item(
                        draft,
                        pickle.len() as u64,
                        &pickle,
                        |_| Ok(()),
                    )?))
                }
            });
        }
        let places = self.tensors(feed, draft, &mut shards)?;
        let mut entries = Vec::with_capacity(leaves.len());
        for ((name, path, leaf), content) in leaves.into_iter().zip(contents) {
            let content = match (leaf, content) {
                (_, Some(content)) => content,
                (Tree::Tensor(number), None) => {
                    let spec = self.whole(*number, "0")?.spec;
                    let place = places.get(*number).cloned();
                    let place = place
                        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "no such tensor"))?;
                    let whole = Slice::full(spec.shape());
                    Content::Tensor(spec, vec![(whole, place)])
                }
                _ => continue,
            };
            entries.push(Entry { name, path, content });
        }
        let files = shards.finish(draft)?;
        let bytes = dcp::metadata(&entries, &self.save_id.to_string())?;
        let file = draft.create(Some(METADATA))?;
        file.write_at(0, &bytes)?;
        file.finish()?;
        Ok((files, vec![draft.path_of(Some(METADATA))]))
    }

    /// Where each tensor is.
    fn tensors(
        &self,
        feed: &mut Feed<'_>,
        draft: &mut Draft<'_>,
        shards: &mut Shards,
    ) -> Result<Vec<Place>> {
        let mut places = Vec::with_capacity(self.tensors.len());
        for (number, tensor) in self.tensors.iter().enumerate() {
            let pickle = pickled(&Tree::Tensor(self.whole(number, "0")?))?;
            let mut done = None;
            let place = shards.item(draft, tensor.spec.size_bytes(), &pickle, |zip| {
                done = Some(feed.tensor(tensor, zip, "data/0")?);
                Ok(())
            })?;
            if let (Some(file), Some(done)) = (shards.files.last_mut(), done) {
                file.tensors.push(done);
            }
            places.push(place);
        }
        Ok(places)
    }
}

/// The data files of a directory, one after the other.
struct Shards {
    files: Vec<ExportedFile>,
    open: Option<(String, Box<dyn WriteFile>)>,
    /// Of the open one.
    bytes: u64,
    /// Most of one, unless a tensor has more.
    most: u64,
    save_id: SaveId,
}

impl Shards {
    /// Writes an item; `data` puts what its pickle does not hold.
    fn item(
        &mut self,
        draft: &mut Draft<'_>,
        bytes: u64,
        pickle: &[u8],
        data: impl FnOnce(&mut ZipWriter<'_>) -> Result<()>,
    ) -> Result<Place> {
        if self.bytes > 0 && self.bytes.saturating_add(bytes) > self.most {
            self.close(draft)?;
        }
        if self.open.is_none() {
            let name = format!("__{}_0{}", self.files.len(), dcp::DISTCP);
            let path = draft.path_of(Some(&name));
            self.files.push(ExportedFile { path, bytes: 0, tensors: Vec::new() });
            self.open = Some((name.clone(), draft.create(Some(&name))?));
        }
        let Some((name, file)) = &self.open else {
            return Err(Error::new(ErrorKind::Storage, "no file is open"));
        };
        let begin = self.bytes;
        let mut zip = ZipWriter::new(file.as_ref(), begin);
        begin_archive(&mut zip, pickle)?;
        data(&mut zip)?;
        end_archive(&mut zip, &self.save_id)?;
        let bytes = zip.finish()?;
        self.bytes += bytes;
        Ok(Place { file: name.clone(), begin, bytes })
    }

    fn close(&mut self, _draft: &mut Draft<'_>) -> Result<()> {
        if let Some((_, file)) = self.open.take() {
            file.finish()?;
        }
        if let Some(file) = self.files.last_mut() {
            file.bytes = self.bytes;
        }
        self.bytes = 0;
        Ok(())
    }

    fn finish(mut self, draft: &mut Draft<'_>) -> Result<Vec<ExportedFile>> {
        self.close(draft)?;
        Ok(self.files)
    }
}

/// What `torch.save` writes before the storages.
fn begin_archive(zip: &mut ZipWriter<'_>, pickle: &[u8]) -> Result<()> {
    zip.member("data.pkl", pickle)?;
    zip.member(".format_version", b"1")?;
    zip.member(".storage_alignment", b"64")?;
    zip.member("byteorder", b"little")
}

/// And behind them, with what says that this is an export.
fn end_archive(zip: &mut ZipWriter<'_>, save_id: &SaveId) -> Result<()> {
    zip.member("version", b"3\n")?;
    zip.member(&format!(".data/{EXPORT_SAVE_ID}"), save_id.to_string().as_bytes())?;
    // Any forty digits that differ from those of other files.
    let digits: String = save_id.to_string().bytes().map(|b| char::from(b'0' + b % 10)).collect();
    zip.member(".data/serialization_id", format!("{digits:0>40}").as_bytes())
}

/// The same tree of other tensors.
fn mapped(tree: &Tree<usize>, to: &dyn Fn(usize) -> Result<Whole>) -> Result<Tree<Whole>> {
    Ok(match tree {
        Tree::Tensor(number) => Tree::Tensor(to(*number)?),
        Tree::Plain(plain) => Tree::Plain(plain.clone()),
        Tree::Dict(entries) => {
            let entry = |(key, tree): &(_, Tree<usize>)| Ok((Clone::clone(key), mapped(tree, to)?));
            Tree::Dict(entries.iter().map(entry).collect::<Result<_>>()?)
        }
        Tree::List(items) => {
            Tree::List(items.iter().map(|item| mapped(item, to)).collect::<Result<_>>()?)
        }
    })
}
