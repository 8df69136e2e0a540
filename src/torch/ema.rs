//! An exponential moving average of a model's parameters, which often generalises better than the
//! parameters themselves.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use super::optim::{Trainable, trainable};
use super::{convert, torch_error};
use crate::error::{Error, ErrorKind, Result};

mod state;
#[cfg(test)]
mod tests;

/// Settings of an [`Ema`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmaConfig {
    /// Share of the average that an update keeps, 0 to 1. Default = 0.999.
    pub decay: f64,
    /// In the n-th update (the first is 1) at most `(1 + n) / (10 + n)` is kept, so that the start
    /// of training is soon forgotten; as `torch_ema` does. Default = true.
    pub warm_up: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999, warm_up: true }
    }
}

impl EmaConfig {
    fn validate(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.decay) {
            return Ok(());
        }
        let message = format!("an average cannot decay by {}", self.decay);
        Err(Error::new(ErrorKind::InvalidInput, message).with_help("give a decay from 0 to 1"))
    }

    /// Decay of the update number `n`, from 1.
    #[allow(clippy::cast_precision_loss)]
    fn decay_at(&self, n: u64) -> f64 {
        let n = n as f64;
        if self.warm_up { self.decay.min((1.0 + n) / (10.0 + n)) } else { self.decay }
    }
}

/// Averages of the trainable variables of a [`nn::VarStore`]; buffers are not averaged.
///
/// Parameters are in the order of their names; tied ones appear once, under their first name.
/// Averages lie on the device of their parameter, in its dtype; those of half and bfloat16
/// parameters in f32, in whose bits small changes do not vanish. Make it once the model is on its
/// device.
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    updates: u64,
    averages: Vec<Average>,
    swapped: bool,
}

#[derive(Debug)]
struct Average {
    name: String,
    identity: u64,
    parameter: Tensor,
    shadow: Tensor,
    /// The parameter's own value while the model holds the average. Kept apart from the shadow,
    /// for which it may have too few bits.
    own: Option<Tensor>,
}

impl Ema {
    /// Averages that begin as the values which the trainable variables of `store` have now.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a decay outside 0 to 1; [`ErrorKind::Unsupported`] for
    /// parameters that cannot be stored; [`ErrorKind::Device`] if libtorch fails.
    pub fn new(config: EmaConfig, store: &nn::VarStore) -> Result<Self> {
        config.validate()?;
        let mut made = Self { config, updates: 0, averages: Vec::new(), swapped: false };
        made.add_parameters(store)?;
        Ok(made)
    }

    /// Takes in the trainable variables of `store` that were created since (a model that grew), at
    /// their present values; returns how many.
    ///
    /// # Errors
    /// As [`Ema::new`]; [`ErrorKind::InvalidInput`] while swapped.
    pub fn add_parameters(&mut self, store: &nn::VarStore) -> Result<usize> {
        self.refuse_swapped("taking in parameters")?;
        let known: HashSet<u64> = self.averages.iter().map(|a| a.identity).collect();
        let mut added = Vec::new();
        for variable in trainable(store)? {
            if !known.contains(&variable.identity) {
                let name = variable.name.clone();
                added.push(Average::new(variable).map_err(|e| e.with_tensor(name))?);
            }
        }
        let count = added.len();
        self.averages.extend(added);
        self.averages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(count)
    }

    /// Moves every average towards its parameter, `average += (1 - decay) * (parameter - average)`,
    /// without autograd; after each optimizer step.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] while swapped; [`ErrorKind::Device`] if libtorch fails: the
    /// averages before the one named are then updated already.
    pub fn update(&mut self) -> Result<()> {
        self.refuse_swapped("updating averages")?;
        let n = self.updates.saturating_add(1);
        let weight = 1.0 - self.config.decay_at(n);
        self.each("updating an average", |average| {
            let parameter = average.parameter.f_to_kind(average.shadow.f_kind()?)?;
            average.shadow.f_lerp_(&parameter, weight).map(drop)
        })?;
        self.updates = n;
        Ok(())
    }

