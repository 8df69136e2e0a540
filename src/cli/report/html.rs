//! Text that goes into a page: nothing of a checkpoint gets there but through [`escaped`].

use std::fmt::Display;
use std::time::Duration;

use crate::shown::line;

/// Longest text of a checkpoint that is shown; its rest is left out.
const CHARS_MAX: usize = 200;

/// Text from outside as it may stand in an element or in an attribute in quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(CHARS_MAX));
    let is_long = text.chars().nth(CHARS_MAX).is_some();
    let cut: String = text.chars().take(CHARS_MAX).collect();
    for c in line(&cut).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(c),
        }
    }
    if is_long {
        safe.push('…');
    }
    safe
}

/// At most so many characters of a text, escaped; the middle is left out.
pub(super) fn short(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return escaped(text);
    }
    let (end, begin) = (chars_max / 2, chars_max.saturating_sub(chars_max / 2 + 1));
    let first = text.chars().take(begin).chain("…".chars());
    escaped(&first.chain(text.chars().skip(count - end)).collect::<String>())
}

/// A table of cells that are safe already; the first of each row names it.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut html = "<div class=\"wide\"><table>\n<thead><tr>".to_owned();
    for title in header {
        html.push_str(&format!("<th scope=\"col\">{title}</th>"));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for (index, cell) in row.iter().enumerate() {
            html.push_str(&match index {
                0 => format!("<th scope=\"row\">{cell}</th>"),
                _ => format!("<td>{cell}</td>"),
            });
        }
        html.push_str("</tr>\n");
    }
    html + "</tbody>\n</table></div>\n"
}

/// What can be unfolded.
pub(super) fn folded(summary: &str, content: impl Display) -> String {
    format!("<details><summary>{summary}</summary>\n{content}</details>\n")
}

/// A part of the page.
pub(super) fn section(id: &str, title: &str, content: impl Display) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{title}</h2>\n{content}</section>\n"
    )
}

/// A paragraph that says what a figure shows, or why there is none.
pub(super) fn note(text: impl Display) -> String {
    format!("<p class=\"note\">{text}</p>\n")
}

/// A time that passed, in seconds or a part of them.
pub(super) fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if time.is_zero() => "0 s".to_owned(),
        _ if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 100.0 => format!("{seconds:.2} s"),
        _ => format!("{seconds:.0} s"),
    }
}

/// So many seconds, or none where they are no time.
pub(super) fn of_seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Bytes per second, in decimal units.
pub(super) fn rate(bytes_per_second: f64) -> String {
    if bytes_per_second == 0.0 {
        return "0 B/s".to_owned();
    }
    let units = [(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")];
    let fits = units.into_iter().find(|(unit, _)| bytes_per_second >= *unit);
    let (unit, name) = fits.unwrap_or((1.0, "B/s"));
    let scaled = bytes_per_second / unit;
    if scaled < 10.0 { format!("{scaled:.1} {name}") } else { format!("{scaled:.0} {name}") }
}

/// A time of day, as an element.
pub(super) fn time(since_1970: Duration) -> String {
    format!("<time>{} UTC</time>", utc(since_1970))
}

/// `2026-01-31 23:59:59`. Days to dates as in "chrono-Compatible Low-Level Date Algorithms", H.
/// Hinnant, `civil_from_days`.
pub(super) fn utc(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_text() {
        let shown = escaped("</script><script>alert('1')&\"\n\u{202e}");
        assert!(!shown.contains(['<', '>', '\'', '"', '\n', '\u{202e}']), "{shown}");
        assert!(shown.starts_with("&lt;/script&gt;&lt;script&gt;alert(&#39;1&#39;)&amp;&quot;"));
        assert!(escaped(&"x".repeat(5000)).chars().count() <= CHARS_MAX + 1);
        assert_eq!(short("layers.12.attention.weight", 11), "layer…eight");
        assert_eq!(short("a<b", 3), "a&lt;b");
    }

    #[test]
    fn rates_are_short() {
        let shown = [0.0, 999.0, 1500.0, 150e6, 1.49e9].map(rate);
        assert_eq!(shown, ["0 B/s", "999 B/s", "1.5 kB/s", "150 MB/s", "1.5 GB/s"]);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let at = |seconds| utc(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59");
        assert!(at(u64::MAX).len() > 19, "far away, and no panic");
    }
}
