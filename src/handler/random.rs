//! The random state of a rank: saved, checked, and gone on with on another device.

use tch::Device;

use crate::error::{Error, ErrorKind, Result};
use crate::handler::builder::seed_of_rank;
use crate::handler::{Model, NNHandler};
use crate::state::Values;
use crate::torch;

/// State of the generator of the CPU.
const CPU: &str = "rng.cpu";
/// State of the generator of the rank's own CUDA device, whatever its number; only on CUDA.
const CUDA: &str = "rng.cuda";

/// The states of all generators that a rank draws from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RandomNow {
    cpu: Vec<u8>,
    cuda: Option<Vec<u8>>,
}

impl RandomNow {
    pub(super) fn of(device: Device) -> Result<Self> {
        let cuda = cuda_index(device)?.map(torch::cuda_rng_state).transpose()?;
        Ok(Self { cpu: torch::cpu_rng_state()?, cuda })
    }

    pub(super) fn save(self, rank_values: &mut Values) {
        rank_values.set(CPU, self.cpu);
        if let Some(cuda) = self.cuda {
            rank_values.set(CUDA, cuda);
        }
    }
}

/// The index of a CUDA device as the generators know it.
fn cuda_index(device: Device) -> Result<Option<u16>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let beyond = |_| Error::new(ErrorKind::Device, format!("no CUDA device {index}"));
    u16::try_from(index).map(Some).map_err(beyond)
}

/// The state that was saved for this rank's CUDA device, and its number here.
fn stored_cuda(device: Device, own: &Values) -> Result<Option<(u16, Vec<u8>)>> {
    match (cuda_index(device)?, own.find(CUDA)) {
        (Some(index), Some(_)) => Ok(Some((index, own.bytes(CUDA)?))),
        _ => Ok(None),
    }
}

impl<M: Model> NNHandler<M> {
    /// Whether [`NNHandler::continue_random`] would take what was saved; changes nothing.
    pub(super) fn check_random(&self, own: &Values) -> Result<()> {
        if let Some((index, state)) = stored_cuda(self.device, own)? {
            torch::rng::check_cuda_rng_state(index, &state)?;
        }
        torch::rng::check_cpu_rng_state(&own.bytes(CPU)?)
    }

    /// Seeds every generator; states that were saved for this rank then replace it.
    pub(super) fn continue_random(&self, seed: u64, step: u64, own: Option<&Values>) -> Result<()> {
        let seed = seed_of_rank(seed, Some(self.group.rank()));
        tch::manual_seed(seed.wrapping_add_unsigned(step));
        let Some(own) = own else { return Ok(()) };
        if let Some((index, state)) = stored_cuda(self.device, own)? {
            torch::set_cuda_rng_state(index, &state)?;
        }
        self.tell_of_other_device(own.find(CUDA).is_some());
        torch::set_cpu_rng_state(&own.bytes(CPU)?)
    }

    /// A generator of another device draws other numbers from any state: none is translated.
    fn tell_of_other_device(&self, was_on_cuda: bool) {
        if !self.group.is_coordinator() {
            return;
        }
        match (was_on_cuda, self.device.is_cuda()) {
            (true, false) => tracing::warn!(
                "saved on CUDA, loaded on the CPU: what CUDA devices drew is drawn by the CPU's \
                 generator from now on, so the run goes on, but not bit for bit"
            ),
            (false, true) => tracing::warn!(
                "saved on the CPU, loaded on CUDA: the generators of CUDA devices were seeded \
                 from seed, rank and step, so the run goes on, but not bit for bit"
            ),
            _ => {}
        }
    }
}
