//! Coming together: rank 0 opens the gate, the others knock until they are let in.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::handshake::{Hello, NAME_BYTES_MAX, Plane, Reply, Unread, receive, send};
use super::proof::{Code, Secret, Side};
use super::{Connections, Find, Meeting, Rendezvous, gate};
use crate::error::{Error, ErrorKind, Result};
use crate::group::star::VERDICT_MARGIN;
use crate::group::{Deadlines, JobId, Member};
use crate::rank::Rank;
use crate::shown;

/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// What this process says of itself.
pub(super) struct Identity<'a> {
    pub(super) member: Member,
    pub(super) with_data: bool,
    pub(super) job: &'a str,
    pub(super) token: String,
}

impl Identity<'_> {
    pub(super) fn secret(&self) -> Secret {
        Secret::new(self.job, &self.token)
    }

    /// Whether there is a secret that only ranks of the job know.
    fn has_token(&self) -> bool {
        self.token != self.job
    }
}

/// Connects this rank to the coordinator, or the coordinator to all others.
pub(super) fn meet(
    member: Member,
    rendezvous: Rendezvous<'_>,
    job: &JobId,
    with_data: bool,
    deadlines: &Deadlines,
) -> Result<Vec<Connections>> {
    let mut identity = Identity { member, with_data, job: &job.id, token: job.token.clone() };
    check_names(job)?;
    match rendezvous {
        Rendezvous::Bind { meeting, publish } if member.rank.is_coordinator() => {
            identity.token = meeting.token.unwrap_or(identity.token);
            gate::open(&identity, &meeting.address, publish, deadlines)
        }
        Rendezvous::Find(find) if !member.rank.is_coordinator() => {
            let until = Instant::now() + deadlines.join;
            let process = random()?;
            let caller = Caller { identity, process, deadlines, until };
            Ok(vec![caller.enter(find).map_err(|error| error.in_phase("join"))?])
        }
        _ => Err(Error::new(ErrorKind::InvalidInput, "rank 0 binds, all others look for it")),
    }
}

fn check_names(job: &JobId) -> Result<()> {
    if job.id.len() <= NAME_BYTES_MAX && job.token.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let text = format!("job id or token of over {NAME_BYTES_MAX} bytes");
    Err(Error::new(ErrorKind::InvalidInput, text))
}

fn random() -> Result<u64> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Storage, format!("no random numbers: {e}")))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Low latency, and notice of a host that vanished without closing its connections.
pub(super) fn configure(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    #[cfg(target_os = "linux")]
    {
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(15))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
        sockopt::set_tcp_keepcnt(stream, 6)?;
    }
    Ok(())
}

/// Whether the peer has closed a connection on which nothing is due.
fn is_closed(stream: &TcpStream) -> bool {
    !is_silent(stream) && !matches!(peek(stream), Ok(1..))
}

/// Whether a connection is there and nothing has come over it, as from a rank that waits for the
/// start.
pub(super) fn is_silent(stream: &TcpStream) -> bool {
    peek(stream).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// How many bytes (of one) can be read without waiting; 0 at the end.
fn peek(stream: &TcpStream) -> io::Result<usize> {
    stream.set_nonblocking(true)?;
    let seen = stream.peek(&mut [0u8; 1]);
    stream.set_nonblocking(false)?;
    seen
}

/// Why an attempt failed.
enum Refusal {
    /// May be better later.
    Now(String),
    /// Another job answers where ours should; it may be about to end.
    OtherJob,
    /// Will not change.
    ForGood(Error),
}

struct Caller<'a> {
    identity: Identity<'a>,
    process: u64,
    deadlines: &'a Deadlines,
    until: Instant,
}

