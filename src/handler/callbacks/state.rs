//! The state of callbacks as part of a checkpoint.
//!
//! Value `callbacks` lists the ids; value `callbacks.<id>.<name>` and, in component `callbacks`,
//! tensor `callbacks.<id>.<name>` are one callback's. In names `.` and `%` of an id are written as
//! `%2E` and `%25`, so that the dot after it is the first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tch::{Device, Tensor};

use crate::error::{Error, ErrorKind, Result, printable};
use crate::layout::SaveId;
use crate::manifest::Manifest;
use crate::rank::Rank;
use crate::state::{LoadTargets, StateDict, Value, Values};
use crate::tensor::{Component, TensorName, TensorSpec};
use crate::torch::{TchSink, TchSource, kind_of, torch_error};

/// Component of the tensors, and name of the list of ids.
pub(in crate::handler) const COMPONENT: &str = "callbacks";
const PREFIX: &str = "callbacks.";
const ID_BYTES_MAX: usize = 200;

/// State of one callback: named values (NaN and infinities survive) and tensors.
#[derive(Debug, Default)]
pub struct CallbackState {
    values: Values,
    tensors: BTreeMap<String, Tensor>,
    origin: Option<Origin>,
}

/// The checkpoint out of which a state was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Where it lay.
    pub path: PathBuf,
    /// The save that wrote it.
    pub save_id: SaveId,
}

impl CallbackState {
    /// No state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a value; a second one of the name replaces the first.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.set(name, value);
        self
    }

    /// With a tensor, which is not copied and must not change until the save has returned.
    #[must_use]
    pub fn with_tensor(mut self, name: &str, tensor: &Tensor) -> Self {
        self.tensors.insert(name.to_owned(), tensor.shallow_clone());
        self
    }

    /// The values, by the names given.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The tensors, by the names given; after a load in host memory.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The checkpoint out of which it was loaded; none while only checked.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    pub(super) fn set_origin(&mut self, origin: &Origin) {
        self.origin = Some(origin.clone());
    }

    /// Adds it to a state dict under the names of callback `id`.
    pub(super) fn add_to(&self, id: &str, with_tensors: bool, state: &mut StateDict) -> Result<()> {
        let key = key(id);
        for (name, value) in self.values.iter() {
            state.values.set(format!("{PREFIX}{key}.{name}"), value.clone());
        }
        let component = component()?;
        for (name, tensor) in self.tensors.iter().filter(|_| with_tensors) {
            let name = TensorName::new(format!("{PREFIX}{key}.{name}"))?;
            let source = TchSource::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
            state.add(&component, name, source.spec().clone(), Arc::new(source))?;
        }
        Ok(())
    }

    /// Adds its tensors as destinations.
    pub(super) fn add_targets(&self, id: &str, targets: &mut LoadTargets<'_>) -> Result<()> {
        let key = key(id);
        for (name, tensor) in &self.tensors {
            let sink = TchSink::new(tensor)?;
            let name = TensorName::new(format!("{PREFIX}{key}.{name}"))?;
            targets.add(name, sink.spec().clone(), Box::new(sink))?;
        }
        Ok(())
    }
}

impl From<Values> for CallbackState {
    fn from(values: Values) -> Self {
        Self { values, ..Self::default() }
    }
}

/// The component of tensors of callbacks.
fn component() -> Result<Component> {
    Component::new(COMPONENT)
}

/// # Errors
/// [`ErrorKind::InvalidInput`] for an id that is empty, over 200 bytes, or with control characters.
pub(super) fn check_id(id: &str) -> Result<()> {
    let fault = if id.is_empty() {
        "is empty"
    } else if id.len() > ID_BYTES_MAX {
        "is longer than 200 bytes"
    } else if id.chars().any(char::is_control) {
        "holds control characters"
    } else {
        return Ok(());
    };
    let shown: String = printable(id).chars().take(80).collect();
    Err(Error::new(ErrorKind::InvalidInput, format!("id `{shown}` of a callback {fault}")))
}

/// An id that describes settings, made fit: without control characters, and where it is too long
/// cut and made unique by a hash.
pub(super) fn fit_id(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    if plain == text && plain.len() <= ID_BYTES_MAX {
        return plain;
    }
    let hash = blake3::hash(text.as_bytes()).to_hex();
    let head: String = plain.char_indices().take_while(|(i, _)| *i < 180).map(|(_, c)| c).collect();
    format!("{head}#{}", hash.get(..8).unwrap_or_default())
}

/// An id as it stands in names.
fn key(id: &str) -> String {
    id.replace('%', "%25").replace('.', "%2E")
}

fn is_ours(name: &str) -> bool {
    name == COMPONENT || name.starts_with(PREFIX)
}

