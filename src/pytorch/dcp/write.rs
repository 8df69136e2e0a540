//! Writing `.metadata`.

use super::super::dtype_name;
use super::super::pickled::counts;
use super::{Content, Entry, Place};
use crate::error::Result;
use crate::pickle::Writer;
use crate::pytorch::Key;
use crate::slice::Slice;
use crate::tensor::TensorSpec;

const METADATA_CLASSES: &str = "torch.distributed.checkpoint.metadata";
/// What the id of a save begins with that an export wrote.
const MARK: &str = "tch_checkpoint-";

/// The bytes of `.metadata`; `save_id` says whose export this is.
///
/// # Errors
/// As [`Writer::text`] and [`Writer::count`].
pub(crate) fn metadata(entries: &[Entry], save_id: &str) -> Result<Vec<u8>> {
    let mut writer = Writer::new();
    object(&mut writer, METADATA_CLASSES, "Metadata");
    field(&mut writer, "state_dict_metadata")?;
    writer.empty_dict();
    writer.mark();
    for entry in entries {
        writer.text(&entry.name)?;
        content(&mut writer, &entry.content)?;
    }
    writer.set();
    field(&mut writer, "planner_data")?;
    writer.empty_dict();
    writer.mark();
    for entry in entries {
        writer.text(&entry.name)?;
        path(&mut writer, &entry.path)?;
    }
    writer.set();
    field(&mut writer, "storage_data")?;
    writer.empty_dict();
    writer.mark();
    for entry in entries {
        match &entry.content {
            Content::Bytes(place) => stored(&mut writer, &entry.name, None, place)?,
            Content::Tensor(_, boxes) => {
                for (slice, place) in boxes {
                    stored(&mut writer, &entry.name, Some(slice), place)?;
                }
            }
        }
    }
    writer.set();
    field(&mut writer, "storage_meta")?;
    object(&mut writer, METADATA_CLASSES, "StorageMeta");
    for (name, text) in [("checkpoint_id", None), ("save_id", Some(save_id)), ("load_id", None)] {
        field(&mut writer, name)?;
        match text {
            Some(text) => writer.text(&format!("{MARK}{text}"))?,
            None => writer.none(),
        }
    }
    field(&mut writer, "modules")?;
    writer.empty_list();
    fill(&mut writer);
    field(&mut writer, "version")?;
    writer.text("1.0.0")?;
    fill(&mut writer);
    Ok(writer.finish())
}

/// Whether the id of a save is that of an export from here.
pub(super) fn is_ours(save_id: &str) -> bool {
    save_id.starts_with(MARK)
}

/// Begins an object whose fields follow, until [`fill`].
fn object(writer: &mut Writer, module: &str, class: &str) {
    writer.global(module, class);
    writer.empty_tuple();
    writer.object();
    writer.empty_dict();
    writer.mark();
}

fn field(writer: &mut Writer, name: &str) -> Result<()> {
    writer.text(name)
}

fn fill(writer: &mut Writer) {
    writer.set();
    writer.build();
}

fn content(writer: &mut Writer, content: &Content) -> Result<()> {
    let Content::Tensor(spec, boxes) = content else {
        writer.global(METADATA_CLASSES, "BytesStorageMetadata");
        writer.empty_tuple();
        writer.object();
        return Ok(());
    };
    object(writer, METADATA_CLASSES, "TensorStorageMetadata");
    field(writer, "properties")?;
    properties(writer, spec)?;
    field(writer, "size")?;
    size(writer, spec.shape())?;
    field(writer, "chunks")?;
    writer.empty_list();
    writer.mark();
    for (slice, _) in boxes {
        object(writer, METADATA_CLASSES, "ChunkStorageMetadata");
        field(writer, "offsets")?;
        size(writer, slice.offsets())?;
        field(writer, "sizes")?;
        size(writer, slice.lengths())?;
        fill(writer);
    }
    writer.append();
    fill(writer);
    Ok(())
}

/// Dtype, layout, whether it needs a gradient, memory format, whether it is pinned.
fn properties(writer: &mut Writer, spec: &TensorSpec) -> Result<()> {
    writer.global(METADATA_CLASSES, "TensorProperties");
    writer.empty_tuple();
    writer.object();
    writer.mark();
    writer.global("torch", dtype_name(spec.dtype()));
    writer.global("torch.serialization", "_get_layout");
    writer.mark();
    writer.text("torch.strided")?;
    writer.tuple();
    writer.reduce();
    writer.bool(false);
    writer.global(METADATA_CLASSES, "_MEM_FORMAT_ENCODING");
    writer.mark();
    writer.int(0);
    writer.tuple();
    writer.reduce();
    writer.bool(false);
    writer.tuple();
    writer.build();
    Ok(())
}

/// A `torch.Size`.
fn size(writer: &mut Writer, numbers: &[u64]) -> Result<()> {
    writer.global("torch", "Size");
    writer.mark();
    counts(writer, numbers.iter().copied())?;
    writer.tuple();
    writer.reduce();
    Ok(())
}

fn path(writer: &mut Writer, keys: &[Key]) -> Result<()> {
    writer.mark();
    for key in keys {
        match key {
            Key::Int(int) => writer.int(*int),
            Key::Text(text) => writer.text(text)?,
        }
    }
    writer.tuple();
    Ok(())
}

fn stored(writer: &mut Writer, name: &str, slice: Option<&Slice>, place: &Place) -> Result<()> {
    object(writer, METADATA_CLASSES, "MetadataIndex");
    field(writer, "fqn")?;
    writer.text(name)?;
    field(writer, "offset")?;
    match slice {
        Some(slice) => size(writer, slice.offsets())?,
        None => writer.none(),
    }
    field(writer, "index")?;
    writer.none();
    fill(writer);
    object(writer, "torch.distributed.checkpoint.filesystem", "_StorageInfo");
    field(writer, "relative_path")?;
    writer.text(&place.file)?;
    field(writer, "offset")?;
    writer.count(place.begin)?;
    field(writer, "length")?;
    writer.count(place.bytes)?;
    fill(writer);
    Ok(())
}
