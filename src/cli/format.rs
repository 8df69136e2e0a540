//! How numbers, values and tables look.

use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::json;

use crate::shown::line;
use crate::state::Value;

/// `1.5 GiB`; exact below 1 KiB.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scaled = count as f64;
    let mut unit = "B";
    for next in units {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{scaled:.1} {unit}") }
}

/// `3h`: how long ago, in the largest unit of which there is a whole one.
pub(super) fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(7 * 86_400, "w"), (86_400, "d"), (3600, "h"), (60, "m")];
    // Weeks are counted where there are some, as days are easier up to there.
    let fits = |(unit, name): &&(u64, &str)| seconds >= unit * if *name == "w" { 8 } else { 1 };
    match units.iter().find(fits) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// A number in about six characters.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value.is_finite() && size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.4}");
    match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text,
    }
}

/// JSON has no NaN and no infinities: those are text.
pub(super) fn finite(value: f64) -> serde_json::Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// A table as wide as the terminal, or as its content where there is none.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

/// A value in at most about sixty characters.
pub(super) fn value(value: &Value) -> String {
    let text = match value {
        Value::Bool(flag) => flag.to_string(),
        Value::Int(count) => count.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Text(text) | Value::Json(text) => text.clone(),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::Floats(series) => {
            let last = series.last().map_or(String::new(), |x| format!(", last {x}"));
            format!("{} numbers{last}", series.len())
        }
    };
    let text = line(&text.replace('\n', " "));
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

/// A value as JSON: all of it, but for bytes.
pub(super) fn plain(stored: &Value) -> serde_json::Value {
    match stored {
        Value::Bool(flag) => json!(flag),
        Value::Int(count) => json!(count),
        Value::Float(x) => finite(*x),
        Value::Text(text) => json!(text),
        Value::Bytes(bytes) => json!({ "bytes": bytes.len() }),
        Value::Floats(series) => series.iter().copied().map(finite).collect(),
        Value::Json(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_small_ones_exact() {
        let shown: Vec<String> = [0, 1023, 1024, 1_610_612_736, u64::MAX].map(bytes).to_vec();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "16.0 EiB"]);
    }

    #[test]
    fn ages_and_numbers_are_short() {
        let shown = [0, 59, 60, 7199, 86_399, 86_400, 55 * 86_400, 56 * 86_400]
            .map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0s", "59s", "1m", "1h", "23h", "1d", "55d", "8w"]);
        let shown = [0.0, 0.1235, -2.5, 100.0, 1e-7, 123_456_789.0, f64::NAN, f64::INFINITY];
        let shown = shown.map(number);
        assert_eq!(shown, ["0", "0.1235", "-2.5", "100", "1.000e-7", "1.235e8", "NaN", "inf"]);
    }

    #[test]
    fn values_are_cut() {
        assert_eq!(value(&Value::Floats(vec![1.0, 0.5])), "2 numbers, last 0.5");
        assert_eq!(value(&Value::Text("x".repeat(100))).chars().count(), 60);
        assert_eq!(value(&Value::Text("a\u{1b}[0m".into())), "a\\u{1b}[0m");
    }
}
