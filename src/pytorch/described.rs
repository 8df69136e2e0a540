//! From pickles to state dicts: which names stand for what.
//!
//! Sources: `torch/_utils.py`, `torch/serialization.py` and `torch/_weights_only_unpickler.py` of
//! PyTorch, which say how tensors are taken apart.

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use super::{Key, Plain, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::pickle::{DEPTH_MAX, Made, Pickle, View};
use crate::shown::short;
use crate::tensor::{DIMENSIONS_MAX, Dtype};

/// A tensor as a pickle describes it. Nothing of it has been compared with its storage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Described {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    /// In elements.
    pub(crate) strides: Vec<u64>,
    /// Its first element in the storage.
    pub(crate) first: u64,
    /// Which storage.
    pub(crate) key: String,
    /// How many bytes the storage is said to have.
    pub(crate) storage_bytes: u64,
}

/// Names that PyTorch's own files hold, and that are understood here.
pub(crate) fn is_known(module: &str, name: &str) -> bool {
    match module {
        "torch" => {
            name == "Size"
                || name == "device"
                || storage_dtype(name).is_some()
                || dtype(name).is_some()
        }
        "torch._utils" => REBUILT.contains(&name),
        "torch.storage" => ["UntypedStorage", "TypedStorage"].contains(&name),
        "collections" => ["OrderedDict", "defaultdict"].contains(&name),
        "_codecs" => name == "encode",
        "builtins" | "__builtin__" => ["set", "frozenset", "dict", "list"].contains(&name),
        _ => false,
    }
}

/// Functions that put tensors together again.
const REBUILT: [&str; 5] = [
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
];

/// The dtype of PyTorch's name; `None` for one that checkpoints do not have.
pub(crate) fn dtype(name: &str) -> Option<Dtype> {
    DTYPES.iter().find(|(own, _, _)| *own == name).map(|(_, _, dtype)| *dtype)
}

/// PyTorch's name of a dtype.
pub(crate) fn dtype_name(dtype: Dtype) -> &'static str {
    DTYPES.iter().find(|(_, _, own)| *own == dtype).map_or("", |(name, _, _)| name)
}

/// The class of storages of a dtype, where there is one.
pub(crate) fn storage_name(dtype: Dtype) -> Option<&'static str> {
    let found = DTYPES.iter().find(|(_, _, own)| *own == dtype);
    found.map(|(_, storage, _)| *storage).filter(|storage| !storage.is_empty())
}

fn storage_dtype(name: &str) -> Option<Dtype> {
    DTYPES.iter().find(|(_, own, _)| *own == name && !name.is_empty()).map(|(_, _, dtype)| *dtype)
}

const DTYPES: [(&str, &str, Dtype); 16] = [
    ("bool", "BoolStorage", Dtype::Bool),
    ("uint8", "ByteStorage", Dtype::U8),
    ("int8", "CharStorage", Dtype::I8),
    ("float8_e5m2", "", Dtype::F8E5M2),
    ("float8_e4m3fn", "", Dtype::F8E4M3),
    ("int16", "ShortStorage", Dtype::I16),
    ("uint16", "", Dtype::U16),
    ("float16", "HalfStorage", Dtype::F16),
    ("bfloat16", "BFloat16Storage", Dtype::BF16),
    ("int32", "IntStorage", Dtype::I32),
    ("uint32", "", Dtype::U32),
    ("float32", "FloatStorage", Dtype::F32),
    ("float64", "DoubleStorage", Dtype::F64),
    ("int64", "LongStorage", Dtype::I64),
    ("uint64", "", Dtype::U64),
    ("complex64", "ComplexFloatStorage", Dtype::C64),
];

/// The state dict that a pickle describes.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for descriptions that cannot be; [`ErrorKind::Incompatible`] for what is
/// no state dict of tensors and plain values; both say where.
pub(crate) fn described(pickle: &Pickle) -> Result<Tree<Described>> {
    let mut walk =
        Walk { left: pickle.len().saturating_mul(SHARED_MAX).saturating_add(FREE), at: Vec::new() };
    walk.tree(pickle.root()).map_err(|e| {
        let place = walk.at.join(".");
        if place.is_empty() {
            e
        } else {
            Error::new(e.kind(), format!("{}: {}", short(&place), e.message()))
        }
    })
}

/// How much may come of each byte of a pickle, and of any: what is shared is there each time
/// afterwards.
const SHARED_MAX: usize = 4;
const FREE: usize = 1 << 20;

