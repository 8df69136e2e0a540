//! Mixed precision: libtorch's autocast, on CUDA and on the CPU.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use super::ffi;
use crate::error::{Error, ErrorKind, Result};

#[cfg(test)]
mod tests;

/// In which precision a model computes. Parameters, gradients and optimizer state stay as they
/// are; only operations that bear it (matrix products, convolutions) run in fewer bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// That of the parameters. The default.
    #[default]
    Full,
    /// Autocast to half (f16). Small gradients vanish in it: use a
    /// [`GradScaler`](super::GradScaler).
    MixedHalf,
    /// Autocast to bfloat16, which has the range of f32 and needs no scaler.
    MixedBfloat16,
}

impl Precision {
    /// What operations are cast to; none in full precision.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::Full => None,
            Self::MixedHalf => Some(Kind::Half),
            Self::MixedBfloat16 => Some(Kind::BFloat16),
        }
    }

    /// Whether training wants a [`GradScaler`](super::GradScaler).
    #[must_use]
    pub fn needs_scaler(self) -> bool {
        self == Self::MixedHalf
    }

    /// Calls `f` in this precision. In full precision autocast is left as it is on this thread.
    ///
    /// # Errors
    /// As [`Autocast::enter`]; `f` is then not called.
    pub fn run<T>(self, device: Device, f: impl FnOnce() -> T) -> Result<T> {
        let _guard = self.kind().map(|kind| Autocast::enter(device, kind)).transpose()?;
        Ok(f())
    }
}

/// Autocast is on for this thread while this lives; what was in force before comes back when it is
/// dropped, also by a panic. Drop nested ones in reverse order.
///
/// Take one for each forward pass with its loss, and leave it before the backward pass: weights
/// are cast once and kept until the outermost guard goes, so a change of parameters (a step, a
/// swap of averages) or of gradient mode inside it would not be seen.
#[derive(Debug)]
#[must_use = "autocast ends when the guard is dropped"]
pub struct Autocast {
    before: ffi::AutocastBefore,
    /// libtorch keeps this state by thread.
    not_send: PhantomData<*const ()>,
}

impl Autocast {
    /// Operations on tensors of `device`'s type run in `kind`, as libtorch's lists say.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for kinds other than half and bfloat16, and for devices other
    /// than CUDA and the CPU.
    pub fn enter(device: Device, kind: Kind) -> Result<Self> {
        let unsupported =
            |what: String| Err(Error::new(ErrorKind::Unsupported, format!("no autocast {what}")));
        let cuda = match device {
            Device::Cpu => false,
            Device::Cuda(_) => true,
            Device::Mps | Device::Vulkan => return unsupported(format!("on {device:?}")),
        };
        let bfloat16 = match kind {
            Kind::Half => false,
            Kind::BFloat16 => true,
            _ => return unsupported(format!("to {kind:?}, only to Half and BFloat16")),
        };
        let before = ffi::autocast_enter(cuda, bfloat16)?;
        Ok(Self { before, not_send: PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        if let Err(error) = ffi::autocast_leave(&self.before) {
            tracing::error!(%error, "autocast stays on for this thread");
        }
    }
}
