//! Names inside of a directory as Hugging Face tools write it.

use super::SAFETENSORS;
use crate::tensor::Component;

/// The description of a model, beside its tensors.
pub const HF_CONFIG: &str = "config.json";
/// The value of a checkpoint that describes its model: what becomes [`HF_CONFIG`].
pub(crate) const MODEL_CONFIG: &str = "model.config";
/// How texts of the metadata begin by which an export says what it is.
pub(crate) const EXPORT_MARKS: &str = "tch_checkpoint.";
/// The save that an export came from; it is in every file of one but the description of the model.
pub(crate) const EXPORT_SAVE_ID: &str = "tch_checkpoint.source_save_id";
/// Training steps of that save, and epochs.
pub(crate) const EXPORT_STEP: &str = "tch_checkpoint.source_step";
pub(crate) const EXPORT_EPOCH: &str = "tch_checkpoint.source_epoch";
/// The component that a file of an export belongs to.
pub(crate) const EXPORT_COMPONENT: &str = "tch_checkpoint.component";
/// Hash of the description that lies beside it.
pub(crate) const EXPORT_CONFIG: &str = "tch_checkpoint.config_hash";
/// The files of adapters, as PEFT names them.
#[cfg_attr(not(feature = "torch"), expect(dead_code, reason = "adapters need libtorch"))]
pub(crate) const PEFT_MODEL: &str = "adapter_model.safetensors";
pub(crate) const PEFT_CONFIG: &str = "adapter_config.json";
/// Most files that an index is taken to name, and an export writes for a component.
pub(crate) const HF_FILES_MAX: usize = 10_000;

const INDEX_ENDING: &str = ".safetensors.index.json";

/// File `number`, from 1, of the `count` files of a component.
pub(crate) fn hf_file(component: &Component, number: usize, count: usize) -> String {
    match count {
        1 => format!("{component}{SAFETENSORS}"),
        _ => format!("{component}-{number:05}-of-{count:05}{SAFETENSORS}"),
    }
}

/// The index of a component that is in several files.
pub(crate) fn hf_index(component: &Component) -> String {
    format!("{component}{INDEX_ENDING}")
}

/// The component of which a file is the index, or that a file holds alone, as its name says.
pub(crate) fn parse_hf_file(name: &str) -> Option<Component> {
    let stem = name.strip_suffix(INDEX_ENDING).or_else(|| name.strip_suffix(SAFETENSORS))?;
    Component::new(stem).ok()
}

/// Whether a file is an index, as its name says.
pub(crate) fn is_hf_index(name: &str) -> bool {
    name.ends_with(INDEX_ENDING)
}

#[cfg(test)]
mod tests {
    use super::super::{HF_INDEX, is_file_name};
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face_tools() {
        let (model, ema) = (Component::model(), Component::ema());
        assert_eq!(hf_file(&model, 1, 1), "model.safetensors");
        assert_eq!(hf_file(&model, 2, 12), "model-00002-of-00012.safetensors");
        assert_eq!(hf_index(&model), HF_INDEX);
        assert_eq!(parse_hf_file(&hf_index(&ema)), Some(ema.clone()));
        assert_eq!(parse_hf_file(&hf_file(&ema, 1, 1)), Some(ema));
        assert_eq!(parse_hf_file("model-00002-of-00012.safetensors"), None);
        assert!(is_hf_index(HF_INDEX) && !is_hf_index("model.safetensors"));
        assert!(is_file_name(&hf_file(&model, 1, HF_FILES_MAX)));
    }
}
