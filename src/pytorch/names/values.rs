//! Plain values of a state dict.

use std::hash::Hash;

use serde_json::Value as Json;

use super::{Naming, Plain, Tree, joined, text_of};
use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;
use crate::state::Value;

impl<T: Clone + Eq + Hash> Naming<'_, T> {
    /// A value under this name, or what it consists of under names below it.
    pub(super) fn value(&mut self, name: &str, tree: Tree<T>) -> Result<()> {
        if let Some(value) = value_of(&tree) {
            let value = match value {
                Value::Text(text) if self.noted.of("json", name).is_some() => Value::Json(text),
                Value::Json(_) if self.noted.of("floats", name).is_some() => Value::Floats(vec![]),
                value => value,
            };
            if self.named.values.find(name).is_some() {
                let message = format!("two values would have the name `{}`", short(name));
                return Err(Error::new(ErrorKind::Mismatch, message));
            }
            self.named.values.set(name, value);
            return Ok(());
        }
        match tree {
            Tree::Dict(entries) => entries
                .into_iter()
                .try_for_each(|(key, tree)| self.value(&joined(name, &text_of(&key)), tree)),
            Tree::List(items) => items.into_iter().enumerate().try_for_each(|(number, tree)| {
                self.value(&joined(name, &number.to_string()), tree)
            }),
            _ => Ok(()),
        }
    }
}

/// As one value; `None` for a dictionary, and for what JSON cannot say.
fn value_of<T>(tree: &Tree<T>) -> Option<Value> {
    match tree {
        Tree::Plain(Plain::None) => Some(Value::Json("null".to_owned())),
        Tree::Plain(Plain::Bool(value)) => Some(Value::Bool(*value)),
        Tree::Plain(Plain::Int(value)) => Some(Value::Int(*value)),
        Tree::Plain(Plain::Float(value)) => Some(Value::Float(*value)),
        Tree::Plain(Plain::Text(value)) => Some(Value::Text(value.clone())),
        Tree::Plain(Plain::Bytes(value)) => Some(Value::Bytes(value.clone())),
        Tree::List(items) => {
            let float = |item: &Tree<T>| match item {
                Tree::Plain(Plain::Float(value)) => Some(*value),
                _ => None,
            };
            let floats: Option<Vec<f64>> = items.iter().map(float).collect();
            let json = || json_of(tree).map(|json| Value::Json(json.to_string()));
            floats.filter(|floats| !floats.is_empty()).map(Value::Floats).or_else(json)
        }
        Tree::Tensor(_) | Tree::Dict(_) => None,
    }
}

/// `None` for what JSON cannot say: tensors, bytes, numbers that are none.
pub(super) fn json_of<T>(tree: &Tree<T>) -> Option<Json> {
    Some(match tree {
        Tree::Tensor(_) | Tree::Plain(Plain::Bytes(_)) => return None,
        Tree::Plain(Plain::None) => Json::Null,
        Tree::Plain(Plain::Bool(value)) => Json::from(*value),
        Tree::Plain(Plain::Int(value)) => Json::from(*value),
        Tree::Plain(Plain::Float(value)) => {
            return serde_json::Number::from_f64(*value).map(Json::Number);
        }
        Tree::Plain(Plain::Text(value)) => Json::from(value.clone()),
        Tree::List(items) => Json::Array(items.iter().map(json_of).collect::<Option<_>>()?),
        Tree::Dict(entries) => {
            let entry = |(key, tree): &(_, Tree<T>)| Some((text_of(key), json_of(tree)?));
            Json::Object(entries.iter().map(entry).collect::<Option<_>>()?)
        }
    })
}
