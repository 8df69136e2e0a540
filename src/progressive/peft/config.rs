//! `adapter_config.json`: what PEFT says of adapters beside their tensors.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::pattern::Pattern;
use super::{PeftAdapter, PeftOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::json::check_object;
use crate::shown::short;

/// Longest configuration that is read, and most patterns in it.
pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;
const PATTERNS_MAX: usize = 1 << 14;

/// Fields that do not change what stored tensors mean: where adapters came from, how they began,
/// which modules they were looked for in. The stored tensors say which have one.
const HARMLESS: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];
/// Ways to begin that leave the weights beneath as they are; others change them.
const BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];
/// Fields that are read.
const READ: [&str; 7] =
    ["alpha_pattern", "bias", "lora_alpha", "lora_dropout", "peft_type", "r", "rank_pattern"];

/// The fields that are needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Config {
    rank: u64,
    alpha: f64,
    pub(super) dropout: f64,
    ranks: Vec<(String, u64)>,
    alphas: Vec<(String, f64)>,
}

/// As they are in the file.
#[derive(Deserialize)]
struct Stored {
    r: u64,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    rank_pattern: Option<Pairs<u64>>,
    #[serde(default)]
    alpha_pattern: Option<Pairs<f64>>,
}

/// In their order, since the first that fits counts.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Pairs<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of patterns to numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    if pairs.len() == PATTERNS_MAX {
                        return Err(A::Error::custom(format!("more than {PATTERNS_MAX} patterns")));
                    }
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

impl Config {
    /// # Errors
    /// [`ErrorKind::Corrupt`] for what is malformed; [`ErrorKind::Unsupported`] with every field
    /// that asks for more than plain LoRA.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt = |what: &str| {
            let message = format!("the configuration is malformed: {}", short(what));
            Error::new(ErrorKind::Corrupt, message)
        };
        let text = std::str::from_utf8(bytes).map_err(|e| corrupt(&e.to_string()))?;
        check_object(text).map_err(|what| corrupt(&what))?;
        let fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| corrupt(&e.to_string()))?;
        refuse_more(&fields)?;
        let stored: Stored = serde_json::from_str(text).map_err(|e| corrupt(&e.to_string()))?;
        let config = Self {
            rank: stored.r,
            alpha: stored.lora_alpha,
            dropout: stored.lora_dropout,
            ranks: stored.rank_pattern.map(|pairs| pairs.0).unwrap_or_default(),
            alphas: stored.alpha_pattern.map(|pairs| pairs.0).unwrap_or_default(),
        };
        config.check().map_err(|what| corrupt(&what))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let alphas = self.alphas.iter().map(|(_, alpha)| *alpha).chain([self.alpha]);
        if let Some(alpha) = alphas.into_iter().find(|alpha| !alpha.is_finite() || *alpha <= 0.0) {
            return Err(format!("alpha {alpha} is no positive number"));
        }
        if self.ranks.iter().map(|(_, rank)| *rank).chain([self.rank]).any(|rank| rank == 0) {
            return Err("a rank of 0".to_owned());
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => Err(format!("lora_dropout {} is not 0 to less than 1", self.dropout)),
        }
    }

    /// Rank and alpha by module.
    pub(super) fn patterns(&self) -> Result<Patterns<'_>> {
        let parse = |field, text: &String| Pattern::parse(field, text);
        let ranks = self.ranks.iter().map(|(text, n)| Ok((parse("rank_pattern", text)?, *n)));
        let alphas = self.alphas.iter().map(|(text, n)| Ok((parse("alpha_pattern", text)?, *n)));
        let (ranks, alphas) = (ranks.collect::<Result<_>>()?, alphas.collect::<Result<_>>()?);
        Ok(Patterns { config: self, ranks, alphas })
    }
}

/// Which module has which rank and alpha.
pub(super) struct Patterns<'c> {
    config: &'c Config,
    ranks: Vec<(Pattern, u64)>,
    alphas: Vec<(Pattern, f64)>,
}

impl Patterns<'_> {
    pub(super) fn rank(&self, module: &str) -> u64 {
        let found = self.ranks.iter().find(|(pattern, _)| pattern.matches(module));
        found.map_or(self.config.rank, |(_, rank)| *rank)
    }

    pub(super) fn alpha(&self, module: &str) -> f64 {
        let found = self.alphas.iter().find(|(pattern, _)| pattern.matches(module));
        found.map_or(self.config.alpha, |(_, alpha)| *alpha)
    }
}

/// Whatever is not known may change what tensors mean, unless it is off.
fn refuse_more(fields: &Map<String, Value>) -> Result<()> {
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let mut more = Vec::new();
    for (field, value) in fields {
        let known = [&HARMLESS[..], &READ].concat().contains(&field.as_str());
        let refused = match field.as_str() {
            "peft_type" => value != "LORA",
            "bias" => !is_off(value) && value != "none",
            "init_lora_weights" => {
                let is_harmless = |text| BEGINNINGS.contains(&text);
                !value.is_boolean() && !value.is_null() && !value.as_str().is_some_and(is_harmless)
            }
            _ => !known && !is_off(value),
        };
        if refused {
            more.push(format!("`{}: {}`", short(field), short(&value.to_string())));
        }
    }
    if !fields.contains_key("peft_type") {
        more.push("no `peft_type`".to_owned());
    }
    if more.is_empty() {
        return Ok(());
    }
    more.truncate(16);
    let message = format!("adapters that are not plain LoRA: {}", more.join(", "));
    Err(Error::new(ErrorKind::Unsupported, message)
        .with_help("merge them with the tool that made them, or save them without these"))
}

/// The configuration of these adapters, of which there is at least one.
pub(super) fn text_of(adapters: &[PeftAdapter], options: &PeftOptions) -> Result<Vec<u8>> {
    let (rank, alpha) = adapters.first().map_or((1, 1.0), |first| (first.rank(), first.alpha));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for adapter in adapters {
        let pattern = Pattern::text_of(&adapter.module);
        if adapter.rank() != rank {
            ranks.insert(pattern.clone(), json!(adapter.rank()));
        }
        if adapter.alpha.to_bits() != alpha.to_bits() {
            alphas.insert(pattern, number(adapter.alpha));
        }
    }
    let modules: Vec<&str> = adapters.iter().map(|adapter| adapter.module.as_str()).collect();
    let config = json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": options.base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": number(alpha),
        "lora_dropout": adapters.first().map_or(0.0, |first| first.dropout),
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": modules,
        "task_type": options.task_type,
        "use_dora": false,
        "use_rslora": false,
    });
    let mut text = serde_json::to_vec_pretty(&config)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string()))?;
    text.push(b'\n');
    if text.len() as u64 > CONFIG_BYTES_MAX {
        let message = format!("a configuration of {} bytes", text.len());
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_help("nothing was written; write each stack to a directory of its own"));
    }
    Ok(text)
}

/// Whole numbers as PEFT writes them, without a point.
fn number(alpha: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole and small")]
    if alpha.fract() == 0.0 && alpha.abs() < 1e9 { json!(alpha as i64) } else { json!(alpha) }
}
