//! The vote when nobody is lost.

use super::*;

#[test]
fn every_rank_gets_its_own_answer_in_rank_order() {
    for (transport, ranks) in TRANSPORTS.into_iter().flat_map(|t| [1, 2, 4].map(|n| (t, n))) {
        let results = with_groups(transport, ranks, &patient(), move |group| {
            assert_eq!(group.is_coordinator(), group.rank() == Rank::new(0));
            for round in 0..3 {
                let rank = group.rank().get();
                let name = format!("round {round}");
                let answer = group.phase(
                    Channel::Training,
                    &name,
                    || Ok(rank * 10),
                    |values| Ok(values.iter().rev().copied().collect()),
                );
                assert_eq!(answer, Ok((ranks - 1 - rank) * 10));
            }
            roll_call(&group, Channel::Save, "all")
        });
        assert_eq!(results, vec![Ok((0..ranks).collect::<Vec<_>>()); ranks as usize]);
    }
}

#[test]
fn long_votes_and_answers_arrive_whole() {
    for transport in TRANSPORTS {
        let long = |seed: u32| -> Vec<u32> { (0..750_000).map(|i| i ^ seed).collect() };
        let results = with_groups(transport, 3, &patient(), move |group| {
            let rank = group.rank().get();
            group.phase(Channel::Save, "long", || Ok(long(rank)), Ok).map(|got| got == long(rank))
        });
        assert_eq!(results, vec![Ok(true); 3]);
    }
}

#[test]
fn work_of_the_coordinator_is_everyones_answer_or_error() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), move |group| {
            let rank = group.rank().get();
            let answer = group.on_coordinator("ask", || Ok(rank + 7))?;
            let refused = group.on_coordinator("refuse", || Err::<(), _>(refuse(group.rank())));
            let panicked =
                group.on_coordinator("panic", || -> Result<()> { panic!("at the disk") });
            Ok::<_, Error>((answer, refused.unwrap_err(), panicked.unwrap_err()))
        });
        for result in results {
            let (answer, refused, panicked) = result.unwrap();
            assert_eq!(answer, 7);
            assert!(refused.to_string().contains("disk of rank 0 is full"), "{refused}");
            assert_eq!(panicked.kind(), ErrorKind::Panic);
        }
    }
}

/// What goes wrong where, and what all ranks must hear of it.
struct Fault {
    local: fn(Rank) -> Result<u32>,
    decide: fn(Vec<u32>) -> Result<Vec<u32>>,
    kind: ErrorKind,
    rank: u32,
    text: &'static str,
    failures: usize,
}

fn refuse(rank: Rank) -> Error {
    Error::new(ErrorKind::Storage, format!("disk of rank {rank} is full"))
}

const FAULTS: [Fault; 7] = [
    Fault {
        local: |rank| if rank.get() == 2 { Err(refuse(rank)) } else { Ok(0) },
        decide: Ok,
        kind: ErrorKind::Storage,
        rank: 2,
        text: "disk of rank 2 is full",
        failures: 0,
    },
    Fault {
        local: |rank| if rank.get() == 0 { Err(refuse(rank)) } else { Ok(0) },
        decide: |_| panic!("the decision is taken in spite of a failure"),
        kind: ErrorKind::Storage,
        rank: 0,
        text: "disk of rank 0 is full",
        failures: 0,
    },
    Fault {
        local: |rank| if rank.get() % 2 == 1 { Err(refuse(rank)) } else { Ok(0) },
        decide: Ok,
        kind: ErrorKind::Storage,
        rank: 1,
        text: "disk of rank 1 is full",
        failures: 2,
    },
    Fault {
        local: |rank| if rank.get() == 1 { panic!("index {rank}") } else { Ok(0) },
        decide: Ok,
        kind: ErrorKind::Panic,
        rank: 1,
        text: "index 1 (at ",
        failures: 0,
    },
    Fault {
        local: |rank| Ok(rank.get()),
        decide: |_| Err(Error::new(ErrorKind::Mismatch, "they do not fit")),
        kind: ErrorKind::Mismatch,
        rank: 0,
        text: "they do not fit",
        failures: 0,
    },
    Fault {
        local: |rank| Ok(rank.get()),
        decide: |_| std::panic::panic_any(7u8),
        kind: ErrorKind::Panic,
        rank: 0,
        text: "a panic without a text",
        failures: 0,
    },
    Fault {
        local: |rank| Ok(rank.get()),
        decide: |_| Ok(vec![1, 2, 3]),
        kind: ErrorKind::InvalidInput,
        rank: 0,
        text: "3 answers for 4 ranks",
        failures: 0,
    },
];

