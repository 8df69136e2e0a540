//! Whoever is no rank of the job, while it comes together and afterwards: many, and clever ones.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::super::tcp::forged::{
    Answer, Claim, INTRODUCTION_BYTES, Overheard, pose_as_rank_0, pose_by_replay, refuse, replay,
};
use super::join::dial;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Passes connections on, and writes down what the callers say.
fn eavesdrop(to: String) -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let written = Arc::clone(&heard);
    std::thread::spawn(move || {
        for (number, near) in listener.incoming().flatten().enumerate() {
            written.lock().push(Vec::new());
            let (far, written) = (dial(&to), Arc::clone(&written));
            let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || {
                pass(&near, &far, |bytes| written.lock()[number].extend(bytes));
            });
            std::thread::spawn(move || pass(&ends.1, &ends.0, |_| ()));
        }
    });
    (address, heard)
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, mut note: impl FnMut(&[u8])) {
    let mut bytes = [0; 4096];
    drop(from.set_read_timeout(None));
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        note(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}

pub(super) fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + HUNG;
    while Instant::now() < until {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never");
}

/// The introductions of a rank, once both its connections were admitted.
fn introductions(heard: &Mutex<Vec<Vec<u8>>>) -> Vec<Vec<u8>> {
    wait_for(|| {
        let heard = heard.lock();
        let both = heard.len() == 2 && heard.iter().all(|said| said.len() >= INTRODUCTION_BYTES);
        both.then(|| heard.iter().map(|said| said[..INTRODUCTION_BYTES].to_vec()).collect())
    })
}

/// What an admitted rank has said neither admits anybody nor disturbs it, and shows no secret.
#[test]
fn what_was_heard_of_a_rank_opens_nothing() {
    let address = free_address();
    let (by_way_of, heard) = eavesdrop(address.clone());
    let (replayed, was_replayed) = crossbeam_channel::bounded(1);
    let results = on_ranks(4, move |thread| match thread.get() {
        3 => {
            for recorded in introductions(&heard) {
                let text = String::from_utf8_lossy(&recorded).into_owned();
                assert!(!text.contains("secret") && !text.contains("test"), "{text:?}");
                for _ in 0..3 {
                    let answer = replay(&dial(&address), &recorded);
                    assert!(matches!(answer, Answer::OtherJob), "{answer:?}");
                }
            }
            replayed.send(()).unwrap();
            None
        }
        rank => {
            if rank == 2 {
                was_replayed.recv_timeout(HUNG).unwrap();
            }
            let address = if rank == 1 { &by_way_of } else { &address };
            let group = join_tcp(thread, 3, address, patient()).unwrap();
            Some(roll_call(&group, Channel::Save, "all"))
        }
    });
    assert_eq!(results[..3], vec![Some(Ok(vec![0, 1, 2])); 3]);
}

/// How a client of TLS begins: version, length, `ClientHello`; the rest is as good as random.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03\x8a\x11\x9e\x40\xc3\x5d";

/// Somebody at the gate, and what he has still to say, a byte at a time.
struct Slow(TcpStream, VecDeque<u8>);

impl Slow {
    fn go_on(&mut self) {
        if let Some(byte) = self.1.pop_front() {
            drop(self.0.write_all(&[byte])); // may be cut off already
        }
    }
}

/// Opens connections until told to stop, keeps the last hundred, and says all kinds of things.
pub(super) fn flood(address: &str, stop: &AtomicBool, opened: &AtomicUsize) {
    let mut held = VecDeque::new();
    let hello = Claim { token: "guess", ..Claim::of(1, 3) };
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let mut rest = VecDeque::new();
        match opened.fetch_add(1, Ordering::Relaxed) % 7 {
            0 => {}
            1 => drop(stream.write_all(b"TCHCKPT\n\x03")),
            2 => drop(stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
            3 => drop(stream.write_all(CLIENT_HELLO)),
            4 => rest.extend(hello.hello_bytes()),
            5 => drop(hello.knock(&stream, false)), // with a wrong proof, to the end
            _ => hello.say_hello(&stream),
        }
        held.iter_mut().for_each(Slow::go_on);
        held.push_back(Slow(stream, rest));
        if held.len() > 100 {
            held.pop_front(); // with what was not read: reset
        }
    }
}

/// More of them than can be heard at a time, all the time, from the ranks' own address.
#[test]
fn thousands_of_strangers_starve_no_rank() {
    let address = free_address();
    let (stop, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let (address, stop, opened) = (address.clone(), Arc::clone(&stop), Arc::clone(&opened));
            std::thread::spawn(move || flood(&address, &stop, &opened))
        })
        .collect();
    let seen = Arc::clone(&opened);
    let results = on_ranks(3, move |rank| {
        if !rank.is_coordinator() {
            wait_for(|| (seen.load(Ordering::Relaxed) >= 2000).then_some(()));
        }
        let group = join_tcp(rank, 3, &address, patient()).unwrap();
        // The door is shut, whatever still knocks.
        let shut = rank.get() != 1 || TcpStream::connect(&address).is_err();
        (shut, roll_call(&group, Channel::Save, "all"))
    });
    stop.store(true, Ordering::Relaxed);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    assert_eq!(results, vec![(true, Ok(vec![0, 1, 2])); 3]);
}

