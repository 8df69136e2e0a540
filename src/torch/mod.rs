//! libtorch: models, optimizers and random state as parts of a checkpoint.
//!
//! Nothing here reads pickle or TorchScript, and nothing changes a dtype or broadcasts a shape.
//!
//! A program that depends on this crate finds libtorch at run time, and keeps CUDA, if its own
//! `build.rs` says so (link arguments of a library do not reach the programs that use it): the
//! [front page](crate#in-a-crate-of-your-own) shows it.
//!
//! # Example
//! ```
//! use tch::{Device, Kind, nn};
//! use tch_checkpoint::state::{StateDict, Stateful};
//! use tch_checkpoint::tensor::Component;
//! use tch_checkpoint::torch::{AdamW, Optimizer, add_var_store};
//!
//! let store = nn::VarStore::new(Device::Cpu);
//! let weight = store.root().zeros("weight", &[3]);
//! let mut optimizer = Optimizer::new(AdamW { lr: 1e-3, ..AdamW::default() }, &store)?;
//! (&weight - 1.0).square().sum(Kind::Float).backward();
//! optimizer.step()?;
//!
//! let mut state = StateDict::new();
//! add_var_store(&mut state, &Component::model(), "", &store)?;
//! optimizer.save_state("optimizer", &mut state)?;
//! let names: Vec<&str> = state.tensors().map(|(name, _)| name.as_str()).collect();
//! assert_eq!(
//!     names,
//!     ["optimizer.weight.exp_avg", "optimizer.weight.exp_avg_sq", "optimizer.weight.step", "weight"]
//! );
//! # Ok::<(), tch_checkpoint::Error>(())
//! ```

pub mod autocast;
pub mod clip;
pub mod convert;
mod cuda_library;
pub mod ema;
mod ffi;
mod gradients;
pub mod optim;
pub mod partial;
mod parts;
pub mod rng;
pub mod scaler;
pub mod schedule;
#[cfg(test)]
mod snapshot;
pub mod tensor_io;
pub mod var_store;

pub use autocast::{Autocast, Precision};
pub use clip::Clip;
pub use convert::{dtype_of, kind_of, spec_of};
pub use cuda_library::{cuda_devices, why_no_cuda};

pub use ema::{Ema, EmaConfig};
pub(crate) use ffi::count_change;
pub(crate) use gradients::{clear as clear_gradient, identity};
pub use optim::{
    Adam, AdamW, Optimizer, OptimizerConfig, OptimizerSpec, ParamGroupConfig, RmsProp, Sgd, Sharded,
};
pub use partial::load_partial_into;
pub use parts::RandomState;
pub use rng::{cpu_rng_state, cuda_rng_state, set_cpu_rng_state, set_cuda_rng_state};
pub use scaler::{GradScaler, GradScalerConfig};
pub use schedule::{
    CosineLr, CosineRestarts, ExponentialLr, MultiStepLr, OneCycle, ReduceOnPlateau, Scheduler,
    SchedulerConfig, SchedulerUnit, StepLr, Warmup,
};
pub use tensor_io::{TchSink, TchSource};
pub(crate) use var_store::{Memory, memory_of, names_there, var_store_targets_as, variable_names};
pub use var_store::{add_var_store, var_store_targets};

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::TensorName;

/// Version of libtorch, such as `2.13.0`.
#[must_use]
pub fn libtorch_version() -> String {
    ffi::version()
}

/// A failure inside libtorch; `doing` is a gerund phrase ("copying to the device").
pub(crate) fn torch_error(doing: &str, error: &tch::TchError) -> Error {
    // The lines after the first are a C++ backtrace.
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Error::new(ErrorKind::Device, format!("{doing}: {first}"))
}

/// `prefix.name`, or `name` where the prefix is empty.
pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn tensor_name(prefix: &str, name: &str) -> Result<TensorName> {
    TensorName::new(join(prefix, name))
}

#[cfg(test)]
pub(crate) mod testing {
    use parking_lot::{Mutex, MutexGuard};

    use crate::state::{LoadTargets, StateDict};

    /// Held by every test that draws from libtorch's generator, which the process shares.
    pub(crate) fn generator() -> MutexGuard<'static, ()> {
        static GENERATOR: Mutex<()> = Mutex::new(());
        GENERATOR.lock()
    }

    /// Copies every tensor of `state` to the target of its name; both must have the same names.
    pub(crate) fn fill(state: &StateDict, targets: &mut LoadTargets<'_>) {
        let wanted: Vec<_> = targets.targets().keys().cloned().collect();
        assert!(state.tensors().map(|(name, _)| name).eq(&wanted), "names differ");
        for (name, targets) in targets.targets_mut() {
            let entry = &state.boxes(name.as_str())[0];
            let target = &mut targets[0];
            assert_eq!(target.spec, entry.spec, "{name}");
            let mut bytes = vec![0u8; usize::try_from(entry.spec.size_bytes()).unwrap()];
            entry.source.read_into(0, &mut bytes).unwrap();
            target.sink.write_at(0, &bytes).unwrap();
        }
    }
}
