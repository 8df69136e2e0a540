//! Which gradients travel together: few exchanges, each of bounded size.

/// Most elements of a bucket: 25 MiB of f32.
pub(super) const ELEMENTS_MAX: usize = super::BUCKET_ELEMENTS;
/// Buckets that are on their way at once: while one travels, the next is filled.
pub(super) const IN_FLIGHT_MAX: usize = 4;

/// One parameter's place in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Its number among all.
    pub(super) index: usize,
    pub(super) begin: usize,
    pub(super) elements: usize,
}

/// What travels together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Bucket {
    pub(super) members: Vec<Member>,
    pub(super) elements: usize,
}

/// Buckets for parameters of these sizes, in order; one that is larger than `max` is alone in its
/// own. Parameters without elements travel in none.
pub(super) fn layout(sizes: &[usize], max: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    let filled = sizes.iter().copied().enumerate().filter(|(_, elements)| *elements > 0);
    for (index, elements) in filled {
        let fits = |bucket: &&mut Bucket| bucket.elements.saturating_add(elements) <= max;
        let member = |begin| Member { index, begin, elements };
        match buckets.last_mut().filter(fits) {
            Some(bucket) => {
                bucket.members.push(member(bucket.elements));
                bucket.elements += elements;
            }
            None => buckets.push(Bucket { members: vec![member(0)], elements }),
        }
    }
    buckets
}

/// What to do next with buckets in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Fill this one, and send it on its way.
    Send(usize),
    /// Wait for this one, and take out what came.
    Take(usize),
}

/// All turns for `count` buckets: no more than `in_flight` are on their way at once, and they are
/// taken in the order in which they were sent.
pub(super) fn turns(count: usize, in_flight: usize) -> impl Iterator<Item = Turn> {
    let lead = in_flight.max(1);
    (0..count + lead).flat_map(move |turn| {
        let take = turn.checked_sub(lead).map(Turn::Take);
        let send = (turn < count).then_some(Turn::Send(turn));
        take.filter(|_| turn - lead < count).into_iter().chain(send)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_ones_share_a_bucket_and_a_large_one_is_alone() {
        let buckets = layout(&[3, 0, 4, 5, 100, 1], 8);
        let shape: Vec<Vec<(usize, usize)>> = buckets
            .iter()
            .map(|b| b.members.iter().map(|m| (m.index, m.begin)).collect())
            .collect();
        assert_eq!(shape, [vec![(0, 0), (2, 3)], vec![(3, 0)], vec![(4, 0)], vec![(5, 0)]]);
        assert_eq!(layout(&[], 8), []);
    }

    #[test]
    fn the_next_is_filled_while_others_travel() {
        use Turn::{Send, Take};
        let all: Vec<Turn> = turns(3, 2).collect();
        assert_eq!(all, [Send(0), Send(1), Take(0), Send(2), Take(1), Take(2)]);
    }

    proptest! {
        #[test]
        fn every_element_has_one_place_and_no_bucket_is_too_large(
            sizes in prop::collection::vec(0usize..40, 0..60), max in 1usize..50
        ) {
            let buckets = layout(&sizes, max);
            let mut next = sizes.iter().enumerate().filter(|(_, size)| **size > 0);
            for bucket in &buckets {
                let mut end = 0;
                for member in &bucket.members {
                    prop_assert_eq!(Some((member.index, &member.elements)), next.next());
                    prop_assert_eq!(member.begin, end);
                    end += member.elements;
                }
                prop_assert_eq!(end, bucket.elements);
                prop_assert!(bucket.elements <= max || bucket.members.len() == 1);
            }
            prop_assert!(next.next().is_none());
        }

        #[test]
        fn every_bucket_is_sent_and_taken_once_and_few_are_on_their_way(
            count in 0usize..20, in_flight in 1usize..6
        ) {
            let (mut sent, mut taken) = (0, 0);
            for turn in turns(count, in_flight) {
                match turn {
                    Turn::Send(bucket) => {
                        prop_assert_eq!(bucket, sent);
                        sent += 1;
                    }
                    Turn::Take(bucket) => {
                        prop_assert_eq!(bucket, taken);
                        prop_assert!(taken < sent);
                        taken += 1;
                    }
                }
                prop_assert!(sent - taken <= in_flight);
            }
            prop_assert_eq!((sent, taken), (count, count));
        }
    }
}
