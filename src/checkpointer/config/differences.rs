//! In which fields two configurations differ.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A field in which two configurations differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDifference {
    /// Its name; that of a field inside it follows after a dot.
    pub field: String,
    /// Our value as JSON, or `nothing`.
    pub ours: String,
    /// Their value as JSON, or `nothing`.
    pub theirs: String,
}

impl fmt::Display for FieldDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, ours, theirs } = self;
        write!(f, "`{field}` is {ours} here and {theirs} there")
    }
}

/// Every field in which two values differ, in the order of names. Tables are compared field by
/// field, lists as a whole. Works for anything that serde writes, so also for settings of others.
#[must_use]
pub fn differences(ours: &Value, theirs: &Value) -> Vec<FieldDifference> {
    let mut found = Vec::new();
    compare("", Some(ours), Some(theirs), &mut found);
    found
}

fn compare(
    field: &str,
    ours: Option<&Value>,
    theirs: Option<&Value>,
    found: &mut Vec<FieldDifference>,
) {
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (ours, theirs) {
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for name in names {
            let inner = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
            compare(&inner, a.get(name), b.get(name), found);
        }
    } else if ours != theirs {
        let (ours, theirs) = (shown(ours), shown(theirs));
        found.push(FieldDifference { field: field.to_owned(), ours, theirs });
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_with_both_values_and_inner_ones_by_a_path() {
        let ours = json!({"a": 1, "b": {"c": [1], "d": null, "same": 0}, "only": "x"});
        let theirs = json!({"a": 1.5, "b": {"c": [1, 2], "d": true, "same": 0}});
        let lines: Vec<_> = differences(&ours, &theirs).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "`a` is 1 here and 1.5 there",
                "`b.c` is [1] here and [1,2] there",
                "`b.d` is nothing here and true there",
                "`only` is \"x\" here and nothing there",
            ]
        );
        assert!(differences(&ours, &ours).is_empty());
    }

    #[test]
    fn values_of_other_kinds_differ_as_a_whole() {
        let found = differences(&json!({"a": {"step": 3}}), &json!({"a": "latest"}));
        assert_eq!(found[0].to_string(), "`a` is {\"step\":3} here and \"latest\" there");
        assert_eq!(found.len(), 1);
    }
}
