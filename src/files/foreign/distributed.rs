//! Directories of `torch.distributed.checkpoint`: each item of a data file is an archive of its own.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use super::index::read_small;
use super::pytorch::{Layout, made, stretch};
use crate::error::{Error, ErrorKind, Result};
use crate::files::extents::{ExtentDirectory, Stretch};
use crate::manifest::Manifest;
use crate::pickle::{PICKLE_BYTES_MAX, Pickle};
use crate::pytorch::dcp::{Content, DISTCP, Entry, METADATA, Place, nested, parse};
use crate::pytorch::{
    Archive, Described, Found, NameRules, Source, Tree, described, is_known, named,
};
use crate::shown::short;
use crate::slice::Slice;
use crate::storage::{Directory, ReadFile};
use crate::tensor::TensorSpec;

/// Longest description of one item: a tensor's has some hundred bytes, a value's is the value.
const ITEM_PICKLE_MAX: u64 = 64 << 20;
/// Items up to this length are read as a whole while they are looked for, and so many bytes at once.
const SMALL: u64 = 16 << 10;
const AHEAD: u64 = 256 << 10;
/// Of longer ones their begin and end, so many bytes of each.
const PART: u64 = 1 << 10;
/// How many threads look at the items of a file, and how many items are worth one.
const THREADS_MAX: usize = 8;
const RUN_MIN: usize = 64;

/// What such a directory holds; `None` for any other directory.
///
/// # Errors
/// [`ErrorKind::Corrupt`] also for data files without the metadata that commits them; as
/// [`open_archive`](super::pytorch::open_archive).
pub(crate) fn open_distributed(
    dir: &Arc<dyn Directory>,
    rules: NameRules,
) -> Result<Option<(Arc<ExtentDirectory>, Manifest)>> {
    let what = "the metadata of a distributed checkpoint";
    let Some(bytes) = read_small(dir.as_ref(), METADATA, PICKLE_BYTES_MAX, what)? else {
        return refuse_uncommitted(dir.as_ref()).map(|()| None);
    };
    let at = |e: Error| if e.path().is_some() { e } else { e.with_path(dir.path().join(METADATA)) };
    let entries = parse(&bytes).map_err(at)?;
    drop(bytes);
    let items = Items::read(dir, &entries)?;
    items.layout(dir, &entries, rules).map(Some)
}

/// Data files alone are what a save that did not end has left.
fn refuse_uncommitted(dir: &dyn Directory) -> Result<()> {
    let entries = dir.list()?;
    let Some(data) = entries.iter().find(|entry| entry.name.ends_with(DISTCP)) else {
        return Ok(());
    };
    let message = format!("`{}` without a `{METADATA}`: it was not committed", short(&data.name));
    Err(Error::new(ErrorKind::Corrupt, message)
        .with_path(dir.path())
        .with_help("nothing was read; take an older checkpoint"))
}

/// What is in the items of all data files.
struct Items {
    /// Of tensors: by number of entry and of box.
    stretches: BTreeMap<(usize, usize), Stretch>,
    /// Of anything else, by number of entry.
    values: BTreeMap<usize, Tree<usize>>,
    /// Lengths of the files.
    lengths: BTreeMap<String, u64>,
}

/// Whose item it is.
#[derive(Clone, Copy)]
enum Owner<'e> {
    Box(usize, usize, &'e TensorSpec, &'e Slice),
    Value(usize),
}

/// An item, the name of its entry, and whose it is.
type Wanted<'e> = (&'e Place, &'e str, Owner<'e>);

/// What an item turned out to be.
enum Seen {
    Tensor(Stretch),
    Value(Tree<usize>),
}

impl Items {
    /// Looks at every item, file by file and in the order in which they lie there.
    fn read(dir: &Arc<dyn Directory>, entries: &[Entry]) -> Result<Self> {
        let mut files: BTreeMap<&str, Vec<Wanted<'_>>> = BTreeMap::new();
        for (number, entry) in entries.iter().enumerate() {
            match &entry.content {
                Content::Bytes(place) => {
                    let own = files.entry(&place.file).or_default();
                    own.push((place, &entry.name, Owner::Value(number)));
                }
                Content::Tensor(spec, boxes) => {
                    for (index, (slice, place)) in boxes.iter().enumerate() {
                        let own = files.entry(&place.file).or_default();
                        own.push((place, &entry.name, Owner::Box(number, index, spec, slice)));
                    }
                }
            }
        }
        let (stretches, values) = (BTreeMap::new(), BTreeMap::new());
        let mut items = Self { stretches, values, lengths: BTreeMap::new() };
        for (name, mut places) in files {
            places.sort_by_key(|(place, _, _)| (place.begin, place.bytes));
            let at = |e: Error| match e.path() {
                Some(_) => e,
                None => e.with_path(dir.path().join(name)),
            };
            let file = dir.open_file(name).map_err(|e| match e.kind() {
                ErrorKind::NotFound => lost(at(e)),
                _ => at(e),
            })?;
            items.of_file(name, &*file, &places).map_err(at)?;
        }
        Ok(items)
    }

