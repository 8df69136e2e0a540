//! A directory as Hugging Face tools write it: files of limited size, an index, and the description
//! of the model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::export::options::Rules;
use crate::export::plan::{FilePlan, Names, Plan, file, planned};
use crate::export::taken::hash_text;
use crate::files::CONFIG_BYTES_MAX;
use crate::hf_index::index_text;
use crate::json::check_object;
use crate::layout::{self, EXPORT_COMPONENT, EXPORT_CONFIG, EXPORT_SAVE_ID, HF_FILES_MAX};
use crate::manifest::Manifest;
use crate::shown::short;
use crate::state::Value;
use crate::tensor::{Component, TensorName};

/// What Hugging Face tools take where nothing is said.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A directory as Hugging Face tools write it.
///
/// The model is `model.safetensors`, or `model-00001-of-00003.safetensors` and so on with
/// `model.safetensors.index.json`. Every other component has files of its own, named in the same
/// way (`optimizer.safetensors`), which those tools pass over; where there are such files the model
/// has its index even if it is one file, for tools that would open every file that they see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HuggingFace {
    /// Most bytes of tensors in a file; a tensor that is larger has a file of its own. Default: 5 GB
    /// (5·10⁹ bytes), as in Hugging Face tools.
    pub max_shard_bytes: u64,
    /// The text of `config.json`, a JSON object. Default: what the checkpoint holds as the value
    /// `model.config`, if that is an object; else there is no such file.
    pub config: Option<String>,
}

impl Default for HuggingFace {
    fn default() -> Self {
        Self { max_shard_bytes: SHARD_BYTES, config: None }
    }
}

impl HuggingFace {
    /// Everything that can be said without a checkpoint.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        if self.max_shard_bytes == 0 {
            return bad("max_shard_bytes: is 0, no tensor would fit".to_owned());
        }
        let Some(config) = &self.config else { return Ok(()) };
        if config.len() as u64 > CONFIG_BYTES_MAX {
            return bad(format!("config: {} bytes, at most {CONFIG_BYTES_MAX}", config.len()));
        }
        match check_object(config) {
            Ok(()) => Ok(()),
            Err(e) => bad(format!("config: is no JSON object: {}", short(&e))),
        }
    }

    /// The text of `config.json` for this checkpoint.
    fn config<'a>(&'a self, manifest: &'a Manifest) -> Option<&'a str> {
        let stored = || match manifest.values().find(layout::MODEL_CONFIG)? {
            Value::Json(text) => check_object(text).is_ok().then_some(text.as_str()),
            _ => None,
        };
        self.config.as_deref().or_else(stored)
    }
}

/// Spreads what was chosen over files, component by component.
pub(super) fn plan(
    manifest: &Manifest,
    rules: &Rules<'_>,
    form: &HuggingFace,
    names: &Names<'_>,
) -> Result<Plan> {
    let mut components: BTreeMap<Component, Names<'_>> = BTreeMap::new();
    for (name, source) in names {
        let own = components.entry(source.record.component.clone()).or_default();
        own.insert(name.clone(), *source);
    }
    let config = form.config(manifest).filter(|_| components.contains_key(&Component::model()));
    let mut plan = Plan { files: Vec::new(), documents: Vec::new(), pytorch: None };
    for (component, names) in &components {
        let mut texts = BTreeMap::from([(EXPORT_COMPONENT.to_owned(), component.to_string())]);
        texts.extend(config.map(|text| (EXPORT_CONFIG.to_owned(), hash_text(text.as_bytes()))));
        let shards = shards(rules, form, names)?;
        let count = shards.len();
        let file = |(number, names): (usize, Names<'_>)| {
            let name = layout::hf_file(component, number, count);
            file(manifest, rules, Some(name), &names, texts.clone())
        };
        let files = (1..).zip(shards).map(file).collect::<Result<Vec<_>>>()?;
        let is_among_others = *component == Component::model() && components.len() > 1;
        if count > 1 || is_among_others {
            plan.documents.push((layout::hf_index(component), index(manifest, &files)?));
        }
        plan.files.extend(files);
    }
    let config = config.map(|text| (layout::HF_CONFIG.to_owned(), text.as_bytes().to_vec()));
    plan.documents.extend(config);
    Ok(plan)
}

/// The names of each file: in order, as many as fit.
fn shards<'m>(rules: &Rules<'_>, form: &HuggingFace, names: &Names<'m>) -> Result<Vec<Names<'m>>> {
    let (mut shards, mut bytes) = (Vec::<Names<'m>>::new(), 0u64);
    // Where each tensor went, for the names that are tied to it.
    let mut places: BTreeMap<&TensorName, usize> = BTreeMap::new();
    let mut order: Vec<_> = names.iter().collect();
    order.sort_by_key(|(_, source)| source.is_alias);
    for (name, source) in order {
        let place = places.get(&source.record.name).filter(|_| !rules.options.repeat_tied);
        if let Some(shard) = place.and_then(|place| shards.get_mut(*place)) {
            shard.insert(name.clone(), *source);
            continue;
        }
        let own = planned(name, source.record, rules.options.cast)?.spec.size_bytes();
        let sum = bytes.saturating_add(own);
        let fits = !shards.is_empty() && sum <= form.max_shard_bytes;
        if !fits {
            shards.push(Names::new());
        }
        bytes = if fits { sum } else { own };
        if let Some(shard) = shards.last_mut() {
            shard.insert(name.clone(), *source);
        }
        places.insert(&source.record.name, shards.len() - 1);
    }
    if shards.len() > HF_FILES_MAX {
        let message = format!("{} files of a component, at most {HF_FILES_MAX}", shards.len());
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_help("nothing was written; ask for larger ones"));
    }
    Ok(shards)
}

fn index(manifest: &Manifest, files: &[FilePlan]) -> Result<Vec<u8>> {
    let entry = |file: &FilePlan| -> Vec<(String, String)> {
        let name = file.name.clone().unwrap_or_default();
        file.tensors.iter().map(|tensor| (tensor.name.to_string(), name.clone())).collect()
    };
    let map: BTreeMap<String, String> = files.iter().flat_map(entry).collect();
    let total = files.iter().map(|file| file.data_bytes).sum();
    let id = manifest.save_id().to_string();
    let metadata = [("format", "pt"), (EXPORT_SAVE_ID, id.as_str())];
    index_text(&metadata, total, map.iter().map(|(tensor, file)| (tensor.as_str(), file.as_str())))
}

/// A number of bytes as Hugging Face tools write it: `5GB`, `200MB`, `1.5GiB`, `1000`. Units are
/// B, KB, MB, GB and TB (powers of 1000), KiB, MiB, GiB and TiB (powers of 1024), in letters of any
/// case.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for anything else, and for less than a byte.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let begin = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(begin);
    let unit = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KIB" => 1024.0,
        "MIB" => 1_048_576.0,
        "GIB" => 1_073_741_824.0,
        "TIB" => 1_099_511_627_776.0,
        _ => f64::NAN,
    };
    let bytes = number.parse().unwrap_or(f64::NAN) * unit;
    if (1.0..9e18).contains(&bytes) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        return Ok(bytes as u64);
    }
    let message = format!("`{}` is no number of bytes such as 5GB or 200MB", short(text));
    Err(Error::new(ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_are_read_as_hugging_face_tools_do() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("200MB", 200_000_000),
            ("1.5 gib", 1_610_612_736),
            ("10kb", 10_000),
            ("7", 7),
            ("1B", 1),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "5XB", "-1", "0", "0.5", "1e3", "1..2GB", "99999999TB", "5 G B"] {
            assert_eq!(parse_bytes(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
