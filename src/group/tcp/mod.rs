//! Ranks as processes: frames and data over TCP to rank 0.

#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod gate;
mod handshake;
mod join;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[cfg(feature = "mpi")]
use super::data::DataPlane;
use super::data::{Pipe, StarData};
use super::frame::{Frame, Kind};
use super::inbox::Inbox;
#[cfg(feature = "mpi")]
use super::peers::Peers;
use super::star::{Link, Links, Star};
use super::{Deadlines, JobId, Member, ProcessGroup, Progress, check_member};
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// How long a data pipe reads before it reports that nothing came.
const PAUSE: Duration = Duration::from_millis(100);

/// Where rank 0 can be met, and what else was learned there.
#[derive(Clone)]
pub(super) struct Meeting {
    /// `host:port`.
    pub(super) address: String,
    /// Replaces the job's token.
    pub(super) token: Option<String>,
}

/// Tells others where rank 0 listens.
pub(super) type Publish<'a> = Box<dyn FnOnce(SocketAddr) -> Result<()> + 'a>;
/// Looks where rank 0 can be met; asked again until it knows.
pub(super) type Find<'a> = Box<dyn FnMut() -> Result<Option<Meeting>> + 'a>;

/// How ranks find each other.
pub(super) enum Rendezvous<'a> {
    /// Rank 0 binds `meeting.address` (port 0: any) and publishes what it got.
    Bind { meeting: Meeting, publish: Option<Publish<'a>> },
    /// The others look for it.
    Find(Find<'a>),
}

impl Rendezvous<'_> {
    /// A meeting at an address that all ranks know.
    pub(super) fn at(rank: Rank, address: &str) -> Self {
        let meeting = Meeting { address: address.to_owned(), token: None };
        if rank.is_coordinator() {
            return Self::Bind { meeting, publish: None };
        }
        Self::Find(Box::new(move || Ok(Some(meeting.clone()))))
    }
}

/// What carries gradients. The same on every rank.
pub(super) enum DataPlaneChoice {
    /// Connections of their own.
    Tcp,
    /// Something else, which must fail rather than wait for a lost peer.
    #[cfg(feature = "mpi")]
    Given(Box<dyn FnOnce(Peers) -> Box<dyn DataPlane>>),
}

/// Brings the ranks of `job` together.
pub(super) fn join(
    member: Member,
    rendezvous: Rendezvous<'_>,
    job: &JobId,
    data: DataPlaneChoice,
    deadlines: Deadlines,
) -> Result<ProcessGroup> {
    check_member(member)?;
    let deadlines = deadlines.bounded();
    if member.world == crate::rank::WorldSize::ONE {
        return Ok(ProcessGroup::alone(member, deadlines));
    }
    let with_data = matches!(data, DataPlaneChoice::Tcp);
    let peers = join::meet(member, rendezvous, job, with_data, &deadlines)?;
    let inbox = Inbox::new(peers.iter().map(|peer| peer.rank));
    let mut links = Links::new();
    let mut pipes: Vec<(Rank, Box<dyn Pipe>)> = Vec::new();
    for peer in peers {
        links.insert(peer.rank, link(peer.rank, peer.control, &inbox, &deadlines)?);
        if let Some(data) = peer.data {
            pipes.push((peer.rank, pipe(data, &deadlines)?));
        }
    }
    let (links, progress) = (Arc::new(links), Progress::default());
    let data = match data {
        #[cfg(feature = "mpi")]
        DataPlaneChoice::Given(make) => {
            let (inbox, links) = (Arc::clone(&inbox), Arc::clone(&links));
            make(Peers::new(member, inbox, links, progress.clone(), deadlines.progress))
        }
        DataPlaneChoice::Tcp => {
            Box::new(StarData::new(member, Arc::clone(&inbox), deadlines.progress, pipes))
        }
    };
    let star = Star::new(member, deadlines.clone(), inbox, links, progress.clone())?;
    Ok(ProcessGroup::assemble(member, deadlines, progress, Some(star), data))
}

