//! A text of TOML or YAML as a tree whose values know where they stand.

use std::rc::Rc;

use serde_json::{Number, Value};

/// Deepest nesting of a text.
pub(super) const DEPTH_MAX: usize = 64;
/// Longest description of a fault.
const WHAT_CHARS_MAX: usize = 300;

/// A value and the byte of the text at which it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) kind: Kind,
}

/// What a value is. Children are shared, so that an alias in YAML costs nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Rc<Node>>),
    Table(Vec<(Key, Rc<Node>)>),
    /// What no field can hold, in words.
    Unfit(&'static str),
}

/// The name of a value in a table, and the byte at which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) at: usize,
}

/// What is wrong, and the byte at which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) what: String,
}

impl Fault {
    /// `what` is cut where a hostile text would make it long.
    pub(super) fn new(at: usize, what: impl Into<String>) -> Self {
        let mut what = what.into();
        if let Some((cut, _)) = what.char_indices().nth(WHAT_CHARS_MAX) {
            what.truncate(cut);
            what.push('…');
        }
        Self { at, what }
    }
}

impl Kind {
    /// A number, unless no field could hold it.
    pub(super) fn float(number: f64) -> Self {
        Number::from_f64(number).map_or(Self::Unfit("a number that is not finite"), Self::Number)
    }

    /// An integer by its digits.
    pub(super) fn integer(digits: &str, radix: u32) -> Self {
        let number = match u64::from_str_radix(digits, radix) {
            Ok(number) => Some(number.into()),
            Err(_) => i64::from_str_radix(digits, radix).ok().map(Number::from),
        };
        number.map_or(Self::Unfit("an integer of more than 64 bits"), Self::Number)
    }
}

impl Node {
    /// The value without its place.
    pub(super) fn to_json(&self) -> Result<Value, Fault> {
        Ok(match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::Text(text) => Value::String(text.clone()),
            Kind::List(items) => {
                Value::Array(items.iter().map(|item| item.to_json()).collect::<Result<_, _>>()?)
            }
            Kind::Table(entries) => {
                let pair = |(key, node): &(Key, Rc<Self>)| Ok((key.name.clone(), node.to_json()?));
                Value::Object(entries.iter().map(pair).collect::<Result<_, _>>()?)
            }
            Kind::Unfit(what) => return Err(Fault::new(self.at, format!("{what} fits nothing"))),
        })
    }
}

/// Line and column of a byte, both counted from 1; columns count characters.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
    let last = before.rsplit('\n').next().unwrap_or_default();
    (line, last.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one_and_in_characters() {
        let text = "a\näöx\n";
        for (at, place) in [(0, (1, 1)), (1, (1, 2)), (2, (2, 1)), (6, (2, 3)), (99, (3, 1))] {
            assert_eq!(line_and_column(text, at), place, "{at}");
        }
    }

    #[test]
    fn integers_of_64_bits_fit_and_longer_ones_do_not() {
        let number = |digits, radix| match Kind::integer(digits, radix) {
            Kind::Number(number) => Some(number.to_string()),
            _ => None,
        };
        assert_eq!(number("18446744073709551615", 10).as_deref(), Some("18446744073709551615"));
        assert_eq!(number("-9223372036854775808", 10).as_deref(), Some("-9223372036854775808"));
        assert_eq!(number("ff", 16).as_deref(), Some("255"));
        assert_eq!(number("18446744073709551616", 10), None);
        assert_eq!(Kind::float(f64::INFINITY), Kind::Unfit("a number that is not finite"));
    }
}
