//! How numbers, values and tables look.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_small_ones_exact() {
        let shown: Vec<String> = [0, 1023, 1024, 1_610_612_736, u64::MAX].map(bytes).to_vec();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "16.0 EiB"]);
    }

    #[test]
    fn values_are_cut() {
        assert_eq!(value(&Value::Floats(vec![1.0, 0.5])), "2 numbers, last 0.5");
        assert_eq!(value(&Value::Text("x".repeat(100))).chars().count(), 60);
        assert_eq!(value(&Value::Text("a\u{1b}[0m".into())), "a\\u{1b}[0m");
    }
}
