//! Metrics of all ranks as one.

use std::collections::BTreeMap;

/// Per name the mean over the ranks that gave it; exactly the number itself if all gave the same.
/// NaN if any gave NaN.
pub(super) fn mean_over_ranks(by_rank: &[BTreeMap<String, f64>]) -> BTreeMap<String, f64> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in by_rank.iter().flatten() {
        values.entry(name).or_default().push(*value);
    }
    values.into_iter().map(|(name, values)| (name.to_owned(), mean(&values))).collect()
}

fn mean(values: &[f64]) -> f64 {
    let Some((first, rest)) = values.split_first() else { return f64::NAN };
    // Sums of equal numbers round.
    if rest.iter().all(|value| value.to_bits() == first.to_bits()) {
        return *first;
    }
    #[expect(clippy::cast_precision_loss, reason = "no job has 2^53 ranks")]
    let count = values.len() as f64;
    values.iter().map(|value| value / count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_over_those_who_gave_it_and_equal_numbers_stay_themselves() {
        let rank = |pairs: &[(&str, f64)]| {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect::<BTreeMap<_, _>>()
        };
        let third = 1.0 / 3.0;
        let merged = mean_over_ranks(&[
            rank(&[("loss", 1.0), ("same", third), ("bad", f64::NAN), ("huge", f64::MAX)]),
            rank(&[("loss", 2.0), ("same", third), ("bad", 1.0), ("huge", f64::MAX)]),
            rank(&[("same", third), ("one", -0.5)]),
        ]);
        assert_eq!(merged["loss"], 1.5);
        assert_eq!(merged["same"].to_bits(), third.to_bits());
        assert_eq!(merged["one"], -0.5);
        assert_eq!(merged["huge"], f64::MAX);
        assert!(merged["bad"].is_nan());
        assert!(mean_over_ranks(&[]).is_empty());
    }
}
