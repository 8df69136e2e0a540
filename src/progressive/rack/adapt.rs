//! Adapters on the stacks of a rack.

use super::Rack;
use crate::error::{Error, ErrorKind, Result};
use crate::progressive::adapters::{Lora, LoraConfig};
use crate::progressive::architecture::Architecture;
use crate::progressive::layers::Linear;
use crate::progressive::stack::Stack;
use crate::progressive::variables;

impl<A: Architecture> Rack<A> {
    /// Attaches an adapter to each linear layer of a stack whose name within its block fits one of
    /// the targets. Their first values follow from seed and identity; they begin without effect.
    /// Needs no other rank.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an index that is out of range, a configuration that cannot
    /// be, a rank above what a layer has, targets that fit no layer, or if the stack has adapters.
    /// Nothing has changed then.
    pub fn attach_adapters(&mut self, index: usize, config: &LoraConfig) -> Result<()> {
        config.check()?;
        let stack = self.stack(index)?;
        let refuse = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        if stack.adapters().is_some() {
            return refuse(format!("stack {index} has adapters"));
        }
        let globs = config.globs()?;
        let (within, targets) = (names_within(stack), targets(stack, config)?);
        let all: Vec<&str> = within.iter().map(String::as_str).collect();
        if let Some(idle) = globs.idle(&all).first() {
            let message =
                format!("target `{idle}` fits none of the linear layers of stack {index}");
            return refuse(message);
        }
        // A number of its own, so that adapters do not begin with the bits of the stack.
        let number = stack.id().get() ^ 0x4000_0000;
        let made = self.seeded(number, || {
            targets.iter().map(|linear| Lora::new(linear, config)).collect::<Result<Vec<_>>>()
        })?;
        for (linear, lora) in targets.iter().zip(made) {
            for (name, tensor) in named(linear, &lora) {
                variables::add(&self.store, &name, tensor, false)?;
            }
            *linear.adapter().borrow_mut() = Some(lora);
        }
        self.stack_mut(index)?.adapters = Some(config.clone());
        Ok(())
    }

    /// Adds the adapters of a stack to its weights: the same function at the cost of none. Until
    /// they are taken out again, a copy of the weights is kept, and that is what is saved; neither
    /// adapters nor these weights are trained.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an index that is out of range or a stack without adapters.
    pub fn merge_adapters(&mut self, index: usize) -> Result<()> {
        self.each_adapter(index, |linear, lora| lora.merge(linear.weight()))?;
        self.set_trained(index)
    }

    /// Takes merged adapters out again: every bit of the weights is as before.
    ///
    /// # Errors
    /// As [`Rack::merge_adapters`].
    pub fn unmerge_adapters(&mut self, index: usize) -> Result<()> {
        self.each_adapter(index, |linear, lora| lora.unmerge(linear.weight()))?;
        self.set_trained(index)
    }

    /// Removes the adapters of a stack. Merged ones stay in the weights for good.
    ///
    /// # Errors
    /// As [`Rack::merge_adapters`].
    pub fn detach_adapters(&mut self, index: usize) -> Result<()> {
        self.each_adapter(index, |_, _| Ok(()))?;
        let stack = self.stack_mut(index)?;
        stack.adapters = None;
        let mut names = Vec::new();
        for linear in &stack.linears {
            if let Some(lora) = linear.adapter().borrow_mut().take() {
                names.extend(named(linear, &lora).map(|(name, _)| name));
            }
        }
        variables::remove(&self.store, &names)?;
        self.set_trained(index)
    }

    fn each_adapter(
        &mut self,
        index: usize,
        act: impl Fn(&Linear, &mut Lora) -> Result<()>,
    ) -> Result<()> {
        let stack = self.stack(index)?;
        if stack.adapters().is_none() {
            let message = format!("stack {index} has no adapters");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        for linear in stack.linears() {
            if let Some(lora) = &mut *linear.adapter().borrow_mut() {
                act(linear, lora)?;
            }
        }
        Ok(())
    }
}

/// The variables of an adapter, by their full names.
fn named<'a>(linear: &Linear, lora: &'a Lora) -> [(String, &'a tch::Tensor); 2] {
    let name = linear.name();
    [(format!("{name}.lora_A"), &lora.a), (format!("{name}.lora_B"), &lora.b)]
}

/// Names of linear layers within their blocks: `fc`, not `stacks.0.blocks.1.fc`.
fn names_within(stack: &Stack) -> Vec<String> {
    stack.linears().iter().map(|linear| stack.within(linear.name()).to_owned()).collect()
}

fn targets(stack: &Stack, config: &LoraConfig) -> Result<Vec<Linear>> {
    let globs = config.globs()?;
    let fits = |linear: &&Linear| globs.matches(stack.within(linear.name()));
    Ok(stack.linears().iter().filter(fits).cloned().collect())
}