struct Walk {
    /// How many things, and bytes of texts, may still be looked at.
    left: usize,
    /// Where it is, in words.
    at: Vec<String>,
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

impl Walk {
    fn tree(&mut self, view: View<'_>) -> Result<Tree<Described>> {
        self.spend(1)?;
        if self.at.len() > DEPTH_MAX {
            let message = format!("nested more than {DEPTH_MAX} deep");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.spend(text_bytes(view))?;
        if let Some(plain) = plain(view)? {
            return Ok(Tree::Plain(plain));
        }
        if let Some(made) = view.made() {
            return self.made(view, made);
        }
        if let Some(entries) = view.entries() {
            return self.dict(entries);
        }
        if let Some(items) = view.items() {
            return self.list(items);
        }
        Err(unknown(view))
    }

    fn spend(&mut self, cost: usize) -> Result<()> {
        self.left = self.left.checked_sub(cost).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "the same things over and over again")
        })?;
        Ok(())
    }

    fn at<T>(&mut self, place: String, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.at.push(place);
        let done = work(self)?;
        // After an error it says where that was.
        self.at.pop();
        Ok(done)
    }

    fn dict<'p>(
        &mut self,
        entries: impl Iterator<Item = (View<'p>, View<'p>)>,
    ) -> Result<Tree<Described>> {
        let (mut dict, mut keys) = (Vec::new(), HashSet::new());
        for (key, value) in entries {
            self.spend(text_bytes(key))?;
            let (key, shown) = match (key.text(), key.int()) {
                (Some(text), _) => (Key::Text(text.to_owned()), text.to_owned()),
                (_, Some(int)) => (Key::Int(int), int.to_string()),
                _ => {
                    let message = format!("{} as the key of a dictionary", key.what());
                    return Err(Error::new(ErrorKind::Incompatible, message));
                }
            };
            let value = self.at(shown, |walk| {
                if !keys.insert(key.clone()) {
                    return Err(corrupt("twice in its dictionary"));
                }
                walk.tree(value)
            })?;
            dict.push((key, value));
        }
        Ok(Tree::Dict(dict))
    }

    fn list<'p>(&mut self, items: impl Iterator<Item = View<'p>>) -> Result<Tree<Described>> {
        let item =
            |(number, item): (usize, View<'p>)| self.at(number.to_string(), |walk| walk.tree(item));
        items.enumerate().map(item).collect::<Result<_>>().map(Tree::List)
    }

    fn made(&mut self, view: View<'_>, made: Made<'_>) -> Result<Tree<Described>> {
        match (made.module, made.name) {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                let inner = made.argument(0).ok_or_else(|| corrupt("a parameter of nothing"))?;
                self.at(String::new(), |walk| walk.tree(inner))
            }
            ("torch._utils", _) => tensor(made).map(Tree::Tensor),
            ("collections", _) | ("builtins" | "__builtin__", "dict") => {
                let given = made.argument(0).filter(|first| first.items().is_some());
                match given {
                    Some(pairs) => self.dict(pairs_of(pairs)?.into_iter()),
                    None => self.dict(view.entries().ok_or_else(|| unknown(view))?),
                }
            }
            ("torch", "Size") | ("builtins" | "__builtin__", "set" | "frozenset" | "list") => {
                let items = made.argument(0).and_then(View::items);
                self.list(items.ok_or_else(|| unknown(view))?)
            }
            _ => Err(unknown(view)),
        }
    }
}

/// How much of a text or of bytes would be copied.
fn text_bytes(view: View<'_>) -> usize {
    let encoded = view.made().filter(|made| made.is("_codecs", "encode"));
    let view = encoded.and_then(|made| made.argument(0)).unwrap_or(view);
    let bytes = view.bytes().map(<[u8]>::len);
    view.text().map(str::len).or(bytes).unwrap_or_default()
}

fn unknown(view: View<'_>) -> Error {
    let message = format!("{}, which is no tensor and no plain value", view.what());
    Error::new(ErrorKind::Incompatible, message)
}

fn pairs_of(pairs: View<'_>) -> Result<Vec<(View<'_>, View<'_>)>> {
    let items = pairs.items().into_iter().flatten();
    items.map(|item| pair(item).ok_or_else(|| corrupt("no pair in a dictionary"))).collect()
}

fn pair(pair: View<'_>) -> Option<(View<'_>, View<'_>)> {
    let mut items = pair.items()?;
    items.next().zip(items.next())
}

