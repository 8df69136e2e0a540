//! Where tensor bytes come from and go to.

use crate::device::DeviceMemory;
use crate::error::{Error, ErrorKind, Result};

/// Where the bytes of one box come from when saving: little-endian, row-major over the box.
///
/// Called from several threads; must give the same bytes every time until the save has staged
/// them: until it has returned, or, for a [steady](TensorSource::is_steady) box of
/// [`save_async_overlapped`](crate::save::save_async_overlapped), until the caller has passed
/// [`PendingSave::wait_copied`](crate::save::PendingSave::wait_copied).
pub trait TensorSource: Send + Sync {
    /// The whole box, if it already lies contiguous in host memory.
    fn bytes(&self) -> Option<&[u8]> {
        None
    }

    /// The whole box, if it lies contiguous in the memory of a device: copies then go on a queue of
    /// their own, beside the computation. It stays there as long as the source. Default: `None`.
    fn device_memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// Fills `out` with the bytes that begin `offset` bytes into the box.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy from the device fails.
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Whether the box changes in the optimizer's step alone, so that it can be copied while the
    /// next forward and backward pass run. Default: no.
    fn is_steady(&self) -> bool {
        false
    }

    /// A number that is another one after every change of the box; `None` if changes cannot be
    /// noticed. Asked of steady boxes, to fail a save that was changed under its hands. Default:
    /// `None`.
    fn version(&self) -> Option<u64> {
        None
    }
}

impl<T: AsRef<[u8]> + Send + Sync> TensorSource for T {
    fn bytes(&self) -> Option<&[u8]> {
        Some(self.as_ref())
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = begin.checked_add(out.len()).and_then(|end| self.as_ref().get(begin..end));
        let Some(part) = part else {
            let have = self.as_ref().len();
            let message = format!("the source holds {have} bytes, not {offset} + {}", out.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        out.copy_from_slice(part);
        Ok(())
    }
}

/// Where the bytes of one box go when loading: little-endian, row-major over the box.
pub trait TensorSink: Send {
    /// The whole box as host memory, if it is that; bytes are then placed without a copy.
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        None
    }

    /// The whole box, if it lies contiguous in the memory of a device. Default: `None`.
    fn device_memory(&mut self) -> Option<DeviceMemory> {
        None
    }

    /// Notes that its device memory is about to change, as [`TensorSink::write_at`] does by itself, so
    /// that a save beside this does not take it for unchanged. Default: nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn count_change(&mut self) -> Result<()> {
        Ok(())
    }

    /// Takes whatever memory [`TensorSink::write_at`] needs beside the box, so that a lack of it
    /// shows before any rank changes anything. Called before the vote of a load that is
    /// [atomic](crate::load::Atomicity::Atomic), where the box keeps its content; the writes may
    /// come through another sink of the same box. Default: nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if there is none.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Places `bytes` that begin `offset` bytes into the box.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy to the device fails.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Returns when all that was written has arrived: a copy to a device may still be on its way
    /// when [`TensorSink::write_at`] returns. Called once, after the last write. Default: nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy to the device failed.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl<T: TensorSink + ?Sized> TensorSink for &mut T {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        (**self).bytes_mut()
    }

    fn device_memory(&mut self) -> Option<DeviceMemory> {
        (**self).device_memory()
    }

    fn count_change(&mut self) -> Result<()> {
        (**self).count_change()
    }

    fn prepare(&mut self) -> Result<()> {
        (**self).prepare()
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn flush(&mut self) -> Result<()> {
        (**self).flush()
    }
}

impl TensorSink for [u8] {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(self)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let have = self.len();
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = begin.checked_add(bytes.len());
        let Some(part) = end.and_then(|end| self.get_mut(begin..end)) else {
            let message = format!("the sink holds {have} bytes, not {offset} + {}", bytes.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        part.copy_from_slice(bytes);
        Ok(())
    }
}
