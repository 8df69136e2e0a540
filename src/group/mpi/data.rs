//! Sums, broadcasts and bitwise or by MPI, in pieces, without ever waiting inside MPI.
//!
//! The MPI standard requires that a reduction gives all ranks the same bits. Before each operation a
//! small one makes sure that all ranks are about to do the same: MPI would end the job, or worse,
//! if they were not.

use std::time::Instant;

use ::mpi::collective::SystemOperation;
use ::mpi::datatype::Equivalence;
use ::mpi::request::{Request, StaticScope};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};
use bytemuck::Pod;
use parking_lot::Mutex;

use super::owner::Owner;
use super::wait::wait;
use crate::error::{Error, ErrorKind, Result};
use crate::group::data::{DataPlane, Head};
use crate::group::peers::Peers;
use crate::rank::Rank;

/// Bytes of one MPI call; also what keeps counts within a C int.
const PIECE_BYTES: usize = 4 << 20;
const PIECE_WORDS: usize = PIECE_BYTES / size_of::<u64>();

/// The data plane of a job under MPI.
pub(super) struct MpiData {
    owner: &'static Owner,
    peers: Peers,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sequence: u64,
    /// After a request that was given up MPI cannot be used again.
    broken: Option<Error>,
    staging: Staging,
}

/// Memory for MPI that is at hand.
#[derive(Default)]
struct Staging {
    send: Option<Box<[u64]>>,
    receive: Option<Box<[u64]>>,
}

impl MpiData {
    pub(super) fn new(owner: &'static Owner, peers: Peers) -> Self {
        Self { owner, peers, state: Mutex::default() }
    }

    /// Makes sure that all ranks do the same, then exchanges `values` piece by piece.
    fn run<T: Pod>(
        &self,
        (name, code): (&str, u8),
        values: &mut [T],
        exchange: impl Fn(&mut Wire<'_>, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let comm = self.owner.comm()?;
        state.sequence += 1;
        let bytes = size_of_val(values) as u64;
        let head = Head { name, code, sequence: state.sequence, bytes };
        let mut wire = Wire::new(comm, &self.peers, &mut state.staging);
        let done = wire.agree(&head).and_then(|()| {
            let mut pieces = values.chunks_mut(PIECE_BYTES / size_of::<T>());
            pieces.try_for_each(|piece| exchange(&mut wire, piece))
        });
        done.map_err(|error| {
            let error = error.in_phase(name);
            if error.kind() != ErrorKind::Disagreement {
                state.broken = Some(error.clone());
                self.peers.give_up(&error);
            }
            error
        })
    }
}

impl DataPlane for MpiData {
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        self.run(("all_reduce_sum", 1), values, |wire, piece| {
            wire.reduce(piece, SystemOperation::sum())
        })
    }

    fn all_reduce_sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.run(("all_reduce_sum_f64", 2), values, |wire, piece| {
            wire.reduce(piece, SystemOperation::sum())
        })
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        self.run(("broadcast", 3), bytes, |wire, piece| wire.broadcast(piece))
    }

    fn all_reduce_or(&self, bytes: &mut [u8]) -> Result<()> {
        self.run(("all_reduce_or", 4), bytes, |wire, piece| {
            wire.reduce(piece, SystemOperation::bitwise_or())
        })
    }
}

/// One operation under way.
struct Wire<'a> {
    comm: &'a SimpleCommunicator,
    peers: &'a Peers,
    staging: &'a mut Staging,
    waiting_since: Instant,
    said_here: bool,
}

impl<'a> Wire<'a> {
    fn new(comm: &'a SimpleCommunicator, peers: &'a Peers, staging: &'a mut Staging) -> Self {
        Self { comm, peers, staging, waiting_since: Instant::now(), said_here: false }
    }

    /// Compares code, length and number of the operation, by their greatest and least values.
    fn agree(&mut self, head: &Head<'_>) -> Result<()> {
        let own = [i64::from(head.code), as_i64(head.bytes), as_i64(head.sequence)];
        let [code, bytes, sequence] = own;
        let mut most = [code, bytes, sequence, -code, -bytes, -sequence];
        self.reduce(&mut most, SystemOperation::max())?;
        let (most, least) = most.split_at(own.len());
        if most.iter().zip(least).all(|(most, least)| *most == -*least) {
            return Ok(());
        }
        Err(self.disagreement(head, &own)?)
    }

