//! Numbers as text, digit for digit as Python's `format` prints them.

use serde::{Deserialize, Serialize};

use super::spec::{Align, Kind, Sign, Spec};

/// Digits after the point where a float type names no precision.
const PRECISION_DEFAULT: usize = 6;
/// From this exponent on a float prints as `1e+16`.
const REPR_EXPONENT_MAX: i32 = 16;
/// Below this exponent a float prints as `1e-05`.
const EXPONENT_MIN: i32 = -4;

/// A value of an epoch's log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Number {
    /// A count: epoch, step.
    Int(i64),
    /// A measurement: loss, metric, learning rate, seconds.
    Float(f64),
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl Number {
    /// As without a format: an integer, or the shortest text that reads back as the same float.
    pub(super) fn plain(self) -> String {
        match self {
            Self::Int(value) => value.to_string(),
            Self::Float(value) => {
                let sign = if is_negative(value) { "-" } else { "" };
                format!("{sign}{}", finite_or(value, |m| repr(m, false)))
            }
        }
    }

    /// The reason in words if this kind of number does not fit the format.
    pub(super) fn format(self, spec: &Spec) -> Result<String, String> {
        match (self, spec.kind) {
            (Self::Int(_), Kind::Unset) if spec.precision.is_some() => {
                Err("a precision without a type needs a float, not an integer".into())
            }
            (Self::Int(value), Kind::Unset | Kind::Decimal) => {
                Ok(pad_number(value < 0, &value.unsigned_abs().to_string(), spec))
            }
            (Self::Float(_), Kind::Decimal) => Err("type `d` needs an integer, not a float".into()),
            #[expect(clippy::cast_precision_loss, reason = "rounds to even, as Python does")]
            (Self::Int(value), _) => Ok(format_float(value as f64, spec)),
            (Self::Float(value), _) => Ok(format_float(value, spec)),
        }
    }
}

/// `text`, the outcome of `!r` or `!s`, cut and padded.
pub(super) fn format_text(text: &str, spec: &Spec) -> String {
    let cut: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    pad("", &cut, spec)
}

fn format_float(value: f64, spec: &Spec) -> String {
    let (value, unit) = if spec.kind == Kind::Percent { (value * 100.0, "%") } else { (value, "") };
    let mut text = finite_or(value, |magnitude| magnitude_text(magnitude, spec));
    text.push_str(unit);
    if spec.upper {
        text.make_ascii_uppercase();
    }
    pad_number(is_negative(value), &text, spec)
}

/// A not-a-number has no sign.
fn is_negative(value: f64) -> bool {
    value.is_sign_negative() && !value.is_nan()
}

fn finite_or(value: f64, finite: impl FnOnce(f64) -> String) -> String {
    if value.is_nan() {
        "nan".to_owned()
    } else if value.is_infinite() {
        "inf".to_owned()
    } else {
        finite(value.abs())
    }
}

fn magnitude_text(magnitude: f64, spec: &Spec) -> String {
    let precision = spec.precision.unwrap_or(PRECISION_DEFAULT);
    match (spec.kind, spec.precision) {
        (Kind::Fixed | Kind::Percent | Kind::Decimal, _) => {
            let point = if precision == 0 && spec.alternate { "." } else { "" };
            format!("{magnitude:.precision$}{point}")
        }
        (Kind::Exponent, _) => {
            let (digits, exponent) = split_exponent(&format!("{magnitude:.precision$e}"));
            scientific(&digits, exponent, spec.alternate)
        }
        (Kind::General, _) => general(magnitude, precision, spec.alternate, false),
        (Kind::Unset, Some(precision)) => general(magnitude, precision, spec.alternate, true),
        (Kind::Unset, None) => repr(magnitude, spec.alternate),
    }
}

/// `precision` significant digits. `keep_float`: the text must show that it is no integer.
fn general(magnitude: f64, precision: usize, alternate: bool, keep_float: bool) -> String {
    let precision = precision.max(1);
    let (mut digits, exponent) = split_exponent(&format!("{magnitude:.*e}", precision - 1));
    if !alternate {
        let significant = digits.trim_end_matches('0').len().max(1);
        digits.truncate(significant);
    }
    let limit = i32::try_from(precision).unwrap_or(i32::MAX) - i32::from(keep_float);
    if exponent < EXPONENT_MIN || exponent >= limit {
        scientific(&digits, exponent, alternate)
    } else {
        positional(&digits, exponent, alternate, keep_float)
    }
}

