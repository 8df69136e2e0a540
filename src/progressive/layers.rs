//! A place in a rack where layers are made, and the linear layer that can have an adapter.

use std::cell::RefCell;
use std::rc::Rc;

use tch::nn::{self, VarStore};
use tch::{Kind, Tensor};

use super::adapters::Lora;
use super::architecture::Layer;
use super::variables;
use crate::error::{Error, ErrorKind, Result};
use crate::torch::torch_error;

/// A place in a rack where layers are made: a name prefix, and the list of linear layers that
/// adapters can be attached to.
#[derive(Debug, Clone)]
pub struct Layers<'a> {
    store: &'a VarStore,
    prefix: String,
    linears: Rc<RefCell<Vec<Linear>>>,
}

/// How a linear layer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearConfig {
    /// Whether it adds a bias. Default: yes.
    pub bias: bool,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self { bias: true }
    }
}

/// A linear layer, `x Wᵀ + b` with W of shape `[out, in]`, to which an adapter can be attached.
/// Clones share their variables and their adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    name: String,
    weight: Rc<Tensor>,
    bias: Option<Rc<Tensor>>,
    adapter: Rc<RefCell<Option<Lora>>>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(store: &'a VarStore, prefix: String) -> Self {
        Self { store, prefix, linears: Rc::default() }
    }

    /// A place below this one. `name` has no dots.
    #[must_use]
    pub fn sub(&self, name: &str) -> Self {
        let prefix = format!("{}.{name}", self.prefix);
        Self { store: self.store, prefix, linears: Rc::clone(&self.linears) }
    }

    /// The same place for layers of `tch`, which cannot have adapters.
    #[must_use]
    pub fn path(&self) -> nn::Path<'a> {
        variables::path(self.store, &self.prefix)
    }

    /// A linear layer whose variables are `<name>.weight`, `[outputs, inputs]`, and `<name>.bias`,
    /// `[outputs]`. Both begin evenly distributed within ±1/√`inputs`, as PyTorch's do.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a number below 1, or if there is such a layer already.
    pub fn linear(
        &self,
        name: &str,
        inputs: i64,
        outputs: i64,
        config: LinearConfig,
    ) -> Result<Linear> {
        let name = format!("{}.{name}", self.prefix);
        if inputs < 1 || outputs < 1 {
            let message = format!("a linear layer from {inputs} to {outputs} features");
            return Err(Error::new(ErrorKind::InvalidInput, message).with_tensor(name));
        }
        #[expect(clippy::cast_precision_loss, reason = "a bound needs no more digits")]
        let bound = 1.0 / (inputs as f64).sqrt();
        let variable = |suffix: &str, shape: &[i64]| -> Result<Rc<Tensor>> {
            let name = format!("{name}.{suffix}");
            let tensor = Tensor::f_empty(shape, (Kind::Float, self.store.device()))
                .and_then(|mut empty| empty.f_uniform_(-bound, bound))
                .and_then(|filled| filled.f_set_requires_grad(true));
            let tensor = tensor.map_err(|e| torch_error("making a variable", &e))?;
            variables::add(self.store, &name, &tensor, false)?;
            Ok(Rc::new(tensor))
        };
        let weight = variable("weight", &[outputs, inputs])?;
        let bias = if config.bias { Some(variable("bias", &[outputs])?) } else { None };
        let linear = Linear { name, weight, bias, adapter: Rc::default() };
        self.linears.borrow_mut().push(linear.clone());
        Ok(linear)
    }

    /// Gives the variable `target` (its full name, such as `embeddings.weight`) the second name
    /// `<name>` here, so that it is trained and stored once: tied weights. In a stack it must be
    /// one of the same stack, which has a precision of its own and can be stored alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is no such variable, or one of the new name, or if
    /// `target` is outside of this stack.
    pub fn tie(&self, name: &str, target: &str) -> Result<Tensor> {
        let Some(tensor) = variables::find(self.store, target) else {
            let message = "no variable of this name to be tied";
            return Err(Error::new(ErrorKind::InvalidInput, message).with_tensor(target));
        };
        if stack_of(&self.prefix).is_some_and(|stack| stack_of(target) != Some(stack)) {
            let message = format!("`{}.{name}` cannot be tied to another part", self.prefix);
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_tensor(target)
                .with_help("a stack has a precision of its own, and can be stored alone"));
        }
        variables::add(self.store, &format!("{}.{name}", self.prefix), &tensor, true)?;
        Ok(tensor)
    }

    /// The linear layers that were made here and below, in the order in which they were.
    pub(super) fn into_linears(self) -> Vec<Linear> {
        self.linears.take()
    }
}

/// The number of the stack that a full name is in.
fn stack_of(name: &str) -> Option<&str> {
    name.strip_prefix("stacks.")?.split('.').next()
}

impl Linear {
    /// Its full name, such as `stacks.0.blocks.1.fc`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its weight, `[out, in]`; the merged one while an adapter is merged.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Features that come in, and that go out.
    pub(super) fn features(&self) -> (usize, usize) {
        let size = self.weight.size();
        let of = |dimension: usize| size.get(dimension).and_then(|n| usize::try_from(*n).ok());
        (of(1).unwrap_or(0), of(0).unwrap_or(0))
    }

    pub(super) fn adapter(&self) -> &RefCell<Option<Lora>> {
        &self.adapter
    }
}

impl Layer for Linear {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let bias = self.bias.as_deref();
        let output = input.linear(self.weight.as_ref(), bias);
        match &*self.adapter.borrow() {
            Some(adapter) if !adapter.is_merged() => output + adapter.delta(input, train),
            _ => output,
        }
    }
}
