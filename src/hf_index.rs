//! `model.safetensors.index.json`: the index under which Hugging Face tools open a directory of
//! several safetensors files.

use std::collections::BTreeMap;

use crate::plan::save::MergedPlan;
use crate::tensor::Component;

/// The index of the model's tensors, or `None` when one of them is split over files (no stock
/// reader joins pieces) or there are none.
pub(crate) fn index_of(merged: &MergedPlan) -> Option<Vec<u8>> {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0u64;
    let files = merged.plans.iter().flat_map(|plan| &plan.files);
    for file in files.filter(|file| file.component == Component::model()) {
        for piece in &file.pieces {
            if !piece.slice.is_full(piece.spec.shape()) {
                return None;
            }
            weight_map.insert(piece.name.as_str(), file.name.as_str());
            total_size += piece.size_bytes();
        }
    }
    if weight_map.is_empty() {
        return None;
    }
    let index = serde_json::json!({
        "metadata": { "total_size": total_size, "format": "pt" },
        "weight_map": weight_map,
    });
    serde_json::to_vec_pretty(&index).ok()
}