    /// The same error on every rank.
    fn disagreement(&mut self, head: &Head<'_>, own: &[i64; 3]) -> Result<Error> {
        let ranks = usize::try_from(self.comm.size()).unwrap_or(0);
        // Once per mistake of a program: small enough to be leaked.
        let own: &'static [i64] = own.to_vec().leak();
        let all: &'static mut [i64] = vec![0i64; own.len() * ranks].leak();
        let all = self.wait(self.comm.immediate_all_gather_into(StaticScope, own, all))?;
        let heads: Vec<Head<'_>> = all
            .chunks_exact(own.len())
            .filter_map(|head| <[i64; 3]>::try_from(head).ok())
            .map(|[code, bytes, sequence]| Head {
                name: head.name,
                code: u8::try_from(code).unwrap_or(0),
                bytes: bytes.unsigned_abs(),
                sequence: sequence.unsigned_abs(),
            })
            .collect();
        let different = |first: &Head<'_>| {
            let others = (0u32..).zip(&heads);
            let mut others = others.map(|(rank, head)| (Rank::new(rank), head.to_bytes()));
            let (rank, theirs) = others.find(|(_, head)| *head != first.to_bytes())?;
            Some(first.disagreement(rank, &theirs))
        };
        let unknown = || Error::new(ErrorKind::Disagreement, "ranks exchange different data");
        Ok(heads.first().and_then(different).unwrap_or_else(unknown))
    }

    fn reduce<T: Pod + Equivalence>(
        &mut self,
        values: &mut [T],
        operation: SystemOperation,
    ) -> Result<()> {
        let (send, sent) = Loan::new::<T>(self.staging.send.take(), values.len());
        let (receive, received) = Loan::new::<T>(self.staging.receive.take(), values.len());
        sent.copy_from_slice(values);
        let request = self.comm.immediate_all_reduce_into(StaticScope, &*sent, received, operation);
        values.copy_from_slice(self.wait(request)?);
        // SAFETY: the request is complete, and no slice of either loan is used any more.
        #[allow(unsafe_code)]
        unsafe {
            self.staging.send = Some(send.give_back());
            self.staging.receive = Some(receive.give_back());
        }
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<()> {
        let (loan, lent) = Loan::new::<u8>(self.staging.receive.take(), bytes.len());
        lent.copy_from_slice(bytes);
        let root = self.comm.process_at_rank(0);
        let request = root.immediate_broadcast_into(StaticScope, lent);
        bytes.copy_from_slice(self.wait(request)?);
        // SAFETY: the request is complete, and no slice of the loan is used any more.
        #[allow(unsafe_code)]
        let returned = unsafe { loan.give_back() };
        self.staging.receive = Some(returned);
        Ok(())
    }

    /// Waits for MPI as long as that is worth it.
    fn wait<D: ?Sized>(&mut self, request: Request<'static, D>) -> Result<&'static D> {
        let (peers, since, said_here) = (self.peers, self.waiting_since, &mut self.said_here);
        let done = wait(request, || {
            // Once, so that two ranks that wait for each other do not keep each other waiting.
            if !*said_here && since.elapsed() >= peers.patience() / 2 {
                *said_here = true;
                peers.say_here();
            }
            peers.check(since)
        });
        self.waiting_since = Instant::now();
        done
    }
}

fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Memory that MPI works on. Leaked unless it is given back: MPI may use what belongs to a
/// request that was given up.
struct Loan(*mut [u64]);

impl Loan {
    /// With its first `count` elements, a piece at most.
    fn new<T: Pod>(at_hand: Option<Box<[u64]>>, count: usize) -> (Self, &'static mut [T]) {
        let fresh = || vec![0; PIECE_WORDS].into_boxed_slice();
        let memory = Box::into_raw(at_hand.unwrap_or_else(fresh));
        // SAFETY: a live box, which is freed by nobody but `give_back`, whose caller promises
        // that this slice, the only one, is not used any more.
        #[allow(unsafe_code)]
        let words = unsafe { &mut *memory };
        let all: &'static mut [T] = bytemuck::cast_slice_mut(words);
        let count = count.min(all.len());
        (Self(memory), all.split_at_mut(count).0)
    }

    /// # Safety
    /// Neither MPI nor anybody else uses the slice of this loan any more.
    #[allow(unsafe_code)]
    unsafe fn give_back(self) -> Box<[u64]> {
        // SAFETY: made by `Box::into_raw`, and the only reference, as the caller promises.
        unsafe { Box::from_raw(self.0) }
    }
}
