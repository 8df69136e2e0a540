//! From a tree to a configuration, with every fault at its line and column.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::CheckpointerConfig;
use super::tree::{Fault, Key, Kind, Node, line_and_column};
use crate::error::{Error, ErrorKind, Result};
use crate::nearest::nearest;

/// Faults that one error lists.
const FAULTS_MAX: usize = 20;

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
    from_fields(only).map(drop).map_err(|error| error.to_string())
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
            help = help.or_else(|| meant.is_none().then(|| list(&known)));
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

fn list(known: &Map<String, Value>) -> String {
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    format!("known keys: {}", names.join(", "))
}

fn unknown(key: &Key, meant: Option<&str>) -> Fault {
    let name: String = key.name.chars().take(60).collect();
    let meant = meant.map(|meant| format!(", did you mean `{meant}`?")).unwrap_or_default();
    Fault::new(key.at, format!("unknown key `{name}`{meant}"))
}

fn field_of(key: &Key, node: &Node) -> Result<Value, Fault> {
    let value = node.to_json()?;
    try_field(&key.name, &value)
        .map_err(|reason| Fault::new(node.at, format!("`{}`: {reason}", key.name)))?;
    Ok(value)
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
