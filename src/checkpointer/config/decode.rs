//! From a tree to a configuration, with every fault at its line and column.

use std::rc::Rc;

#[cfg(feature = "torch")]
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointerConfig;
use super::tree::{Fault, Key, Kind, Node, line_and_column};
use crate::error::{Error, ErrorKind, Result};
use crate::nearest::nearest;

/// Faults that one error lists.
const FAULTS_MAX: usize = 20;
/// Tables and lists in a field that holds most of them: how deep the place of a fault is looked for.
const FIELDS_DEPTH: usize = 2;
/// Parts of one table or list of which that is looked for.
const CHILDREN_MAX: usize = 1000;

/// Names of all fields with their defaults.
pub(super) fn fields() -> Map<String, Value> {
    match serde_json::to_value(CheckpointerConfig::default()) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// A configuration that differs from the default in these fields.
pub(super) fn from_fields(fields: Map<String, Value>) -> serde_json::Result<CheckpointerConfig> {
    serde_json::from_value(Value::Object(fields))
}

/// Whether `field` can hold `value`; the reason in words if not.
pub(super) fn try_field(field: &str, value: &Value) -> Result<(), String> {
    let only = Map::from_iter([(field.to_owned(), value.clone())]);
    from_fields(only).map(drop).map_err(|error| in_words(&error.to_string()))
}

/// What serde says, without the names of Rust's types.
fn in_words(reason: &str) -> String {
    let reason = match reason {
        "invalid type: unit variant, expected newtype variant" => "this one needs a value",
        reason => reason,
    };
    reason
        .replace("expected u64", "expected a whole number, 0 or more")
        .replace("expected f64", "expected a number")
}

/// What is under `section`, as a value of another type.
#[cfg(feature = "torch")]
pub(super) fn table<T: DeserializeOwned>(text: &str, root: &Node, section: &str) -> Result<T> {
    let node = find(text, root, section)?;
    let value = match &node.kind {
        Kind::Null => Value::Object(Map::new()),
        _ => node.to_json().map_err(|fault| refusal(text, &[fault]))?,
    };
    serde_json::from_value(value).map_err(|error| {
        let fault =
            Fault::new(node.at, format!("in `{section}`: {}", in_words(&error.to_string())));
        refusal(text, &[fault])
    })
}

/// The configuration under `section`, names of tables joined by dots, of the whole text if empty.
pub(super) fn decode(text: &str, root: &Node, section: &str) -> Result<CheckpointerConfig> {
    let node = find(text, root, section)?;
    let entries = match &node.kind {
        Kind::Table(entries) => entries.as_slice(),
        // What a YAML text without any value, or a key without one, reads as.
        Kind::Null => &[],
        _ => return Err(refusal(text, &[Fault::new(node.at, "a table of settings belongs here")])),
    };
    let known = fields();
    let mut values = Map::new();
    let mut faults = Vec::new();
    let mut help = None;
    for (key, node) in entries {
        if known.contains_key(&key.name) {
            match field_of(key, node) {
                Ok(value) => drop(values.insert(key.name.clone(), value)),
                Err(fault) => faults.push(fault),
            }
        } else {
            let meant = nearest(&key.name, known.keys().map(String::as_str));
            faults.push(unknown(key, meant));
            help = help.or_else(|| meant.is_none().then(|| list(&known, key, node)));
        }
        if faults.len() == FAULTS_MAX {
            break;
        }
    }
    if faults.is_empty() {
        return from_fields(values)
            .map_err(|error| refusal(text, &[Fault::new(node.at, error.to_string())]));
    }
    let error = refusal(text, &faults);
    Err(match help {
        Some(help) => error.with_help(help),
        None => error,
    })
}

fn list(known: &Map<String, Value>, key: &Key, node: &Node) -> String {
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    let names = format!("known keys: {}", names.join(", "));
    match node.kind {
        Kind::Table(_) => format!(
            "if `{}` is the table of these settings in a larger file, read it by `from_file_at`; {names}",
            shown(&key.name)
        ),
        _ => names,
    }
}

fn shown(name: &str) -> String {
    name.chars().take(60).collect()
}

fn unknown(key: &Key, meant: Option<&str>) -> Fault {
    let name = shown(&key.name);
    let meant = meant.map(|meant| format!(", did you mean `{meant}`?")).unwrap_or_default();
    Fault::new(key.at, format!("unknown key `{name}`{meant}"))
}

fn field_of(key: &Key, node: &Node) -> Result<Value, Fault> {
    let value = node.to_json()?;
    let fits = |value: &Value| try_field(&key.name, value);
    fits(&value).map_err(|reason| {
        let (at, reason) = innermost(key, node, reason, &fits, 0);
        let hint = hint(&key.name, &value, &reason);
        Fault::new(at, format!("`{}`: {reason}{hint}", key.name))
    })?;
    Ok(value)
}

/// The byte at which the fault of `node` is, which does not fit for `reason`, and the reason there.
fn innermost(
    key: &Key,
    node: &Node,
    reason: String,
    fits: &dyn Fn(&Value) -> Result<(), String>,
    depth: usize,
) -> (usize, String) {
    let look = |key: &Key, child: &Node, whole: &dyn Fn(Value) -> Value| {
        let fits = |value: &Value| fits(&whole(value.clone()));
        let value = child.to_json().map_err(|fault| fault.what);
        let reason = value.and_then(|value| fits(&value)).err()?;
        Some(innermost(key, child, reason, &fits, depth + 1))
    };
    let found = match &node.kind {
        _ if depth == FIELDS_DEPTH || reason.starts_with("invalid type: map") => None,
        Kind::List(_) if fits(&Value::Array(Vec::new())).is_err() => None,
        Kind::Table(entries) => entries.iter().take(CHILDREN_MAX).find_map(|(key, child)| {
            look(key, child, &|value| Value::Object(Map::from_iter([(key.name.clone(), value)])))
        }),
        Kind::List(items) => items
            .iter()
            .take(CHILDREN_MAX)
            .find_map(|item| look(key, item, &|value| Value::Array(vec![value]))),
        _ => None,
    };
    found.unwrap_or_else(|| {
        let unknown =
            ["unknown field", "unknown variant"].map(|what| format!("{what} `{}`", key.name));
        let is_the_name = unknown.iter().any(|name| reason.starts_with(name));
        (if is_the_name { key.at } else { node.at }, reason)
    })
}

/// What to write instead of a value that other tools would take.
fn hint(field: &str, value: &Value, reason: &str) -> &'static str {
    let is_optional = fields().get(field).is_some_and(Value::is_null);
    match value {
        Value::Number(number) if number.as_f64() < Some(0.0) && is_optional => {
            "; leave it out for no such rule"
        }
        // Reasons show floating numbers with a point.
        Value::Number(_)
            if reason.starts_with("invalid type: floating") && reason.contains(".0`") =>
        {
            "; write it without point and exponent"
        }
        Value::Number(_) | Value::Bool(_) if reason.ends_with("expected a string") => {
            "; put it in quotes"
        }
        Value::String(_) if reason.ends_with("expected a boolean") => "; write `true` or `false`",
        Value::String(text) if text.contains('/') && reason.contains("`path`") => {
            "; a path is a table with `path`"
        }
        _ => "",
    }
}

