//! Tensors whose elements do not lie row by row: transposed ones, channels last.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a storage that is held in memory to be put in order.
pub(crate) const GATHERED_BYTES_MAX: u64 = 1 << 30;

/// Where the elements of a tensor lie in its storage.
#[derive(Debug, Clone)]
pub(crate) struct Strided {
    /// Bytes of an element.
    pub(crate) size: usize,
    /// The first one, counted in elements.
    pub(crate) first: u64,
    pub(crate) shape: Vec<u64>,
    /// How many elements further the next one of a dimension lies.
    pub(crate) strides: Vec<u64>,
}

impl Strided {
    /// The place of an element in the storage, by its number in row-major order.
    fn place(&self, number: u64) -> u64 {
        let (mut rest, mut place) = (number, self.first);
        for (length, stride) in self.shape.iter().zip(&self.strides).rev() {
            place += rest % (*length).max(1) * stride;
            rest /= (*length).max(1);
        }
        place
    }
}

/// The storage that was read last, with where it begins.
#[derive(Default)]
pub(super) struct Gathered(Mutex<Option<(u64, Arc<Vec<u8>>)>>);

impl std::fmt::Debug for Gathered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0.lock().as_ref().map(|(_, bytes)| bytes.len());
        f.debug_tuple("Gathered").field(&bytes).finish()
    }
}

impl Gathered {
    /// Fills `out` with what the tensor has, in row-major order, from byte `skip` on. `load` reads
    /// the storage that begins at `begin`.
    ///
    /// # Errors
    /// Those of `load`; [`ErrorKind::Corrupt`] for elements beyond the storage.
    pub(super) fn read(
        &self,
        begin: u64,
        load: impl FnOnce() -> Result<Vec<u8>>,
        strided: &Strided,
        skip: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let storage = self.storage(begin, load)?;
        let size = strided.size.max(1);
        let mut number = skip / size as u64;
        let mut within = usize::try_from(skip % size as u64).unwrap_or_default();
        let mut rest = out;
        while !rest.is_empty() {
            let place = usize::try_from(strided.place(number)).ok();
            let start = place.and_then(|place| place.checked_mul(size));
            let element = start.and_then(|at| storage.get(at..at.checked_add(size)?));
            let element = element.and_then(|element| element.get(within..)).ok_or_else(beyond)?;
            let (part, after) = rest.split_at_mut(element.len().min(rest.len()));
            part.copy_from_slice(element.get(..part.len()).unwrap_or_default());
            (rest, number, within) = (after, number + 1, 0);
        }
        Ok(())
    }

    fn storage(&self, begin: u64, load: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let mut last = self.0.lock();
        if let Some((_, bytes)) = last.as_ref().filter(|(own, _)| *own == begin) {
            return Ok(bytes.clone());
        }
        // Never two of them at once.
        *last = None;
        let bytes = Arc::new(load()?);
        *last = Some((begin, bytes.clone()));
        Ok(bytes)
    }
}

fn beyond() -> Error {
    Error::new(ErrorKind::Corrupt, "elements beyond the end of their storage")
}
