//! Ranks started by an MPI launcher: MPI tells them where rank 0 listens, and carries gradients.
//! The control plane is TCP as everywhere, so that a lost rank is noticed and nothing waits for
//! ever.

mod data;
mod owner;
mod place;
mod wait;

use std::cell::Cell;
use std::time::Instant;

use ::mpi::datatype::Equivalence;
use ::mpi::environment::processor_name;
use ::mpi::request::StaticScope;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::data::MpiData;
pub(super) use self::owner::{Owner, leave};
use self::place::{Place, addresses};
use super::env::check_mpi;
use super::tcp::{self, DataPlaneChoice, Meeting, Rendezvous};
use super::{Deadlines, JobId, Member, ProcessGroup};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::{LocalRank, Rank, WorldSize};

/// Bytes of the broadcast by which ranks learn where to meet.
const NOTICE_BYTES: usize = 4096;
/// Of these, the ones that hold the length.
const LENGTH_BYTES: usize = 4;
/// Variables of launchers that number the processes of a host.
const LOCAL_RANK: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"];

/// Initialises MPI on this thread, which alone may use it from then on, and joins its job.
pub(super) fn join(deadlines: Deadlines) -> Result<ProcessGroup> {
    let deadlines = deadlines.bounded();
    let owner = owner::initialise(deadlines.join)?;
    let line = Line { comm: owner.comm()?, until: Instant::now() + deadlines.join };
    // Each brings whether it was started as it seems, so that all go on or none does.
    let own = line.check();
    let hosts = line.all_gather(head(own.is_ok()))?;
    agreed(own, &hosts)?;
    let member = line.member(&hosts)?;
    let one_host = hosts.iter().all(|host| Some(host) == hosts.first());
    let data = DataPlaneChoice::Given(Box::new(move |peers| Box::new(MpiData::new(owner, peers))));
    let group = if member.rank.is_coordinator() {
        line.invite(member, one_host, data, deadlines)
    } else {
        line.follow(member, data, deadlines)
    }?;
    Ok(group.under_mpi(owner))
}

/// What MPI is needed for until the control plane is up. Its buffers are never freed: a request
/// that is given up may still use them.
struct Line<'a> {
    comm: &'a SimpleCommunicator,
    until: Instant,
}

