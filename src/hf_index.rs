//! `model.safetensors.index.json`: the index under which Hugging Face tools open a directory of
//! several safetensors files.

use crate::error::Result;
use crate::json::put_name;
use crate::memory::Growing;
use crate::plan::LinkedComponent;
use crate::plan::save::MergedPlan;
use crate::tensor::Component;

/// The index of the model's tensors, or `None` when one of them is split over files (no stock
/// reader joins pieces) or there are none.
///
/// # Errors
/// [`ErrorKind::Storage`](crate::ErrorKind::Storage) if memory is short.
pub(crate) fn index_of(merged: &MergedPlan) -> Result<Option<Vec<u8>>> {
    let files = merged.plans.iter().flat_map(|plan| &plan.files);
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for file in files.filter(|file| file.component == Component::model()) {
        entries.extend(file.pieces.iter().map(|piece| Entry {
            tensor: piece.name.as_str(),
            bytes: piece.size_bytes(),
            is_whole: piece.slice.is_full(piece.spec.shape()),
            file: &file.name,
        }));
    }
    for linked in merged.linked.iter().filter(|linked| linked.component == Component::model()) {
        entries.extend(entries_of(linked));
    }
    if entries.is_empty() || entries.iter().any(|entry| !entry.is_whole) {
        return Ok(None);
    }
    entries.sort_by(|a, b| a.tensor.cmp(b.tensor));
    let total = entries.iter().map(|entry| entry.bytes).sum();
    let entries = entries.iter().map(|entry| (entry.tensor, entry.file));
    index_text(&[("format", "pt")], total, entries).map(Some)
}

/// A piece of a tensor, and where it lies.
struct Entry<'a> {
    tensor: &'a str,
    bytes: u64,
    is_whole: bool,
    file: &'a str,
}

fn entries_of(linked: &LinkedComponent) -> impl Iterator<Item = Entry<'_>> {
    let pieces = linked.tensors.iter().flat_map(|t| t.pieces.iter().map(move |piece| (t, piece)));
    pieces.map(|(tensor, piece)| Entry {
        tensor: tensor.name.as_str(),
        bytes: tensor.piece_bytes(piece),
        is_whole: piece.slice.is_full(tensor.spec.shape()),
        file: linked.data_files.get(piece.file as usize).map_or("", |file| file.name.as_str()),
    })
}

/// An index as Hugging Face libraries write it: two spaces for each level, keys in the order in
/// which they are given. Texts of `metadata` and names of files have nothing to escape.
///
/// # Errors
/// As [`index_of`].
pub(crate) fn index_text<'a>(
    metadata: &[(&str, &str)],
    total: u64,
    entries: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u8>> {
    let mut out = Growing::new(usize::MAX);
    out.put(b"{\n  \"metadata\": {\n")?;
    for (key, text) in metadata {
        out.put(format!("    \"{key}\": \"{text}\",\n").as_bytes())?;
    }
    out.put(format!("    \"total_size\": {total}\n  }},\n  \"weight_map\": {{\n").as_bytes())?;
    for (number, (tensor, file)) in entries.enumerate() {
        out.put(if number == 0 { b"    " } else { b",\n    " })?;
        put_name(&mut out, tensor, 1)?;
        out.put(b": \"")?;
        out.put(file.as_bytes())?;
        out.put(b"\"")?;
    }
    out.put(b"\n  }\n}")?;
    Ok(out.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::merged;
    use crate::plan::PlannedPiece;
    use crate::slice::Slice;

    #[test]
    fn the_index_is_what_a_library_would_write() {
        let mut merged = merged();
        assert_eq!(index_of(&merged).unwrap(), None, "a tensor of the model is split");
        for plan in &mut merged.plans {
            for piece in plan.files.iter_mut().flat_map(|file| file.pieces.iter_mut()) {
                piece.slice = Slice::full(piece.spec.shape());
            }
        }
        merged.plans[1].files.truncate(0);
        let bytes = index_of(&merged).unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_vec_pretty(&value).unwrap(), bytes);
        let file =
            merged.plans[0].files.iter().find(|f| f.component == Component::model()).unwrap();
        assert_eq!(value["weight_map"]["w"], file.name.as_str());
        let total: u64 = file.pieces.iter().map(PlannedPiece::size_bytes).sum();
        assert_eq!(value["metadata"]["total_size"], total);
        merged.plans[0].files.retain(|f| f.component != Component::model());
        assert_eq!(index_of(&merged).unwrap(), None, "no model");
    }
}
