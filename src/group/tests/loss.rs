//! Ranks that go away. Deadlines are far beyond the test's own, so whoever learns of a loss
//! learns of it by the closed connection.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Runs a phase in which `goes` drops its group instead of voting, then another phase.
fn lose(transport: Transport, ranks: u32, goes: u32) -> Vec<Option<(Error, Error, bool)>> {
    let deadlines = Deadlines { progress: 3 * HUNG, ..patient() };
    with_groups(transport, ranks, &deadlines, move |group| {
        roll_call(&group, Channel::Save, "before").unwrap();
        if group.rank().get() == goes {
            return None; // drops the group
        }
        let first = roll_call(&group, Channel::Save, "commit").unwrap_err();
        let ran = AtomicBool::new(false);
        let local = || {
            ran.store(true, Ordering::Relaxed);
            Ok(0u8)
        };
        let second = group.phase_all(Channel::Training, "later", local, |_| Ok(())).unwrap_err();
        Some((first, second, ran.into_inner()))
    })
}

#[test]
fn a_lost_rank_is_named_to_all_others_at_once_and_from_then_on() {
    for (transport, goes) in TRANSPORTS.into_iter().flat_map(|t| [1, 3].map(|goes| (t, goes))) {
        let told: Vec<_> = lose(transport, 4, goes).into_iter().flatten().collect();
        assert_eq!(told.len(), 3);
        for (first, second, ran) in told {
            assert_eq!(first.kind(), ErrorKind::PeerLost, "{transport:?} {first}");
            assert_eq!(first.rank(), Some(Rank::new(goes)));
            assert_eq!(first.phase(), Some("commit"));
            assert_eq!(second, first);
            assert!(!ran, "a part of a phase that cannot succeed was run");
        }
    }
}

#[test]
fn a_lost_coordinator_ends_the_wait_of_all_others() {
    for transport in TRANSPORTS {
        let told: Vec<_> = lose(transport, 3, 0).into_iter().flatten().collect();
        assert_eq!(told.len(), 2);
        for (first, second, _) in told {
            assert_eq!(first.kind(), ErrorKind::CoordinatorLost, "{first}");
            assert_eq!(second.kind(), ErrorKind::CoordinatorLost, "{second}");
        }
    }
}

#[test]
fn a_cause_voted_by_another_rank_outranks_the_loss() {
    let results = with_groups(Transport::Tcp, 3, &patient(), |group| {
        let local = || match group.rank().get() {
            1 => Err(Error::new(ErrorKind::Storage, "disk full")),
            _ => Ok(0u8),
        };
        if group.rank().get() == 2 {
            // Goes only when rank 1 has had time to vote.
            std::thread::sleep(Duration::from_millis(500));
            return None;
        }
        Some(group.phase_all(Channel::Save, "commit", local, |_| Ok(())))
    });
    let error = same_error(results.into_iter().flatten().collect());
    assert_eq!(error.kind(), ErrorKind::Storage);
    let kinds: Vec<_> = error.failures().iter().map(Error::kind).collect();
    assert_eq!(kinds, [ErrorKind::Storage, ErrorKind::PeerLost]);
}

#[test]
fn whoever_waits_on_another_channel_hears_of_the_loss_too() {
    for transport in TRANSPORTS {
        let deadlines = Deadlines { progress: 3 * HUNG, ..patient() };
        let results = with_groups(transport, 3, &deadlines, |group| {
            match group.rank().get() {
                2 => None, // drops the group
                // Alone on a channel where nobody else will ever come.
                1 => Some(roll_call(&group, Channel::Background, "alone")),
                _ => Some(roll_call(&group, Channel::Save, "commit")),
            }
        });
        let results: Vec<_> = results.into_iter().flatten().collect();
        let kinds: Vec<_> = results.into_iter().map(|r| r.unwrap_err().kind()).collect();
        assert_eq!(kinds, [ErrorKind::PeerLost, ErrorKind::PeerLost], "{transport:?}");
    }
}

#[test]
fn leaving_in_good_order_harms_nobody_who_needs_the_rank_no_more() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), |group| {
            let last = roll_call(&group, Channel::Save, "last");
            let clone = group.clone();
            let left = group.finish();
            let after = roll_call(&clone, Channel::Save, "after").unwrap_err().kind();
            (last, left, after)
        });
        assert_eq!(results, vec![(Ok(vec![0, 1, 2]), Ok(()), ErrorKind::InvalidInput); 3]);
    }
}

#[test]
fn a_rank_that_left_and_is_needed_is_lost() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), |group| {
            roll_call(&group, Channel::Save, "before").unwrap();
            if group.rank().get() == 1 {
                group.finish().unwrap();
                return None;
            }
            Some(roll_call(&group, Channel::Save, "commit"))
        });
        let error = same_error(results.into_iter().flatten().collect());
        assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(1))));
        assert!(error.message().contains("left the job"), "{error}");
    }
}

#[test]
fn a_loss_on_another_channel_is_no_verdict_on_a_vote_that_was_counted() {
    for transport in TRANSPORTS {
        let (deciding, is_deciding) = crossbeam_channel::bounded::<()>(1);
        let deadlines = Deadlines { progress: 3 * HUNG, ..patient() };
        let results = with_groups(transport, 3, &deadlines, move |group| {
            let decide = |_: Vec<u8>| {
                deciding.send(()).unwrap();
                let other = group.clone();
                let step = std::thread::spawn(move || roll_call(&other, Channel::Training, "step"));
                // Over when all others have been told that the group is of no more use.
                let error = step.join().unwrap().unwrap_err();
                assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(2))));
                assert!(!error.to_string().contains("committed"), "{error}");
                Ok(1u8)
            };
            if group.rank().get() == 2 {
                let (leaving, is_deciding) = (group.clone(), is_deciding.clone());
                std::thread::spawn(move || {
                    is_deciding.recv_timeout(HUNG).unwrap();
                    leaving.finish().unwrap();
                });
            }
            let commit = group.phase_all(Channel::Save, "commit", || Ok(0u8), decide);
            let later = roll_call(&group, Channel::Save, "later").map_err(|error| error.kind());
            (commit.map_err(|error| error.kind()), later)
        });
        let committed = (Ok(1), Err(ErrorKind::PeerLost));
        let left = (Err(ErrorKind::CoordinatorLost), Err(ErrorKind::InvalidInput));
        assert_eq!(results, [committed.clone(), committed, left], "{transport:?}");
    }
}
