//! For tests: connections of whoever is no rank, or one that does what no rank does.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::handshake::{HEAD_BYTES, Hello, Plane, Reply, Unread, message, receive, send};
use super::proof::{Code, Secret, Side, challenge};
use crate::error::{Error, ErrorKind, Result};

static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
/// No test waits longer.
const HUNG: Duration = Duration::from_secs(60);
/// Hello and proof, as they travel.
pub(in crate::group) const INTRODUCTION_BYTES: usize = 2 * HEAD_BYTES + 26 + 32;

/// What rank 0 made of it.
#[derive(Debug)]
pub(in crate::group) enum Answer {
    Admitted,
    OtherJob,
    /// And whether rank 0 has proved itself.
    Refused(Error, bool),
    /// The connection is closed.
    Nothing,
}

/// What somebody says of himself.
#[derive(Clone)]
pub(in crate::group) struct Claim {
    pub(in crate::group) job: &'static str,
    pub(in crate::group) token: &'static str,
    pub(in crate::group) world: u32,
    pub(in crate::group) rank: u32,
    pub(in crate::group) process: u64,
    pub(in crate::group) is_big_endian: bool,
}

impl Claim {
    /// What rank `rank` of the tests' job says.
    pub(in crate::group) fn of(rank: u32, world: u32) -> Self {
        let (job, token, is_big_endian) = ("test", "secret", cfg!(target_endian = "big"));
        Self { job, token, world, rank, process: 7 + u64::from(rank), is_big_endian }
    }

    fn hello(&self, has_data: bool) -> Hello {
        let plane = if has_data { Plane::Data } else { Plane::Control };
        let (world, rank, process) = (self.world, self.rank, self.process);
        let big_endian = self.is_big_endian;
        // Another each time, as a rank says it.
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        Hello { big_endian, with_data: true, plane, world, rank, process, attempt }
    }

    /// The first words, which anybody can say.
    pub(in crate::group) fn say_hello(&self, stream: &TcpStream) {
        drop(send(stream, &self.hello(false).to_bytes())); // may be cut off already
    }

    /// The same as it travels.
    pub(in crate::group) fn hello_bytes(&self) -> Vec<u8> {
        message(&self.hello(false).to_bytes()).unwrap()
    }

    /// Says hello for one plane and proves it, as far as it is let.
    pub(in crate::group) fn knock(&self, mut stream: &TcpStream, has_data: bool) -> Answer {
        let (hello, secret) = (self.hello(has_data), Secret::new(self.job, self.token));
        if send(stream, &hello.to_bytes()).is_err() {
            return Answer::Nothing;
        }
        let answer = match hear(stream) {
            Some(Reply::Challenge(challenge)) => {
                drop(send(stream, &secret.proof(Side::Caller, &challenge, &hello)));
                let is_proof =
                    |proof: &Code| secret.is_proved(Side::Coordinator, &challenge, &hello, proof);
                match hear(stream) {
                    Some(Reply::Refused(error, proof)) => {
                        Some(Reply::Refused(error, proof.filter(is_proof)))
                    }
                    other => other,
                }
            }
            other => other,
        };
        drop(stream.flush());
        Answer::of(answer)
    }

    /// Joins as a rank does, up to the start: control and data connection.
    pub(in crate::group) fn join(&self, control: &TcpStream, data: &TcpStream) -> io::Result<()> {
        for (stream, has_data) in [(control, false), (data, true)] {
            let answer = self.knock(stream, has_data);
            if !matches!(answer, Answer::Admitted) {
                return Err(io::Error::other(format!("{answer:?}")));
            }
        }
        Self::await_start(control).map_err(io::Error::other)
    }

    /// What rank 0 says to all when it starts, or does not.
    pub(in crate::group) fn await_start(control: &TcpStream) -> Result<()> {
        match hear(control) {
            Some(Reply::Start) => Ok(()),
            Some(Reply::Refused(error, _)) => Err(error),
            other => Err(Error::new(ErrorKind::Disagreement, format!("{other:?}"))),
        }
    }
}

impl Answer {
    fn of(reply: Option<Reply>) -> Self {
        match reply {
            Some(Reply::Admitted(_)) => Self::Admitted,
            Some(Reply::OtherJob) => Self::OtherJob,
            Some(Reply::Refused(error, proof)) => Self::Refused(error, proof.is_some()),
            _ => Self::Nothing,
        }
    }
}

fn hear(stream: &TcpStream) -> Option<Reply> {
    match receive(stream, Instant::now() + HUNG) {
        Ok(body) => Reply::parse(&body),
        Err(Unread::Io(_) | Unread::Version(_)) => None,
    }
}

/// Says again what was heard of somebody else, and gives the answer to it.
pub(in crate::group) fn replay(mut stream: &TcpStream, recorded: &[u8]) -> Answer {
    if stream.write_all(recorded).is_err() {
        return Answer::Nothing;
    }
    match hear(stream) {
        Some(Reply::Challenge(_)) => Answer::of(hear(stream)),
        other => Answer::of(other),
    }
}

/// Rank 0 of nobody's job: challenges whoever comes, and admits it without a proof of its own.
pub(in crate::group) fn pose_as_rank_0(stream: &TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    for reply in [Reply::Challenge([1; 32]), Reply::Admitted([2; 32])] {
        heard.extend(receive(stream, Instant::now() + HUNG).unwrap_or_default());
        drop(send(stream, &reply.to_bytes()));
    }
    let mut rest = stream;
    drop(rest.read_to_end(&mut heard));
    heard
}

/// What rank 0 of the tests' job has said on one connection.
#[derive(Default)]
pub(in crate::group) struct Overheard(Vec<Vec<u8>>);

/// Rank 0 as somebody poses who has overheard it once: the first connection is that one, and ends
/// before the rank knows that it is admitted; later ones hear the same again. Whether the rank has
/// gone on to a data connection.
pub(in crate::group) fn pose_by_replay(stream: &TcpStream, overheard: &mut Overheard) -> bool {
    let receive = || receive(stream, Instant::now() + HUNG).unwrap_or_default();
    let Some(hello) = Hello::parse(&receive()) else { return false };
    if overheard.0.is_empty() {
        let drawn = challenge().unwrap();
        let ours = Secret::new("test", "secret").proof(Side::Coordinator, &drawn, &hello);
        let replies = [Reply::Challenge(drawn), Reply::Admitted(ours)];
        overheard.0.extend(replies.map(|reply| reply.to_bytes()));
    } else {
        for reply in &overheard.0 {
            drop(send(stream, reply));
            drop(receive());
        }
    }
    hello.plane == Plane::Data
}

/// Refuses a rank as anybody can: at once, or when it has proved that it belongs to its job.
pub(in crate::group) fn refuse(stream: &TcpStream, after_proof: bool, text: &str) {
    let mut words = vec![Reply::Refused(Error::new(ErrorKind::Disagreement, text), None)];
    if after_proof {
        words.insert(0, Reply::Challenge([1; 32]));
    }
    for reply in words {
        drop(receive(stream, Instant::now() + HUNG));
        drop(send(stream, &reply.to_bytes()));
    }
    drop(stream.shutdown(Shutdown::Write));
    let mut rest = stream;
    drop(rest.read_to_end(&mut Vec::new()));
}
