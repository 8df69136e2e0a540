//! Rank 0 while the job comes together: it listens, lets in the ranks of its job, and loses no
//! time on anybody else.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::handshake::{Hello, Plane, Reply, Unread, other_version, receive, send};
use super::join::{Identity, configure, is_closed};
use super::{Connections, Publish};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Deadlines;
use crate::rank::Rank;

/// Connections whose first words are awaited at the same time; more are dropped, and true ranks
/// try again.
const PENDING_MAX: usize = 64;
/// Time for the first words.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Pause between two looks for a new connection.
const PAUSE: Duration = Duration::from_millis(5);
/// How many missing ranks an error names.
const NAMED_MAX: usize = 16;

/// A connection that has said who it is.
struct Arrival {
    stream: TcpStream,
    hello: Hello,
}

/// The connections of one process.
struct Seat {
    nonce: u128,
    control: TcpStream,
    data: Option<TcpStream>,
}

/// Binds, publishes, and returns when every rank is there.
pub(super) fn open(
    identity: &Identity<'_>,
    address: &str,
    publish: Option<Publish<'_>>,
    deadlines: &Deadlines,
) -> Result<Vec<Connections>> {
    let until = Instant::now() + deadlines.join;
    let listener = bind(address, deadlines)?;
    if let Some(publish) = publish {
        let bound = listener.local_addr().map_err(|e| cannot_bind(address, &e))?;
        publish(bound)?;
    }
    let mut gate = Gate { identity, seats: BTreeMap::new() };
    let admitted = gate.admit_all(&listener, until);
    drop(listener);
    match admitted {
        Ok(()) => Ok(gate.start()),
        Err(error) => {
            let reply = Reply::Refused(error.clone()).to_bytes();
            // Whoever cannot be told sees the connection close.
            gate.seats.values().for_each(|seat| drop(send(&seat.control, &reply)));
            Err(error)
        }
    }
}

/// Names may resolve late, and the port may be held by a job that is just ending.
fn bind(address: &str, deadlines: &Deadlines) -> Result<TcpListener> {
    let until = Instant::now() + deadlines.connect.min(deadlines.join);
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(|e| cannot_bind(address, &e))?;
                return Ok(listener);
            }
            Err(error) if Instant::now() >= until => return Err(cannot_bind(address, &error)),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn cannot_bind(address: &str, error: &std::io::Error) -> Error {
    let text = format!("rank 0 cannot listen at {address}: {error}");
    Error::new(ErrorKind::InvalidInput, text).at_rank(Rank::COORDINATOR).with_help(
        "MASTER_ADDR must be an address of rank 0's host with a free MASTER_PORT; \
         TCH_CHECKPOINT_IFADDR and TCH_CHECKPOINT_MASTER_PORT take precedence",
    )
}

struct Gate<'a> {
    identity: &'a Identity<'a>,
    seats: BTreeMap<Rank, Seat>,
}

