//! What a misspelt word was probably meant to be.

/// Longer words are too far from any known one to be worth comparing.
const CHARS_MAX: usize = 64;

/// The one of `known` that `word` was probably meant to be: at most a third of its letters
/// differ, and at most three.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.trim().to_lowercase();
    let length = word.chars().count();
    if length > CHARS_MAX {
        return None;
    }
    let limit = (length / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|known| known.len() <= 4 * CHARS_MAX)
        .map(|known| (edit_distance(&word, &known.to_lowercase()), known))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, known)| known)
}

/// Insertions, deletions and replacements that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut diagonal = i;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let above = *cell;
            *cell = (diagonal + usize::from(x != y)).min(left + 1).min(above + 1);
            (left, diagonal) = (*cell, above);
        }
        row.iter_mut().take(1).for_each(|first| *first = i + 1);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_single_changes() {
        for (a, b, distance) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("loss", "lss", 1),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }

    #[test]
    fn the_nearest_of_several_is_found_and_nothing_far_away() {
        let known = ["keep_last", "keep_best", "resume"];
        for (word, meant) in [
            ("keep_lats", Some("keep_last")),
            ("Keep_Best", Some("keep_best")),
            ("resum", Some("resume")),
            ("retain", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest(&"k".repeat(100_000), known), None);
    }
}
