//! A rank that was admitted and then sends what no rank sends, or reads nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::tcp::forged::Claim;
use super::join::dial;
use super::*;
use crate::codec;

/// A frame as it travels, with a body of a claimed length.
fn frame(kind: u8, channel: u8, name: &[u8], sequence: u64, claimed: u64, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap().to_le_bytes();
    let head = [&[kind, channel][..], &length, &sequence.to_le_bytes(), &claimed.to_le_bytes()];
    [&head.concat(), name, body].concat()
}

fn vote(channel: u8, name: &str, body: &[u8]) -> Vec<u8> {
    frame(1, channel, name.as_bytes(), 0, body.len() as u64, body)
}

/// Rank 2 of `world`, whose control connection does as `behave` says; what `rest` of the ranks find.
fn beside<R: Send + 'static>(
    world: u32,
    deadlines: Deadlines,
    behave: impl Fn(&TcpStream) + Send + Sync + 'static,
    rest: impl Fn(ProcessGroup) -> R + Send + Sync + 'static,
) -> Vec<R> {
    let address = free_address();
    let results = on_ranks(world, move |rank| {
        if rank.get() != 2 {
            return Some(rest(join_tcp(rank, world, &address, deadlines.clone()).unwrap()));
        }
        let (control, data) = (dial(&address), dial(&address));
        Claim::of(2, world).join(&control, &data).unwrap();
        behave(&control);
        None
    });
    results.into_iter().flatten().collect()
}

/// Waits until the other side has closed.
fn outlast(mut stream: &TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(1..) = stream.read(&mut bytes) {}
}

#[test]
fn frames_that_no_rank_sends_are_the_loss_of_their_sender_for_all() {
    let error = codec::encode(&(Error::new(ErrorKind::Panic, "forged"), ())).unwrap();
    let crowd: Vec<u8> = (0..1100).flat_map(|_| vote(2, "x", &[])).collect();
    let cases = [
        (frame(0xff, 0, b"commit", 0, 0, &[]), "unknown kind"),
        (frame(1, 9, b"commit", 0, 0, &[]), "unknown channel"),
        (frame(1, 1, &[0xff; 6], 0, 0, &[]), "not text"),
        (frame(1, 1, b"commit", 0, 1 << 63, &[]), "longer than allowed"),
        (frame(1, 1, &[b'x'; 300], 0, 0, &[]), "longer than allowed"),
        (frame(2, 1, b"commit", 0, 0, &[]), "rank 0's to give"),
        (frame(3, 1, b"commit", 0, error.len() as u64, &error), "rank 0's to give"),
        (frame(7, 1, b"commit", 0, 0, &[]), "rank 0's to give"),
        (crowd, "more than may wait"),
    ];
    let deadlines = Deadlines { progress: 3 * HUNG, ..patient() };
    for (bytes, reason) in cases {
        let behave = move |mut stream: &TcpStream| {
            drop(stream.write_all(&bytes)); // may be cut off
            outlast(stream);
        };
        let results = beside(4, deadlines.clone(), behave, |group| {
            let first = roll_call(&group, Channel::Save, "commit");
            assert!(roll_call(&group, Channel::Save, "later").is_err());
            first
        });
        let error = same_error(results);
        assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(2))));
        assert!(error.message().contains(reason), "{error}");
    }
}

/// A vote that is none fails its phase alone.
#[test]
fn a_vote_that_does_not_decode_is_one_error_for_all() {
    for body in [vec![], vec![0xff; 40], codec::encode(&Ok::<_, Error>("text")).unwrap()] {
        let bytes = vote(1, "commit", &body);
        let behave = move |mut stream: &TcpStream| {
            stream.write_all(&bytes).unwrap();
            outlast(stream);
        };
        let results =
            beside(3, patient(), behave, |group| roll_call(&group, Channel::Save, "commit"));
        let error = same_error(results);
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(2))));
        assert!(error.message().contains("vote cannot be read"), "{error}");
    }
}

/// A rank that takes a byte now and then is as good as gone after the deadline; the others have
/// their verdict, and wait for it no longer than that.
#[test]
fn a_rank_that_reads_nothing_keeps_no_verdict_from_the_others() {
    let deadlines = impatient(Duration::from_secs(1));
    let is_over = Arc::<AtomicBool>::default();
    let over = Arc::clone(&is_over);
    let behave = move |mut stream: &TcpStream| {
        let body = codec::encode(&Ok::<_, Error>(0u8)).unwrap();
        stream.write_all(&vote(1, "plan", &body)).unwrap();
        // One byte at a time, so that it is never quite silent.
        while !is_over.load(Ordering::Relaxed) && stream.read(&mut [0]).is_ok_and(|n| n == 1) {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let results = beside(4, deadlines, behave, move |group| {
        let answer = |_| Ok("x".repeat(24 << 20));
        let plan = group.phase_all(Channel::Save, "plan", || Ok(0u8), answer);
        let commit = roll_call(&group, Channel::Save, "commit");
        over.store(true, Ordering::Relaxed);
        (plan.map(|answer| answer.len()), commit)
    });
    let (plans, commits): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    assert_eq!(plans, vec![Ok(24 << 20); 3]);
    let error = same_error(commits);
    assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(2))));
    assert!(error.message().contains("sending to it failed"), "{error}");
}