impl Gate<'_> {
    fn admit_all(&mut self, listener: &TcpListener, until: Instant) -> Result<()> {
        let (arrivals, arrived) = crossbeam_channel::bounded(PENDING_MAX);
        let pending = Arc::new(AtomicUsize::new(0));
        loop {
            accept_waiting(listener, &pending, &arrivals);
            self.take_in(&arrived);
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(never_came(&missing));
            }
        }
    }

    /// Waits a moment for connections that have introduced themselves.
    fn take_in(&mut self, arrived: &Receiver<Arrival>) {
        let mut next = arrived.recv_timeout(PAUSE);
        while let Ok(Arrival { stream, hello }) = next {
            self.admit(stream, hello);
            next = arrived.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }

    fn admit(&mut self, stream: TcpStream, hello: Hello) {
        if let Err(reply) = self.check(&hello) {
            tracing::debug!(rank = hello.rank, ?reply, "refused a connection");
            drop(send(&stream, &reply.to_bytes()));
            return;
        }
        let reply = Reply::Admitted(hello.nonce).to_bytes();
        if configure(&stream).and_then(|()| send(&stream, &reply)).is_err() {
            return; // it went away; if it lives it comes again
        }
        let rank = Rank::new(hello.rank);
        match (hello.plane, self.seats.get_mut(&rank)) {
            (Plane::Data, Some(seat)) => seat.data = Some(stream),
            (Plane::Data, None) => {}
            (Plane::Control, _) => {
                let seat = Seat { nonce: hello.nonce, control: stream, data: None };
                self.seats.insert(rank, seat);
            }
        }
    }

    fn check(&self, hello: &Hello) -> std::result::Result<(), Reply> {
        let ours = self.identity;
        // Compared by hash, which takes the same time wherever they differ.
        if blake3::hash(&hello.token) != blake3::hash(ours.token.as_bytes())
            || hello.job != ours.job.as_bytes()
        {
            return Err(Reply::OtherJob);
        }
        let refuse = |what: String| {
            let error = Error::new(ErrorKind::Disagreement, what).at_rank(Rank::new(hello.rank));
            Reply::Refused(error.with_help("start all ranks of a job in the same way"))
        };
        let world = ours.member.world.get();
        if hello.world != world {
            let text = format!("rank 0 is in a job of {world} ranks, this rank in one of");
            return Err(refuse(format!("{text} {}", hello.world)));
        }
        if hello.rank == 0 || hello.rank >= world {
            return Err(refuse(format!("there is no place for a rank {} here", hello.rank)));
        }
        if hello.big_endian != cfg!(target_endian = "big") || hello.with_data != ours.with_data {
            return Err(refuse("byte order or data plane differ from rank 0's".into()));
        }
        match self.seats.get(&Rank::new(hello.rank)) {
            Some(seat) if seat.nonce != hello.nonce && !is_closed(&seat.control) => {
                Err(refuse(format!("another process is rank {} already", hello.rank)))
            }
            Some(seat) if seat.nonce != hello.nonce && hello.plane == Plane::Data => {
                Err(refuse("a data connection before its control connection".into()))
            }
            None if hello.plane == Plane::Data => {
                Err(refuse("a data connection before its control connection".into()))
            }
            _ => Ok(()),
        }
    }

    fn missing(&self) -> Vec<Rank> {
        let with_data = self.identity.with_data;
        let is_there =
            |rank: &Rank| self.seats.get(rank).is_some_and(|seat| seat.data.is_some() == with_data);
        let others = self.identity.member.world.ranks().filter(|rank| !rank.is_coordinator());
        others.filter(|rank| !is_there(rank)).collect()
    }

    /// Tells all ranks to go. One that has died meanwhile is found by the first phase.
    fn start(self) -> Vec<Connections> {
        let reply = Reply::Start.to_bytes();
        let connections = self.seats.into_iter().map(|(rank, seat)| {
            drop(send(&seat.control, &reply));
            Connections { rank, control: seat.control, data: seat.data }
        });
        connections.collect()
    }
}

fn never_came(missing: &[Rank]) -> Error {
    let named: Vec<String> = missing.iter().take(NAMED_MAX).map(Rank::to_string).collect();
    let more = missing.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let text = format!("rank {}{more} did not join in time", named.join(", "));
    let error = Error::new(ErrorKind::Deadline, text).in_phase("join");
    let error = missing.first().map_or(error.clone(), |rank| error.at_rank(*rank));
    error.with_help("look for errors of these ranks, and whether they reach rank 0's address")
}

/// Takes the connections that wait, each with a thread of its own for its first words; not more
/// than can be heard at a time, so that a flood of them holds up neither ranks nor the deadline.
fn accept_waiting(listener: &TcpListener, pending: &Arc<AtomicUsize>, arrivals: &Sender<Arrival>) {
    for _ in 0..PENDING_MAX {
        let Ok((stream, from)) = listener.accept() else { return };
        if pending.load(Ordering::Acquire) >= PENDING_MAX {
            continue; // dropped
        }
        pending.fetch_add(1, Ordering::AcqRel);
        let (counted, arrivals) = (Arc::clone(pending), arrivals.clone());
        let hear = move || {
            if let Some(arrival) = hear_out(stream, from) {
                // Fails when the gate has closed, and then nobody minds.
                drop(arrivals.send_timeout(arrival, HELLO_TIME));
            }
            counted.fetch_sub(1, Ordering::AcqRel);
        };
        if std::thread::Builder::new().name("tch-hello".into()).spawn(hear).is_err() {
            pending.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn hear_out(stream: TcpStream, from: SocketAddr) -> Option<Arrival> {
    stream.set_nonblocking(false).ok()?;
    stream.set_write_timeout(Some(HELLO_TIME)).ok()?;
    match receive(&stream, Instant::now() + HELLO_TIME) {
        Ok(body) => {
            let hello = Hello::parse(&body);
            if hello.is_none() {
                tracing::debug!(%from, "a stranger");
            }
            hello.map(|hello| Arrival { stream, hello })
        }
        Err(Unread::Version(version)) => {
            drop(send(&stream, &Reply::Refused(other_version(version)).to_bytes()));
            None
        }
        Err(Unread::Io(error)) => {
            tracing::debug!(%from, %error, "a stranger");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_connections_is_taken_in_bounded_portions() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let flood: Vec<_> =
            (0..=PENDING_MAX).map(|_| TcpStream::connect(address).unwrap()).collect();
        listener.set_nonblocking(true).unwrap();
        let (arrivals, _arrived) = crossbeam_channel::bounded(PENDING_MAX);
        accept_waiting(&listener, &Arc::default(), &arrivals);
        assert!(listener.accept().is_ok(), "one is left of {}", flood.len());
        assert!(listener.accept().is_err(), "only one is left");
    }
}
