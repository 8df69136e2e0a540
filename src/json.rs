//! JSON put straight into a buffer: headers and indices list every tensor, and there may be very
//! many.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

use crate::error::Result;
use crate::memory::Growing;

/// Digits of the largest number.
const DIGITS_MAX: usize = 20;

/// A name as JSON, inside of so many texts: 1 for a key, 2 for a key in JSON that is a text.
/// Names hold no control characters, so that quotes and backslashes are all there is to escape.
///
/// # Errors
/// As [`Growing::put`].
pub(crate) fn put_name(out: &mut Growing, name: &str, depth: u32) -> Result<()> {
    let quote: &[u8] = if depth == 1 { b"\"" } else { b"\\\"" };
    out.put(quote)?;
    for part in name.as_bytes().split_inclusive(|byte| matches!(byte, b'"' | b'\\')) {
        match part.split_last() {
            Some((last @ (b'"' | b'\\'), plain)) => {
                out.put(plain)?;
                // Each text around it doubles its backslashes and escapes its quotes.
                let backslashes =
                    if *last == b'"' { 2usize.pow(depth) - 1 } else { 2usize.pow(depth) };
                out.put(&b"\\\\\\\\"[..backslashes.min(4)])?;
                if *last == b'"' {
                    out.put(b"\"")?;
                }
            }
            _ => out.put(part)?,
        }
    }
    out.put(quote)
}

/// How deep JSON that is taken as it is may be: as deep as it can be read.
const DEPTH_MAX: usize = 100;

/// Whether a text is one JSON object, of a depth that any reader takes; what is wrong if not.
///
/// # Errors
/// What is wrong.
pub(crate) fn check_object(text: &str) -> std::result::Result<(), String> {
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} levels deep"));
        }
    }
    let object = serde_json::from_str::<BTreeMap<String, IgnoredAny>>(text);
    object.map(drop).map_err(|e| e.to_string())
}

/// `[1,2,3]`.
///
/// # Errors
/// As [`Growing::put`].
pub(crate) fn put_list(out: &mut Growing, numbers: &[u64]) -> Result<()> {
    out.put(b"[")?;
    for (place, number) in numbers.iter().enumerate() {
        if place > 0 {
            out.put(b",")?;
        }
        put_number(out, *number)?;
    }
    out.put(b"]")
}

/// A number in digits.
///
/// # Errors
/// As [`Growing::put`].
pub(crate) fn put_number(out: &mut Growing, mut number: u64) -> Result<()> {
    let mut digits = [b'0'; DIGITS_MAX];
    let mut begin = DIGITS_MAX;
    for digit in digits.iter_mut().rev() {
        // Below ten.
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        begin -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put(digits.get(begin..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(put: impl Fn(&mut Growing) -> Result<()>) -> String {
        let mut out = Growing::new(usize::MAX);
        put(&mut out).unwrap();
        String::from_utf8(out.bytes).unwrap()
    }

    #[test]
    fn an_object_is_whole_and_not_too_deep() {
        let nested =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        for good in ["{}", " {\"a\": [1, {\"b\": null}]}\n", r#"{"\"[[": "]}{\\"}"#, &nested(99)] {
            assert_eq!(check_object(good), Ok(()), "{good}");
        }
        let text = format!("{{\"a\":\"{}\"}}", "[".repeat(500));
        assert_eq!(check_object(&text), Ok(()));
        for bad in ["", "[]", "{", "{} {}", "{\"a\": 01}", &nested(100), &nested(50_000)] {
            assert!(check_object(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn names_and_numbers_are_written_as_a_library_would(
            name in r#"[a-zé.\\"]{1,12}"#,
            numbers in prop::collection::vec(any::<u64>(), 0..4),
        ) {
            let json = |text: &str| serde_json::to_string(text).unwrap();
            prop_assert_eq!(written(|out| put_name(out, &name, 1)), json(&name));
            let twice = json(&json(&name));
            prop_assert_eq!(written(|out| put_name(out, &name, 2)), &twice[1..twice.len() - 1]);
            let list = serde_json::to_string(&numbers).unwrap();
            prop_assert_eq!(written(|out| put_list(out, &numbers)), list);
        }
    }
}
