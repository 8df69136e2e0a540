//! The data plane: sums of gradients, broadcasts and exchanges of parameters.
//!
//! [`StarData`] sums on the coordinator in rank order, so that all ranks hold identical bits and
//! a rerun agrees. It is lockstep: a rank sends a piece and reads the answer, so no two ranks
//! can ever block each other by writing at the same time.

use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;
use parking_lot::Mutex;

use super::Member;
use super::inbox::{Inbox, Standing};
use super::star::VERDICT_MARGIN;
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::rank::Rank;

/// Bytes that travel before an answer is read.
const PIECE_BYTES: usize = 256 << 10;
/// Longest error that crosses the data plane.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Operation (1), sequence (8), bytes (8).
const HEAD_BYTES: usize = 17;

/// How gradients and parameters travel between ranks. Every rank calls the same operations in
/// the same order with the same lengths; calls end within the deadline for progress.
pub(crate) trait DataPlane: Send + Sync {
    /// Adds up `values` element by element over all ranks; all get the sum.
    ///
    /// # Errors
    /// [`ErrorKind::Disagreement`] for different lengths, [`ErrorKind::PeerLost`],
    /// [`ErrorKind::CoordinatorLost`], [`ErrorKind::Deadline`].
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()>;

    /// The same for double precision.
    ///
    /// # Errors
    /// As for `all_reduce_sum`.
    fn all_reduce_sum_f64(&self, values: &mut [f64]) -> Result<()>;

    /// Gives all ranks the coordinator's bytes.
    ///
    /// # Errors
    /// As for `all_reduce_sum`.
    fn broadcast(&self, bytes: &mut [u8]) -> Result<()>;

    /// Combines `bytes` by bitwise or over all ranks; all get the result.
    ///
    /// # Errors
    /// As for `all_reduce_sum`.
    fn all_reduce_or(&self, bytes: &mut [u8]) -> Result<()>;
}

/// The data plane of a job of one rank.
pub(super) struct NoData;

