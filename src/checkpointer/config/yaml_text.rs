//! YAML as a tree, by the core schema of YAML 1.2: `yes` and `on` are texts, not booleans.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::tree::{DEPTH_MAX, Fault, Key, Kind, Node};

/// Most that a text may become with its aliases written out, in bytes: a bound for alias bombs.
const WEIGHT_MAX: usize = 16 << 20;
/// What a value weighs beside its text.
const NODE_WEIGHT: usize = 32;

/// Reads a text of one document. An empty one is [`Kind::Null`].
pub(super) fn read(text: &str) -> Result<Node, Fault> {
    let mut options = Options::default();
    options.flow_nesting_limit = DEPTH_MAX;
    options.block_nesting_limit = DEPTH_MAX;
    options.set_emit_comments(false);
    let events = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { events, anchors: BTreeMap::new(), weight: 0 };
    let mut root = None;
    loop {
        let (event, at) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart(..) if root.is_some() => {
                return Err(Fault::new(at, "a second document begins; there may be only one"));
            }
            Event::DocumentStart(..) => {}
            event => root = Some(reader.node(event, at, 0)?),
        }
    }
    let root = root.unwrap_or_else(|| Rc::new(Node { at: 0, kind: Kind::Null }));
    Ok(Rc::unwrap_or_clone(root))
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// Values that aliases may stand for, and what they weigh.
    anchors: BTreeMap<usize, (Rc<Node>, usize)>,
    weight: usize,
}

impl<'a> Reader<'a> {
    /// The next event and the byte at which it begins.
    fn next(&mut self) -> Result<(Event<'a>, usize), Fault> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, begin(&span))),
            Some(Err(error)) => Err(fault(&error)),
            None => Err(Fault::new(0, "the text ends early")),
        }
    }

    fn weigh(&mut self, weight: usize, at: usize) -> Result<(), Fault> {
        self.weight = self.weight.saturating_add(weight);
        match self.weight > WEIGHT_MAX {
            true => Err(Fault::new(at, "too many values, or aliases that stand for too many")),
            false => Ok(()),
        }
    }

    /// The value that `event` begins.
    fn node(&mut self, event: Event<'a>, at: usize, depth: usize) -> Result<Rc<Node>, Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::new(at, format!("nested deeper than {DEPTH_MAX}")));
        }
        let before = self.weight;
        self.weigh(NODE_WEIGHT, at)?;
        let (kind, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, at),
            Event::Scalar(text, style, anchor, tag) => {
                self.weigh(text.len(), at)?;
                (scalar(&text, style, tag.as_deref()), anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.table(depth)?, anchor),
            _ => return Err(Fault::new(at, "a value is missing here")),
        };
        let node = Rc::new(Node { at, kind });
        if anchor != 0 {
            self.anchors.insert(anchor, (Rc::clone(&node), self.weight - before));
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, at: usize) -> Result<Rc<Node>, Fault> {
        let (node, weight) = self.anchors.get(&anchor).cloned().ok_or_else(|| {
            Fault::new(at, "this alias stands for a key, or for what it is a part of")
        })?;
        self.weigh(weight, at)?;
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Kind, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Kind::List(items)),
                (event, at) => items.push(self.node(event, at, depth + 1)?),
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Kind, Fault> {
        let mut entries = Vec::new();
        let mut names = BTreeSet::new();
        loop {
            let name = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Kind::Table(entries)),
                (Event::Scalar(name, ..), at) => Key { name: name.into_owned(), at },
                (_, at) => return Err(Fault::new(at, "a key that is no plain text")),
            };
            self.weigh(name.name.len(), name.at)?;
            if !names.insert(name.name.clone()) {
                return Err(Fault::new(name.at, format!("key `{}` is given twice", name.name)));
            }
            let (event, at) = self.next()?;
            entries.push((name, self.node(event, at, depth + 1)?));
        }
    }
}

fn begin(span: &Span) -> usize {
    span.start.byte_offset().unwrap_or(0)
}

fn fault(error: &ScanError) -> Fault {
    Fault::new(error.marker().byte_offset().unwrap_or(0), error.kind().to_string())
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Kind {
    let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix() == "str");
    if is_text || style != ScalarStyle::Plain {
        return Kind::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true),
        "false" | "False" | "FALSE" => Kind::Bool(false),
        _ => number(text).unwrap_or_else(|| Kind::Text(text.to_owned())),
    }
}

/// Nothing if this is no number.
fn number(text: &str) -> Option<Kind> {
    let is_all =
        |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix).filter(|digits| is_all(digits, radix)) {
            return Some(Kind::integer(digits, radix));
        }
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    match unsigned {
        ".inf" | ".Inf" | ".INF" => return Some(Kind::float(f64::INFINITY)),
        ".nan" | ".NaN" | ".NAN" => return Some(Kind::float(f64::NAN)),
        digits if is_all(digits, 10) => return Some(Kind::integer(text, 10)),
        _ => {}
    }
    // Rust also reads `inf` and `nan`, which are words here.
    let begins = unsigned.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
    begins.then(|| text.parse().ok().map(Kind::float)).flatten()
}