/// Lists the callbacks whose state was added.
pub(super) fn list_ids(ids: &[&str], values: &mut Values) -> Result<()> {
    if !ids.is_empty() {
        values.set(COMPONENT, Value::json(&ids)?);
    }
    Ok(())
}

/// What of a state dict's values belongs to callbacks.
pub(in crate::handler) fn values_of_callbacks(values: &Values) -> Values {
    let mut ours = Values::new();
    for (name, value) in values.iter().filter(|(name, _)| is_ours(name)) {
        ours.set(name, value.clone());
    }
    ours
}

/// Puts the coordinator's values of callbacks in the place of this rank's.
pub(in crate::handler) fn replace_values(values: &mut Values, coordinators: &Values) {
    let mut replaced = coordinators.clone();
    for (name, value) in values.iter().filter(|(name, _)| !is_ours(name)) {
        replaced.set(name, value.clone());
    }
    *values = replaced;
}

/// Coordinator: its own values, if every rank has the same callbacks.
pub(in crate::handler) fn agree_on_values(all: Vec<Values>) -> Result<Values> {
    let mut all = all.into_iter();
    let ours = all.next().unwrap_or_default();
    for (theirs, rank) in all.zip(1..) {
        let (ours, theirs) = (ours.find(COMPONENT), theirs.find(COMPONENT));
        if ours != theirs {
            let message = format!("callbacks {theirs:?}, but {ours:?} on the coordinator");
            return Err(Error::new(ErrorKind::Disagreement, message)
                .at_rank(Rank::new(rank))
                .with_help("add the same callbacks on every rank, in the same order"));
        }
    }
    Ok(ours)
}

/// The states in a checkpoint, by id; their tensors are memory still to be filled.
pub(super) fn stored(manifest: &Manifest) -> Result<BTreeMap<String, CallbackState>> {
    let values = manifest.values();
    let ids: Vec<String> = match values.find(COMPONENT) {
        Some(_) => values.json(COMPONENT)?,
        None => Vec::new(),
    };
    let mut by_key: BTreeMap<String, (String, CallbackState)> = BTreeMap::new();
    for id in ids {
        check_id(&id).map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
        if by_key.insert(key(&id), (id.clone(), CallbackState::new())).is_some() {
            return Err(unfit(&id, "the list of callbacks names it twice"));
        }
    }
    for (name, value) in values.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        let (state, rest) = state_of(&mut by_key, name)?;
        state.values.set(rest, value.clone());
    }
    let component = component()?;
    for record in manifest.tensors().iter().filter(|record| record.component == component) {
        let (state, rest) = state_of(&mut by_key, record.name.as_str())?;
        state.tensors.insert(rest.to_owned(), unfilled(&record.spec)?);
    }
    Ok(by_key.into_values().collect())
}

/// The callback to which a stored name belongs, and the name that it gave itself.
fn state_of<'s, 'n>(
    by_key: &'s mut BTreeMap<String, (String, CallbackState)>,
    name: &'n str,
) -> Result<(&'s mut CallbackState, &'n str)> {
    let parts = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
    parts
        .and_then(|(key, rest)| Some((&mut by_key.get_mut(key)?.1, rest)))
        .ok_or_else(|| unfit(name, "no listed callback has this"))
}

fn unfit(name: &str, fault: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("`{name}`: {fault}"))
        .with_help("load with `skip_callbacks` to go on without the state of callbacks")
}

/// Host memory of this form. Not touched yet, so that a size that the files do not have costs
/// nothing before their lengths are checked.
fn unfilled(spec: &TensorSpec) -> Result<Tensor> {
    let too_long = |_| Error::new(ErrorKind::InvalidInput, format!("no tensor of {spec}"));
    let shape: Vec<i64> = spec
        .shape()
        .iter()
        .map(|&length| i64::try_from(length).map_err(too_long))
        .collect::<Result<_>>()?;
    Tensor::f_empty(&shape, (kind_of(spec.dtype())?, Device::Cpu))
        .map_err(|e| torch_error("making room for the state of a callback", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_and_descriptions_are_made_to_fit() {
        for bad in ["", "a\nb", &"x".repeat(201)] {
            assert_eq!(check_id(bad).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        check_id("best of 100 % (a.b/c), ü").unwrap();
        assert_eq!(fit_id("plain"), "plain");
        let (long, longer) = ("ü".repeat(200), "ü".repeat(201));
        for odd in ["a\nb", &long, &longer] {
            check_id(&fit_id(odd)).unwrap();
        }
        assert_ne!(fit_id(&long), fit_id(&longer));
        assert_ne!(fit_id("a\nb"), "a_b");
    }

    /// Else `a` with the name `b.x` and `a.b` with the name `x` would be one.
    #[test]
    fn dots_in_an_id_do_not_end_it() {
        assert_eq!(key("a.b%2E"), "a%2Eb%252E");
        assert_ne!(key("a.b"), key("a%2Eb"));
    }
}
