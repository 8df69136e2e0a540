//! What of a rack is trained.

use super::{End, Rack};
use crate::error::{Error, ErrorKind, Result};
use crate::progressive::architecture::Architecture;
use crate::progressive::described::StackId;
use crate::progressive::stack::is_adapter;
use crate::progressive::variables::{self, Variable};
use crate::torch::{clear_gradient, torch_error};

impl<A: Architecture> Rack<A> {
    /// Keeps the variables of a stack from training, or lets them be trained. Not those of its
    /// adapters, which are there to be trained while it is frozen.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an index that is out of range.
    pub fn set_frozen(&mut self, index: usize, frozen: bool) -> Result<()> {
        self.stack_mut(index)?.frozen = frozen;
        self.set_trained(index)
    }

    /// Lets those variables of a stack require gradients that are trained as it is now. Weights
    /// with a merged adapter are not: what they learned would be gone when it is taken out.
    pub(super) fn set_trained(&mut self, index: usize) -> Result<()> {
        let stack = self.stack(index)?;
        let (frozen, is_merged, merged) = (stack.frozen, stack.is_merged(), stack.merged_weights());
        for variable in variables::once_below(&self.store, &stack.prefix())? {
            let is_trained = if is_adapter(&variable.name) {
                !is_merged
            } else {
                !frozen && !merged.contains(&variable.name)
            };
            require(&variable, is_trained)?;
        }
        Ok(())
    }

    /// Freezes every stack but `newest`, and the embeddings if there are others: what `newest` was
    /// put on. The head goes on being trained.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is no such stack.
    pub fn freeze_trunk(&mut self, newest: StackId) -> Result<()> {
        if self.index_of(newest).is_none() {
            let message = format!("the rack has no stack {newest}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        for index in 0..self.stacks.len() {
            let frozen = self.stack(index)?.id() != newest;
            self.set_frozen(index, frozen)?;
        }
        self.set_ends_frozen(self.stacks.len() > 1, false)
    }

    /// Keeps the variables of embeddings and head from training, or lets them be trained. A
    /// variable that both have is trained if either is.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if libtorch fails.
    pub fn set_ends_frozen(&mut self, embeddings: bool, head: bool) -> Result<()> {
        let ends = [
            (End::EMBEDDINGS, &mut self.embeddings, embeddings),
            (End::HEAD, &mut self.head, head),
        ];
        let (mut frozen_ones, mut trained) = (Vec::new(), Vec::new());
        for (name, end, frozen) in ends {
            let Some(end) = end else { continue };
            end.frozen = frozen;
            let list = if frozen { &mut frozen_ones } else { &mut trained };
            list.extend(variables::once_below(&self.store, name)?);
        }
        frozen_ones.iter().try_for_each(|variable| require(variable, false))?;
        trained.iter().try_for_each(|variable| require(variable, true))
    }

    /// How many stacks, from the input on, are the same at every step, embeddings included: what a
    /// trunk's outputs can be kept of. 0 if the embeddings are trained, be it as a part of the head
    /// that they are tied to.
    #[must_use]
    pub fn frozen_prefix(&self) -> usize {
        let embeddings = variables::below(&self.store, End::EMBEDDINGS);
        if embeddings.iter().any(|(_, tensor)| tensor.requires_grad()) {
            return 0;
        }
        self.stacks.iter().take_while(|stack| !stack.is_trained()).count()
    }
}

/// Lets a variable require a gradient or not; one that it has is none to be trained by then.
/// Buffers never do.
fn require(variable: &Variable, is_trained: bool) -> Result<()> {
    let tensor = &variable.tensor;
    if !variable.is_parameter || tensor.requires_grad() == is_trained {
        return Ok(());
    }
    let required = tensor.f_set_requires_grad(is_trained);
    drop(required.map_err(|e| torch_error("freezing", &e).with_tensor(variable.name.as_str()))?);
    if is_trained { Ok(()) } else { clear_gradient(tensor) }
}
