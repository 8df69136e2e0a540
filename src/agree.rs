//! What all ranks have to say alike.

use std::fmt::Debug;

use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// What all ranks say, `said` in rank order, if `difference` finds none between the coordinator's
/// (first) and that of each other rank (second).
///
/// # Errors
/// [`ErrorKind::Disagreement`] with the first difference that there is, its rank, and `help`.
pub(crate) fn agree<'a, T>(
    said: &'a [T],
    difference: impl Fn(&T, &T) -> Option<String>,
    help: &str,
) -> Result<&'a T> {
    let Some(ours) = said.first() else {
        return Err(Error::new(ErrorKind::Disagreement, "no rank has said anything"));
    };
    for (theirs, rank) in said.iter().zip(0..).skip(1) {
        if let Some(message) = difference(ours, theirs) {
            return Err(Error::new(ErrorKind::Disagreement, message)
                .at_rank(Rank::new(rank))
                .with_help(help));
        }
    }
    Ok(ours)
}

/// What one field says otherwise, in words.
pub(crate) fn unlike<T: PartialEq + Debug>(what: &str, ours: &T, theirs: &T) -> Option<String> {
    let sides = || format!("{what} differs: {theirs:?}, but {ours:?} on the coordinator");
    (ours != theirs).then(sides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(said: &[u32]) -> Result<u32> {
        let difference = |a: &u32, b: &u32| (a != b).then(|| format!("{b}, not {a}"));
        agree(said, difference, "count again").copied()
    }

    #[test]
    fn the_first_rank_that_differs_from_the_coordinator_is_named() {
        assert_eq!((agreed(&[3]), agreed(&[3, 3, 3])), (Ok(3), Ok(3)));
        let error = agreed(&[3, 3, 4, 5]).unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(2))));
        assert_eq!((error.message(), error.help()), ("4, not 3", Some("count again")));
        assert_eq!(agreed(&[]).unwrap_err().kind(), ErrorKind::Disagreement);
    }
}
