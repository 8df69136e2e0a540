//! Devices of host memory that reach one another, for ranks that are threads of a test.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::DevicePlane;
use crate::device::{Device, Mark};
use crate::error::{Error, ErrorKind, Result};
use crate::rank::{Rank, WorldSize};
use crate::tensor::Dtype;

/// A rank that does not come within this time is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where ranks meet for one operation after the other.
#[derive(Default)]
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What came to the operation that goes on, by rank.
    given: Vec<(Rank, Vec<u8>)>,
    /// Operations that ended, and what came out of the last one.
    ended: u64,
    result: Vec<u8>,
    failed: Option<Error>,
}

/// One rank's end of it.
pub(crate) struct FakePlane {
    pub(crate) rank: Rank,
    pub(crate) world: WorldSize,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) meeting: Arc<Meeting>,
}

impl FakePlane {
    /// Gives `bytes`, waits for all, and takes what `combine` makes of them.
    fn meet(
        &self,
        bytes: Vec<u8>,
        combine: impl Fn(&[(Rank, Vec<u8>)]) -> Vec<u8>,
    ) -> Result<Vec<u8>> {
        let mut state = self.meeting.state.lock();
        state.failed.clone().map_or(Ok(()), Err)?;
        state.given.push((self.rank, bytes));
        let turn = state.ended;
        if state.given.len() as u64 == u64::from(self.world.get()) {
            state.given.sort_by_key(|(rank, _)| *rank);
            state.result = combine(&std::mem::take(&mut state.given));
            state.ended += 1;
            self.meeting.changed.notify_all();
        }
        let is_waiting = |state: &mut State| state.ended == turn && state.failed.is_none();
        let waited = self.meeting.changed.wait_while_for(&mut state, is_waiting, PATIENCE);
        if waited.timed_out() {
            return Err(Error::new(ErrorKind::Deadline, "fake: a rank did not come"));
        }
        if state.ended == turn {
            state.failed.clone().map_or(Ok(()), Err)?;
        }
        Ok(state.result.clone())
    }

    #[allow(unsafe_code)]
    fn memory(address: u64, bytes: u64) -> &'static mut [u8] {
        let (address, bytes) = (usize::try_from(address).unwrap(), usize::try_from(bytes).unwrap());
        // SAFETY: the memory of a fake device is that of a vector which its owner keeps, and which
        // only this thread uses meanwhile.
        unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address), bytes)
        }
    }
}

impl DevicePlane for FakePlane {
    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn all_reduce_sum(&self, address: u64, count: u64, dtype: Dtype) -> Result<Mark> {
        assert_eq!(dtype, Dtype::F32, "all that the fake can add");
        let memory = Self::memory(address, count * 4);
        let sum = |all: &[(Rank, Vec<u8>)]| {
            let mut sums = vec![0f32; usize::try_from(count).unwrap()];
            for (_, bytes) in all {
                let values = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            bytemuck::cast_slice(&sums).to_vec()
        };
        memory.copy_from_slice(&self.meet(memory.to_vec(), sum)?);
        Ok(Mark(0))
    }

    fn broadcast(&self, root: Rank, address: u64, bytes: u64) -> Result<Mark> {
        let memory = Self::memory(address, bytes);
        let of_root = |all: &[(Rank, Vec<u8>)]| {
            all.iter().find(|(rank, _)| *rank == root).map(|(_, bytes)| bytes.clone()).unwrap()
        };
        memory.copy_from_slice(&self.meet(memory.to_vec(), of_root)?);
        Ok(Mark(0))
    }

    fn fail(&self, error: &Error) {
        self.meeting.state.lock().failed.get_or_insert_with(|| error.clone());
        self.meeting.changed.notify_all();
    }

    fn wait(&self, _: Mark) -> Result<()> {
        Ok(())
    }
}