impl Line<'_> {
    fn place(&self) -> Result<(Rank, WorldSize)> {
        let number = |n: i32| {
            let bad = || Error::new(ErrorKind::InvalidInput, format!("MPI counts {n} ranks"));
            u32::try_from(n).map_err(|_| bad())
        };
        Ok((Rank::new(number(self.comm.rank())?), WorldSize::new(number(self.comm.size())?)?))
    }

    fn check(&self) -> Result<()> {
        let (rank, world) = self.place()?;
        check_mpi(|name| std::env::var(name).ok(), rank, world)
    }

    fn member(&self, hosts: &[Head]) -> Result<Member> {
        let (rank, world) = self.place()?;
        let before = hosts.get(..rank.index()).unwrap_or_default();
        let same = before.iter().filter(|host| Some(*host) == hosts.get(rank.index())).count();
        let set = |name: &&str| std::env::var(*name).ok()?.trim().parse().ok();
        let local = LOCAL_RANK.iter().find_map(set).or_else(|| u32::try_from(same).ok());
        Ok(Member { rank, local_rank: LocalRank(local.unwrap_or(0)), world })
    }

    /// Rank 0: listens, tells the others by MPI where, and waits for them.
    fn invite(
        &self,
        member: Member,
        one_host: bool,
        data: DataPlaneChoice,
        deadlines: Deadlines,
    ) -> Result<ProcessGroup> {
        let (bind, reachable_at) = addresses(one_host);
        let token = new_token()?;
        let told = Cell::new(false);
        let place = |port| Place::new(&reachable_at, port, token.clone());
        let meeting = Meeting { address: bind, token: Some(token.clone()) };
        let publish = |bound: std::net::SocketAddr| {
            told.set(true);
            self.tell(&Ok(place(bound.port())))
        };
        let rendezvous = Rendezvous::Bind { meeting, publish: Some(Box::new(publish)) };
        let joined = tcp::join(member, rendezvous, &job(), data, deadlines);
        if let (Err(error), false) = (&joined, told.get()) {
            // The others wait for a place; if they cannot be told either, their deadline passes.
            drop(self.tell(&Err(error.clone())));
        }
        joined
    }

    /// All others: learn where rank 0 listens, and connect.
    fn follow(
        &self,
        member: Member,
        data: DataPlaneChoice,
        deadlines: Deadlines,
    ) -> Result<ProcessGroup> {
        let place: Place = self.hear::<Result<Place>>()??;
        let mut meetings = place.meetings().into_iter().cycle();
        let rendezvous = Rendezvous::Find(Box::new(move || Ok(meetings.next())));
        tcp::join(member, rendezvous, &job(), data, deadlines)
    }

    fn tell(&self, notice: &Result<Place>) -> Result<()> {
        let mut bytes = codec::encode(notice)?;
        if bytes.len() > NOTICE_BYTES - LENGTH_BYTES {
            let short = Error::new(ErrorKind::InvalidInput, "rank 0 could not listen");
            bytes = codec::encode(&Err::<Place, _>(short.at_rank(Rank::COORDINATOR)))?;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        let mut text = [&length.to_le_bytes()[..], &bytes].concat();
        text.resize(NOTICE_BYTES, 0);
        self.broadcast(text).map(drop)
    }

    fn hear<T: DeserializeOwned + Serialize>(&self) -> Result<T> {
        let text = self.broadcast(vec![0; NOTICE_BYTES])?;
        let (length, rest) = text.split_at(LENGTH_BYTES.min(text.len()));
        let length = length.try_into().map_or(0, u32::from_le_bytes) as usize;
        codec::decode(rest.get(..length).unwrap_or_default())
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<&'static [u8]> {
        let root = self.comm.process_at_rank(0);
        let bytes: &'static mut [u8] = bytes.leak();
        self.wait("rank 0's address", root.immediate_broadcast_into(StaticScope, bytes))
    }

    fn all_gather<const N: usize>(&self, own: [u8; N]) -> Result<Vec<[u8; N]>> {
        let size = usize::try_from(self.comm.size()).unwrap_or(0);
        let own: &'static [u8] = own.to_vec().leak();
        let all: &'static mut [u8] = vec![0; N * size].leak();
        let request = self.comm.immediate_all_gather_into(StaticScope, own, all);
        let all = self.wait("the hosts of all ranks", request)?;
        Ok(all.chunks_exact(N).filter_map(|host| host.try_into().ok()).collect())
    }

    fn wait<T: Equivalence>(
        &self,
        what: &str,
        request: ::mpi::request::Request<'static, [T]>,
    ) -> Result<&'static [T]> {
        wait::wait(request, || {
            if Instant::now() < self.until {
                return Ok(());
            }
            let text = format!("MPI did not bring {what} in time: a rank has not come, or hangs");
            Err(Error::new(ErrorKind::Deadline, text).in_phase("join"))
        })
    }
}

fn job() -> JobId {
    // The token that comes by MPI tells jobs apart.
    JobId::without_secret("mpi")
}

fn new_token() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Storage, format!("no random numbers: {e}")))?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

/// What a rank says of itself first: its host, and whether it can go on.
type Head = [u8; 33];

fn head(is_well: bool) -> Head {
    let mut head = [u8::from(is_well); 33];
    head[..32].copy_from_slice(&host_identity());
    head
}

/// The error of this rank, or that another one has one.
fn agreed(own: Result<()>, heads: &[Head]) -> Result<()> {
    own?;
    match heads.iter().zip(0..).find(|(head, _)| head[32] == 0) {
        None => Ok(()),
        Some((_, rank)) => {
            let text = "was not started as MPI says; its own error names the variable";
            Err(Error::new(ErrorKind::InvalidInput, format!("rank {rank} {text}"))
                .at_rank(Rank::new(rank))
                .in_phase("join"))
        }
    }
}

/// Equal for processes that reach each other by loopback. The name alone would not do: hosts
/// may share a name, and containers of one host may each have a network of their own.
fn host_identity() -> [u8; 32] {
    let name = processor_name().unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    *blake3::hash(format!("{name}\n{boot}\n{}", network.display()).as_bytes()).as_bytes()
}
