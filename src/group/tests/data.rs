//! Sums, broadcasts and exchanges.

use std::sync::Barrier;

use super::*;

/// Values whose sum depends on the order of its terms.
fn contribution(rank: u32, length: usize) -> Vec<f32> {
    let value = |i: usize| ((i as f32 + 1.7).sin() + rank as f32 * 0.37) * 10f32.powi(rank as i32);
    (0..length).map(value).collect()
}

#[test]
fn sums_are_in_rank_order_and_equal_to_the_last_bit() {
    const PIECE: usize = (256 << 10) / 4;
    for transport in TRANSPORTS {
        let results = with_groups(transport, 4, &patient(), |group| {
            let mut sums = Vec::new();
            for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
                let mut values = contribution(group.rank().get(), length);
                group.all_reduce_sum(&mut values).unwrap();
                sums.push(values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                let mut values: Vec<f64> =
                    contribution(group.rank().get(), length).into_iter().map(f64::from).collect();
                group.all_reduce_sum_f64(&mut values).unwrap();
                let expected = (0..length).map(|i| {
                    (0..4).map(|rank| f64::from(contribution(rank, i + 1)[i])).sum::<f64>()
                });
                // The whole is too slow to check by this definition; a prefix is enough.
                assert!(values.iter().copied().zip(expected).take(50).all(|(a, b)| a == b));
            }
            sums
        });
        let last = results[0].last().unwrap();
        let parts: Vec<_> = (0..4).map(|rank| contribution(rank, last.len())).collect();
        for (i, bits) in last.iter().enumerate() {
            let expected = parts.iter().map(|part| part[i]).reduce(|a, b| a + b).unwrap();
            assert_eq!(*bits, expected.to_bits(), "{transport:?} element {i}");
        }
        assert!(results.iter().all(|sums| *sums == results[0]));
    }
}

#[test]
fn all_get_the_coordinators_bytes() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), |group| {
            let mut bytes = vec![if group.is_coordinator() { 5 } else { 6 }; 600_001];
            group.broadcast(&mut bytes).unwrap();
            bytes.iter().all(|byte| *byte == 5)
        });
        assert_eq!(results, vec![true; 3]);
    }
}

/// Segment of `rank` of `ranks`, of uneven length; the first one is empty.
fn segment(rank: u32, ranks: u32, length: usize) -> std::ops::Range<usize> {
    let triangle = |n: u32| length * (n * n.saturating_sub(1)) as usize;
    let whole = (ranks * (ranks - 1)) as usize;
    triangle(rank) / whole..triangle(rank + 1) / whole
}

#[test]
fn segments_of_all_ranks_come_together_bit_for_bit() {
    const PIECE: usize = 256 << 10;
    let byte = |at: usize| u8::try_from(at % 255).unwrap() + 1;
    for transport in TRANSPORTS {
        let results = with_groups(transport, 4, &patient(), move |group| {
            [0, 1, 7, PIECE + 3, 3 * PIECE].map(|length| {
                let own = segment(group.rank().get(), 4, length);
                // What others own is overwritten, whatever it was.
                let mut bytes = vec![0xA5; length];
                own.clone().for_each(|at| bytes[at] = byte(at));
                group.all_gather(&mut bytes, own).unwrap();
                bytes.iter().enumerate().all(|(at, b)| *b == byte(at))
            })
        });
        assert_eq!(results, vec![[true; 5]; 4], "{transport:?}");
    }
    let mut bytes = [7, 8, 9];
    ProcessGroup::solo().all_gather(&mut bytes, 1..2).unwrap();
    assert_eq!(bytes, [0, 8, 0]);
}

#[test]
fn segments_outside_or_of_different_wholes_are_an_error_everywhere() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), |group| {
            let odd = group.rank().get() == 1;
            let lengths = group.all_gather(&mut vec![1; if odd { 7 } else { 8 }], 0..1);
            let outside = [8, 0].map(|length| {
                let own = if odd { length..length + 1 } else { 0..length.min(1) };
                group.all_gather(&mut vec![1; length], own).unwrap_err().kind()
            });
            let mut fine = [1u8; 3];
            group.all_gather(&mut fine, group.rank().index()..group.rank().index() + 1).unwrap();
            assert_eq!(fine, [1; 3]);
            (lengths, outside)
        });
        let (lengths, outside): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        let error = same_error::<()>(lengths);
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(1))));
        assert!(error.message().contains("a bitwise or of 8 bytes"), "{error}");
        let refused = [ErrorKind::Disagreement, ErrorKind::InvalidInput, ErrorKind::Disagreement];
        assert_eq!(outside, refused.map(|kind| [kind; 2]));
    }
}

#[test]
fn different_lengths_or_operations_are_an_error_everywhere_and_harm_nothing() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), |group| {
            let is_odd = group.rank().get() == 1;
            let mut values = vec![1f32; if is_odd { 7 } else { 8 }];
            let length = group.all_reduce_sum(&mut values);
            let operation = if is_odd {
                group.broadcast(&mut [0; 8])
            } else {
                group.all_reduce_sum_f64(&mut [0.0])
            };
            let mut fine = [1f32];
            group.all_reduce_sum(&mut fine).unwrap();
            assert_eq!(fine, [3.0]);
            (length, operation)
        });
        let (lengths, operations) = results.into_iter().unzip();
        let error = same_error::<()>(lengths);
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(1))));
        assert!(error.message().contains("32 bytes") && error.message().contains("28 bytes"));
        let error = same_error::<()>(operations);
        assert!(error.message().contains("a sum of f64"), "{error}");
        assert!(error.message().contains("a broadcast"), "{error}");
    }
}

#[test]
fn a_lost_rank_ends_the_exchange_on_all_others_and_every_later_one() {
    for transport in TRANSPORTS {
        let deadlines = Deadlines { progress: 3 * HUNG, ..patient() };
        let results = with_groups(transport, 4, &deadlines, |group| {
            group.all_reduce_sum(&mut [1.0]).unwrap();
            if group.rank().get() == 3 {
                return None;
            }
            let first = group.all_reduce_sum(&mut vec![1.0; 500_000]);
            assert_eq!(group.broadcast(&mut [0]), first.clone());
            Some(first)
        });
        let error = same_error(results.into_iter().flatten().collect());
        assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(3))));
    }
}

#[test]
fn a_silent_rank_ends_the_exchange_by_the_deadline() {
    for transport in TRANSPORTS {
        let told = Arc::new(Barrier::new(3));
        let deadlines = impatient(Duration::from_millis(500));
        let results = with_groups(transport, 3, &deadlines, move |group| {
            let silent = group.rank().get() == 2;
            let result = (!silent).then(|| group.all_reduce_sum(&mut [1.0]));
            told.wait();
            result
        });
        let error = same_error(results.into_iter().flatten().collect());
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Deadline, Some(Rank::new(2))));
    }
}

#[test]
fn who_comes_when_the_coordinator_has_given_up_hears_of_whom() {
    for transport in TRANSPORTS {
        let over = Arc::new(Barrier::new(2));
        let results = with_groups(transport, 3, &patient(), move |group| {
            let rank = group.rank().get();
            if rank == 1 {
                return None;
            }
            if rank == 2 {
                over.wait();
            }
            let result = group.all_reduce_sum(&mut [1.0]);
            drop(group);
            if rank == 0 {
                over.wait();
            }
            Some(result)
        });
        let error = same_error(results.into_iter().flatten().collect());
        assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(1))));
    }
}
