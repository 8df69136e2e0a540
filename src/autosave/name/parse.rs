//! From the text of a template to literal text and fields.

use super::fields::KnownFields;
use super::sanitise::RESERVED;
use super::spec::{Operand, Spec};
use crate::error::{Error, ErrorKind, Result};

const TEMPLATE_BYTES_MAX: usize = 1024;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Literal(String),
    Field(Field),
}

/// `{name!r:format}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) operand: Operand,
    /// Absent: plain text of the value.
    pub(super) spec: Option<Spec>,
    pub(super) spec_text: String,
}

/// Splits and checks `template`; every reason is given in words and with the known fields.
pub(super) fn parse(template: &str, known: &KnownFields) -> Result<Vec<Segment>> {
    segments(template, known).and_then(check_literals).map_err(|reason| {
        let shown: String = template.chars().take(TEMPLATE_BYTES_MAX).collect();
        Error::new(
            ErrorKind::InvalidInput,
            format!("name template `{shown}`: {reason}; known fields: {}", known.list()),
        )
    })
}

fn segments(template: &str, known: &KnownFields) -> Result<Vec<Segment>, String> {
    if template.trim().is_empty() {
        return Err("it is empty".into());
    }
    if template.len() > TEMPLATE_BYTES_MAX {
        return Err(format!("it is longer than {TEMPLATE_BYTES_MAX} bytes"));
    }
    let mut segments = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        literal.push_str(before);
        if let Some(after) = from.strip_prefix("{{") {
            literal.push('{');
            rest = after;
        } else if let Some(after) = from.strip_prefix("}}") {
            literal.push('}');
            rest = after;
        } else if let Some(after) = from.strip_prefix('{') {
            let (field, after) = after.split_once('}').ok_or(LONE_OPEN)?;
            if !literal.is_empty() {
                segments.push(Segment::Literal(std::mem::take(&mut literal)));
            }
            segments.push(Segment::Field(parse_field(field, known)?));
            rest = after;
        } else {
            return Err(LONE_CLOSE.into());
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        segments.push(Segment::Literal(literal));
    }
    Ok(segments)
}

const LONE_OPEN: &str = "a `{` is never closed; write `{{` for a brace";
const LONE_CLOSE: &str = "a `}` stands alone; write `}}` for a brace";

fn check_literals(segments: Vec<Segment>) -> Result<Vec<Segment>, String> {
    for segment in &segments {
        let Segment::Literal(text) = segment else { continue };
        if text.contains('/') {
            return Err("a `/` would leave the directory of the checkpoints".into());
        }
        if text.contains("..") {
            return Err("a `..` would leave the directory of the checkpoints".into());
        }
    }
    match segments.as_slice() {
        [Segment::Literal(text)] if RESERVED.contains(&text.as_str()) => {
            Err(format!("`{text}` is the name of a link beside the checkpoints"))
        }
        _ => Ok(segments),
    }
}

fn parse_field(text: &str, known: &KnownFields) -> Result<Field, String> {
    if text.contains('{') {
        return Err(format!("`{{{text}`: a field inside a field is not supported"));
    }
    let (name, suffix) = text.split_at(text.find(['!', ':']).unwrap_or(text.len()));
    check_name(name, known)?;
    let (operand, spec_text) = split_suffix(suffix)
        .ok_or_else(|| format!("`{{{text}}}`: after `!` comes `r` or `s`, then `:` or `}}`"))?;
    let spec = match spec_text {
        "" => None,
        spec => Some(Spec::parse(spec, operand).map_err(|why| format!("`{{{text}}}`: {why}"))?),
    };
    if spec.as_ref().is_some_and(|spec| spec.fill == '/') {
        return Err(format!("`{{{text}}}`: a `/` cannot be part of a name"));
    }
    Ok(Field { name: name.to_owned(), operand, spec, spec_text: spec_text.to_owned() })
}

fn split_suffix(suffix: &str) -> Option<(Operand, &str)> {
    let converted = suffix.strip_prefix("!r").or_else(|| suffix.strip_prefix("!s"));
    let (operand, rest) = match converted {
        Some(rest) => (Operand::Text, rest),
        None => (Operand::Number, suffix),
    };
    if rest.is_empty() { Some((operand, "")) } else { Some((operand, rest.strip_prefix(':')?)) }
}

fn check_name(name: &str, known: &KnownFields) -> Result<(), String> {
    if known.contains(name) {
        return Ok(());
    }
    if name.is_empty() || name.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{{{name}}}`: a field needs a name, not a position"));
    }
    if let Some(at) = name.find(['.', '[']).filter(|&at| known.contains(name.split_at(at).0)) {
        let field = name.split_at(at).0;
        return Err(format!(
            "`{{{name}}}`: attributes and indices are not supported; `{{{field}}}`"
        ));
    }
    Err(match known.suggest(name) {
        Some(meant) => format!("unknown field `{name}`, did you mean `{meant}`?"),
        None => format!("unknown field `{name}`"),
    })
}
