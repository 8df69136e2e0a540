//! What a training loop consists of, by section and name.

use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Stateful, Values};

/// What a training loop consists of: borrowed for one call, made anew for the next.
///
/// The section and the name of a part make the prefix of its tensors and values: `model` none (so
/// that tensors keep their own names), `optimizer`, `scheduler`; with names `models.<name>`,
/// `optimizers.<name>`, `schedulers.<name>`, `dataloaders.<name>`, `callbacks.<name>`; anything
/// else under its own name.
///
/// ```
/// use tch_checkpoint::checkpointer::Parts;
/// use tch_checkpoint::state::{PerRank, Shared};
///
/// let (mut temperature, mut position) = (0.5, 7_u64);
/// let (mut schedule, mut data) = (Shared(&mut temperature), PerRank(&mut position));
/// let parts = Parts::new().scheduler(&mut schedule).dataloader("train", &mut data);
/// assert_eq!(parts.prefixes().collect::<Vec<_>>(), ["scheduler", "dataloaders.train"]);
/// ```
#[derive(Default)]
pub struct Parts<'a> {
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    prefix: String,
    is_data: bool,
    part: &'a mut dyn Stateful,
}

impl<'a> Parts<'a> {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The model, whose tensors keep their own names.
    #[must_use]
    pub fn model(self, part: &'a mut dyn Stateful) -> Self {
        self.with("", part)
    }

    /// The optimizer.
    #[must_use]
    pub fn optimizer(self, part: &'a mut dyn Stateful) -> Self {
        self.with("optimizer", part)
    }

    /// The schedule of the learning rate.
    #[must_use]
    pub fn scheduler(self, part: &'a mut dyn Stateful) -> Self {
        self.with("scheduler", part)
    }

    /// One of several models.
    #[must_use]
    pub fn named_model(self, name: &str, part: &'a mut dyn Stateful) -> Self {
        self.with(&format!("models.{name}"), part)
    }

    /// One of several optimizers.
    #[must_use]
    pub fn named_optimizer(self, name: &str, part: &'a mut dyn Stateful) -> Self {
        self.with(&format!("optimizers.{name}"), part)
    }

    /// One of several schedules.
    #[must_use]
    pub fn named_scheduler(self, name: &str, part: &'a mut dyn Stateful) -> Self {
        self.with(&format!("schedulers.{name}"), part)
    }

    /// A data loader, such as `train` or `val`; left out of a load if the configuration says so
    /// (`resume_data`).
    #[must_use]
    pub fn dataloader(mut self, name: &str, part: &'a mut dyn Stateful) -> Self {
        let prefix = format!("dataloaders.{name}");
        self.parts.push(Part { prefix, is_data: true, part });
        self
    }

    /// A callback.
    #[must_use]
    pub fn callback(self, name: &str, part: &'a mut dyn Stateful) -> Self {
        self.with(&format!("callbacks.{name}"), part)
    }

    /// Anything else: averages (`ema`), a gradient scaler (`scaler`), random state (`rng`).
    #[must_use]
    pub fn with(mut self, prefix: &str, part: &'a mut dyn Stateful) -> Self {
        self.parts.push(Part { prefix: prefix.to_owned(), is_data: false, part });
        self
    }

    /// The prefixes of all parts, in the order in which they were added.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.prefix.as_str())
    }

    /// Every part into one state dict; copies nothing.
    pub(super) fn state_dict(&self) -> Result<StateDict> {
        self.check()?;
        let mut state = StateDict::new();
        for Part { prefix, part, .. } in &self.parts {
            part.save_state(prefix, &mut state)?;
        }
        Ok(state)
    }

    pub(super) fn prepare(
        &mut self,
        manifest: &Values,
        own: &Values,
        with_data: bool,
    ) -> Result<()> {
        let mut parts = self.loaded_mut(with_data);
        parts.try_for_each(|p| p.part.prepare(&p.prefix, manifest, own))
    }

    pub(super) fn targets(&mut self, with_data: bool) -> Result<LoadTargets<'_>> {
        self.check()?;
        let mut targets = LoadTargets::new();
        for Part { prefix, part, .. } in self.loaded_mut(with_data) {
            part.load_targets(prefix, &mut targets)?;
        }
        Ok(targets)
    }

    pub(super) fn check_values(
        &self,
        manifest: &Values,
        own: &Values,
        with_data: bool,
    ) -> Result<()> {
        let mut parts = self.parts.iter().filter(|part| with_data || !part.is_data);
        parts.try_for_each(|p| p.part.check_values(&p.prefix, manifest, own))
    }

    pub(super) fn load_values(
        &mut self,
        manifest: &Values,
        own: &Values,
        with_data: bool,
    ) -> Result<()> {
        let mut parts = self.loaded_mut(with_data);
        parts.try_for_each(|p| p.part.load_values(&p.prefix, manifest, own))
    }

    fn loaded_mut(&mut self, with_data: bool) -> impl Iterator<Item = &mut Part<'a>> {
        self.parts.iter_mut().filter(move |part| with_data || !part.is_data)
    }

    fn check(&self) -> Result<()> {
        for (index, part) in self.parts.iter().enumerate() {
            if self.parts.iter().take(index).any(|other| other.prefix == part.prefix) {
                let message = match part.prefix.as_str() {
                    "" => "two parts are the model; give them names".to_owned(),
                    prefix => format!("two parts are called `{prefix}`; give them other names"),
                };
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            if OWN
                .iter()
                .any(|own| part.prefix == *own || part.prefix.starts_with(&format!("{own}.")))
            {
                let message = format!(
                    "a part cannot be called `{}`: values of the checkpointer itself begin so",
                    part.prefix
                );
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
        }
        Ok(())
    }
}

/// Names of values that are no part's.
const OWN: [&str; 4] = ["trainer", "history", "metrics", "checkpoint"];
