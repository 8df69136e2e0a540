//! What stands after the colon of a field: `[[fill]align][sign][#][0][width][,_][.precision][type]`.

/// Largest width and precision; a name has at most 200 bytes.
pub(super) const DIGITS_MAX: usize = 64;

/// What the field's value is when it meets the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    Number,
    /// After `!r` or `!s`.
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
    Centre,
    /// Padding between sign and digits.
    AfterSign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Minus,
    Plus,
    Space,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unset,
    Decimal,
    Fixed,
    Exponent,
    General,
    Percent,
}

/// A format that can work for some value of its operand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) fill: char,
    pub(super) align: Align,
    pub(super) sign: Sign,
    pub(super) alternate: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Kind,
    pub(super) upper: bool,
}

impl Spec {
    /// The reason in words if `text` can never work.
    pub(super) fn parse(text: &str, operand: Operand) -> Result<Self, String> {
        let mut rest = Rest(text);
        let explicit = rest.fill_and_align();
        let sign = rest.one_of("+- ");
        let alternate = rest.one_of("#").is_some();
        let zero = explicit.0.is_none() && rest.one_of("0").is_some();
        let width = rest.number("width")?;
        let grouping = rest.one_of(",_");
        let precision = match rest.one_of(".") {
            Some(_) => Some(rest.number("precision")?.ok_or("no precision after the point")?),
            None => None,
        };
        let (kind, upper) = rest.kind(operand)?;
        if operand == Operand::Text {
            let numeric = explicit.1 == Some(Align::AfterSign) || sign.is_some() || alternate;
            if numeric || grouping.is_some() {
                return Err("`=`, sign, `#` and grouping need a number, not `!r` or `!s`".into());
            }
        }
        if kind == Kind::Decimal && precision.is_some() {
            return Err("type `d` takes no precision".into());
        }
        Ok(Self {
            fill: explicit.0.unwrap_or(if zero { '0' } else { ' ' }),
            align: explicit.1.unwrap_or(match operand {
                Operand::Text => Align::Left,
                Operand::Number if zero => Align::AfterSign,
                Operand::Number => Align::Right,
            }),
            sign: match sign {
                Some('+') => Sign::Plus,
                Some(' ') => Sign::Space,
                _ => Sign::Minus,
            },
            alternate,
            width: width.unwrap_or(0),
            grouping,
            precision,
            kind,
            upper,
        })
    }
}

/// What of a format is not read yet.
struct Rest<'a>(&'a str);

impl Rest<'_> {
    fn fill_and_align(&mut self) -> (Option<char>, Option<Align>) {
        let mut chars = self.0.chars();
        let (first, second) = (chars.next(), chars.next());
        if let (Some(fill), Some(align)) = (first, second.and_then(align)) {
            self.0 = chars.as_str();
            return (Some(fill), Some(align));
        }
        let align = first.and_then(align);
        if align.is_some() {
            self.next();
        }
        (None, align)
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.0.chars();
        let next = chars.next();
        self.0 = chars.as_str();
        next
    }

    fn one_of(&mut self, set: &str) -> Option<char> {
        if self.0.starts_with(|c| set.contains(c)) { self.next() } else { None }
    }

    fn number(&mut self, what: &str) -> Result<Option<usize>, String> {
        let rest = self.0.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = self.0.strip_suffix(rest).unwrap_or_default();
        self.0 = rest;
        if digits.is_empty() {
            return Ok(None);
        }
        match digits.parse() {
            Ok(number) if number <= DIGITS_MAX => Ok(Some(number)),
            _ => Err(format!("{what} {digits} is above {DIGITS_MAX}")),
        }
    }

    fn kind(&mut self, operand: Operand) -> Result<(Kind, bool), String> {
        let kind = match (operand, self.0) {
            (_, "") | (Operand::Text, "s") => Kind::Unset,
            (Operand::Number, "d") => Kind::Decimal,
            (Operand::Number, "f" | "F") => Kind::Fixed,
            (Operand::Number, "e" | "E") => Kind::Exponent,
            (Operand::Number, "g" | "G") => Kind::General,
            (Operand::Number, "%") => Kind::Percent,
            (Operand::Number, other) => {
                return Err(format!("`{other}` is none of the types d f F e E g G %"));
            }
            (Operand::Text, other) => {
                return Err(format!("`{other}` after `!r` or `!s`, where only type s is possible"));
            }
        };
        Ok((kind, matches!(self.0, "F" | "E" | "G")))
    }
}

fn align(c: char) -> Option<Align> {
    match c {
        '<' => Some(Align::Left),
        '>' => Some(Align::Right),
        '^' => Some(Align::Centre),
        '=' => Some(Align::AfterSign),
        _ => None,
    }
}
