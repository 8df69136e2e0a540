//! A rack: embeddings, stacks, a head.

mod adapt;
mod contents;
mod freeze;
mod seeded;
#[cfg(test)]
mod tests;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::architecture::{Architecture, Layer};
use super::described::{BuildingMode, RackInfo, StackId};
use super::layers::Layers;
use super::precision::StackPrecision;
use super::stack::Stack;
use super::variables;
use crate::error::{Error, ErrorKind, Result};
use crate::torch::torch_error;
pub(crate) use contents::{RackPart, adapters_component, stack_component};

/// Most stacks of any rack.
pub(super) const STACKS_MAX: usize = 4096;

/// An ordered list of stacks between optional embeddings and an optional head.
///
/// A stack is known by its place, from the input, and by its [`StackId`], which it keeps when others
/// are put before it. Its variables are named after the latter: `stacks.<id>.blocks.<n>.…`; those
/// of the ends begin with `embeddings.` and `head.`.
///
/// An index is a `usize`, so that there is no negative one:
///
/// ```compile_fail,E0600
/// # fn of<A: tch_checkpoint::progressive::Architecture>(rack: &tch_checkpoint::progressive::Rack<A>) {
/// let last = rack.stack(-1);
/// # }
/// ```
pub struct Rack<A: Architecture> {
    pub(super) store: VarStore,
    pub(super) config: A::Config,
    pub(super) max_stacks: usize,
    pub(super) mode: BuildingMode,
    pub(super) default_precision: StackPrecision,
    pub(super) seed: u64,
    pub(super) next_id: u32,
    pub(super) embeddings: Option<End>,
    pub(super) stacks: Vec<Stack>,
    pub(super) head: Option<End>,
}

/// What comes before the first stack, or after the last.
pub(super) struct End {
    layer: Box<dyn Layer>,
    frozen: bool,
}

impl End {
    pub(super) const EMBEDDINGS: &'static str = "embeddings";
    pub(super) const HEAD: &'static str = "head";
}

impl<A: Architecture> Rack<A> {
    /// What all parts were made from.
    #[must_use]
    pub fn config(&self) -> &A::Config {
        &self.config
    }

    /// All variables, by name.
    #[must_use]
    pub fn store(&self) -> &VarStore {
        &self.store
    }

