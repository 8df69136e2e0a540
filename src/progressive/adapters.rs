//! Adapters of low rank (LoRA) on linear layers: `W x + (alpha / rank) · B A x`, where A and B are
//! small and W stays as it is.

use serde::{Deserialize, Serialize};

/// What adapters are like.
///
/// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rows of A and columns of B. Default: 8.
    pub rank: usize,
    /// What the product is multiplied by, times `rank`. Default: 16.
    pub alpha: f64,
    /// Share of the inputs of A that are left out in training. Default: 0.
    pub dropout: f64,
    /// Globs over the names of linear layers within a block. Default: all.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets: vec!["*".to_owned()] }
    }
}