impl DataPlane for NoData {
    fn all_reduce_sum(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_reduce_sum_f64(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn all_reduce_or(&self, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
}

/// One way to a peer for bulk bytes.
pub(super) trait Pipe: Send {
    /// Writes all bytes; fails if none move for the deadline for progress.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Reads some bytes; 0 at the end, `WouldBlock` or `TimedOut` if none came for a moment.
    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize>;
}

/// One rank's end of the star that carries data.
pub(super) struct StarData {
    member: Member,
    /// The control plane's, which knows who is gone and who is at work.
    inbox: Arc<Inbox>,
    patience: Duration,
    pipes: Mutex<Pipes>,
}

struct Pipes {
    pipes: Vec<(Rank, Box<dyn Pipe>)>,
    sequence: u64,
    /// After a loss the pipes are out of step for ever.
    broken: Option<Error>,
}

impl StarData {
    /// `pipes` in rank order: to all others for the coordinator, else to the coordinator.
    pub(super) fn new(
        member: Member,
        inbox: Arc<Inbox>,
        deadline: Duration,
        pipes: Vec<(Rank, Box<dyn Pipe>)>,
    ) -> Self {
        let margin = if member.rank.is_coordinator() { Duration::ZERO } else { VERDICT_MARGIN };
        let pipes = Mutex::new(Pipes { pipes, sequence: 0, broken: None });
        Self { member, inbox, patience: deadline + margin, pipes }
    }

    /// Runs one operation on `bytes`: `combine(mine, theirs)` on the coordinator for every other
    /// rank in order, or nothing to combine.
    fn run(&self, name: &str, code: u8, bytes: &mut [u8], combine: Option<Combine>) -> Result<()> {
        let mut pipes = self.pipes.lock();
        if let Some(broken) = &pipes.broken {
            return Err(broken.clone());
        }
        pipes.sequence += 1;
        let head = Head { name, code, sequence: pipes.sequence, bytes: bytes.len() as u64 };
        let done = if self.member.rank.is_coordinator() {
            self.serve(&mut pipes.pipes, &head, bytes, combine)
        } else {
            self.take_part(&mut pipes.pipes, &head, bytes, combine.is_some())
        };
        done.map_err(|error| {
            let error = error.in_phase(name);
            if error.kind() != ErrorKind::Disagreement {
                pipes.broken = Some(error.clone());
            }
            error
        })
    }

    fn serve(
        &self,
        pipes: &mut [(Rank, Box<dyn Pipe>)],
        head: &Head<'_>,
        bytes: &mut [u8],
        combine: Option<Combine>,
    ) -> Result<()> {
        let done = self.serve_in_step(pipes, head, bytes, combine);
        let done = done.map_err(|error| error.in_phase(head.name));
        if let Err(error) = &done {
            let text = codec::encode(error).unwrap_or_default();
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            let reply = [&[1u8][..], &length.to_le_bytes(), &text].concat();
            // Whoever cannot be told finds out by itself.
            pipes.iter_mut().for_each(|(_, pipe)| drop(pipe.write_all(&reply)));
        }
        done
    }

    fn serve_in_step(
        &self,
        pipes: &mut [(Rank, Box<dyn Pipe>)],
        head: &Head<'_>,
        bytes: &mut [u8],
        combine: Option<Combine>,
    ) -> Result<()> {
        let mut different = None;
        for (rank, pipe) in pipes.iter_mut() {
            let mut theirs = [0u8; HEAD_BYTES];
            self.read(*rank, pipe.as_mut(), &mut theirs)?;
            if theirs != head.to_bytes() {
                different.get_or_insert_with(|| head.disagreement(*rank, &theirs));
            }
        }
        if let Some(error) = different {
            return Err(error);
        }
        self.write_all(pipes, &[0])?;
        let mut theirs = vec![0u8; PIECE_BYTES.min(bytes.len())];
        for piece in bytes.chunks_mut(PIECE_BYTES) {
            if let Some(combine) = combine {
                for (rank, pipe) in pipes.iter_mut() {
                    let (theirs, _) = theirs.split_at_mut(piece.len());
                    self.read(*rank, pipe.as_mut(), theirs)?;
                    combine(piece, theirs);
                }
            }
            self.write_all(pipes, &[0])?;
            self.write_all(pipes, piece)?;
        }
        Ok(())
    }

    fn take_part(
        &self,
        pipes: &mut [(Rank, Box<dyn Pipe>)],
        head: &Head<'_>,
        bytes: &mut [u8],
        contribute: bool,
    ) -> Result<()> {
        let Some((rank, pipe)) = pipes.first_mut() else { return Ok(()) };
        let (rank, pipe) = (*rank, pipe.as_mut());
        self.contribute(rank, pipe, &head.to_bytes())?;
        self.read_status(rank, pipe)?;
        for piece in bytes.chunks_mut(PIECE_BYTES) {
            if contribute {
                self.contribute(rank, pipe, piece)?;
            }
            self.read_status(rank, pipe)?;
            self.read(rank, pipe, piece)?;
        }
        Ok(())
    }

    /// Sends bytes to the coordinator, which may have said why before it stopped reading.
    fn contribute(&self, rank: Rank, pipe: &mut dyn Pipe, bytes: &[u8]) -> Result<()> {
        let written = self.write(rank, pipe, bytes);
        written.map_err(|error| self.read_status(rank, pipe).err().unwrap_or(error))
    }

    /// Reads whether the coordinator goes on, or its error.
    fn read_status(&self, rank: Rank, pipe: &mut dyn Pipe) -> Result<()> {
        let mut status = [0u8; 1];
        self.read(rank, pipe, &mut status)?;
        if status == [0] {
            return Ok(());
        }
        let mut length = [0u8; 4];
        self.read(rank, pipe, &mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > ERROR_BYTES_MAX {
            return Err(Error::new(ErrorKind::CoordinatorLost, "its answer makes no sense"));
        }
        let mut text = vec![0u8; length];
        self.read(rank, pipe, &mut text)?;
        Err(codec::decode::<Error>(&text)?)
    }

    fn write_all(&self, pipes: &mut [(Rank, Box<dyn Pipe>)], bytes: &[u8]) -> Result<()> {
        pipes.iter_mut().try_for_each(|(rank, pipe)| self.write(*rank, pipe.as_mut(), bytes))
    }

    fn write(&self, rank: Rank, pipe: &mut dyn Pipe, bytes: &[u8]) -> Result<()> {
        pipe.write_all(bytes).map_err(|e| gone(rank, &format!("sending data to it failed: {e}")))
    }

    /// Fills `bytes`. Waits as long as the peer, or anybody it hears of, makes progress.
    fn read(&self, rank: Rank, pipe: &mut dyn Pipe, bytes: &mut [u8]) -> Result<()> {
        let mut last_moved = Instant::now();
        let mut filled = 0;
        while filled < bytes.len() {
            let (_, rest) = bytes.split_at_mut(filled);
            match pipe.read_some(rest) {
                Ok(0) => return Err(gone(rank, "its data connection closed")),
                Ok(count) => {
                    filled += count;
                    last_moved = Instant::now();
                }
                Err(e) if is_pause(&e) => self.check_peers(rank, last_moved)?,
                Err(e) => return Err(gone(rank, &format!("reading data from it failed: {e}"))),
            }
        }
        Ok(())
    }

    /// Whether it is worth waiting on for data of `awaited`.
    fn check_peers(&self, awaited: Rank, last_moved: Instant) -> Result<()> {
        let peers = self.member.world.ranks().filter(|rank| *rank != self.member.rank);
        for rank in peers {
            if let (Standing::Lost(why), _) = self.inbox.peer(rank) {
                return Err(gone(rank, &why));
            }
        }
        let (standing, heard_at) = self.inbox.peer(awaited);
        if standing == Standing::Left && last_moved.elapsed() >= VERDICT_MARGIN {
            return Err(gone(awaited, "it left the job"));
        }
        if heard_at.max(last_moved).elapsed() >= self.patience {
            let text = format!("no data and no progress for {:?}", self.patience);
            return Err(Error::new(ErrorKind::Deadline, text).at_rank(awaited));
        }
        Ok(())
    }
}

impl DataPlane for StarData {
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        self.run("all_reduce_sum", 1, bytemuck::cast_slice_mut(values), Some(add::<f32>))
    }

    fn all_reduce_sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.run("all_reduce_sum_f64", 2, bytemuck::cast_slice_mut(values), Some(add::<f64>))
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        self.run("broadcast", 3, bytes, None)
    }

    fn all_reduce_or(&self, bytes: &mut [u8]) -> Result<()> {
        self.run("all_reduce_or", 4, bytes, Some(or))
    }
}

/// Folds a piece of another rank into ours. Pieces are whole numbers of elements.
type Combine = fn(&mut [u8], &[u8]);

fn add<T: Pod + AddAssign>(sum: &mut [u8], theirs: &[u8]) {
    let size = size_of::<T>();
    for (sum, theirs) in sum.chunks_exact_mut(size).zip(theirs.chunks_exact(size)) {
        let mut total: T = bytemuck::pod_read_unaligned(sum);
        total += bytemuck::pod_read_unaligned::<T>(theirs);
        sum.copy_from_slice(bytemuck::bytes_of(&total));
    }
}

fn or(result: &mut [u8], theirs: &[u8]) {
    result.iter_mut().zip(theirs).for_each(|(result, theirs)| *result |= theirs);
}

fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// The error that a rank which is gone means to the others.
pub(super) fn gone(rank: Rank, why: &str) -> Error {
    let kind = if rank.is_coordinator() { ErrorKind::CoordinatorLost } else { ErrorKind::PeerLost };
    Error::new(kind, format!("rank {rank} is gone: {why}")).at_rank(rank)
}

/// What a rank is about to do; must be equal everywhere.
pub(super) struct Head<'a> {
    pub(super) name: &'a str,
    pub(super) code: u8,
    pub(super) sequence: u64,
    pub(super) bytes: u64,
}

impl Head<'_> {
    pub(super) fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0u8; HEAD_BYTES];
        bytes[0] = self.code;
        bytes[1..9].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[9..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// The error of rank 0, which does this, with a rank that does something else.
    pub(super) fn disagreement(&self, rank: Rank, theirs: &[u8; HEAD_BYTES]) -> Error {
        let [code, tail @ ..] = theirs;
        let both = u128::from_le_bytes(*tail);
        let (sequence, bytes) = (both & u128::from(u64::MAX), both >> 64);
        let text = format!(
            "rank {} does {} of {} bytes (operation {}), rank {rank} does {} of {bytes} bytes \
             (operation {sequence})",
            Rank::COORDINATOR,
            operation(self.code),
            self.bytes,
            self.sequence,
            operation(*code),
        );
        Error::new(ErrorKind::Disagreement, text).at_rank(rank)
    }
}

fn operation(code: u8) -> &'static str {
    match code {
        1 => "a sum of f32",
        2 => "a sum of f64",
        3 => "a broadcast",
        4 => "a bitwise or",
        _ => "something unknown",
    }
}
