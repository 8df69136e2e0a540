//! One long piece of memory, for as much as a rank's whole share: kept between saves, because the
//! first touch of a page costs more than the disk.

use std::fmt;
use std::sync::Arc;

use super::zeroed;
use crate::device::budget::{Budget, Lease};
use crate::device::{Device, Locked};
use crate::error::{Error, Result};

/// What is placed in it begins at a multiple of this: what direct I/O asks for.
pub(crate) const PAGE: usize = 4096;
/// A region that is longer than needed by more than this is not used again.
const SURPLUS_MAX: usize = 32 << 20;

/// Zeroes, or whatever was in it when it was used before; it begins on a page. Pages that no byte
/// was written to take no memory.
pub(crate) struct Region {
    /// Before the memory, for it is dropped before it.
    locked: Option<(Locked, Lease)>,
    bytes: Vec<u8>,
    begin: usize,
    #[cfg(test)]
    _held: super::held::Held,
}

impl Region {
    /// # Errors
    /// [`ErrorKind::Storage`](crate::ErrorKind::Storage) where memory is short.
    pub(crate) fn new(len: u64) -> Result<Self> {
        let short = || Error::no_memory(len);
        let page = page_bytes();
        let room = len.checked_next_multiple_of(page as u64).ok_or_else(short)?;
        // Of ordinary pages: once touched they are as fast as huge ones, and a virtual machine
        // whose host has taken back what was free in one piece needs six times as long to touch
        // huge ones first.
        let bytes =
            zeroed(room.checked_add(page as u64).ok_or_else(short)?).map_err(|_| short())?;
        let begin = bytes.as_ptr().align_offset(page).min(page);
        Ok(Self {
            locked: None,
            bytes,
            begin,
            #[cfg(test)]
            _held: super::held::Held::new(&super::held::REGIONS),
        })
    }

    /// `kept`, if it is long enough and not much too long, else a new one. Never both at once.
    ///
    /// # Errors
    /// As [`Region::new`].
    pub(crate) fn of(len: u64, kept: Option<Self>) -> Result<Self> {
        let fits = |region: &Self| {
            let room = region.bytes.len() - page_bytes();
            usize::try_from(len).is_ok_and(|len| len <= room && room - len <= SURPLUS_MAX)
        };
        match kept.filter(fits) {
            Some(region) => Ok(region),
            None => Self::new(len),
        }
    }

    /// Locks its pages, for copies from and to devices, as long as it lives; `false` if `budget` has
    /// not as much. Those alone that are all its own: memory of others beside it would else be
    /// locked in part, and copies of that fail.
    ///
    /// # Errors
    /// As [`Device::lock_pages`].
    pub(crate) fn lock(&mut self, device: &dyn Device, budget: &Arc<Budget>) -> Result<bool> {
        if self.locked.is_some() {
            return Ok(true);
        }
        let Some(lease) = budget.take(self.bytes.len() as u64) else { return Ok(false) };
        let memory = self.bytes_mut();
        let whole = memory.len() - memory.len() % page_bytes();
        // SAFETY: the buffer is never made longer, so that it stays where it is until it is dropped,
        // which is after `locked`.
        #[allow(unsafe_code)]
        let locked = unsafe { device.lock_pages(memory.as_mut_ptr(), whole)? };
        self.locked = Some((locked, lease));
        Ok(true)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.begin..).unwrap_or_default()
    }
}

/// A page of this machine, and never less than direct I/O asks for.
fn page_bytes() -> usize {
    rustix::param::page_size().max(PAGE)
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_on_a_page_and_is_used_again_where_it_fits() {
        let mut region = Region::new(10_000).unwrap();
        assert_eq!(region.bytes().as_ptr().align_offset(PAGE), 0);
        assert!(region.bytes().len() >= 10_000 && region.bytes().iter().all(|byte| *byte == 0));
        region.bytes_mut()[9_999] = 7;
        let address = region.bytes().as_ptr();
        let again = Region::of(10_000, Some(region)).unwrap();
        assert_eq!((again.bytes().as_ptr(), again.bytes()[9_999]), (address, 7));
        let smaller = Region::of(1, Some(again)).unwrap();
        assert_eq!(smaller.bytes()[9_999], 7, "a surplus of a few pages does not matter");
        let larger = Region::of(100_000, Some(smaller)).unwrap();
        assert!(larger.bytes().len() >= 100_000 && larger.bytes()[9_999] == 0);
        let large = Region::new(SURPLUS_MAX as u64 + 100_000).unwrap();
        assert!(Region::of(1, Some(large)).unwrap().bytes().len() < SURPLUS_MAX);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for len in [u64::MAX, u64::MAX / 2, 1 << 60] {
            assert!(Region::new(len).unwrap_err().message().contains("no memory"));
        }
    }
}
