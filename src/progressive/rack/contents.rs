//! What a rack holds: by part for those who save it, and as one hash.

use std::collections::HashMap;

use serde::Serialize;
use tch::Tensor;

use super::{End, Rack};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::truncated;
use crate::progressive::architecture::Architecture;
use crate::progressive::described::StackId;
use crate::progressive::stack::{Stack, is_adapter};
use crate::progressive::variables;
use crate::state::TensorSource;
use crate::tensor::Component;
use crate::torch::{Memory, TchSource, memory_of};

/// Bytes that are hashed at once.
const HASHED_AT_ONCE: usize = 1 << 20;

/// Variables by name.
type Named = Vec<(String, Tensor)>;

/// A part of a rack that has files of its own.
pub(crate) struct RackPart {
    pub(crate) component: Component,
    /// By name.
    pub(crate) variables: Named,
    /// Second names of variables, of this or another part, by name.
    pub(crate) aliases: Vec<(String, String)>,
}

impl<A: Architecture> Rack<A> {
    /// Every part, from the input to the output; each variable once. Of weights with merged
    /// adapters it is what they were before.
    pub(crate) fn parts(&self) -> Result<Vec<RackPart>> {
        let mut parts = Vec::new();
        let mut named = |component: Component, variables: Named| {
            if !variables.is_empty() {
                parts.push(RackPart { component, variables, aliases: Vec::new() });
            }
        };
        named(Component::new(End::EMBEDDINGS)?, variables::below(&self.store, End::EMBEDDINGS));
        for stack in &self.stacks {
            let (adapters, own) = self.variables_of(stack);
            named(stack_component(stack.id())?, own);
            named(adapters_component(stack.id())?, adapters);
        }
        named(Component::new(End::HEAD)?, variables::below(&self.store, End::HEAD));
        untie(&mut parts)?;
        parts.retain(|part| !part.variables.is_empty() || !part.aliases.is_empty());
        Ok(parts)
    }

    /// The variables of adapters, and the others, of a stack.
    fn variables_of(&self, stack: &Stack) -> (Named, Named) {
        let originals: HashMap<String, Tensor> = stack
            .linears()
            .iter()
            .filter_map(|linear| {
                let adapter = linear.adapter().borrow();
                let original = adapter.as_ref()?.original()?.shallow_clone();
                Some((format!("{}.weight", linear.name()), original))
            })
            .collect();
        let all = variables::below(&self.store, &stack.prefix()).into_iter();
        let stored = all.map(|(name, tensor)| {
            let tensor = originals.get(&name).map_or(tensor, Tensor::shallow_clone);
            (name, tensor)
        });
        stored.partition(|(name, _)| is_adapter(name))
    }

    /// A hash of everything that decides what [`Rack::forward_trunk`] of so many stacks gives:
    /// configuration, order, precision, adapters, names, shapes and every bit.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there are not so many, or for a configuration that is no
    /// JSON; those of reading tensors.
    pub fn trunk_hash(&self, stacks: usize) -> Result<[u8; 16]> {
        let info = self.info();
        let Some(described) = info.stack_info.get(..stacks) else {
            let message = format!("{stacks} of {} stacks", self.stacks.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        let mut hasher = blake3::Hasher::new_derive_key("tch-checkpoint 2026 trunk of a rack");
        add_json(&mut hasher, &self.config)?;
        for stack in described {
            let adapters =
                stack.adapters.as_ref().map(|adapters| (&adapters.config, adapters.merged));
            let said = (stack.id, stack.num_blocks as u64, stack.precision, adapters);
            add_json(&mut hasher, &said)?;
        }
        let mut add = |prefix: &str| -> Result<()> {
            for (name, tensor) in variables::below(&self.store, prefix) {
                add_tensor(&mut hasher, &name, &tensor)
                    .map_err(|e| e.with_tensor(name.as_str()))?;
            }
            Ok(())
        };
        add(End::EMBEDDINGS)?;
        for stack in self.stacks.iter().take(stacks) {
            add(&stack.prefix())?;
        }
        Ok(truncated(&hasher.finalize()))
    }
}

/// Leaves each variable under the first of its names, and makes the others aliases.
fn untie(parts: &mut [RackPart]) -> Result<()> {
    let mut seen: HashMap<Memory, String> = HashMap::new();
    for part in parts {
        let all = std::mem::take(&mut part.variables);
        for (name, tensor) in all {
            let memory = memory_of(&tensor).map_err(|e| e.with_tensor(&name))?;
            if let Some(first) = memory.as_ref().and_then(|memory| seen.get(memory)) {
                part.aliases.push((name, first.clone()));
                continue;
            }
            seen.extend(memory.map(|memory| (memory, name.clone())));
            part.variables.push((name, tensor));
        }
    }
    Ok(())
}

fn add_json(hasher: &mut blake3::Hasher, said: &impl Serialize) -> Result<()> {
    // A value has its keys in order, which a map of a configuration may not have.
    let value = serde_json::to_value(said);
    let text = value
        .and_then(|value| serde_json::to_vec(&value))
        .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("hashing a trunk: {e}")))?;
    hasher.update(&(text.len() as u64).to_le_bytes()).update(&text);
    Ok(())
}

fn add_tensor(hasher: &mut blake3::Hasher, name: &str, tensor: &Tensor) -> Result<()> {
    let source = TchSource::new(tensor)?;
    let said = format!("{name} {}", source.spec());
    hasher.update(&(said.len() as u64).to_le_bytes()).update(said.as_bytes());
    if let Some(bytes) = source.bytes() {
        hasher.update(bytes);
        return Ok(());
    }
    let (mut at, len) = (0, source.spec().size_bytes());
    let mut buffer = crate::memory::zeroed(len.min(HASHED_AT_ONCE as u64))?;
    while at < len {
        let count = usize::try_from(len - at).map_or(HASHED_AT_ONCE, |n| n.min(HASHED_AT_ONCE));
        let part = buffer.get_mut(..count).unwrap_or_default();
        source.read_into(at, part)?;
        hasher.update(part);
        at += count as u64;
    }
    Ok(())
}

/// The component of a stack.
pub(crate) fn stack_component(id: StackId) -> Result<Component> {
    Component::new(format!("stack_{id}"))
}

/// The component of the adapters of a stack.
pub(crate) fn adapters_component(id: StackId) -> Result<Component> {
    Component::new(format!("adapters_{id}"))
}
