//! Adapters as files of Hugging Face PEFT: a directory with `adapter_model.safetensors` and
//! `adapter_config.json`.

mod config;
mod pattern;
mod read;
mod write;

use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use read::{PeftLinear, read_peft};
pub use write::write_peft;

/// What PEFT puts around the name of a module.
const PREFIX: &str = "base_model.model.";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// The adapter of one linear layer: `alpha / rank · B A x`.
#[derive(Debug)]
pub struct PeftAdapter {
    /// The name of the layer, such as `stacks.0.blocks.1.fc`.
    pub module: String,
    /// `[rank, in]`, F32, F16 or BF16.
    pub a: Tensor,
    /// `[out, rank]`, of the same kind.
    pub b: Tensor,
    /// What the product is multiplied by, times the rank.
    pub alpha: f64,
    /// Share of the inputs that are left out in training: one for all adapters of a directory.
    pub dropout: f64,
}

impl PeftAdapter {
    /// Rows of A.
    #[must_use]
    pub fn rank(&self) -> u64 {
        self.a.size().first().map_or(0, |rank| rank.unsigned_abs())
    }
}

/// What a directory of adapters says besides, and whether it may replace another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeftOptions {
    /// Name or path of the model that they belong to. Default: none.
    pub base_model: Option<String>,
    /// What the model does, in PEFT's words: `CAUSAL_LM`, `SEQ_CLS`, … Default: none.
    pub task_type: Option<String>,
    /// Whether adapters that were written under this name are replaced. Default: no.
    pub overwrite: bool,
}

/// The names of the two tensors of a module.
fn keys(module: &str) -> [String; 2] {
    [format!("{PREFIX}{module}{A}"), format!("{PREFIX}{module}{B}")]
}
