//! Ranks that are there and say nothing, and ranks that are merely slow.

use std::sync::Barrier;
use std::time::Instant;

use super::*;

const SHORT: Duration = Duration::from_millis(500);

/// Makes progress every few milliseconds for `time`.
fn work(group: &ProcessGroup, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        group.progress().add(1);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_silent_rank_is_named_while_another_makes_progress_and_may_come_back() {
    for transport in TRANSPORTS {
        let told = Arc::new(Barrier::new(3));
        let results = with_groups(transport, 4, &impatient(SHORT), move |group| {
            let silent = group.rank().get() == 2;
            if silent {
                told.wait();
            }
            let local = || {
                if group.rank().get() == 1 {
                    work(&group, 2 * SHORT);
                }
                Ok(0u8)
            };
            let result = group.phase_all(Channel::Save, "commit", local, |_| Ok(()));
            if matches!(group.rank().get(), 0 | 3) {
                told.wait();
            }
            assert_eq!(roll_call(&group, Channel::Save, "after"), Ok(vec![0, 1, 2, 3]));
            result
        });
        let error = same_error(results);
        assert_eq!(error.kind(), ErrorKind::Deadline, "{transport:?} {error}");
        assert_eq!((error.rank(), error.phase()), (Some(Rank::new(2)), Some("commit")));
    }
}

#[test]
fn all_silent_ranks_are_named() {
    let told = Arc::new(Barrier::new(4));
    let results = with_groups(Transport::Tcp, 4, &impatient(SHORT), move |group| {
        let silent = matches!(group.rank().get(), 1 | 3);
        let result = (!silent).then(|| roll_call(&group, Channel::Save, "commit"));
        told.wait();
        result
    });
    let error = same_error(results.into_iter().flatten().collect());
    let named: Vec<_> = error.failures().iter().filter_map(Error::rank).collect();
    assert_eq!(named, [Rank::new(1), Rank::new(3)]);
    assert!(error.message().contains("rank 1, 3"), "{error}");
}

#[test]
fn slow_is_not_dead_wherever_it_is_slow() {
    // Mostly sleep, so all at once.
    let cases = TRANSPORTS.into_iter().flat_map(|t| [0, 2].map(|slow| (t, slow)));
    let check = |(transport, slow)| {
        // Longer than every other rank would wait without hearing of progress.
        let results = with_groups(transport, 3, &impatient(2 * SHORT), move |group| {
            let local = || {
                if group.rank().get() == slow {
                    work(&group, 5 * SHORT);
                }
                Ok(0u8)
            };
            group.phase_all(Channel::Save, "write", local, |votes| Ok(votes.len()))
        });
        assert_eq!(results, vec![Ok(3); 3], "{transport:?} slow rank {slow}");
    };
    std::thread::scope(|scope| cases.for_each(|case| drop(scope.spawn(move || check(case)))));
}

#[test]
fn a_slow_decision_that_makes_progress_is_waited_for() {
    let results = with_groups(Transport::Tcp, 2, &impatient(2 * SHORT), |group| {
        let decide = |_: Vec<u8>| {
            work(&group, 5 * SHORT);
            Ok(7u8)
        };
        group.phase_all(Channel::Save, "commit", || Ok(0u8), decide)
    });
    assert_eq!(results, vec![Ok(7); 2]);
}

#[test]
fn a_coordinator_that_comes_late_still_gives_the_same_verdict_to_all() {
    let told = Arc::new(Barrier::new(3));
    let results = with_groups(Transport::Tcp, 3, &impatient(4 * SHORT), move |group| {
        if group.is_coordinator() {
            // Its wait for rank 2 ends after rank 1's for it would, had it not shown itself.
            std::thread::sleep(3 * SHORT);
        }
        let silent = group.rank().get() == 2;
        let result = (!silent).then(|| roll_call(&group, Channel::Save, "commit"));
        told.wait();
        result
    });
    let error = same_error(results.into_iter().flatten().collect());
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Deadline, Some(Rank::new(2))));
}

#[test]
fn gradients_of_a_slow_rank_are_waited_for() {
    let results = with_groups(Transport::Tcp, 3, &impatient(2 * SHORT), |group| {
        if group.rank().get() == 2 {
            work(&group, 5 * SHORT);
        }
        let mut values = [1f32];
        group.all_reduce_sum(&mut values).map(|()| values)
    });
    assert_eq!(results, vec![Ok([3.0]); 3]);
}

#[test]
fn deadlines_beyond_all_bounds_are_taken_as_the_bounds() {
    for transport in TRANSPORTS {
        let always = Deadlines { progress: Duration::MAX, join: Duration::MAX, ..patient() };
        let results = with_groups(transport, 2, &always, |group| {
            group.all_reduce_sum(&mut [0.0]).and_then(|()| roll_call(&group, Channel::Save, "all"))
        });
        assert_eq!(results, vec![Ok(vec![0, 1]); 2]);
    }
}

#[test]
fn a_silent_coordinator_is_given_up() {
    for transport in TRANSPORTS {
        let told = Arc::new(Barrier::new(3));
        let results = with_groups(transport, 3, &impatient(SHORT), move |group| {
            let result =
                (!group.is_coordinator()).then(|| roll_call(&group, Channel::Save, "commit"));
            told.wait();
            result
        });
        let error = same_error(results.into_iter().flatten().collect());
        assert_eq!(error.kind(), ErrorKind::CoordinatorLost, "{transport:?}");
        assert_eq!(error.phase(), Some("commit"));
    }
}

#[test]
fn ranks_that_gave_up_a_slow_coordinator_and_it_meet_again_in_the_next_phase() {
    let cases = TRANSPORTS.into_iter().flat_map(|t| ["commit", "plan"].map(|name| (t, name)));
    // What the coordinator goes on with alone has a name of its own, or that of the next phase.
    let check = |(transport, alone)| {
        let met = Arc::new(Barrier::new(3));
        let results = with_groups(transport, 3, &impatient(SHORT), move |group| {
            let decide = |_: Vec<u8>| {
                std::thread::sleep(7 * SHORT);
                Ok(())
            };
            let mut kinds = Vec::new();
            let slow = group.phase_all(Channel::Save, "plan", || Ok(0u8), decide);
            kinds.extend(slow.map_err(|error| error.kind()).err());
            if group.is_coordinator() {
                let alone = roll_call(&group, Channel::Save, alone);
                kinds.extend(alone.map_err(|error| error.kind()).err());
            }
            met.wait();
            for name in ["plan", "commit", "plan"] {
                assert_eq!(roll_call(&group, Channel::Save, name), Ok(vec![0, 1, 2]));
            }
            kinds
        });
        let lost = vec![ErrorKind::CoordinatorLost];
        assert_eq!(results, [vec![ErrorKind::Deadline], lost.clone(), lost], "{transport:?}");
    };
    std::thread::scope(|scope| {
        let checks: Vec<_> = cases.map(|case| scope.spawn(move || check(case))).collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
}
