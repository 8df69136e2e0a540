//! Names of automatic checkpoints: a Python format string over the log of an epoch.

mod fields;
mod number;
mod parse;
mod sanitise;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

pub use fields::KnownFields;
pub use number::Number;

use crate::error::Result;
use number::format_text;
use parse::{Field, Segment};
use sanitise::sanitise;
use spec::Operand;

/// More checkpoints of one name than any directory should hold.
const VERSIONS_MAX: u32 = 1_000_000;

/// A template that was checked: each field is known and each format can work.
///
/// Fields are written as in Python's `str.format`: `{epoch}`, `{val_loss:.4f}`, `{lr:.1e}`,
/// `{acc:.1%}`, `{{` and `}}` for braces.
///
/// ```
/// use std::collections::BTreeMap;
/// use tch_checkpoint::autosave::{KnownFields, NameTemplate, Number};
///
/// # fn main() -> tch_checkpoint::Result<()> {
/// let known = KnownFields::new(["acc"]);
/// let template = NameTemplate::parse("model_epoch{epoch:03}_valloss{val_loss:.4f}", &known)?;
/// let values = BTreeMap::from([("val_loss".to_owned(), Number::Float(0.123_456))]);
/// assert_eq!(template.render(5, &values).name, "model_epoch005_valloss0.1235");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTemplate {
    source: String,
    segments: Vec<Segment>,
}

/// The name of one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// One safe path component of at most 200 bytes: ASCII letters, digits, `._-+=,%@~(){}` and
    /// inner spaces; not empty, no dot in front, not `latest` or `best`.
    pub name: String,
    /// Why the name is the fall-back `<literal text>_epoch<N>`, if it is.
    pub warning: Option<String>,
}

impl NameTemplate {
    /// Checks `template` against the fields that there will be.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a field that is not known
    /// (with a suggestion for a near miss), a format that can never work, a width or precision
    /// above 64, positions, attributes and indices, `/` or `..` in the text, an empty template, or
    /// the plain names `latest` and `best`. The message lists the known fields.
    pub fn parse(template: &str, known_fields: &KnownFields) -> Result<Self> {
        let segments = parse::parse(template, known_fields)?;
        Ok(Self { source: template.to_owned(), segments })
    }

    /// The name after `epoch`, counted from 1. A known field without a value prints `nan`.
    ///
    /// A format that does not fit its value (`02d` on a float) never fails a save: the name is
    /// then `<literal text>_epoch<N>`, with a warning.
    #[must_use]
    pub fn render(&self, epoch: u64, values: &BTreeMap<String, Number>) -> Rendered {
        match self.text(epoch, values) {
            Ok(text) => Rendered { name: sanitise(&text), warning: None },
            Err(reason) => {
                let name = sanitise(&format!("{}_epoch{epoch}", self.literal_text()));
                let warning =
                    format!("name template `{self}`: {reason}; the checkpoint is named `{name}`");
                Rendered { name, warning: Some(warning) }
            }
        }
    }

    /// The template as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    fn text(&self, epoch: u64, values: &BTreeMap<String, Number>) -> Result<String, String> {
        let epoch = Number::Int(i64::try_from(epoch).unwrap_or(i64::MAX));
        let value = |name: &str| match name {
            "epoch" => epoch,
            _ => values.get(name).copied().unwrap_or(Number::Float(f64::NAN)),
        };
        self.segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => Ok(text.clone()),
                Segment::Field(field) => format_field(field, value(&field.name)),
            })
            .collect()
    }

    fn literal_text(&self) -> String {
        self.segments
            .iter()
            .filter_map(|segment| match segment {
                Segment::Literal(text) => Some(text.as_str()),
                Segment::Field(_) => None,
            })
            .collect()
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

fn format_field(field: &Field, value: Number) -> Result<String, String> {
    match (&field.spec, field.operand) {
        (None, _) => Ok(value.plain()),
        (Some(spec), Operand::Text) => Ok(format_text(&value.plain(), spec)),
        (Some(spec), Operand::Number) => value.format(spec).map_err(|reason| {
            format!("field `{}` with format `{}`: {reason}", field.name, field.spec_text)
        }),
    }
}

/// `base` if it is free, else the first free one of `base-v1`, `base-v2`, …
///
/// With a million of them taken it is `base` again, so that the save itself reports it.
#[must_use]
pub fn unique_name(base: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(base) {
        return base.to_owned();
    }
    (1..=VERSIONS_MAX)
        .map(|version| format!("{base}-v{version}"))
        .find(|name| !taken(name))
        .unwrap_or_else(|| base.to_owned())
}
