//! Coming together over TCP, in good and in bad company.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::super::tcp::forged::{Answer, Claim};
use super::*;

const SHORT: Duration = Duration::from_secs(1);

fn short_join() -> Deadlines {
    Deadlines { join: SHORT, connect: SHORT / 2, ..patient() }
}

/// Connects as soon as somebody listens.
pub(super) fn dial(address: &str) -> TcpStream {
    let until = Instant::now() + HUNG;
    while Instant::now() < until {
        if let Ok(stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(HUNG)).unwrap();
            return stream;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody listens at {address}");
}

#[test]
fn the_coordinator_may_come_last() {
    let address = free_address();
    let results = on_ranks(3, move |rank| {
        if rank.is_coordinator() {
            std::thread::sleep(Duration::from_millis(400));
        }
        roll_call(&join_tcp(rank, 3, &address, patient()).unwrap(), Channel::Save, "all")
    });
    assert_eq!(results, vec![Ok(vec![0, 1, 2]); 3]);
}

#[test]
fn a_rank_that_never_comes_is_named_to_those_who_came() {
    let address = free_address();
    let results = on_ranks(3, move |rank| match rank.get() {
        2 => None,
        // The coordinator's time begins first, so that its verdict comes first.
        0 => Some(join_tcp(rank, 4, &address, short_join()).map(drop)),
        _ => Some(join_tcp(rank, 4, &address, patient()).map(drop)),
    });
    let results: Vec<_> = results.into_iter().flatten().collect();
    for error in results.into_iter().map(|result| result.unwrap_err()) {
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Deadline, Some("join")));
        assert!(error.message().contains("rank 2, 3"), "{error}");
    }
}

#[test]
fn a_rank_gives_up_on_a_coordinator_that_never_listens() {
    let error = join_tcp(Rank::new(1), 2, &free_address(), short_join()).unwrap_err();
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Deadline, Some(Rank::new(0))));
}

/// One stranger per kind; each stays connected until the job has come together.
fn strangers(address: &str) -> Vec<TcpStream> {
    let magic = b"TCHCKPT\n";
    let words: [Vec<u8>; 6] = [
        Vec::new(),                                                          // says nothing
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), // speaks something else
        magic[..5].to_vec(),                           // stops half-way
        [&magic[..], &1u16.to_le_bytes(), &u32::MAX.to_le_bytes()].concat(), // claims 4 GiB
        [&magic[..], &1u16.to_le_bytes(), &40u32.to_le_bytes(), &[0xee; 40]].concat(),
        vec![0xff; 100_000],
    ];
    let knock = |words: &Vec<u8>| {
        let mut stream = dial(address);
        drop(stream.write_all(words)); // may be cut off already
        stream
    };
    words.iter().map(knock).collect()
}

#[test]
fn strangers_delay_nobody() {
    let address = free_address();
    let results = on_ranks(3, move |rank| {
        // Nobody is missing for as long as the first words of a stranger may take.
        let deadlines = Deadlines { join: Duration::from_secs(4), ..patient() };
        let company = match rank.get() {
            1 => (0..15).flat_map(|_| strangers(&address)).collect(),
            _ => Vec::new(),
        };
        let group = join_tcp(rank, 3, &address, deadlines).unwrap();
        drop(company);
        roll_call(&group, Channel::Save, "all")
    });
    assert_eq!(results, vec![Ok(vec![0, 1, 2]); 3]);
}

#[test]
fn another_version_is_refused_with_a_reason() {
    let address = free_address();
    let at_gate = address.clone();
    let gate =
        std::thread::spawn(move || join_tcp(Rank::new(0), 2, &at_gate, short_join()).map(drop));
    let mut stream = dial(&address);
    stream.write_all(b"TCHCKPT\n\x63\x00\x00\x00\x00\x00").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("version 99 ") && answer.contains("version 3"), "{answer}");
    assert_eq!(gate.join().unwrap().unwrap_err().kind(), ErrorKind::Deadline);
}

/// Lets rank 1 join a job of two under a false claim, and gives the errors of both ranks.
fn impostor(claim: impl Fn(&str) -> Result<ProcessGroup> + Send + Sync + 'static) -> Vec<Error> {
    let address = free_address();
    on_ranks(2, move |rank| match rank.get() {
        0 => join_tcp(rank, 2, &address, short_join()).unwrap_err(),
        _ => claim(&address).unwrap_err(),
    })
}

#[test]
fn ranks_of_another_job_are_kept_out() {
    for (id, token) in [("test", "wrong"), ("test", ""), ("other", "secret")] {
        let errors = impostor(move |address| {
            let (rank, job) = (Rank::new(1), JobId::new(id, token));
            ProcessGroup::tcp(rank, LocalRank(1), world(2), address, job, short_join())
        });
        let kinds = [errors[0].kind(), errors[1].kind()];
        assert_eq!(kinds, [ErrorKind::Deadline, ErrorKind::Disagreement], "{id} {token}");
        assert!(!format!("{}{}", errors[0], errors[1]).contains("secret"));
    }
}

#[test]
fn another_world_size_is_refused_at_once() {
    let errors = impostor(|address| join_tcp(Rank::new(1), 3, address, patient()));
    assert_eq!(errors[1].kind(), ErrorKind::Disagreement);
    assert!(errors[1].message().contains("2 ranks") && errors[1].message().contains("one of 3"));
}

