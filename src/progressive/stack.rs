//! A stack: equal blocks under one name prefix.

use std::collections::HashSet;

use tch::Tensor;
use tch::nn::VarStore;

use super::adapters::{Lora, LoraConfig};
use super::architecture::{Architecture, Layer};
use super::described::{AdapterInfo, StackId, StackInfo};
use super::layers::{Layers, Linear};
use super::precision::StackPrecision;
use super::variables;
use crate::error::{Error, ErrorKind, Result};
use crate::torch::{identity, torch_error};

/// Most blocks of a stack.
pub(super) const BLOCKS_MAX: usize = 4096;
/// Most blocks of all stacks together.
pub(super) const BLOCKS_IN_ALL_MAX: usize = 1 << 16;

/// A list of equal blocks under one name prefix, with a precision, a freeze flag and adapters of
/// its own.
pub struct Stack {
    id: StackId,
    pub(super) blocks: Vec<Box<dyn Layer>>,
    pub(super) linears: Vec<Linear>,
    pub(super) precision: StackPrecision,
    pub(super) frozen: bool,
    pub(super) adapters: Option<LoraConfig>,
}

impl Stack {
    /// Makes the blocks of a stack. What was made is removed again if one of them fails.
    pub(super) fn make<A: Architecture>(
        store: &VarStore,
        config: &A::Config,
        id: StackId,
        num_blocks: usize,
        precision: StackPrecision,
    ) -> Result<Self> {
        if num_blocks == 0 || num_blocks > BLOCKS_MAX {
            let message = format!("a stack of {num_blocks} blocks, not 1 to {BLOCKS_MAX}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let layers = Layers::new(store, prefix(id));
        let blocks = layers.sub("blocks");
        let made = (0..num_blocks).map(|number| A::block(&blocks.sub(&number.to_string()), config));
        let made = made.collect::<Result<Vec<_>>>().and_then(|blocks| {
            for (name, tensor) in variables::below(store, &prefix(id)) {
                variables::cast(&name, &tensor, precision.kind())?;
            }
            Ok(blocks)
        });
        let blocks = made.inspect_err(|_| {
            let names = variables::below(store, &prefix(id)).into_iter().map(|(name, _)| name);
            // The error that is told is that of the block.
            let _ = variables::remove(store, &names.collect::<Vec<_>>());
        })?;
        let linears = layers.into_linears();
        Ok(Self { id, blocks, linears, precision, frozen: false, adapters: None })
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> StackId {
        self.id
    }

    /// The prefix of the names of its variables.
    #[must_use]
    pub fn prefix(&self) -> String {
        prefix(self.id)
    }

    /// The kind of its tensors.
    #[must_use]
    pub fn precision(&self) -> StackPrecision {
        self.precision
    }

    /// Whether its variables are kept from training. Its adapters are not.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// How its adapters were made, if it has some.
    #[must_use]
    pub fn adapters(&self) -> Option<&LoraConfig> {
        self.adapters.as_ref()
    }

    /// The linear layers of its blocks.
    #[must_use]
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }

    /// The name of a layer within its block: `fc`, not `stacks.0.blocks.1.fc`.
    pub(super) fn within<'a>(&self, name: &'a str) -> &'a str {
        let rest = name.strip_prefix(&format!("{}.blocks.", self.prefix()));
        rest.and_then(|rest| rest.split_once('.')).map_or(name, |(_, within)| within)
    }

    pub(super) fn is_merged(&self) -> bool {
        !self.merged_weights().is_empty()
    }

    /// Names of the weights that an adapter is merged into at present.
    pub(super) fn merged_weights(&self) -> Vec<String> {
        let merged = self
            .linears
            .iter()
            .filter(|linear| linear.adapter().borrow().as_ref().is_some_and(Lora::is_merged));
        merged.map(|linear| format!("{}.weight", linear.name())).collect()
    }

    /// Whether something in it is trained.
    pub(super) fn is_trained(&self) -> bool {
        !self.frozen || (self.adapters.is_some() && !self.is_merged())
    }

    pub(super) fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor> {
        let cast = |input: &Tensor| input.f_to_kind(self.precision.kind());
        let input = cast(input).map_err(|e| torch_error("casting the input of a stack", &e))?;
        Ok(self.blocks.iter().fold(input, |hidden, block| block.forward(&hidden, train)))
    }

    pub(super) fn info(&self, store: &VarStore, stack_idx: usize) -> StackInfo {
        let (mut total, mut trainable, mut of_adapters) = (0, 0, 0);
        let mut seen = HashSet::new();
        for (name, tensor) in variables::below(store, &self.prefix()) {
            // A tied variable counts once.
            if identity(&tensor).is_ok_and(|identity| !seen.insert(identity)) {
                continue;
            }
            let elements = tensor.numel() as u64;
            if is_adapter(&name) {
                of_adapters += elements;
            } else {
                total += elements;
                trainable += if tensor.requires_grad() { elements } else { 0 };
            }
        }
        let adapters = self.adapters.clone().map(|config| AdapterInfo {
            config,
            parameters: of_adapters,
            merged: self.is_merged(),
        });
        StackInfo {
            stack_idx,
            id: self.id,
            num_blocks: self.blocks.len(),
            total_parameters: total,
            trainable_parameters: trainable,
            precision: self.precision,
            frozen: self.frozen,
            adapters,
        }
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("id", &self.id)
            .field("blocks", &self.blocks.len())
            .field("precision", &self.precision)
            .field("frozen", &self.frozen)
            .field("adapters", &self.adapters)
            .finish_non_exhaustive()
    }
}

/// What the names of the variables of a stack begin with.
pub(super) fn prefix(id: StackId) -> String {
    format!("stacks.{id}")
}

/// Whether a variable of a stack is one of an adapter.
pub(super) fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A") || name.ends_with(".lora_B")
}
