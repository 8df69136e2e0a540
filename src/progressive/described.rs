//! What a rack consists of, as data: stored with every checkpoint of it, and the answer to those
//! who ask.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::adapters::LoraConfig;
use super::precision::StackPrecision;

/// Identity of a stack: given once, in the order in which stacks are made, and kept for good. Its
/// place in the rack may change when others are prepended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StackId(u32);

impl StackId {
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where [`Rack::add_stack`](super::Rack::add_stack) puts a new stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildingMode {
    /// Behind all others, next to the head.
    #[default]
    Append,
    /// Before all others, next to the embeddings.
    Prepend,
}

/// What a rack consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RackInfo {
    /// How many stacks it has.
    pub current_stacks: usize,
    /// How many it may have.
    pub max_stacks: usize,
    /// Where new stacks go.
    pub building_mode: BuildingMode,
    /// Of stacks that are added without one.
    pub default_precision: StackPrecision,
    /// Whether it begins with embeddings.
    pub has_embeddings: bool,
    /// Whether it ends with a head.
    pub has_head: bool,
    /// Whether the embeddings are kept from training.
    #[serde(default)]
    pub embeddings_frozen: bool,
    /// Whether the head is kept from training.
    #[serde(default)]
    pub head_frozen: bool,
    /// The identity of the next stack.
    pub next_id: u32,
    /// Its stacks, from the input to the output.
    pub stack_info: Vec<StackInfo>,
}

/// What a stack consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackInfo {
    /// Its place, from the input, from 0.
    pub stack_idx: usize,
    /// Its identity.
    pub id: StackId,
    /// How many blocks it has.
    pub num_blocks: usize,
    /// Elements of all its variables, without those of adapters.
    pub total_parameters: u64,
    /// Of them those that are trained, without those of adapters.
    pub trainable_parameters: u64,
    /// The kind of its tensors.
    pub precision: StackPrecision,
    /// Whether its variables are kept from training.
    pub frozen: bool,
    /// Its adapters, if it has some.
    pub adapters: Option<AdapterInfo>,
}

/// The adapters of a stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// How they were made.
    pub config: LoraConfig,
    /// Elements of all of them.
    pub parameters: u64,
    /// Whether the weights have them added at present.
    pub merged: bool,
}
