//! Ranks as processes: frames and data over TCP to rank 0.

mod descriptors;
#[cfg(test)]
pub(super) mod forged;
#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod gate;
mod guest;
mod handshake;
mod join;
mod link;
mod proof;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use self::link::link;
#[cfg(feature = "mpi")]
use super::data::DataPlane;
use super::data::{Pipe, StarData};
use super::inbox::Inbox;
#[cfg(feature = "mpi")]
use super::peers::Peers;
use super::star::{Links, Star};
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
