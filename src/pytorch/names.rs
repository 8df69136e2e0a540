//! What entries of a state dict are called here, and which part of a training they belong to.
//!
//! PyTorch has no rule for how a training is put into one dictionary; these are the customs of its
//! documentation, of `torch.distributed.checkpoint.state_dict` and of PyTorch Lightning, and what
//! an export from here writes.

mod back;
mod forms;
mod optimizer;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use back::{Named as NamedTensor, tree_of};

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::{Key, Plain, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;
use crate::state::Values;
use crate::tensor::{Component, TensorName, TensorSpec};

/// Names of dictionaries that hold a model.
const MODELS: [&str; 8] =
    ["model", "model_state_dict", "state_dict", "module", "net", "network", "weights", "params"];
/// Names of dictionaries that hold averages of it.
const AVERAGES: [&str; 5] = ["ema", "ema_model", "ema_state_dict", "model_ema", "shadow"];
/// Names of counters, and of those of epochs.
const STEPS: [&str; 2] = ["step", "global_step"];
const EPOCH: &str = "epoch";
/// What an export from here notes.
pub(crate) const OURS: &str = "tch_checkpoint";
/// Where an export from here puts values.
pub(crate) const VALUES: &str = "values";

/// Which algorithm an optimizer is, where its settings do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Weight decay is added to gradients.
    Adam,
    /// Weight decay is taken from parameters.
    AdamW,
}

/// Where the bytes of a tensor come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Found<T> {
    Stored(T),
    /// From a number that was no tensor.
    Made(TensorSpec, Vec<u8>),
}

/// A state dict in our terms.
#[derive(Debug)]
pub(crate) struct Named<T> {
    pub(crate) tensors: BTreeMap<TensorName, (Component, Found<T>)>,
    pub(crate) aliases: BTreeMap<TensorName, TensorName>,
    pub(crate) values: Values,
    pub(crate) step: Option<u64>,
    pub(crate) epoch: Option<u64>,
}

/// What is wanted of a state dict.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NameRules {
    /// Which algorithm, where an optimizer does not tell.
    pub(crate) algorithm: Option<Algorithm>,
    /// Whether an optimizer that cannot be understood is left out, and the rest taken.
    pub(crate) is_lenient: bool,
}

/// Names everything in a state dict. `spec_of` says what a tensor is; equal ones of a part are the
/// same memory, the first name of which is kept.
///
/// # Errors
/// [`ErrorKind::Incompatible`] for what is no state dict, and for an optimizer of another kind;
/// [`ErrorKind::Mismatch`] if parameters of an optimizer cannot be told, or two things would have
/// one name; [`ErrorKind::Corrupt`].
pub(crate) fn named<T: Clone + Eq + Hash>(
    tree: Tree<T>,
    spec_of: &dyn Fn(&T) -> Result<TensorSpec>,
    rules: NameRules,
) -> Result<Named<T>> {
    let Tree::Dict(entries) = tree else {
        return Err(Error::new(ErrorKind::Incompatible, "no dictionary: no state dict"));
    };
    let mut naming = Naming {
        noted: Noted::read(&entries),
        spec_of,
        algorithm: rules.algorithm,
        same: HashMap::new(),
        model: Vec::new(),
        named: Named {
            tensors: BTreeMap::new(),
            aliases: BTreeMap::new(),
            values: Values::new(),
            step: None,
            epoch: None,
        },
    };
    let optimizers = naming.parts(entries)?;
    let several = optimizers.len() > 1;
    for (name, optimizer) in optimizers {
        let usual = || if several { format!("optimizers.{name}") } else { "optimizer".to_owned() };
        let prefix = naming.noted.of("optimizers", &name).unwrap_or_else(usual);
        match naming.optimizer(&prefix, optimizer) {
            Err(error) if rules.is_lenient => {
                tracing::warn!(%error, optimizer = %short(&name), "an optimizer is left out");
                naming.same.retain(|_, name| !is_below(name.as_str(), &prefix));
                naming.named.forget(&prefix);
            }
            done => done.map_err(|e| with_name(e, &name))?,
        }
    }
    Ok(naming.named)
}

impl<T> Named<T> {
    /// Takes back what was named below a prefix.
    fn forget(&mut self, prefix: &str) {
        let is_below = |name: &str| is_below(name, prefix);
        self.tensors.retain(|name, _| !is_below(name.as_str()));
        self.aliases.retain(|name, _| !is_below(name.as_str()));
        let values = std::mem::take(&mut self.values);
        let kept = values.iter().filter(|(name, _)| !is_below(name));
        kept.for_each(|(name, value)| self.values.set(name, value.clone()));
    }
}

fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

