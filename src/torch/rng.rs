//! State of libtorch's generators. Without it, dropout and every `randn` take another course
//! after a resume.

use super::ffi;
use crate::error::{Error, ErrorKind, Result};

/// State of the process's CPU generator.
///
/// # Errors
/// [`ErrorKind::Device`] if libtorch fails.
pub fn cpu_rng_state() -> Result<Vec<u8>> {
    ffi::rng_state(None)
}

/// Continues the CPU generator from a state of [`cpu_rng_state`].
///
/// # Errors
/// [`ErrorKind::Mismatch`] if `state` has another length or is none; the generator then stays as
/// it was.
pub fn set_cpu_rng_state(state: &[u8]) -> Result<()> {
    set(None, state, false)
}

/// Whether [`set_cpu_rng_state`] would take `state`; the generator is not touched.
///
/// # Errors
/// As [`set_cpu_rng_state`].
pub(crate) fn check_cpu_rng_state(state: &[u8]) -> Result<()> {
    set(None, state, true)
}

/// Whether [`set_cuda_rng_state`] would take `state`; the generator is not touched.
///
/// # Errors
/// As [`set_cuda_rng_state`].
pub(crate) fn check_cuda_rng_state(index: u16, state: &[u8]) -> Result<()> {
    set(Some(index), state, true)
}

/// State of the generator of a CUDA device.
///
/// # Errors
/// [`ErrorKind::Device`] if there is no such device, or libtorch has no CUDA.
pub fn cuda_rng_state(index: u16) -> Result<Vec<u8>> {
    ffi::rng_state(Some(index))
}

/// Continues the generator of a CUDA device from a state of [`cuda_rng_state`].
///
/// # Errors
/// [`ErrorKind::Mismatch`] as in [`set_cpu_rng_state`]; [`ErrorKind::Device`] if there is no such
/// device, or libtorch has no CUDA.
pub fn set_cuda_rng_state(index: u16, state: &[u8]) -> Result<()> {
    set(Some(index), state, false)
}

fn set(cuda_index: Option<u16>, state: &[u8], only_check: bool) -> Result<()> {
    let length = ffi::rng_state(cuda_index)?.len();
    if state.len() != length {
        let message = format!("a random state has {length} bytes here, not {}", state.len());
        return Err(Error::new(ErrorKind::Mismatch, message)
            .with_help("it may be of another device or version of libtorch"));
    }
    ffi::set_rng_state(cuda_index, state, only_check).map_err(|e| e.with_kind(ErrorKind::Mismatch))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::torch::testing::generator;

    fn draw() -> Vec<f32> {
        Vec::try_from(Tensor::randn([10], (Kind::Float, Device::Cpu))).unwrap()
    }

    #[test]
    fn a_restored_state_repeats_the_same_numbers() {
        let _generator = generator();
        let state = cpu_rng_state().unwrap();
        let (first, second) = (draw(), draw());
        assert_ne!(first, second);
        set_cpu_rng_state(&state).unwrap();
        assert_eq!(draw(), first);
        assert_eq!(draw(), second);
    }

    #[test]
    fn garbage_is_refused_and_changes_nothing() {
        let _generator = generator();
        let state = cpu_rng_state().unwrap();
        let garbage = vec![0xff; state.len()];
        for bad in [&[][..], &state[1..], &garbage] {
            let error = set_cpu_rng_state(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        }
        assert_eq!(cpu_rng_state().unwrap(), state);
        assert_eq!(check_cpu_rng_state(&garbage).unwrap_err().kind(), ErrorKind::Mismatch);
        let _ = draw();
        let later = cpu_rng_state().unwrap();
        check_cpu_rng_state(&state).unwrap();
        assert_eq!(cpu_rng_state().unwrap(), later);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        for index in [99, 128, 256, u16::MAX] {
            assert_eq!(cuda_rng_state(index).unwrap_err().kind(), ErrorKind::Device, "{index}");
        }
    }
}
