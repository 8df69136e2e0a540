//! TOML as a tree.

use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::tree::{DEPTH_MAX, Fault, Key, Kind, Node};

/// Reads a text of TOML 1.1; its root is a table.
pub(super) fn read(text: &str) -> Result<Node, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Fault::new(at, error.message().trim().replace('\n', ", "))
    })?;
    Ok(Node { at: table.span().start, kind: table_of(table.get_ref(), 0)? })
}

fn table_of(table: &DeTable<'_>, depth: usize) -> Result<Kind, Fault> {
    let entry = |(key, value): (&Spanned<_>, _)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let key = Key { name: name.clone().into_owned(), at: key.span().start };
        Ok((key, Rc::new(node(value, depth + 1)?)))
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect::<Result<_, _>>()?;
    entries.sort_by_key(|(key, _)| key.at);
    Ok(Kind::Table(entries))
}

fn node(value: &Spanned<DeValue<'_>>, depth: usize) -> Result<Node, Fault> {
    let at = value.span().start;
    if depth > DEPTH_MAX {
        return Err(Fault::new(at, format!("nested deeper than {DEPTH_MAX}")));
    }
    let kind = match value.get_ref() {
        DeValue::String(text) => Kind::Text(text.clone().into_owned()),
        DeValue::Integer(digits) => Kind::integer(digits.as_str(), digits.radix()),
        DeValue::Float(digits) => {
            digits.as_str().parse().map_or(Kind::Unfit("this number"), Kind::float)
        }
        DeValue::Boolean(value) => Kind::Bool(*value),
        DeValue::Datetime(_) => Kind::Unfit("a date or time"),
        DeValue::Array(items) => {
            let item = |item| Ok(Rc::new(node(item, depth + 1)?));
            Kind::List(items.iter().map(item).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => table_of(table, depth)?,
    };
    Ok(Node { at, kind })
}