    /// Several threads each look at a run of items.
    fn of_file(&mut self, name: &str, file: &dyn ReadFile, places: &[Wanted<'_>]) -> Result<()> {
        self.lengths.insert(name.to_owned(), file.len());
        let items = apart(places)?;
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
        let run = items.len().div_ceil(threads).max(RUN_MIN);
        let look = |items: &[&Wanted<'_>]| -> Result<Vec<Seen>> {
            let mut source = Source::new(file);
            let look = |((place, entry, owner), ahead): (&&Wanted<'_>, u64)| {
                source.read_ahead(ahead);
                item(&mut source, place, *owner).map_err(|e| e.with_tensor(short(entry)))
            };
            items.iter().zip(aheads(items)).map(look).collect()
        };
        let panicked = |_| Err(Error::new(ErrorKind::Panic, "a thread that reads items panicked"));
        let seen = thread::scope(|scope| -> Result<Vec<Vec<Seen>>> {
            let runs = items.chunks(run).map(|items| scope.spawn(move || look(items)));
            let runs: Vec<_> = runs.collect();
            runs.into_iter().map(|run| run.join().unwrap_or_else(panicked)).collect()
        })?;
        for ((_, _, owner), seen) in items.iter().zip(seen.into_iter().flatten()) {
            match (owner, seen) {
                (Owner::Box(entry, index, ..), Seen::Tensor(stretch)) => {
                    self.stretches.insert((*entry, *index), stretch);
                }
                (Owner::Value(entry), Seen::Value(tree)) => {
                    self.values.insert(*entry, tree);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Everything under our names.
    fn layout(
        mut self,
        dir: &Arc<dyn Directory>,
        entries: &[Entry],
        rules: NameRules,
    ) -> Result<(Arc<ExtentDirectory>, Manifest)> {
        // Equal tensors in equal places are one, under several names.
        let mut first: HashMap<&Content, usize> = HashMap::new();
        let mut leaves = Vec::with_capacity(entries.len());
        for (number, Entry { path, content, .. }) in entries.iter().enumerate() {
            let leaf = match content {
                Content::Tensor(..) => Tree::Tensor(*first.entry(content).or_insert(number)),
                Content::Bytes(_) => {
                    self.values.remove(&number).unwrap_or_else(|| Tree::Dict(Vec::new()))
                }
            };
            leaves.push((path.clone(), leaf));
        }
        let tree = nested(leaves.into_iter())?;
        let spec_of = |number: &usize| match entries.get(*number).map(|entry| &entry.content) {
            Some(Content::Tensor(spec, _)) => Ok(spec.clone()),
            _ => Err(Error::new(ErrorKind::Corrupt, "no tensor")),
        };
        let named = named(tree, &spec_of, rules)?;
        let mut layout = Layout::default();
        let any_file = self.lengths.keys().next().cloned().unwrap_or_default();
        for (name, (component, found)) in &named.tensors {
            match found {
                Found::Made(spec, bytes) => {
                    layout.begin(name, component, spec.clone());
                    let whole = Slice::full(spec.shape());
                    layout.add_box(name, whole, &any_file, made(bytes));
                }
                Found::Stored(number) => {
                    layout.begin(name, component, spec_of(number)?);
                    let entry = entries.get(*number).map(|entry| &entry.content);
                    let Some(Content::Tensor(_, boxes)) = entry else { continue };
                    for (index, (slice, place)) in boxes.iter().enumerate() {
                        if let Some(stretch) = self.stretches.remove(&(*number, index)) {
                            layout.add_box(name, slice.clone(), &place.file, stretch);
                        }
                    }
                }
            }
        }
        let lengths = self.lengths;
        layout.finish(dir, &named, |file| Ok(lengths.get(file).copied().unwrap_or_default()))
    }
}

/// Items in order, each place once: other names of a tensor have the same one.
fn apart<'p, 'e>(places: &'p [Wanted<'e>]) -> Result<Vec<&'p Wanted<'e>>> {
    let (mut end, mut before) = (0, None);
    let mut apart = Vec::with_capacity(places.len());
    for wanted in places {
        let (place, entry, owner) = wanted;
        if before == Some(*place) && matches!(owner, Owner::Box(..)) {
            continue;
        }
        before = matches!(owner, Owner::Box(..)).then_some(*place);
        if place.begin < end {
            let error = Error::new(ErrorKind::Corrupt, "its bytes are those of another item");
            return Err(error.with_offset(place.begin).with_tensor(short(entry)));
        }
        end = place.begin.saturating_add(place.bytes);
        apart.push(wanted);
    }
    Ok(apart)
}

/// How much is read at once from each item on: small ones that follow each other together, and of a
/// long one no more than its begin and end.
fn aheads(items: &[&Wanted<'_>]) -> Vec<u64> {
    let mut next: Option<(u64, u64)> = None;
    let mut aheads: Vec<u64> = (items.iter().rev())
        .map(|(place, _, _)| {
            if place.bytes > SMALL {
                next = None;
                return PART;
            }
            let end = place.begin + place.bytes;
            let beyond = next.filter(|(begin, _)| *begin == end).map_or(0, |(_, ahead)| ahead);
            let ahead = (place.bytes + beyond).min(AHEAD);
            next = Some((place.begin, ahead));
            ahead
        })
        .collect();
    aheads.reverse();
    aheads
}

/// Looks at one item.
fn item(source: &mut Source<'_>, place: &Place, owner: Owner<'_>) -> Result<Seen> {
    let corrupt =
        |message: String| Error::new(ErrorKind::Corrupt, message).with_offset(place.begin);
    let end = place.begin.saturating_add(place.bytes);
    if end > source.len() {
        return Err(corrupt(format!("it ends at {end}, its file has {} bytes", source.len())));
    }
    if place.bytes <= SMALL {
        source.read(place.begin, place.bytes)?;
    }
    let archive = Archive::open(source, place.begin, place.bytes)?;
    let bytes = archive.read(source, "data.pkl", ITEM_PICKLE_MAX)?;
    let tree = described(&Pickle::read(bytes, &is_known)?.0)?;
    match (owner, tree) {
        (Owner::Box(_, _, spec, slice), Tree::Tensor(described)) => {
            fits(&described, spec, slice)?;
            let member = archive.member(source, &format!("data/{}", described.key))?;
            stretch(&described, &member).map(Seen::Tensor)
        }
        (Owner::Value(_), tree) => without_tensors(tree).map(Seen::Value),
        (Owner::Box(..), _) => Err(corrupt("its item is no tensor".to_owned())),
    }
}

fn lost(error: Error) -> Error {
    error
        .with_kind(ErrorKind::Corrupt)
        .with_help("a data file that the metadata names is gone: take another checkpoint")
}

/// Whether the item is what the metadata says.
fn fits(described: &Described, spec: &TensorSpec, slice: &Slice) -> Result<()> {
    if described.dtype == spec.dtype() && described.shape == slice.lengths() {
        return Ok(());
    }
    let own = TensorSpec::new(described.dtype, described.shape.clone())
        .map_or_else(|e| e.to_string(), |spec| spec.to_string());
    let message =
        format!("its item is {own}, the metadata says {} {:?}", spec.dtype(), slice.lengths());
    Err(Error::new(ErrorKind::Corrupt, message).with_help("its files may be of different saves"))
}

fn without_tensors(tree: Tree<Described>) -> Result<Tree<usize>> {
    Ok(match tree {
        Tree::Tensor(_) => {
            let message = "tensors inside of a value, which distributed checkpoints do not have";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Tree::Plain(plain) => Tree::Plain(plain),
        Tree::Dict(entries) => {
            let entry = |(key, tree)| Ok((key, without_tensors(tree)?));
            Tree::Dict(entries.into_iter().map(entry).collect::<Result<_>>()?)
        }
        Tree::List(items) => {
            Tree::List(items.into_iter().map(without_tensors).collect::<Result<_>>()?)
        }
    })
}