/// Connections to one peer, after the handshake.
struct Connections {
    rank: Rank,
    control: TcpStream,
    data: Option<TcpStream>,
}

/// Set once the peer has read our goodbye, or nothing more can come from it.
#[derive(Default)]
struct Drained {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Drained {
    fn set(&self) {
        *self.done.lock() = true;
        self.changed.notify_all();
    }
}

struct TcpLink {
    stream: TcpStream,
    writer: Arc<Mutex<TcpStream>>,
    drained: Arc<Drained>,
}

fn link(
    peer: Rank,
    stream: TcpStream,
    inbox: &Arc<Inbox>,
    deadlines: &Deadlines,
) -> Result<Box<dyn Link>> {
    let set_up = || -> io::Result<TcpLink> {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(deadlines.progress))?;
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        let drained = Arc::<Drained>::default();
        let (inbox, seen) = (Arc::clone(inbox), Arc::clone(&drained));
        let (reader, farewells) = (stream.try_clone()?, Arc::clone(&writer));
        std::thread::Builder::new().name(format!("tch-rank-{peer}")).spawn(move || {
            match read_frames(peer, &reader, &inbox, &farewells, &seen) {
                Ok(()) => inbox.lose(peer, "its connection closed"),
                Err(error) => {
                    inbox.lose(peer, format!("its connection failed: {error}"));
                    // It may be well, and wait for an answer to what could not be taken.
                    drop(reader.shutdown(Shutdown::Both));
                }
            }
            seen.set();
        })?;
        Ok(TcpLink { stream, writer, drained })
    };
    let link = set_up().map_err(|e| set_up_error(peer, &e))?;
    Ok(Box::new(link))
}

fn set_up_error(peer: Rank, error: &io::Error) -> Error {
    let text = format!("setting up the connection to rank {peer}: {error}");
    Error::new(ErrorKind::Storage, text).at_rank(peer)
}

fn read_frames(
    peer: Rank,
    stream: &TcpStream,
    inbox: &Inbox,
    farewells: &Mutex<TcpStream>,
    drained: &Drained,
) -> io::Result<()> {
    let mut stream = io::BufReader::new(stream);
    while let Some(frame) = Frame::read_from(&mut stream, || inbox.hear(peer))? {
        match frame.kind {
            Kind::Farewell => drained.set(),
            Kind::Goodbye => {
                inbox.deliver(peer, frame);
                // It need not wait for us to leave as well; if it cannot be told, it is gone.
                drop(Frame::signal(Kind::Farewell).write_to(&mut *farewells.lock()));
            }
            _ => inbox.deliver(peer, frame),
        }
    }
    Ok(())
}

impl Link for TcpLink {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write_to(&mut *self.writer.lock())
    }

    fn send_if_free(&self, frame: &Frame) {
        if let Some(mut writer) = self.writer.try_lock()
            && frame.write_to(&mut *writer).is_err()
        {
            // Half a frame may be out; the reader reports the loss.
            self.close();
        }
    }

    fn drain(&self, until: Instant) {
        let mut done = self.drained.done.lock();
        while !*done && !self.drained.changed.wait_until(&mut done, until).timed_out() {}
    }

    fn close(&self) {
        // Fails only if the connection is gone already.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

struct TcpPipe(TcpStream);

fn pipe(stream: TcpStream, deadlines: &Deadlines) -> Result<Box<dyn Pipe>> {
    stream
        .set_read_timeout(Some(PAUSE))
        .and_then(|()| stream.set_write_timeout(Some(deadlines.progress)))
        .map_err(|e| Error::new(ErrorKind::Storage, format!("setting up a connection: {e}")))?;
    Ok(Box::new(TcpPipe(stream)))
}

impl Pipe for TcpPipe {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}