/// Of an optimizer that was not understood.
fn with_name(error: Error, name: &str) -> Error {
    let message = format!("optimizer `{}`: {}", short(name), error.message());
    let help = error.help().unwrap_or("`--lenient` leaves it out").to_owned();
    let named = Error::new(error.kind(), message).with_help(help);
    match error.tensor() {
        Some(tensor) => named.with_tensor(tensor.to_owned()),
        None => named,
    }
}

/// What an export from here has noted of itself: by topic, texts by name.
#[derive(Default)]
struct Noted(HashMap<(String, String), String>);

impl Noted {
    fn read<T>(entries: &[(Key, Tree<T>)]) -> Self {
        let mut noted = HashMap::new();
        let ours = entries.iter().find(|(key, _)| text_of(key) == OURS).map(|(_, tree)| tree);
        let Some(Tree::Dict(topics)) = ours else { return Self::default() };
        for (topic, tree) in topics {
            let Tree::Dict(entries) = tree else { continue };
            for (key, tree) in entries {
                let text = match tree {
                    Tree::Plain(Plain::Text(text)) => text.clone(),
                    _ => String::new(),
                };
                noted.insert((text_of(topic), text_of(key)), text);
            }
        }
        Self(noted)
    }

    fn of(&self, topic: &str, name: &str) -> Option<String> {
        self.0.get(&(topic.to_owned(), name.to_owned())).cloned()
    }
}

struct Naming<'s, T> {
    noted: Noted,
    spec_of: &'s dyn Fn(&T) -> Result<TensorSpec>,
    algorithm: Option<Algorithm>,
    /// The name of each tensor of each component.
    same: HashMap<(Component, T), TensorName>,
    /// Tensors of the model in the order of its dictionary, each once.
    model: Vec<(String, TensorSpec)>,
    named: Named<T>,
}

type Entries<T> = Vec<(Key, Tree<T>)>;

impl<T: Clone + Eq + Hash> Naming<'_, T> {
    /// All but optimizers, which need the names of the model and are given back.
    fn parts(&mut self, entries: Entries<T>) -> Result<Vec<(String, Tree<T>)>> {
        let whole = Tree::Dict(entries);
        if is_optimizer(&whole) {
            return Ok(vec![("optimizer".to_owned(), whole)]);
        }
        if is_state(&whole) && !wraps_model(&whole) {
            self.tensors(&Component::model(), "", whole, true)?;
            return Ok(Vec::new());
        }
        let Tree::Dict(entries) = whole else { return Ok(Vec::new()) };
        let model = model_of(&entries);
        let mut optimizers = Vec::new();
        for (key, tree) in entries {
            let name = text_of(&key);
            match tree {
                tree if is_optimizer(&tree) => optimizers.push((name, tree)),
                Tree::List(items) if !items.is_empty() && items.iter().all(is_optimizer) => {
                    let numbered = items.into_iter().enumerate();
                    optimizers.extend(numbered.map(|(number, tree)| (number.to_string(), tree)));
                }
                tree if Some(&name) == model.as_ref() => {
                    self.tensors(&Component::model(), "", tree, true)?;
                }
                tree => self.part(&name, tree)?,
            }
        }
        Ok(optimizers)
    }

    /// A part of a training by its name.
    fn part(&mut self, name: &str, tree: Tree<T>) -> Result<()> {
        match tree {
            Tree::Plain(Plain::Int(count)) if STEPS.contains(&name) || name == EPOCH => {
                let count = u64::try_from(count)
                    .map_err(|_| Error::new(ErrorKind::Corrupt, format!("`{name}` is {count}")))?;
                let counter =
                    if name == EPOCH { &mut self.named.epoch } else { &mut self.named.step };
                *counter = Some(count);
                Ok(())
            }
            Tree::Dict(_) if name == OURS => Ok(()),
            Tree::Dict(entries) if name == VALUES => {
                entries.into_iter().try_for_each(|(key, tree)| self.value(&text_of(&key), tree))
            }
            tree if self.noted.of("components", name).is_some() => {
                let component = self.noted.of("components", name).unwrap_or_default();
                let component =
                    Component::new(component).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
                self.tensors(&component, "", tree, false)
            }
            tree if has_tensors(&tree) => {
                let component =
                    if AVERAGES.contains(&name) { Component::ema() } else { component_of(name) };
                let prefix = if component == Component::ema() { "ema" } else { name };
                self.tensors(&component, prefix, tree, false)
            }
            tree => self.value(name, tree),
        }
    }

    /// All tensors below `tree`, by their path; what is none becomes a value.
    fn tensors(
        &mut self,
        component: &Component,
        prefix: &str,
        tree: Tree<T>,
        is_model: bool,
    ) -> Result<()> {
        match tree {
            Tree::Tensor(tensor) => {
                let spec = (self.spec_of)(&tensor).map_err(|e| e.with_tensor(short(prefix)))?;
                let is_first = self.add(component, prefix, Found::Stored(tensor))?;
                if is_model && is_first {
                    self.model.push((prefix.to_owned(), spec));
                }
                Ok(())
            }
            Tree::Plain(_) => self.value(prefix, tree),
            Tree::Dict(entries) => entries.into_iter().try_for_each(|(key, tree)| {
                self.tensors(component, &joined(prefix, &text_of(&key)), tree, is_model)
            }),
            Tree::List(items) => items.into_iter().enumerate().try_for_each(|(number, tree)| {
                self.tensors(component, &joined(prefix, &number.to_string()), tree, is_model)
            }),
        }
    }

    /// False if it is another name of a tensor that is there.
    fn add(&mut self, component: &Component, name: &str, found: Found<T>) -> Result<bool> {
        let name = TensorName::new(name).map_err(|e| e.with_kind(ErrorKind::Incompatible))?;
        if self.named.tensors.contains_key(&name) || self.named.aliases.contains_key(&name) {
            let message = "two tensors would have this name";
            return Err(Error::new(ErrorKind::Mismatch, message).with_tensor(name.to_string()));
        }
        if let Found::Stored(tensor) = &found {
            let key = (component.clone(), tensor.clone());
            if let Some(kept) = self.same.get(&key) {
                self.named.aliases.insert(name, kept.clone());
                return Ok(false);
            }
            self.same.insert(key, name.clone());
        }
        self.named.tensors.insert(name, (component.clone(), found));
        Ok(true)
    }
}