#[test]
fn claims_of_a_rank_that_knows_the_token_are_checked_all_the_same() {
    let address = free_address();
    let claims = [
        (Claim { is_big_endian: !cfg!(target_endian = "big"), ..Claim::of(1, 2) }, false),
        (Claim::of(1, 3), false),
        (Claim::of(0, 2), false),
        (Claim::of(2, 2), false),
        (Claim::of(1, 2), true), // the data connection first
    ];
    let results = on_ranks(2, move |rank| {
        if rank.is_coordinator() {
            return Some(join_tcp(rank, 2, &address, patient()).map(drop));
        }
        for (number, (claim, has_data)) in claims.iter().enumerate() {
            let answer = claim.knock(&dial(&address), *has_data);
            let Answer::Refused(error, true) = answer else { panic!("{number}: {answer:?}") };
            assert_eq!(error.kind(), ErrorKind::Disagreement, "{number}: {error}");
        }
        let honest = join_tcp(rank, 2, &address, patient());
        Some(honest.map(drop))
    });
    assert_eq!(results, vec![Some(Ok(())); 2]);
}

/// Whoever listens at rank 0's address learns nothing that would let it in elsewhere, and its
/// "admitted" is not believed.
#[test]
fn an_impostor_at_rank_0s_address_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heard = Arc::<Mutex<Vec<u8>>>::default();
    let written = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            written.lock().extend(pose_as_rank_0(&stream));
        }
    });
    let short = Deadlines {
        join: Duration::from_secs(2),
        connect: Duration::from_millis(300),
        ..patient()
    };
    let error = join_tcp(Rank::new(1), 2, &address, short).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    let heard = heard.lock();
    assert!(!heard.is_empty() && !heard.windows(6).any(|bytes| bytes == b"secret"));
}

/// What was heard of rank 0 on one connection proves nothing on the next.
#[test]
fn what_was_heard_of_rank_0_is_not_believed_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (posed, believed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (count, is_believed) = (Arc::clone(&posed), Arc::clone(&believed));
    std::thread::spawn(move || {
        let mut overheard = Overheard::default();
        for stream in listener.incoming().flatten() {
            is_believed.fetch_or(pose_by_replay(&stream, &mut overheard), Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let short = Deadlines { join: SECOND * 2, connect: SECOND / 3, ..patient() };
    let error = join_tcp(Rank::new(1), 2, &address, short).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    assert!(posed.load(Ordering::Relaxed) > 1, "the rank has not tried again");
    assert!(!believed.load(Ordering::Relaxed), "a replay was believed");
}

/// Refuses the first `count` who come, in both ways that nobody has to prove, and goes away.
fn refusing(count: usize) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let refusing = std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().take(count).enumerate() {
            refuse(&stream, number % 2 == 1, "no place\nfor \u{1b}[31myou");
        }
    });
    (address, refusing)
}

/// A stale job on the port, or an impostor, that is gone before time is up, costs no rank.
#[test]
fn a_refusal_that_nobody_has_proved_is_not_the_last_word() {
    let (address, refusing) = refusing(4);
    let refusing = Mutex::new(Some(refusing));
    let results = on_ranks(2, move |rank| {
        if rank.is_coordinator() {
            refusing.lock().take().unwrap().join().unwrap();
        }
        join_tcp(rank, 2, &address, patient()).map(drop)
    });
    assert_eq!(results, vec![Ok(()); 2]);
}

#[test]
fn a_refusal_that_nobody_has_proved_is_the_reason_when_time_is_up() {
    let (address, _) = refusing(usize::MAX);
    let short = Deadlines { join: SECOND, ..patient() };
    let error = join_tcp(Rank::new(1), 2, &address, short.clone()).unwrap_err();
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Deadline, Some("join")));
    assert!(error.message().contains("no place"), "{error}");
    assert!(!error.message().contains(['\n', '\u{1b}']), "{error:?}");
}

/// There is nothing to prove then, and whoever is in a wrong job hears of it at once.
#[test]
fn a_refusal_is_final_where_there_is_no_token() {
    let (address, _) = refusing(usize::MAX);
    let (rank, job) = (Rank::new(1), JobId::without_secret("test"));
    let error = ProcessGroup::tcp(rank, LocalRank(1), world(2), &address, job, patient());
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
}
