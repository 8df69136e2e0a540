//! What is used of NCCL: the seam between what decides and the calls. Tests put another NCCL here.

use std::ffi::{c_int, c_void};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Dtype;

/// Version of a library, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// The first with non-blocking communicators.
    pub(super) const OLDEST: Self = Self { major: 2, minor: 14, patch: 0 };

    /// As `ncclGetVersion` numbers it: 2.29.7 is 22907, and before 2.9 with two digits less.
    pub(super) fn of(number: c_int) -> Self {
        let number = number.unsigned_abs();
        let (major, rest) = if number < 10_000 {
            (number / 1000, number % 1000)
        } else {
            (number / 10_000, number % 10_000)
        };
        let part = |part: u32| u16::try_from(part).unwrap_or(u16::MAX);
        Self { major: part(major), minor: part(rest / 100), patch: part(rest % 100) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What brings the ranks of one communicator together: 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UniqueId(pub(super) Vec<u8>);

/// Whether a call is done, or goes on beside the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Going,
}

/// Element types that NCCL adds up here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataType {
    F16,
    F32,
    F64,
    BF16,
}

impl DataType {
    /// # Errors
    /// [`ErrorKind::Unsupported`] for every other dtype.
    pub(super) fn of(dtype: Dtype) -> Result<Self> {
        Ok(match dtype {
            Dtype::F16 => Self::F16,
            Dtype::F32 => Self::F32,
            Dtype::F64 => Self::F64,
            Dtype::BF16 => Self::BF16,
            _ => {
                let message = format!("sums of {dtype} over NCCL");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        })
    }

    /// `ncclDataType_t`.
    pub(super) fn number(self) -> c_int {
        match self {
            Self::F16 => 6,
            Self::F32 => 7,
            Self::F64 => 8,
            Self::BF16 => 9,
        }
    }
}

/// A library.
pub(super) trait Api: Send + Sync {
    /// # Errors
    /// [`ErrorKind::Device`].
    fn version(&self) -> Result<Version>;

    /// A new one, for all ranks of a job.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn unique_id(&self) -> Result<UniqueId>;

    /// Begins to join; [`Comm::state`] tells when that is done. The device is current on the calling
    /// thread.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], [`ErrorKind::InvalidInput`].
    fn init(&self, world: u32, id: &UniqueId, rank: u32) -> Result<Box<dyn Comm>>;
}

/// A communicator. Given work by one thread at a time; [`Comm::state`] and [`Comm::abort`] may be
/// called by another one meanwhile. After [`Comm::destroy`] or [`Comm::abort`] nothing is called.
#[allow(unsafe_code)]
pub(super) trait Comm: Send + Sync {
    /// Whether it is at rest, or goes on with what it was told.
    ///
    /// # Errors
    /// What has gone wrong meanwhile.
    fn state(&self) -> Result<Progress>;

    /// Queues a sum over all ranks, in place, on `stream`.
    ///
    /// # Safety
    /// `count` elements at `address` are memory of the device until `stream` is done with them.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], [`ErrorKind::InvalidInput`], [`ErrorKind::PeerLost`].
    unsafe fn all_reduce_sum(
        &self,
        address: u64,
        count: u64,
        dtype: DataType,
        stream: *mut c_void,
    ) -> Result<Progress>;

    /// Queues a broadcast, in place, on `stream`.
    ///
    /// # Safety
    /// As [`Comm::all_reduce_sum`].
    ///
    /// # Errors
    /// As [`Comm::all_reduce_sum`].
    unsafe fn broadcast(
        &self,
        root: u32,
        address: u64,
        bytes: u64,
        stream: *mut c_void,
    ) -> Result<Progress>;

    /// Begins to end it in good order; [`Comm::state`] tells when that is done.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn finalize(&self) -> Result<Progress>;

    /// Frees it after [`Comm::finalize`].
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn destroy(&self) -> Result<()>;

    /// Ends it at once, whatever is going on.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn abort(&self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_ways_of_numbering() {
        assert_eq!(Version::of(22_907).to_string(), "2.29.7");
        assert_eq!(Version::of(21_400), Version::OLDEST);
        assert_eq!(Version::of(2_708).to_string(), "2.7.8");
        assert!(Version::of(21_304) < Version::OLDEST);
    }

    #[test]
    fn numbers_are_added_up_and_nothing_else() {
        assert_eq!(DataType::of(Dtype::BF16).unwrap().number(), 9);
        for dtype in [Dtype::I64, Dtype::Bool, Dtype::C64, Dtype::F8E5M2] {
            assert_eq!(DataType::of(dtype).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }
}
