//! Averages as part of a checkpoint.

use std::sync::Arc;

use tch::nn;

use super::{Ema, EmaConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::tensor::{Component, TensorName};
use crate::torch::{TchSink, TchSource, join, tensor_name, torch_error};

/// Tensors `<prefix>.<parameter>`; values `config` (JSON) and `updates`. While the model holds the
/// averages neither saving nor loading is possible ([`ErrorKind::InvalidInput`]): the model in the
/// checkpoint would not be the one that is trained.
impl Stateful for Ema {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        self.refuse_swapped("saving averages")?;
        for (name, shadow) in self.averages() {
            let name = tensor_name(prefix, name)?;
            let source = TchSource::new(shadow).map_err(|e| e.with_tensor(name.as_str()))?;
            let spec = source.spec().clone();
            state.add(&Component::ema(), name, spec, Arc::new(source))?;
        }
        let updates = i64::try_from(self.updates).unwrap_or(i64::MAX);
        state.values.set(join(prefix, "config"), Value::json(&self.config)?);
        state.values.set(join(prefix, "updates"), updates);
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        self.refuse_swapped("loading averages")?;
        for (name, shadow) in self.averages() {
            let name = tensor_name(prefix, name)?;
            let sink = TchSink::new(shadow).map_err(|e| e.with_tensor(name.as_str()))?;
            targets.add(name, sink.spec().clone(), Box::new(sink))?;
        }
        Ok(())
    }

    fn check_values(&self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        Ema::check_values(self, prefix, values)
    }

    /// Settings become those of the checkpoint.
    fn load_values(&mut self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        (self.config, self.updates) = settings(prefix, values)?;
        Ok(())
    }
}

impl Ema {
    /// Averages with the settings of a checkpoint. They begin as the values that the variables of
    /// `store` have now; a load through [`Stateful::load_targets`] brings the stored ones.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Mismatch`] for absent or unfit values; as
    /// [`Ema::new`].
    pub fn from_values(prefix: &str, values: &Values, store: &nn::VarStore) -> Result<Self> {
        let (config, updates) = settings(prefix, values)?;
        Ok(Self { updates, ..Self::new(config, store)? })
    }

    /// Begins the averages whose tensors a lenient load did not find as their parameters are now.
    pub(crate) fn begin_missing(&mut self, prefix: &str, missing: &[TensorName]) -> Result<()> {
        for average in &mut self.averages {
            if missing.contains(&tensor_name(prefix, &average.name)?) {
                let begun = tch::no_grad(|| average.shadow.f_copy_(&average.parameter));
                begun.map_err(|e| {
                    torch_error("beginning an average", &e).with_tensor(average.name.as_str())
                })?;
            }
        }
        Ok(())
    }

    /// Whether [`Stateful::load_values`] would take these values; changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Mismatch`] for absent or unfit values.
    pub fn check_values(&self, prefix: &str, values: &Values) -> Result<()> {
        settings(prefix, values).map(drop)
    }
}

fn settings(prefix: &str, values: &Values) -> Result<(EmaConfig, u64)> {
    let config: EmaConfig = values.json(&join(prefix, "config"))?;
    config.validate().map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
    let updates = values.int(&join(prefix, "updates"))?;
    let updates = u64::try_from(updates).map_err(|_| {
        Error::new(ErrorKind::Mismatch, format!("averages after {updates} updates"))
    })?;
    Ok((config, updates))
}
