//! What of a rack is trained.

use super::{End, Rack};
use crate::error::{Error, ErrorKind, Result};
use crate::progressive::architecture::Architecture;
use crate::progressive::described::StackId;
use crate::progressive::stack::is_adapter;
use crate::progressive::variables;

impl<A: Architecture> Rack<A> {
    /// Keeps the variables of a stack from training, or lets them be trained. Not those of its
    /// adapters, which are there to be trained while it is frozen.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an index that is out of range.
    pub fn set_frozen(&mut self, index: usize, frozen: bool) -> Result<()> {
        let stack = self.stack_mut(index)?;
        stack.frozen = frozen;
        let prefix = stack.prefix();
        for (name, tensor) in variables::below(&self.store, &prefix) {
            if !is_adapter(&name) && tensor.is_floating_point() {
                drop(tensor.set_requires_grad(!frozen));
            }
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
        self.set_ends_frozen(self.stacks.len() > 1, false);
        Ok(())
    }

    /// Keeps the variables of embeddings and head from training, or lets them be trained. A
    /// variable that both have is trained if either is.
    pub fn set_ends_frozen(&mut self, embeddings: bool, head: bool) {
        let ends = [
            (End::EMBEDDINGS, &mut self.embeddings, embeddings),
            (End::HEAD, &mut self.head, head),
        ];
        let mut trained = Vec::new();
        for (name, end, frozen) in ends {
            let Some(end) = end else { continue };
            end.frozen = frozen;
            for (_, tensor) in variables::below(&self.store, name) {
                if tensor.is_floating_point() {
                    drop(tensor.set_requires_grad(false));
                    trained.extend((!frozen).then_some(tensor));
                }
            }
        }
        for tensor in trained {
            drop(tensor.set_requires_grad(true));
        }
    }

    /// How many stacks, from the input on, are the same at every step, embeddings included: what a
    /// trunk's outputs can be kept of. 0 if the embeddings are trained.
    #[must_use]
    pub fn frozen_prefix(&self) -> usize {
        if self.embeddings.as_ref().is_some_and(|end| !end.frozen) {
            return 0;
        }
        self.stacks.iter().take_while(|stack| !stack.is_trained()).count()
    }
}
