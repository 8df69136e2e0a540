//! The coordinator's part of an audit: which replicas differ, and on which ranks.

use std::collections::HashMap;

use super::{BoxId, Digest};
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// How many boxes, and how many ranks of each, an error lists.
const BOXES_LISTED_MAX: usize = 4;
const RANKS_LISTED_MAX: usize = 8;

/// Fails if boxes with equal ids have unequal digests. `by_rank` gives, in rank order, the boxes
/// of each rank and their digests.
///
/// # Errors
/// [`ErrorKind::Disagreement`].
pub(super) fn compare<'a>(
    by_rank: &mut dyn Iterator<Item = (&'a [BoxId], &'a [Digest])>,
) -> Result<()> {
    let mut held: HashMap<&BoxId, Vec<(Rank, &Digest)>> = HashMap::new();
    for (rank, (ids, digests)) in (0..).map(Rank::new).zip(by_rank) {
        if ids.len() != digests.len() {
            let message = format!("{} digests of {} boxes", digests.len(), ids.len());
            return Err(Error::new(ErrorKind::Disagreement, message).at_rank(rank));
        }
        for (id, digest) in ids.iter().zip(digests) {
            held.entry(id).or_default().push((rank, digest));
        }
    }
    let minorities = held.into_iter().map(|(id, replicas)| (id, minority(&replicas)));
    let mut differing: Vec<_> = minorities.filter(|(_, ranks)| !ranks.is_empty()).collect();
    differing.sort_by(|(a, _), (b, _)| (&a.name, &a.slice).cmp(&(&b.name, &b.slice)));
    match differing.first() {
        None => Ok(()),
        Some((first, ranks)) => Err(divergence(first, ranks, &differing)),
    }
}

/// The ranks that do not hold what most hold; among equally many, what the lowest rank holds.
fn minority(replicas: &[(Rank, &Digest)]) -> Vec<Rank> {
    let count = |digest: &Digest| replicas.iter().filter(|(_, other)| *other == digest).count();
    let Some((_, first)) = replicas.first() else { return Vec::new() };
    if count(first) == replicas.len() {
        return Vec::new();
    }
    // `max_by_key` takes the last of equals.
    let most = replicas.iter().rev().max_by_key(|(_, digest)| count(digest));
    let most = most.map_or(*first, |(_, digest)| *digest);
    replicas.iter().filter(|(_, digest)| *digest != most).map(|(rank, _)| *rank).collect()
}

fn divergence(first: &BoxId, ranks: &[Rank], differing: &[(&BoxId, Vec<Rank>)]) -> Error {
    let mut listed: Vec<String> =
        differing.iter().take(BOXES_LISTED_MAX).map(|(id, ranks)| describe(id, ranks)).collect();
    if differing.len() > BOXES_LISTED_MAX {
        listed.push(format!("and {} more", differing.len() - BOXES_LISTED_MAX));
    }
    let what = if differing.len() == 1 { "one replica differs" } else { "replicas differ" };
    let message = format!("{what} between ranks: {}", listed.join(", "));
    let error =
        Error::new(ErrorKind::Disagreement, message).with_tensor(first.name.as_str()).with_help(
            "ranks must train in step; if they do, suspect memory or a device of the rank that \
             differs. To go on, load the last good checkpoint, or save without the audit",
        );
    ranks.first().map_or(error.clone(), |rank| error.at_rank(*rank))
}

/// ``"`w` on ranks 1, 3"``, with the box where it is not the whole tensor.
fn describe(id: &BoxId, ranks: &[Rank]) -> String {
    let place =
        if id.slice.is_full(id.spec.shape()) { String::new() } else { format!(" {}", id.slice) };
    let mut listed: Vec<String> =
        ranks.iter().take(RANKS_LISTED_MAX).map(ToString::to_string).collect();
    if ranks.len() > RANKS_LISTED_MAX {
        listed.push(format!("and {} more", ranks.len() - RANKS_LISTED_MAX));
    }
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("`{}`{place} on {word} {}", id.name, listed.join(", "))
}
