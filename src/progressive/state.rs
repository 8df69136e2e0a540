//! A rack as part of a checkpoint: its tensors by part, its structure as values.

use std::sync::Arc;

use super::architecture::Architecture;
use super::described::{RackInfo, StackInfo};
use super::rack::{Rack, RackPart};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Value, Values};
use crate::tensor::TensorName;
use crate::torch::{TchSink, TchSource};

/// What a checkpoint of a rack is: the text of this value says which.
pub(super) const KIND: &str = "progressive.kind";
/// From what all parts are made, as JSON.
pub(super) const CONFIG: &str = "progressive.config";
/// A [`RackInfo`], as JSON.
pub(super) const RACK: &str = "progressive.rack";
/// A [`StackInfo`], as JSON.
pub(super) const STACK: &str = "progressive.stack";
/// From which initial values follow, in hexadecimal.
pub(super) const SEED: &str = "progressive.seed";

/// What a checkpoint has been saved of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Granularity {
    /// A run: a rack with what trains it.
    Training,
    /// A rack alone.
    Rack,
    /// One stack alone.
    Stack,
}

impl Granularity {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Rack => "rack",
            Self::Stack => "stack",
        }
    }

    /// What these values were saved of; `None` for those of something else.
    pub(super) fn of(values: &Values) -> Option<Self> {
        let Value::Text(text) = values.find(KIND)? else { return None };
        [Self::Training, Self::Rack, Self::Stack].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Whether these are values of one of the `wanted` granularities.
pub(super) fn check_kind(values: &Values, wanted: &[Granularity]) -> Result<()> {
    let found = Granularity::of(values);
    if found.is_some_and(|found| wanted.contains(&found)) {
        return Ok(());
    }
    let found = found.map_or("something else than a rack or stack", Granularity::as_str);
    let wanted: Vec<_> = wanted.iter().map(|kind| kind.as_str()).collect();
    let message = format!("this is a checkpoint of: {found}; wanted is: {}", wanted.join(" or "));
    Err(Error::new(ErrorKind::Mismatch, message))
}

impl<A: Architecture> Rack<A> {
    /// Adds everything of it, as `granularity`.
    pub(super) fn save_into(&self, granularity: Granularity, state: &mut StateDict) -> Result<()> {
        for part in self.parts()? {
            add_part(&part, state)?;
        }
        state.values.set(KIND, granularity.as_str());
        state.values.set(CONFIG, Value::json(self.config())?);
        state.values.set(RACK, Value::json(&self.info())?);
        state.values.set(SEED, format!("{:x}", self.seed));
        Ok(())
    }

    /// Adds all of its variables as destinations.
    pub(super) fn targets_into(&self, targets: &mut LoadTargets<'_>) -> Result<()> {
        self.parts()?.iter().try_for_each(|part| add_targets(part, targets))
    }

    /// A rack as these values describe it, with values of its own, which is to take the place of
    /// `self`.
    pub(super) fn fresh_of(&self, values: &Values) -> Result<Self> {
        let info: RackInfo = values.json(RACK)?;
        self.check_config(values)?;
        if !self.stacks().is_empty() {
            refuse_all(&rack_faults(&self.info(), &info))?;
        }
        // A run may be given room to go on growing.
        let info = RackInfo { max_stacks: info.max_stacks.max(self.max_stacks), ..info };
        Self::from_info(self.config().clone(), &info, seed_of(values)?, self.device())
    }

    pub(super) fn check_config(&self, values: &Values) -> Result<()> {
        let stored: A::Config = values.json(CONFIG)?;
        if stored == *self.config() {
            return Ok(());
        }
        let message =
            format!("configuration {stored:?} in the checkpoint, {:?} here", self.config());
        Err(Error::new(ErrorKind::Mismatch, message).with_help("nothing was changed"))
    }

    /// Merges the adapters that `info` says were.
    pub(super) fn merge_as(&mut self, info: &[StackInfo]) -> Result<()> {
        for (index, stack) in info.iter().enumerate() {
            if stack.adapters.as_ref().is_some_and(|adapters| adapters.merged) {
                self.merge_adapters(index)?;
            }
        }
        Ok(())
    }
}

pub(super) fn seed_of(values: &Values) -> Result<u64> {
    let text = values.text(SEED)?;
    u64::from_str_radix(&text, 16)
        .map_err(|_| Error::new(ErrorKind::Mismatch, format!("value `{SEED}` is no seed")))
}

pub(super) fn add_part(part: &RackPart, state: &mut StateDict) -> Result<()> {
    for (name, tensor) in &part.variables {
        let source = TchSource::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
        let spec = source.spec().clone();
        let source = if tensor.requires_grad() { source.steady() } else { source };
        state.add(&part.component, TensorName::new(name)?, spec, Arc::new(source))?;
    }
    for (alias, target) in &part.aliases {
        state.add_alias(TensorName::new(alias)?, TensorName::new(target)?)?;
    }
    Ok(())
}

pub(super) fn add_targets(part: &RackPart, targets: &mut LoadTargets<'_>) -> Result<()> {
    for (name, tensor) in &part.variables {
        let sink = TchSink::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
        targets.add(TensorName::new(name)?, sink.spec().clone(), Box::new(sink))?;
    }
    Ok(())
}

/// One error for all of `faults`.
pub(super) fn refuse_all(faults: &[String]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let message = match faults {
        [only] => only.clone(),
        several => format!("{} differences:\n  {}", several.len(), several.join("\n  ")),
    };
    Err(Error::new(ErrorKind::Mismatch, message)
        .with_help("a rack without stacks takes the structure that is stored; nothing was changed"))
}

/// Everything in which a rack differs in structure from a stored one.
fn rack_faults(here: &RackInfo, stored: &RackInfo) -> Vec<String> {
    let mut faults = Vec::new();
    if here.current_stacks != stored.current_stacks {
        let (there, here) = (stored.current_stacks, here.current_stacks);
        faults.push(format!("{there} stacks in the checkpoint, {here} here"));
    }
    for (here, stored) in here.stack_info.iter().zip(&stored.stack_info) {
        let index = here.stack_idx;
        if here.id != stored.id {
            let (there, here) = (stored.id, here.id);
            faults.push(format!("at {index} stack {there} in the checkpoint, stack {here} here"));
        }
        let of_stack = stack_faults(here, stored).into_iter();
        faults.extend(of_stack.map(|fault| format!("stack at {index}: {fault}")));
        if here.adapters.as_ref().map(|a| &a.config) != stored.adapters.as_ref().map(|a| &a.config)
        {
            let adapters = |info: &StackInfo| match &info.adapters {
                Some(adapters) => format!("adapters {:?}", adapters.config),
                None => "no adapters".to_owned(),
            };
            let (there, here) = (adapters(stored), adapters(here));
            faults.push(format!("stack at {index}: {there} in the checkpoint, {here} here"));
        }
    }
    faults
}

/// Everything in which a stack differs from a stored one, adapters left out.
pub(super) fn stack_faults(here: &StackInfo, stored: &StackInfo) -> Vec<String> {
    let mut faults = Vec::new();
    if here.num_blocks != stored.num_blocks {
        let (there, here) = (stored.num_blocks, here.num_blocks);
        faults.push(format!("{there} blocks in the checkpoint, {here} here"));
    }
    if here.precision != stored.precision {
        let (there, here) = (stored.precision, here.precision);
        faults.push(format!("precision {there} in the checkpoint, {here} here"));
    }
    faults
}
