//! What a training loop of one's own registers: models, random state, a gradient scaler.

use tch::{Device, nn};

use super::scaler::GradScaler;
use super::{join, rng, var_store};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::tensor::Component;

/// All variables, trainable or not, as component `model`; no values.
impl Stateful for nn::VarStore {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        var_store::add_var_store(state, &Component::model(), prefix, self)
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        var_store::var_store_targets(targets, prefix, self)
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        Ok(())
    }
}

impl Stateful for GradScaler {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        self.save_values(prefix, &mut state.values)
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, _targets: &mut LoadTargets<'a>) -> Result<()> {
        Ok(())
    }

    fn check_values(&self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        GradScaler::check_values(self, prefix, values)
    }

    fn load_values(&mut self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        GradScaler::load_values(self, prefix, values)
    }
}

/// This rank's random state: that of the process's CPU generator, and of a CUDA device.
///
/// Each rank gets its own back, for its device, whatever number that has here. On a rank that saved
/// none (the world has grown) the generators stay as they are, and so does that of a CUDA device
/// where the state was saved on a CPU: seed them from the rank before loading. The state of a CUDA
/// device is left out, with one line in the log, where it is loaded on a CPU.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tch_checkpoint::state::{StateDict, Stateful};
/// use tch_checkpoint::torch::RandomState;
///
/// let mut random = RandomState::of(Device::Cpu);
/// let mut state = StateDict::new();
/// random.save_state("rng", &mut state)?;
/// let drawn = Tensor::randn([3], (Kind::Float, Device::Cpu));
/// random.load_values("rng", &state.values, &state.rank_values)?;
/// assert_eq!(drawn, Tensor::randn([3], (Kind::Float, Device::Cpu)));
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RandomState {
    device: Device,
}

impl RandomState {
    /// Of the CPU generator, and of this device's if it is a CUDA device.
    #[must_use]
    pub fn of(device: Device) -> Self {
        Self { device }
    }

    fn cuda(self) -> Result<Option<u16>> {
        let Device::Cuda(index) = self.device else { return Ok(None) };
        let index = u16::try_from(index)
            .map_err(|_| Error::new(ErrorKind::Device, format!("no CUDA device {index}")));
        index.map(Some)
    }
}

impl Stateful for RandomState {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        state.rank_values.set(join(prefix, "cpu"), rng::cpu_rng_state()?);
        if let Some(index) = self.cuda()? {
            state.rank_values.set(join(prefix, "cuda"), rng::cuda_rng_state(index)?);
        }
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, _targets: &mut LoadTargets<'a>) -> Result<()> {
        Ok(())
    }

    fn check_values(&self, prefix: &str, _values: &Values, rank_values: &Values) -> Result<()> {
        if let Some(state) = bytes(&join(prefix, "cpu"), rank_values)? {
            rng::check_cpu_rng_state(state)?;
        }
        match (self.cuda()?, bytes(&join(prefix, "cuda"), rank_values)?) {
            (Some(index), Some(state)) => rng::check_cuda_rng_state(index, state),
            _ => Ok(()),
        }
    }

    fn load_values(&mut self, prefix: &str, _values: &Values, rank_values: &Values) -> Result<()> {
        match bytes(&join(prefix, "cpu"), rank_values)? {
            Some(state) => rng::set_cpu_rng_state(state)?,
            None => tracing::warn!("no random state was saved for this rank; its own is kept"),
        }
        match (self.cuda()?, bytes(&join(prefix, "cuda"), rank_values)?) {
            (Some(index), Some(state)) => return rng::set_cuda_rng_state(index, state),
            (None, Some(_)) => {
                tracing::warn!("the random state of a CUDA device is not used: this is none");
            }
            (Some(_), None) => {
                tracing::warn!("no random state of a CUDA device was saved; its own is kept");
            }
            (None, None) => {}
        }
        Ok(())
    }
}

fn bytes<'a>(name: &str, values: &'a Values) -> Result<Option<&'a [u8]>> {
    match values.find(name) {
        None => Ok(None),
        Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
        Some(_) => Err(Error::new(ErrorKind::Mismatch, format!("value `{name}` is no bytes"))),
    }
}

#[cfg(test)]
mod tests;