fn repr(magnitude: f64, alternate: bool) -> String {
    let (digits, exponent) = split_exponent(&shortest(magnitude));
    if (EXPONENT_MIN..REPR_EXPONENT_MAX).contains(&exponent) {
        positional(&digits, exponent, alternate, true)
    } else {
        scientific(&digits, exponent, alternate)
    }
}

/// The shortest scientific text that reads back as `magnitude`; of two equally near ones the even.
fn shortest(magnitude: f64) -> String {
    // The standard library finds the length, but rounds a tie up.
    let text = format!("{magnitude:e}");
    let digits = text.bytes().take_while(|b| *b != b'e').filter(u8::is_ascii_digit).count();
    let even = format!("{magnitude:.*e}", digits.saturating_sub(1));
    if even.parse() == Ok(magnitude) { even } else { text }
}

/// `1.25e-7` as (`125`, -7).
fn split_exponent(text: &str) -> (String, i32) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (mantissa.replace('.', ""), exponent.parse().unwrap_or(0))
}

fn scientific(digits: &str, exponent: i32, alternate: bool) -> String {
    let (first, others) = digits.split_at(1);
    let point = if others.is_empty() && !alternate { "" } else { "." };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{first}{point}{others}e{sign}{:02}", exponent.unsigned_abs())
}

fn positional(digits: &str, exponent: i32, alternate: bool, keep_float: bool) -> String {
    let Ok(before_point) = usize::try_from(exponent + 1) else {
        let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
        return format!("0.{zeros}{digits}");
    };
    if before_point == 0 {
        return format!("0.{digits}");
    }
    if let Some((whole, fraction)) = digits.split_at_checked(before_point)
        && !fraction.is_empty()
    {
        return format!("{whole}.{fraction}");
    }
    let end = match (keep_float, alternate) {
        (true, _) => ".0",
        (false, true) => ".",
        (false, false) => "",
    };
    format!("{digits}{}{end}", "0".repeat(before_point - digits.len()))
}

/// Adds sign, separators, zeros and padding to a number without sign.
fn pad_number(negative: bool, number: &str, spec: &Spec) -> String {
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Sign::Plus) => "+",
        (false, Sign::Space) => " ",
        (false, Sign::Minus) => "",
    };
    let tail = number.trim_start_matches(|c: char| c.is_ascii_digit());
    let whole = number.strip_suffix(tail).unwrap_or(number);
    // Zeros after the sign are digits: they are grouped like the others.
    let zeros = spec.fill == '0' && spec.align == Align::AfterSign;
    let taken = sign.len() + tail.len();
    let least = if zeros { spec.width.saturating_sub(taken) } else { 0 };
    pad(sign, &(group(whole, least, spec.grouping) + tail), spec)
}

/// `whole` with a separator between thousands, filled up with zeros to at least `least`
/// characters; one more where it would otherwise begin with a separator.
fn group(whole: &str, least: usize, separator: Option<char>) -> String {
    let Some(separator) = separator.filter(|_| !whole.is_empty()) else {
        let zeros = if whole.is_empty() { 0 } else { least.saturating_sub(whole.len()) };
        return "0".repeat(zeros) + whole;
    };
    let mut reversed = String::new();
    let mut digits = whole.chars().rev().peekable();
    for position in 0.. {
        if digits.peek().is_none() && reversed.len() >= least {
            break;
        }
        if position > 0 && position % 3 == 0 {
            reversed.push(separator);
        }
        reversed.push(digits.next().unwrap_or('0'));
    }
    reversed.chars().rev().collect()
}

fn pad(sign: &str, body: &str, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(sign.chars().count() + body.chars().count());
    let fill = |count: usize| spec.fill.to_string().repeat(count);
    match spec.align {
        Align::Left => format!("{sign}{body}{}", fill(missing)),
        Align::Right => format!("{}{sign}{body}", fill(missing)),
        Align::AfterSign => format!("{sign}{}{body}", fill(missing)),
        Align::Centre => {
            format!("{}{sign}{body}{}", fill(missing / 2), fill(missing - missing / 2))
        }
    }
}