#[test]
fn the_second_process_of_a_rank_is_refused() {
    let address = free_address();
    let (refused, was_refused) = crossbeam_channel::bounded(1);
    let results = on_ranks(4, move |thread| match thread.get() {
        // Two processes claim to be rank 1; rank 2 comes when one of them was refused.
        1 | 3 => {
            let joined = join_tcp(Rank::new(1), 3, &address, patient());
            if joined.is_err() {
                refused.send(()).unwrap();
            }
            joined.and_then(|group| roll_call(&group, Channel::Save, "all"))
        }
        rank => {
            if rank == 2 {
                was_refused.recv_timeout(HUNG).unwrap();
            }
            let group = join_tcp(thread, 3, &address, patient())?;
            roll_call(&group, Channel::Save, "all")
        }
    });
    let (joined, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(joined, vec![Ok(vec![0, 1, 2]); 3]);
    let error = same_error(failed);
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    assert!(error.message().contains("another process is rank 1 already"), "{error}");
}

/// Both connections of a rank of three, as rank 0 has let them in.
fn let_in(rank: u32, address: &str) -> [TcpStream; 2] {
    [false, true].map(|has_data| {
        let stream = dial(address);
        let answer = Claim::of(rank, 3).knock(&stream, has_data);
        assert!(matches!(answer, Answer::Admitted), "{answer:?}");
        stream
    })
}

/// A rank that has not heard that it was let in comes again: it is not another process.
#[test]
fn a_rank_that_comes_again_finds_its_seat() {
    let address = free_address();
    let at_gate = address.clone();
    let gate =
        std::thread::spawn(move || join_tcp(Rank::new(0), 3, &at_gate, short_join()).map(drop));
    let (rank, lost) = (Claim::of(1, 3), dial(&address));
    assert!(matches!(rank.knock(&lost, false), Answer::Admitted));
    for _ in 0..2 {
        assert!(matches!(rank.knock(&dial(&address), true), Answer::Admitted));
    }
    let again = dial(&address);
    assert!(matches!(rank.knock(&again, false), Answer::Admitted));
    let other = Claim { process: 1, ..rank }.knock(&dial(&address), false);
    let Answer::Refused(error, true) = other else { panic!("{other:?}") };
    assert!(error.message().contains("another process is rank 1 already"), "{error}");
    assert_eq!(gate.join().unwrap().unwrap_err().kind(), ErrorKind::Deadline);
}

/// How a rank that rank 0 has let in goes away before the others come.
const ENDS: [fn([TcpStream; 2]); 4] = [
    drop,
    |[control, data]| {
        control.shutdown(Shutdown::Write).unwrap();
        std::mem::forget((control, data)); // half closed, and still there
    },
    |[control, data]| {
        drop(data);
        std::mem::forget(control);
    },
    |[mut control, data]| {
        control.write_all(b"no rank says this").unwrap();
        std::mem::forget((control, data));
    },
];

/// The job does not start with the dead: their place is that of the process started in their stead.
#[test]
fn a_rank_that_died_before_the_start_is_replaced_by_the_next_process() {
    for end in &ENDS[..2] {
        let address = free_address();
        let results = on_ranks(2, move |rank| match rank.get() {
            0 => Some(join_tcp(rank, 3, &address, patient()).map(drop)),
            _ => {
                end(let_in(1, &address));
                let last = let_in(2, &address); // now all have been there
                let joined = join_tcp(rank, 3, &address, patient()).map(drop);
                drop(last);
                Some(joined)
            }
        });
        assert_eq!(results, vec![Some(Ok(())); 2]);
    }
}

#[test]
fn a_rank_that_died_before_the_start_and_does_not_come_again_is_named() {
    for end in ENDS {
        let address = free_address();
        let results = on_ranks(2, move |rank| match rank.get() {
            0 => join_tcp(rank, 3, &address, short_join()).map(drop),
            _ => {
                end(let_in(1, &address));
                let last = let_in(2, &address);
                Claim::await_start(&last[0])
            }
        });
        for error in results.into_iter().map(Result::unwrap_err) {
            assert_eq!((error.kind(), error.rank()), (ErrorKind::Deadline, Some(Rank::new(1))));
            assert!(error.message().contains("rank 1 did not join"), "{error}");
        }
    }
}

#[test]
fn impossible_places_are_refused() {
    let at = |address: &str| join_tcp(Rank::new(0), 2, address, short_join()).unwrap_err().kind();
    assert_eq!(at("203.0.113.1:1"), ErrorKind::InvalidInput);
    assert_eq!(at("127.0.0.1"), ErrorKind::InvalidInput);
    let outside = join_tcp(Rank::new(2), 2, &free_address(), short_join()).unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::InvalidInput);
    let long = JobId::new("x".repeat(2000), "");
    let (rank, address) = (Rank::new(1), free_address());
    let error = ProcessGroup::tcp(rank, LocalRank(1), world(2), &address, long, short_join());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_job_id_shows_no_secret() {
    assert!(!format!("{:?}", JobId::new("job", "hush")).contains("hush"));
}
