//! State dicts as the pickles that `torch.load` takes, also where it is told to load weights only.

use super::described::{dtype_name, storage_name};
use super::{Key, Plain, Tree};
use crate::error::Result;
use crate::pickle::Writer;
use crate::tensor::TensorSpec;

/// A whole tensor, and the storage that holds it and nothing else.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Whole {
    pub(crate) spec: TensorSpec,
    pub(crate) key: String,
}

/// The pickle of a state dict.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for texts of 4 GiB.
pub(crate) fn pickled(tree: &Tree<Whole>) -> Result<Vec<u8>> {
    let mut writer = Writer::new();
    put(&mut writer, tree)?;
    Ok(writer.finish())
}

fn put(writer: &mut Writer, tree: &Tree<Whole>) -> Result<()> {
    match tree {
        Tree::Tensor(whole) => tensor(writer, whole),
        Tree::Plain(plain) => value(writer, plain),
        Tree::Dict(entries) => {
            writer.empty_dict();
            writer.mark();
            for (key, tree) in entries {
                match key {
                    Key::Int(int) => writer.int(*int),
                    Key::Text(text) => writer.text(text)?,
                }
                put(writer, tree)?;
            }
            writer.set();
            Ok(())
        }
        Tree::List(items) => {
            writer.empty_list();
            writer.mark();
            items.iter().try_for_each(|item| put(writer, item))?;
            writer.append();
            Ok(())
        }
    }
}

fn value(writer: &mut Writer, plain: &Plain) -> Result<()> {
    match plain {
        Plain::None => writer.none(),
        Plain::Bool(value) => writer.bool(*value),
        Plain::Int(value) => writer.int(*value),
        Plain::Float(value) => writer.float(*value),
        Plain::Text(value) => writer.text(value)?,
        Plain::Bytes(value) => writer.bytes(value)?,
    }
    Ok(())
}

/// `torch._utils._rebuild_tensor_v2` of its storage; `_v3`, which names the dtype, where there is no
/// class of storages for it.
fn tensor(writer: &mut Writer, whole: &Whole) -> Result<()> {
    let dtype = whole.spec.dtype();
    let class = storage_name(dtype);
    let version = if class.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" };
    writer.global("torch._utils", version);
    writer.mark();
    writer.mark();
    writer.text("storage")?;
    match class {
        Some(class) => writer.global("torch", class),
        None => writer.global("torch.storage", "UntypedStorage"),
    }
    writer.text(&whole.key)?;
    writer.text("cpu")?;
    let (elements, bytes) = (whole.spec.elements(), whole.spec.size_bytes());
    writer.count(if class.is_some() { elements } else { bytes })?;
    writer.tuple();
    writer.persistent();
    writer.int(0);
    counts(writer, whole.spec.shape().iter().copied())?;
    counts(writer, strides(whole.spec.shape()).into_iter())?;
    writer.bool(false);
    writer.global("collections", "OrderedDict");
    writer.empty_tuple();
    writer.reduce();
    if class.is_none() {
        writer.global("torch", dtype_name(dtype));
    }
    writer.tuple();
    writer.reduce();
    Ok(())
}

pub(super) fn counts(writer: &mut Writer, numbers: impl Iterator<Item = u64>) -> Result<()> {
    writer.mark();
    for number in numbers {
        writer.count(number)?;
    }
    writer.tuple();
    Ok(())
}

/// Of what lies row by row; as PyTorch does, a dimension without elements counts as one.
fn strides(shape: &[u64]) -> Vec<u64> {
    let mut stride = 1u64;
    let mut strides: Vec<u64> = (shape.iter().rev())
        .map(|length| {
            let own = stride;
            stride = stride.saturating_mul((*length).max(1));
            own
        })
        .collect();
    strides.reverse();
    strides
}