#[test]
fn a_fault_is_the_same_error_everywhere_and_the_group_lives_on() {
    for (transport, index) in TRANSPORTS.into_iter().flat_map(|t| (0..7).map(move |i| (t, i))) {
        let results = with_groups(transport, 4, &patient(), move |group| {
            let fault = &FAULTS[index];
            let local = || (fault.local)(group.rank());
            let result = group.phase(Channel::Save, "commit", local, fault.decide);
            let after = roll_call(&group, Channel::Save, "after");
            assert_eq!(after, Ok(vec![0, 1, 2, 3]));
            result
        });
        let (error, fault) = (same_error(results), &FAULTS[index]);
        assert_eq!(error.kind(), fault.kind, "fault {index}");
        assert_eq!(error.rank(), Some(Rank::new(fault.rank)), "fault {index}");
        assert_eq!(error.phase(), Some("commit"));
        assert!(error.message().starts_with(fault.text), "{error}");
        assert_eq!(error.failures().len(), fault.failures, "fault {index}");
    }
}

#[test]
fn a_fault_of_a_job_of_one_names_it_too() {
    let group = ProcessGroup::solo();
    let local = || -> Result<u32> { panic!("alone") };
    let error = group.phase_all(Channel::Save, "plan", local, |_| Ok(())).unwrap_err();
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Panic, Some("plan")));
    assert_eq!(roll_call(&group, Channel::Save, "after"), Ok(vec![0]));
}

#[test]
fn ranks_in_different_phases_hear_of_both() {
    for (transport, odd) in TRANSPORTS.into_iter().flat_map(|t| [0, 1, 2].map(|odd| (t, odd))) {
        let results = with_groups(transport, 3, &patient(), move |group| {
            let name = if group.rank().get() == odd { "commit" } else { "plan" };
            let result = roll_call(&group, Channel::Save, name);
            assert_eq!(roll_call(&group, Channel::Save, "after"), Ok(vec![0, 1, 2]));
            result
        });
        let error = same_error(results);
        assert_eq!(error.kind(), ErrorKind::Disagreement);
        assert!(error.message().contains("\"plan\"") && error.message().contains("\"commit\""));
        assert!(error.message().contains("rank 0 "), "{error}");
        // If the coordinator is the odd one, the first of the others to vote is named.
        let blamed = error.rank().map(Rank::get);
        assert!(if odd == 0 { matches!(blamed, Some(1 | 2)) } else { blamed == Some(odd) });
    }
}

#[test]
fn a_phase_on_one_channel_does_not_wait_for_another() {
    for transport in TRANSPORTS {
        let results = with_groups(transport, 3, &patient(), |group| {
            let (trained, has_trained) = crossbeam_channel::bounded::<()>(1);
            let background = group.clone();
            let saver = std::thread::spawn(move || {
                // Only the verdict of the other channel ends this part.
                let local = || {
                    has_trained.recv_timeout(HUNG).expect("training waits for the background");
                    Ok(1u32)
                };
                background.phase_all(Channel::Background, "save", local, |v| Ok(v.len()))
            });
            let trained_in = roll_call(&group, Channel::Training, "step");
            trained.send(()).unwrap();
            (trained_in, saver.join().unwrap())
        });
        assert_eq!(results, vec![(Ok(vec![0, 1, 2]), Ok(3)); 3]);
    }
}

#[test]
fn a_phase_inside_a_phase_is_refused_on_every_rank() {
    let results = with_groups(Transport::Threads, 2, &patient(), |group| {
        let inner = || roll_call(&group, Channel::Training, "inner");
        group.phase_all(Channel::Save, "outer", inner, |_| Ok(()))
    });
    assert_eq!(same_error(results).kind(), ErrorKind::InvalidInput);
}

/// `Corrupt` would mean that a checkpoint is damaged, and one rank alone would turn to another one.
#[test]
fn a_verdict_that_cannot_be_read_is_a_disagreement_and_no_damage() {
    for transport in TRANSPORTS {
        let ended = with_groups(transport, 2, &patient(), |group| {
            let vote = || Ok(0u8);
            match group.rank().is_coordinator() {
                true => group.phase_all(Channel::Save, "plan", vote, |_| Ok(7u8)).map(drop),
                false => {
                    group.phase_all(Channel::Save, "plan", vote, |_| Ok(String::new())).map(drop)
                }
            }
        });
        let error = ended[1].as_ref().unwrap_err();
        assert!(ended[0].is_ok());
        assert_eq!(
            (error.kind(), error.phase()),
            (ErrorKind::Disagreement, Some("plan")),
            "{error}"
        );
    }
}