/// The dictionary that is the model: by its name, or because no other one holds tensors.
fn model_of<T>(entries: &[(Key, Tree<T>)]) -> Option<String> {
    let states: Vec<String> =
        entries.iter().filter(|(_, tree)| is_state(tree)).map(|(key, _)| text_of(key)).collect();
    let by_name = MODELS.iter().find_map(|name| states.iter().find(|state| state == name));
    let alone = || states.first().filter(|name| states.len() == 1 && !is_average(name));
    by_name.or_else(alone).cloned()
}

fn is_average(name: &str) -> bool {
    AVERAGES.contains(&name)
}

/// Whether a dictionary in it has the name of a model.
fn wraps_model<T>(tree: &Tree<T>) -> bool {
    let Tree::Dict(entries) = tree else { return false };
    let is_model = |(key, tree): &(Key, Tree<T>)| {
        MODELS.contains(&text_of(key).as_str()) && matches!(tree, Tree::Dict(_))
    };
    entries.iter().any(is_model)
}

/// Whether it holds tensors and nothing else.
fn is_state<T>(tree: &Tree<T>) -> bool {
    match tree {
        Tree::Dict(entries) => {
            !entries.is_empty()
                && entries.iter().all(|(_, tree)| matches!(tree, Tree::Tensor(_)) || is_state(tree))
        }
        _ => false,
    }
}

fn has_tensors<T>(tree: &Tree<T>) -> bool {
    match tree {
        Tree::Tensor(_) => true,
        Tree::Plain(_) => false,
        Tree::Dict(entries) => entries.iter().any(|(_, tree)| has_tensors(tree)),
        Tree::List(items) => items.iter().any(has_tensors),
    }
}

/// As `torch.optim` has it, or with one entry for each of its leaves.
fn is_optimizer<T>(tree: &Tree<T>) -> bool {
    let Tree::Dict(entries) = tree else { return false };
    // A state that is empty is not written by all.
    let is_group = |tree: &Tree<T>| match tree {
        Tree::Dict(group) => group.iter().any(|(key, _)| text_of(key) == "params"),
        _ => false,
    };
    let has_groups_of_params = entries.iter().any(|(key, tree)| match tree {
        Tree::List(groups) => text_of(key) == "param_groups" && groups.iter().all(is_group),
        _ => false,
    });
    let begins = |key: &Key, prefix: &str| text_of(key).starts_with(prefix);
    let is_flat = |key: &Key| begins(key, "state.") || begins(key, "param_groups.");
    let is_flat = entries.iter().all(|(key, _)| is_flat(key));
    let has_groups = entries.iter().any(|(key, _)| begins(key, "param_groups."));
    has_groups_of_params || (is_flat && has_groups)
}

fn component_of(name: &str) -> Component {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = name.chars().map(fit).take(32).collect();
    Component::new(name).or_else(|_| Component::new("other")).unwrap_or_else(|_| Component::model())
}

fn text_of(key: &Key) -> String {
    match key {
        Key::Text(text) => text.clone(),
        Key::Int(int) => int.to_string(),
    }
}

fn joined(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
