//! Rank 0 while the job comes together: it listens, lets in the ranks of its job, and loses no
//! time on anybody else.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::guest::{Arrival, Guests};
use super::handshake::{Hello, Plane, Reply, send};
use super::join::{Identity, configure, is_silent};
use super::{Connections, Publish, descriptors};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Deadlines;
use crate::rank::Rank;

/// Connections that wait for rank 0 to take them, if the system allows as many: all ranks may come
/// at the same time.
const BACKLOG: i32 = 4096;
/// Time for an answer to leave.
const SEND_TIME: Duration = Duration::from_secs(5);
/// How many missing ranks an error names.
const NAMED_MAX: usize = 16;

/// The connections of one process.
struct Seat {
    process: u64,
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
    let guests = descriptors::make_room(identity.member.world, identity.with_data)?;
    let listener = bind(address, deadlines)?;
    if let Some(publish) = publish {
        let bound = listener.local_addr().map_err(|e| cannot_bind(address, &e))?;
        publish(bound)?;
    }
    let mut gate = Gate { identity, seats: BTreeMap::new() };
    let mut guests = Guests::new(identity.secret(), guests);
    let admitted = gate.admit_all(&listener, &mut guests, until);
    drop(listener);
    match admitted {
        Ok(()) => Ok(gate.start()),
        Err(error) => {
            let reply = Reply::Refused(error.clone(), None).to_bytes();
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
                // With the standard library's 128 the others would try again after a second.
                let _ = rustix::net::listen(&listener, BACKLOG);
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
    fn admit_all(
        &mut self,
        listener: &TcpListener,
        guests: &mut Guests,
        until: Instant,
    ) -> Result<()> {
        loop {
            guests.welcome(listener);
            guests.hear().into_iter().for_each(|arrival| self.admit(arrival));
            let is_late = Instant::now() >= until;
            if is_late || self.is_complete() {
                self.clear_seats();
            }
            if self.is_complete() {
                return Ok(());
            }
            if is_late {
                return Err(never_came(&self.missing()));
            }
        }
    }

    fn admit(&mut self, Arrival { stream, hello, proof }: Arrival) {
        if stream.set_write_timeout(Some(SEND_TIME)).is_err() {
            return;
        }
        if let Err(error) = self.check(&hello) {
            tracing::debug!(rank = hello.rank, %error, "refused a connection");
            drop(send(&stream, &Reply::Refused(error, Some(proof)).to_bytes()));
            return;
        }
        let reply = Reply::Admitted(proof).to_bytes();
        if configure(&stream).and_then(|()| send(&stream, &reply)).is_err() {
            return; // it went away; if it lives it comes again
        }
        let rank = Rank::new(hello.rank);
        match (hello.plane, self.seats.get_mut(&rank)) {
            (Plane::Data, Some(seat)) => seat.data = Some(stream),
            (Plane::Data, None) => {}
            (Plane::Control, _) => {
                let seat = Seat { process: hello.process, control: stream, data: None };
                self.seats.insert(rank, seat);
            }
        }
    }

    /// Gives up the seats of ranks that are gone meanwhile, for those started in their stead.
    fn clear_seats(&mut self) {
        self.seats.retain(|rank, seat| {
            let is_there = is_silent(&seat.control);
            if !is_there {
                tracing::warn!(%rank, "a rank has joined and gone away; waiting for it to come again");
            }
            // A lost data connection may be about to be replaced.
            seat.data = seat.data.take().filter(is_silent);
            is_there
        });
    }

    /// Whether there is a place for a rank that belongs to the job.
    fn check(&self, hello: &Hello) -> Result<()> {
        let ours = self.identity;
        let refuse = |what: String| {
            let error = Error::new(ErrorKind::Disagreement, what).at_rank(Rank::new(hello.rank));
            error.with_help("start all ranks of a job in the same way")
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
            Some(seat) if seat.process != hello.process && is_silent(&seat.control) => {
                Err(refuse(format!("another process is rank {} already", hello.rank)))
            }
            Some(seat) if seat.process != hello.process && hello.plane == Plane::Data => {
                Err(refuse("a data connection before its control connection".into()))
            }
            None if hello.plane == Plane::Data => {
                Err(refuse("a data connection before its control connection".into()))
            }
            _ => Ok(()),
        }
    }

    fn is_filled(&self, seat: &Seat) -> bool {
        seat.data.is_some() == self.identity.with_data
    }

    fn is_complete(&self) -> bool {
        self.seats.len() + 1 == self.identity.member.world.len()
            && self.seats.values().all(|seat| self.is_filled(seat))
    }

    fn missing(&self) -> Vec<Rank> {
        let is_there = |rank: &Rank| self.seats.get(rank).is_some_and(|seat| self.is_filled(seat));
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