impl Caller<'_> {
    fn enter(mut self, mut find: Find<'_>) -> Result<Connections> {
        let control = self.connect(Plane::Control, &mut find, None)?;
        let data = if self.identity.with_data {
            Some(self.connect(Plane::Data, &mut find, Some(&control))?)
        } else {
            None
        };
        self.await_start(&control)?;
        Ok(Connections { rank: Rank::COORDINATOR, control, data })
    }

    /// Tries until it is admitted, is refused for good, or time is up.
    fn connect(
        &mut self,
        plane: Plane,
        find: &mut Find<'_>,
        control: Option<&TcpStream>,
    ) -> Result<TcpStream> {
        let other_job_until = Instant::now() + self.deadlines.connect;
        let (mut pause, pause_max) = PAUSES;
        loop {
            let why = match self.attempt(plane, find) {
                Ok(stream) => return Ok(stream),
                Err(Refusal::ForGood(error)) => return Err(error),
                Err(Refusal::OtherJob) if Instant::now() >= other_job_until => {
                    return Err(other_job());
                }
                Err(Refusal::OtherJob) => "it belongs to another job".to_owned(),
                Err(Refusal::Now(why)) => why,
            };
            if control.is_some_and(is_closed) {
                return Err(coordinator_gone());
            }
            if Instant::now() + pause >= self.until {
                return Err(unreachable_coordinator(&why));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(pause_max);
        }
    }

    fn attempt(&mut self, plane: Plane, find: &mut Find<'_>) -> Result<TcpStream, Refusal> {
        let Some(Meeting { address, token }) = find().map_err(Refusal::ForGood)? else {
            return Err(Refusal::Now("its address is not known yet".into()));
        };
        if let Some(token) = token {
            self.identity.token = token;
        }
        let not_now = |error: io::Error| Refusal::Now(format!("{address}: {error}"));
        let until = self.until.min(Instant::now() + self.deadlines.connect);
        let stream = dial(&address, until).map_err(not_now)?;
        configure(&stream)
            .and_then(|()| stream.set_write_timeout(Some(self.deadlines.connect)))
            .map_err(not_now)?;
        let hello = self.hello(plane).map_err(Refusal::ForGood)?;
        match self.introduce(&stream, &hello, until).map_err(not_now)? {
            Some(Reply::Admitted(_)) => Ok(stream),
            Some(Reply::OtherJob) => Err(Refusal::OtherJob),
            Some(Reply::Refused(error, None)) if self.identity.has_token() => {
                Err(Refusal::Now(format!("{address}: {}", unproved(&error))))
            }
            Some(Reply::Refused(error, _)) => Err(Refusal::ForGood(error)),
            _ => Err(Refusal::Now(format!("{address}: its answer makes no sense"))),
        }
    }

    /// Says hello and proves it. Whoever answers that this rank is admitted must prove too that it
    /// is rank 0 of this job; if it cannot, it belongs to another. A refusal comes back with its
    /// proof only if that is right.
    fn introduce(
        &self,
        stream: &TcpStream,
        hello: &Hello,
        until: Instant,
    ) -> io::Result<Option<Reply>> {
        let secret = self.identity.secret();
        send(stream, &hello.to_bytes())?;
        let challenge = match read_reply(stream, until)? {
            Reply::Challenge(challenge) => challenge,
            Reply::Refused(error, _) => return Ok(Some(Reply::Refused(error, None))),
            _ => return Ok(None),
        };
        send(stream, &secret.proof(Side::Caller, &challenge, hello))?;
        let is_proof = |proof: &Code| secret.is_proved(Side::Coordinator, &challenge, hello, proof);
        Ok(Some(match read_reply(stream, until)? {
            Reply::Admitted(proof) if !is_proof(&proof) => Reply::OtherJob,
            Reply::Refused(error, proof) => Reply::Refused(error, proof.filter(is_proof)),
            reply => reply,
        }))
    }

    /// What this process says on its next connection.
    fn hello(&self, plane: Plane) -> Result<Hello> {
        let ours = &self.identity;
        Ok(Hello {
            big_endian: cfg!(target_endian = "big"),
            with_data: ours.with_data,
            plane,
            world: ours.member.world.get(),
            rank: ours.member.rank.get(),
            process: self.process,
            attempt: random()?,
        })
    }

    /// Rank 0 starts the job when all ranks are there; its time may have begun after ours.
    fn await_start(&self, control: &TcpStream) -> Result<()> {
        match read_reply(control, self.until + VERDICT_MARGIN) {
            Ok(Reply::Start) => Ok(()),
            Ok(Reply::Refused(error, _)) => Err(error),
            Ok(_) => Err(unreachable_coordinator("its answer makes no sense")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(coordinator_gone()),
            Err(_) => Err(unreachable_coordinator("it still waits for other ranks")),
        }
    }
}

fn read_reply(stream: &TcpStream, until: Instant) -> io::Result<Reply> {
    let body = receive(stream, until).map_err(|unread| match unread {
        Unread::Version(version) => io::Error::other(format!("it speaks version {version}")),
        Unread::Io(error) => error,
    })?;
    Reply::parse(&body).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Connects to the first address of a name that answers.
fn dial(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Anybody may have said so: rank 0 may yet come, or be found elsewhere.
fn unproved(refusal: &Error) -> String {
    let said = shown::short(refusal.message());
    format!("who is there has not shown to be rank 0 of this job, and refuses this rank: {said}")
}

fn other_job() -> Error {
    let text = "the process at rank 0's address belongs to another job, or has another token";
    Error::new(ErrorKind::Disagreement, text)
        .with_help("choose another MASTER_PORT, or set the same TCH_CHECKPOINT_TOKEN everywhere")
}

fn coordinator_gone() -> Error {
    let text = "rank 0 closed the connection before all ranks had come together";
    Error::new(ErrorKind::CoordinatorLost, text).at_rank(Rank::COORDINATOR)
}

fn unreachable_coordinator(why: &str) -> Error {
    let text = format!("could not join rank 0 in time: {why}");
    Error::new(ErrorKind::Deadline, text).at_rank(Rank::COORDINATOR).with_help(
        "MASTER_ADDR must reach rank 0 from every host; rank 0 listens at TCH_CHECKPOINT_IFADDR \
         if that is set",
    )
}
