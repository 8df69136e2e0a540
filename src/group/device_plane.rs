//! The data plane between devices: sums and broadcasts of their memory, without the hosts.

use std::sync::Arc;

use super::ProcessGroup;
use crate::device::{Device, Mark};
use crate::error::{Error, Result};
use crate::rank::Rank;
use crate::tensor::Dtype;

#[cfg(test)]
pub(crate) mod fake;

/// How memory of devices travels between ranks. Every rank calls the same operations in the same
/// order with the same lengths. They are queued beside the computation, after all that it was
/// given before; a loss of a peer, or no progress within the deadline, is an error of all later
/// calls.
#[cfg_attr(not(feature = "nccl"), allow(dead_code))]
pub(crate) trait DevicePlane: Send + Sync {
    /// The device of this rank.
    fn device(&self) -> &Arc<dyn Device>;

    /// Adds up `count` elements of `dtype` (F32, F64, F16, BF16) over all ranks, in place.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device), and those of [`DevicePlane::wait`].
    fn all_reduce_sum(&self, address: u64, count: u64, dtype: Dtype) -> Result<Mark>;

    /// Gives all ranks the bytes of `root`.
    ///
    /// # Errors
    /// As [`DevicePlane::all_reduce_sum`].
    fn broadcast(&self, root: Rank, address: u64, bytes: u64) -> Result<Mark>;

    /// Ends it for good, with this error for all later calls: what this rank could not do would
    /// have to come next, and whatever came in its place would be taken for that by the others.
    fn fail(&self, error: &Error);

    /// Whether memory of an operation that ended with an error may be given back: else the device
    /// may write to it at any time.
    fn is_at_rest(&self) -> bool {
        true
    }

    /// Returns when all up to `mark` is done.
    ///
    /// # Errors
    /// [`ErrorKind::PeerLost`](crate::ErrorKind::PeerLost),
    /// [`ErrorKind::Deadline`](crate::ErrorKind::Deadline),
    /// [`ErrorKind::Device`](crate::ErrorKind::Device).
    fn wait(&self, mark: Mark) -> Result<()>;
}

impl ProcessGroup {
    /// The data plane between devices, if there is one.
    pub(crate) fn device_plane(&self) -> Option<&Arc<dyn DevicePlane>> {
        self.0.device_plane.get()
    }

    /// From now on `plane` is it; the first one stays.
    #[cfg(any(test, feature = "nccl"))]
    pub(crate) fn set_device_plane(&self, plane: Arc<dyn DevicePlane>) -> bool {
        self.0.device_plane.set(plane).is_ok()
    }
}