    /// Gives the model the averages, or, if it has them, its own values back, bit for bit. What
    /// was written to the parameters in between is lost then. In place and without autograd;
    /// in between, a second copy of the parameters is held.
    ///
    /// Not between a forward and its backward pass.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if libtorch fails. When giving the averages, the model then has its
    /// own values, unless that fails too; when taking them back, it is still swapped, and the call
    /// can be repeated.
    pub fn swap(&mut self) -> Result<()> {
        if self.swapped {
            return self.restore();
        }
        let given = self.keep_own().and_then(|()| {
            self.each("copying an average", |average| average.parameter.f_copy_(&average.shadow))
        });
        // From here on `restore` has something to put back, whatever was reached.
        self.swapped = true;
        if let Err(error) = given {
            self.restore()?;
            return Err(error);
        }
        Ok(())
    }

    /// The model keeps the averages for good, as at the end of training; it is not swapped then.
    ///
    /// # Errors
    /// As [`Ema::swap`].
    pub fn copy_to_model(&mut self) -> Result<()> {
        if !self.swapped {
            self.swap()?;
        }
        self.forget_own();
        Ok(())
    }

    /// Settings as given, or as loaded.
    #[must_use]
    pub fn config(&self) -> &EmaConfig {
        &self.config
    }

    /// Updates so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Whether the model holds the averages.
    #[must_use]
    pub fn is_swapped(&self) -> bool {
        self.swapped
    }

    /// The averages with the names of their parameters, in the order of the names.
    pub fn averages(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.averages.iter().map(|average| (average.name.as_str(), &average.shadow))
    }

    /// Allocates everything before anything is changed.
    fn keep_own(&mut self) -> Result<()> {
        self.each("keeping a parameter", |average| {
            average.own = Some(copy_as(&average.parameter, average.parameter.f_kind()?)?);
            Ok(())
        })
    }

    fn restore(&mut self) -> Result<()> {
        self.each("restoring a parameter", |average| match &average.own {
            Some(own) => average.parameter.f_copy_(own),
            None => Ok(()),
        })?;
        self.forget_own();
        Ok(())
    }

    fn forget_own(&mut self) {
        self.averages.iter_mut().for_each(|average| average.own = None);
        self.swapped = false;
    }

    fn each(
        &mut self,
        doing: &str,
        mut act: impl FnMut(&mut Average) -> Result<(), tch::TchError>,
    ) -> Result<()> {
        let mut named = |average: &mut Average| {
            let acted = act(average);
            acted.map_err(|e| torch_error(doing, &e).with_tensor(average.name.as_str()))
        };
        tch::no_grad(|| self.averages.iter_mut().try_for_each(&mut named))
    }

    fn refuse_swapped(&self, doing: &str) -> Result<()> {
        if !self.swapped {
            return Ok(());
        }
        let message = format!("{doing}: the model holds the averages in place of its own values");
        Err(Error::new(ErrorKind::InvalidInput, message).with_help("swap back first"))
    }
}

impl Average {
    fn new(variable: Trainable) -> Result<Self> {
        let Trainable { identity, name, tensor: parameter, .. } = variable;
        convert::spec_of(&parameter)?;
        let shadow = || {
            let kind = match parameter.f_kind()? {
                Kind::Half | Kind::BFloat16 => Kind::Float,
                kind => kind,
            };
            copy_as(&parameter, kind)
        };
        let shadow = shadow().map_err(|e| torch_error("allocating an average", &e))?;
        Ok(Self { name, identity, parameter, shadow, own: None })
    }
}

/// A copy with memory of its own, outside autograd.
fn copy_as(tensor: &Tensor, kind: Kind) -> Result<Tensor, tch::TchError> {
    tensor.f_detach()?.f_to_dtype(kind, false, true)
}
