//! A curve in one line of text.

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The curve of finite numbers in at most so many characters: of more numbers each character shows
/// the mean of as many as come together.
pub(super) fn sparkline(numbers: &[f64], chars_max: usize) -> String {
    let per_char = numbers.len().div_ceil(chars_max.max(1)).max(1);
    let means: Vec<f64> = numbers.chunks(per_char).map(mean).collect();
    let lowest = means.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    means.into_iter().map(|number| bar(share(number, lowest, highest))).collect()
}

/// Without a sum that could become infinite.
fn mean(numbers: &[f64]) -> f64 {
    let count = numbers.len() as f64;
    numbers.iter().map(|number| number / count).sum()
}

/// Where a number lies between two others, from 0 to 1; in the middle, if these are equal.
pub(super) fn share(number: f64, lowest: f64, highest: f64) -> f64 {
    // Halves: the difference of two finite numbers may be infinite.
    let range = highest / 2.0 - lowest / 2.0;
    if range > 0.0 { ((number / 2.0 - lowest / 2.0) / range).clamp(0.0, 1.0) } else { 0.5 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
fn bar(share: f64) -> char {
    let level = (share * (BARS.len() - 1) as f64).round() as usize;
    BARS.get(level).copied().unwrap_or('█')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_from_its_lowest_to_its_highest() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 7.0], 40), "▁▂▃█");
        assert_eq!(sparkline(&[3.0, 3.0], 40), "▅▅");
        assert_eq!(sparkline(&[], 40), "");
        assert_eq!(sparkline(&[f64::MAX, -f64::MAX], 40), "█▁");
    }

    #[test]
    fn a_long_curve_is_drawn_by_means() {
        let numbers: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(sparkline(&numbers, 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[0.0, 2.0, 5.0], 2), "▁█");
    }
}