    /// Where its variables lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.store.device()
    }

    /// Its stacks, from the input to the output.
    #[must_use]
    pub fn stacks(&self) -> &[Stack] {
        &self.stacks
    }

    /// The stack at `index`, from the input, from 0.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there are not so many.
    pub fn stack(&self, index: usize) -> Result<&Stack> {
        self.stacks.get(index).ok_or_else(|| self.no_stack(index))
    }

    /// Where a stack is now.
    #[must_use]
    pub fn index_of(&self, id: StackId) -> Option<usize> {
        self.stacks.iter().position(|stack| stack.id() == id)
    }

    /// What it consists of.
    #[must_use]
    pub fn info(&self) -> RackInfo {
        let stacks = self.stacks.iter().enumerate();
        let frozen = |end: &Option<End>| end.as_ref().is_some_and(|end| end.frozen);
        RackInfo {
            current_stacks: self.stacks.len(),
            max_stacks: self.max_stacks,
            building_mode: self.mode,
            default_precision: self.default_precision,
            has_embeddings: self.embeddings.is_some(),
            has_head: self.head.is_some(),
            embeddings_frozen: frozen(&self.embeddings),
            head_frozen: frozen(&self.head),
            next_id: self.next_id,
            stack_info: stacks.map(|(index, stack)| stack.info(&self.store, index)).collect(),
        }
    }

    /// Adds a stack behind all others. Every rank adds the same one; needs no other rank.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there are as many as there may be, or for no block or over
    /// 4096; those of the architecture. Nothing has changed then.
    pub fn append_stack(
        &mut self,
        num_blocks: usize,
        precision: Option<StackPrecision>,
    ) -> Result<StackId> {
        self.insert_stack(self.stacks.len(), num_blocks, precision)
    }

    /// Adds a stack before all others, as [`Rack::append_stack`] adds one behind them.
    ///
    /// # Errors
    /// As [`Rack::append_stack`].
    pub fn prepend_stack(
        &mut self,
        num_blocks: usize,
        precision: Option<StackPrecision>,
    ) -> Result<StackId> {
        self.insert_stack(0, num_blocks, precision)
    }

    /// Adds a stack where the building mode puts new ones.
    ///
    /// # Errors
    /// As [`Rack::append_stack`].
    pub fn add_stack(
        &mut self,
        num_blocks: usize,
        precision: Option<StackPrecision>,
    ) -> Result<StackId> {
        match self.mode {
            BuildingMode::Append => self.append_stack(num_blocks, precision),
            BuildingMode::Prepend => self.prepend_stack(num_blocks, precision),
        }
    }

    fn insert_stack(
        &mut self,
        index: usize,
        num_blocks: usize,
        precision: Option<StackPrecision>,
    ) -> Result<StackId> {
        if self.stacks.len() >= self.max_stacks {
            let message = format!("the rack has its maximum of {} stacks", self.max_stacks);
            return Err(
                Error::new(ErrorKind::InvalidInput, message).with_help("nothing was changed")
            );
        }
        let Some(next_id) = self.next_id.checked_add(1) else {
            let message = "the rack has given every identity that there is";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        let id = StackId::new(self.next_id);
        let precision = precision.unwrap_or(self.default_precision);
        let stack = self.make_stack(id, num_blocks, precision)?;
        self.stacks.insert(index, stack);
        self.next_id = next_id;
        Ok(id)
    }

    /// The output of all of it. `train` turns on what happens in training alone.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] from libtorch.
    pub fn forward(&self, input: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = self.forward_trunk(self.stacks.len(), input, train)?;
        self.forward_from(self.stacks.len(), &hidden, train)
    }

    /// The output of embeddings and the first `stacks` stacks: what [`Rack::forward_from`] goes on
    /// from.
    ///
    /// # Errors
    /// As [`Rack::forward`]; [`ErrorKind::InvalidInput`] if there are not so many.
    pub fn forward_trunk(&self, stacks: usize, input: &Tensor, train: bool) -> Result<Tensor> {
        let trunk = self.stacks.get(..stacks).ok_or_else(|| self.no_stack(stacks))?;
        let first = match &self.embeddings {
            Some(end) => end.layer.forward(input, train),
            None => input.shallow_clone(),
        };
        trunk.iter().try_fold(first, |hidden, stack| stack.forward(&hidden, train))
    }

    /// The output for `hidden`, that of the stacks before `index`. The head gets F32.
    ///
    /// # Errors
    /// As [`Rack::forward_trunk`].
    pub fn forward_from(&self, index: usize, hidden: &Tensor, train: bool) -> Result<Tensor> {
        let rest = self.stacks.get(index..).ok_or_else(|| self.no_stack(index))?;
        let hidden = hidden.shallow_clone();
        let last = rest.iter().try_fold(hidden, |hidden, stack| stack.forward(&hidden, train))?;
        let Some(end) = &self.head else { return Ok(last) };
        let wide = last.f_to_kind(Kind::Float);
        let wide = wide.map_err(|e| torch_error("casting the input of the head", &e))?;
        Ok(end.layer.forward(&wide, train))
    }

    /// Casts the tensors of a stack, adapters included, to another kind.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an index that is out of range, while adapters are merged,
    /// or for a variable with a gradient: change it before training.
    pub fn set_precision(&mut self, index: usize, precision: StackPrecision) -> Result<()> {
        let stack = self.stack(index)?;
        if stack.is_merged() {
            let message = format!("the adapters of stack {index} are merged");
            return Err(
                Error::new(ErrorKind::InvalidInput, message).with_help("unmerge them first")
            );
        }
        let all = variables::below(&self.store, &stack.prefix());
        for (name, tensor) in &all {
            variables::check_castable(name, tensor, precision.kind())?;
        }
        for (name, tensor) in &all {
            variables::cast(name, tensor, precision.kind())?;
        }
        self.stack_mut(index)?.precision = precision;
        Ok(())
    }

    pub(super) fn stack_mut(&mut self, index: usize) -> Result<&mut Stack> {
        let error = self.no_stack(index);
        self.stacks.get_mut(index).ok_or(error)
    }

    fn no_stack(&self, index: usize) -> Error {
        let message = format!("stack {index} of {}", self.stacks.len());
        Error::new(ErrorKind::InvalidInput, message).with_help("stacks are counted from 0")
    }

    /// Makes embeddings or head.
    pub(super) fn make_end(
        &self,
        name: &str,
        make: impl FnOnce(&Layers<'_>, &A::Config) -> Result<Option<Box<dyn Layer>>>,
    ) -> Result<Option<End>> {
        let number = if name == End::HEAD { u32::MAX } else { u32::MAX - 1 };
        let layers = Layers::new(&self.store, name.to_owned());
        let layer = self.seeded(number, || make(&layers, &self.config))?;
        Ok(layer.map(|layer| End { layer, frozen: false }))
    }
}

impl<A: Architecture> std::fmt::Debug for Rack<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rack")
            .field("config", &self.config)
            .field("stacks", &self.stacks)
            .finish_non_exhaustive()
    }
}