fn plain(view: View<'_>) -> Result<Option<Plain>> {
    let plain = if view.is_none() {
        Plain::None
    } else if let Some(value) = view.bool() {
        Plain::Bool(value)
    } else if let Some(value) = view.int() {
        Plain::Int(value)
    } else if let Some(value) = view.float() {
        Plain::Float(value)
    } else if let Some(value) = view.text() {
        Plain::Text(value.to_owned())
    } else if let Some(value) = view.bytes() {
        Plain::Bytes(value.to_owned())
    } else if let Some(made) = view.made().filter(|made| made.is("_codecs", "encode")) {
        Plain::Bytes(latin1(made).ok_or_else(|| corrupt("bytes that are none"))?)
    } else if let Some(("torch", name)) = view.global() {
        Plain::Text(format!("torch.{name}"))
    } else if let Some(made) = view.made().filter(|made| made.is("torch", "device")) {
        Plain::Text(made.argument(0).and_then(View::text).unwrap_or_default().to_owned())
    } else if view.is_huge() {
        return Err(Error::new(ErrorKind::Unsupported, "an integer of more than 64 bits"));
    } else {
        return Ok(None);
    };
    Ok(Some(plain))
}

/// Bytes as protocol 2 writes them.
fn latin1(made: Made<'_>) -> Option<Vec<u8>> {
    let text = made.argument(0)?.text()?;
    made.argument(1)?.text().filter(|encoding| *encoding == "latin1")?;
    text.chars().map(|character| u8::try_from(u32::from(character)).ok()).collect()
}

/// Longest name of a storage, which is a number.
const KEY_MAX: usize = 20;

fn tensor(made: Made<'_>) -> Result<Described> {
    refuse_lazy(made)?;
    let storage = made.argument(0).and_then(View::persistent);
    let storage = storage.ok_or_else(|| corrupt("a tensor without a storage"))?;
    let parts: Vec<View<'_>> = storage.items().into_iter().flatten().take(6).collect();
    let [kind, class, key, _device, count] = parts[..] else {
        return Err(corrupt("a storage that is described in another way"));
    };
    let (Some("storage"), Some(class), Some(key), Some(count)) =
        (kind.text(), class.global(), key.text(), count.count())
    else {
        return Err(corrupt("a storage that is described in another way"));
    };
    let dtype = match class {
        ("torch", name) => storage_dtype(name),
        _ => made.argument(6).and_then(View::global).and_then(|(_, name)| dtype(name)),
    };
    let dtype = dtype.ok_or_else(|| {
        let message = format!("a tensor of `{}`, which checkpoints do not hold", class.1);
        Error::new(ErrorKind::Incompatible, message)
    })?;
    let element = if class.0 == "torch" { dtype.size_bytes() } else { 1 };
    let storage_bytes = count.checked_mul(element).ok_or_else(|| corrupt("a storage too large"))?;
    let numbers = |index: usize| made.argument(index).and_then(counts);
    let (first, shape, strides) = (made.argument(1).and_then(View::count), numbers(2), numbers(3));
    match (first, shape, strides) {
        (Some(first), Some(shape), Some(strides))
            if shape.len() == strides.len() && key.len() <= KEY_MAX =>
        {
            let key = key.to_owned();
            Ok(Described { dtype, shape, strides, first, key, storage_bytes })
        }
        _ => Err(corrupt("a tensor whose shape or strides cannot be")),
    }
}

/// What would be done to the elements when they are used: they are not what is stored.
fn refuse_lazy(made: Made<'_>) -> Result<()> {
    let metadata = made.argument(if made.name == "_rebuild_tensor_v3" { 7 } else { 6 });
    let mut marks = metadata.and_then(View::entries).into_iter().flatten();
    let Some((mark, _)) = marks.find(|(_, value)| value.bool() != Some(false)) else {
        return Ok(());
    };
    let message = format!(
        "a tensor that is stored without its `{}`",
        mark.text().map_or_else(|| mark.what(), short)
    );
    Err(Error::new(ErrorKind::Unsupported, message)
        .with_help("save what it stands for: `.resolve_conj().resolve_neg()`"))
}

/// Numbers that are not negative, one for each dimension: a tuple or a `torch.Size`.
pub(crate) fn counts(view: View<'_>) -> Option<Vec<u64>> {
    let view = match view.made() {
        Some(made) if made.is("torch", "Size") => made.argument(0)?,
        Some(_) => return None,
        None => view,
    };
    view.items().filter(|items| items.len() <= DIMENSIONS_MAX)?.map(View::count).collect()
}
