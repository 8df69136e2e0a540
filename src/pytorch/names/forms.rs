//! The forms in which PyTorch writes an optimizer.

use std::collections::{BTreeMap, HashMap};

use super::values::json_of;
use super::{Entries, Key, Plain, Tree, text_of};
use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;

/// An optimizer with names of parameters, in order.
pub(super) struct Optimizer<T> {
    pub(super) state: HashMap<String, Entries<T>>,
    pub(super) groups: Vec<Group<T>>,
}

pub(super) struct Group<T> {
    pub(super) settings: Entries<T>,
    pub(super) parameters: Vec<Key>,
    /// As `torch.optim` notes them, if it was given any.
    pub(super) names: Option<Vec<String>>,
}

/// As `torch.optim` has it.
pub(super) fn nested<T>(entries: Entries<T>) -> Result<Optimizer<T>> {
    let mut optimizer = Optimizer { state: HashMap::new(), groups: Vec::new() };
    let malformed = || Error::new(ErrorKind::Corrupt, "an optimizer of another form");
    for (key, tree) in entries {
        match (text_of(&key).as_str(), tree) {
            ("state", Tree::Dict(states)) => {
                for (id, slots) in states {
                    let Tree::Dict(slots) = slots else { return Err(malformed()) };
                    optimizer.state.insert(text_of(&id), slots);
                }
            }
            // Numbers from zero on look like a list.
            ("state", Tree::List(states)) => {
                for (id, slots) in states.into_iter().enumerate() {
                    let Tree::Dict(slots) = slots else { return Err(malformed()) };
                    optimizer.state.insert(id.to_string(), slots);
                }
            }
            ("param_groups", Tree::List(groups)) => {
                for group in groups {
                    let Tree::Dict(entries) = group else { return Err(malformed()) };
                    optimizer.groups.push(group_of(entries).ok_or_else(malformed)?);
                }
            }
            ("state" | "param_groups", _) => return Err(malformed()),
            _ => {}
        }
    }
    Ok(optimizer)
}

fn group_of<T>(entries: Entries<T>) -> Option<Group<T>> {
    let mut group = Group { settings: Vec::new(), parameters: Vec::new(), names: None };
    for (key, tree) in entries {
        match (text_of(&key).as_str(), tree) {
            ("params", Tree::List(ids)) => {
                let id = |tree: Tree<T>| match tree {
                    Tree::Plain(Plain::Int(id)) => Some(Key::Int(id)),
                    Tree::Plain(Plain::Text(name)) => Some(Key::Text(name)),
                    _ => None,
                };
                group.parameters = ids.into_iter().map(id).collect::<Option<_>>()?;
            }
            ("param_names", Tree::List(names)) => {
                let name = |tree: Tree<T>| match tree {
                    Tree::Plain(Plain::Text(name)) => Some(name),
                    _ => None,
                };
                group.names = Some(names.into_iter().map(name).collect::<Option<_>>()?);
            }
            (_, tree) => group.settings.push((key, tree)),
        }
    }
    Some(group)
}

/// As `flatten_optimizer_state_dict` has it: each setting for each parameter. Parameters of equal
/// settings are a group.
pub(super) fn flat<T>(entries: Entries<T>) -> Result<Optimizer<T>> {
    let mut optimizer = Optimizer { state: HashMap::new(), groups: Vec::new() };
    let (mut settings, mut order) = (HashMap::<String, Entries<T>>::new(), Vec::new());
    for (key, tree) in entries {
        let text = text_of(&key);
        let (part, rest) = text.split_once('.').unwrap_or((&text, ""));
        let (name, slot) = rest.rsplit_once('.').ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("`{}` of an optimizer", short(&text)))
        })?;
        let slot = (Key::Text(slot.to_owned()), tree);
        if part == "state" {
            optimizer.state.entry(name.to_owned()).or_default().push(slot);
        } else {
            if !settings.contains_key(name) {
                order.push(name.to_owned());
            }
            settings.entry(name.to_owned()).or_default().push(slot);
        }
    }
    let mut known: HashMap<String, usize> = HashMap::new();
    for name in order {
        let own = settings.remove(&name).unwrap_or_default();
        let like = own.iter().map(|(key, tree)| (text_of(key), json_of(tree)));
        let like = format!("{:?}", like.collect::<BTreeMap<_, _>>());
        let index = *known.entry(like).or_insert(optimizer.groups.len());
        if index == optimizer.groups.len() {
            let group = Group { settings: own, parameters: Vec::new(), names: None };
            optimizer.groups.push(group);
        }
        if let Some(group) = optimizer.groups.get_mut(index) {
            group.parameters.push(Key::Text(name));
        }
    }
    Ok(optimizer)
}
