//! Exchanges between ranks over the data plane: sums, broadcasts, and bytes that no arithmetic may
//! touch.

use std::ops::Range;

use super::ProcessGroup;
use crate::error::{Error, ErrorKind, Result};

impl ProcessGroup {
    /// Adds up `values` over all ranks, so that all hold the same bits. In rank order, so that a
    /// rerun gives them too; under MPI the order is the library's.
    ///
    /// # Errors
    /// [`ErrorKind::Disagreement`] if lengths or operations differ between ranks;
    /// [`ErrorKind::PeerLost`], [`ErrorKind::CoordinatorLost`] or [`ErrorKind::Deadline`], after
    /// which `values` are undefined and every later exchange of data fails.
    pub fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        self.0.data.all_reduce_sum(values)
    }

    /// As [`ProcessGroup::all_reduce_sum`], in double precision.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    pub fn all_reduce_sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.0.data.all_reduce_sum_f64(values)
    }

    /// Gives every rank the coordinator's bytes; the length must be the same everywhere.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    pub fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        self.0.data.broadcast(bytes)
    }

    /// Combines `bytes` by bitwise or over all ranks; exact, whatever the bytes mean.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`].
    pub fn all_reduce_or(&self, bytes: &mut [u8]) -> Result<()> {
        self.0.data.all_reduce_or(bytes)
    }

    /// Puts together what each rank has a part of: every rank gives its segment `own` of `bytes`
    /// and gets those of all others, bit for bit. The length must be the same everywhere, and no
    /// byte may be owned twice; what nobody owns becomes zero.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce_sum`]. [`ErrorKind::InvalidInput`] if `own` is not inside
    /// `bytes`; the other ranks get [`ErrorKind::Disagreement`] then.
    pub fn all_gather(&self, bytes: &mut [u8], own: Range<usize>) -> Result<()> {
        let length = bytes.len();
        if own.start > own.end || own.end > length {
            // The others wait for this rank, and must not wait for long: another length tells them.
            let told = self.all_reduce_or(&mut vec![0; usize::from(length == 0)]);
            tracing::debug!(?told, "an all-gather that cannot be");
            let message = format!("segment {own:?} of {length} bytes");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let (before, rest) = bytes.split_at_mut(own.start);
        let (_, after) = rest.split_at_mut(own.len());
        before.fill(0);
        after.fill(0);
        self.all_reduce_or(bytes)
    }
}
