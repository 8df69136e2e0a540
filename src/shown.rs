//! Text from outside as it is shown: in errors, in logs, on terminals.

use std::borrow::Cow;
use std::path::Path;

/// Most of a text of somebody else that goes into a message, in characters.
const SHORT_CHARS: usize = 200;
/// Of these, how many are of its end.
const END_CHARS: usize = 60;
/// What stands for a secret.
const HIDDEN: &str = "***";

/// Whether a character could drive a terminal, or show what follows in another order.
fn is_odd(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(c, '\u{2028}' | '\u{2029}');
    c.is_control() || turns || breaks
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_odd(c) && !keeps(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// With what is odd escaped, line breaks excepted.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |c| c == '\n')
}

/// With what is odd escaped, line breaks too: a name cannot add a line to what is said.
pub(crate) fn line(text: &str) -> String {
    escaped(text, |_| false)
}

/// On one line, and not long: the beginning and the end.
pub(crate) fn short(text: &str) -> String {
    let text = line(text);
    let count = text.chars().count();
    if count <= SHORT_CHARS {
        return text;
    }
    let begin = text.chars().take(SHORT_CHARS - END_CHARS);
    begin.chain("…".chars()).chain(text.chars().skip(count - END_CHARS)).collect()
}

/// A path, on one line and without credentials.
pub(crate) fn path(path: &Path) -> String {
    line(&of_path(&path.to_string_lossy()))
}

/// A text that is a path and nothing else, without credentials: where it is an address, whatever is
/// in its password.
pub(crate) fn of_path(text: &str) -> Cow<'_, str> {
    match (scheme(text), text.split_once("://")) {
        (Some(scheme), Some((_, address))) => {
            let mut out = format!("{scheme}://");
            push_address(&mut out, address);
            Cow::Owned(out)
        }
        _ => without_credentials(text),
    }
}

/// The same JSON with what is odd in its texts escaped as JSON does.
#[cfg(feature = "cli")]
pub(crate) fn json(value: &serde_json::Value) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for c in value.to_string().chars() {
        // All that is odd lies in the first plane of Unicode.
        let _ = if is_odd(c) { write!(out, "\\u{:04x}", u32::from(c)) } else { out.write_char(c) };
    }
    out
}

/// The scheme of a text that is an address and no path: `s3` of `s3://bucket/run`.
pub(crate) fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    (is_scheme && scheme.chars().all(is_part)).then_some(scheme)
}

/// With `***` for what addresses in it hold besides host and path: user, password, query.
pub(crate) fn without_credentials(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let ends = |c: char| c.is_whitespace() || matches!(c, '`' | '"' | '\'');
        let end = after.find(ends).unwrap_or(after.len());
        // The next address may follow without anything in between.
        let end = after.find("://").map_or(end, |next| next.min(end));
        let (address, following) = after.split_at(end);
        push_address(&mut out, address);
        rest = following;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// What follows `://`. A password may hold anything: rather too much is hidden than too little.
fn push_address(out: &mut String, address: &str) {
    let place = match address.rsplit_once('@') {
        Some((_, place)) => {
            out.push_str(HIDDEN);
            out.push('@');
            place
        }
        None => address,
    };
    match place.split_once('?') {
        Some((place, _)) => {
            out.push_str(place);
            out.push('?');
            out.push_str(HIDDEN);
        }
        None => out.push_str(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_neither_drive_a_terminal_nor_add_a_line() {
        assert_eq!(line("a\u{1b}[2J\n\u{9b}é\u{202e}"), "a\\u{1b}[2J\\n\\u{9b}é\\u{202e}");
        assert_eq!(lines("a\nb\u{7f}\u{2028}"), "a\nb\\u{7f}\\u{2028}");
    }

    #[test]
    fn long_texts_keep_their_ends() {
        let text = format!("unknown field `{}` at line 1 column 9", "k".repeat(1 << 20));
        let shown = short(&text);
        assert!(
            shown.starts_with("unknown field `kkk") && shown.ends_with("kk` at line 1 column 9")
        );
        assert_eq!(shown.chars().count(), SHORT_CHARS + 1);
        assert_eq!(short("a\nb"), "a\\nb");
    }

    #[test]
    fn an_address_in_the_place_of_a_path_has_no_password_whatever_is_in_it() {
        for address in
            ["s3://user:pa'ss@b/x", "s3://user:my pa@b/x", "s3://u:a://b@b/x", "s3://u:?@b/x"]
        {
            assert_eq!(of_path(address), "s3://***@b/x", "{address}");
            assert_eq!(path(Path::new(address)), "s3://***@b/x", "{address}");
        }
        assert_eq!(of_path("runs/a b"), "runs/a b");
    }

    #[test]
    fn addresses_lose_what_only_their_user_may_know() {
        for (text, shown) in [
            ("runs/a", "runs/a"),
            ("s3://bucket/run", "s3://bucket/run"),
            ("s3://user:secret@bucket/run", "s3://***@bucket/run"),
            ("s3://a:b@c:d@bucket", "s3://***@bucket"),
            ("s3://user:pass/word@bucket", "s3://***@bucket"),
            ("https://u:p@h:8/x?sig=y", "https://***@h:8/x?***"),
            ("gs://bucket/run?token=x&y", "gs://bucket/run?***"),
            ("s3://user:pa?ss@bucket", "s3://***@bucket"),
            ("`s3://k@b/x` and s3://k@b", "`s3://***@b/x` and s3://***@b"),
            ("a://b://k@c", "a://b://***@c"),
            ("begins with https://", "begins with https://"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn addresses_are_told_from_paths() {
        assert_eq!(scheme("s3://bucket"), Some("s3"));
        for path in ["runs/a", "/runs/x://y", "runs:/a", "://a", "1a://b", ""] {
            assert_eq!(scheme(path), None, "{path}");
        }
    }

    #[cfg(feature = "cli")]
    #[test]
    fn json_stays_json() {
        let value = serde_json::json!({"a\u{9b}": "\u{7f}\u{202e}\u{1b}é"});
        let text = json(&value);
        assert!(text.is_ascii() || text.chars().all(|c| !is_odd(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