fn find<'a>(text: &str, root: &'a Node, section: &str) -> Result<&'a Node> {
    let mut node = root;
    for name in section.split('.').filter(|name| !name.is_empty()) {
        let entries: &[(Key, Rc<Node>)] = match &node.kind {
            Kind::Table(entries) => entries,
            _ => &[],
        };
        let Some((_, child)) = entries.iter().find(|(key, _)| key.name == name) else {
            let names = entries.iter().map(|(key, _)| key.name.as_str()).take(FAULTS_MAX);
            let there = names.clone().collect::<Vec<_>>().join(", ");
            let meant = match nearest(name, names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None if there.is_empty() => "there is no table at all".to_owned(),
                None => format!("there are {there}"),
            };
            let fault = Fault::new(node.at, format!("no table `{section}`: no `{name}`, {meant}"));
            return Err(refusal(text, &[fault]));
        };
        node = child;
    }
    Ok(node)
}

/// One error for all faults of a text.
pub(super) fn refusal(text: &str, faults: &[Fault]) -> Error {
    let placed = |fault: &Fault| {
        let (line, column) = line_and_column(text, fault.at);
        format!("line {line}, column {column}: {}", fault.what)
    };
    together(faults.iter().map(placed).collect())
}

/// One error for all of `faults`, which are in words.
pub(super) fn together(faults: Vec<String>) -> Error {
    let message = match faults.as_slice() {
        [only] => only.clone(),
        several => format!("{} faults:\n  {}", several.len(), several.join("\n  ")),
    };
    Error::new(ErrorKind::InvalidInput, message)
}
