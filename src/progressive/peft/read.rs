//! Reading adapters that this library or PEFT wrote.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::config::{CONFIG_BYTES_MAX, Config};
use super::write::is_floating;
use super::{PeftAdapter, keys};
use crate::agree::{agree, unlike};
use crate::catalog::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::files::read_small;
use crate::group::{Channel, ProcessGroup};
use crate::layout::{PEFT_CONFIG, PEFT_MODEL};
use crate::load::{Atomicity, Destination, load};
use crate::manifest::Manifest;
use crate::plan::load::LoadRules;
use crate::shown::short;
use crate::state::LoadTargets;
use crate::storage::Storage;
use crate::tensor::{TensorName, TensorSpec};
use crate::torch::{TchSink, kind_of, torch_error};

/// Most mismatches that are told.
const TOLD_MAX: usize = 32;

/// A linear layer that may have an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeftLinear {
    /// Its name, such as `stacks.0.blocks.1.fc`.
    pub module: String,
    /// Features that come in.
    pub inputs: u64,
    /// Features that go out.
    pub outputs: u64,
}

/// Reads the adapters in a directory that [`write_peft`](super::write_peft) or PEFT wrote, into
/// new tensors on the CPU, of the stored kind; in the order of `linears`, those without one left
/// out. Nothing in the directory is believed: sizes are checked before memory is taken.
///
/// # Collective
/// Every rank, with the same directory and linear layers.
///
/// # Errors
/// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for malformed files;
/// [`ErrorKind::Unsupported`], with the fields, for adapters that are not plain LoRA (`DoRA`,
/// rank-stabilised scale, trained biases, …); [`ErrorKind::Mismatch`], with all that does not fit,
/// for tensors that belong to no linear layer, have another shape, or lack their partner;
/// [`ErrorKind::Disagreement`], [`ErrorKind::Storage`]. Every rank gets the same verdict.
pub fn read_peft(
    group: &ProcessGroup,
    storage: &dyn Storage,
    from: impl AsRef<Path>,
    linears: &[PeftLinear],
) -> Result<Vec<PeftAdapter>> {
    let from = from.as_ref();
    let ask = || Ok((from.to_string_lossy().into_owned(), linears.to_vec()));
    let config = group.phase_all(Channel::Save, "adapters", ask, |asked: Vec<Asked>| {
        agree(&asked, difference, "nothing was read; every rank must ask alike")?;
        read_config(storage, from)
    })?;
    let file = Wanted::parse(from.join(PEFT_MODEL))?.or_unverified();
    let mut adapters = Adapters { config: &config, linears, made: Vec::new() };
    // In place: these tensors are new, and dropped if one byte of them fails.
    load(group, storage, &file, &mut adapters, &LoadRules::default(), Atomicity::InPlace)?;
    Ok(adapters.made)
}

/// What a rank asks for.
type Asked = (String, Vec<PeftLinear>);

fn difference(ours: &Asked, theirs: &Asked) -> Option<String> {
    unlike("where adapters are read from", &ours.0, &theirs.0).or_else(|| {
        let words = "the linear layers that they are for differ";
        (ours.1 != theirs.1).then(|| words.to_owned())
    })
}

fn read_config(storage: &dyn Storage, from: &Path) -> Result<Config> {
    let dir = storage.open_dir(from)?;
    let at = |e: Error| if e.path().is_some() { e } else { e.with_path(from.join(PEFT_CONFIG)) };
    let what = "a configuration of adapters";
    let bytes = read_small(dir.as_ref(), PEFT_CONFIG, CONFIG_BYTES_MAX, what).map_err(at)?;
    let Some(bytes) = bytes else {
        return Err(at(Error::new(ErrorKind::NotFound, "no adapters of PEFT here")));
    };
    let config = Config::parse(&bytes).map_err(at)?;
    config.patterns().map_err(at)?;
    Ok(config)
}

/// Tensors that are made once it is known which there are.
struct Adapters<'a> {
    config: &'a Config,
    linears: &'a [PeftLinear],
    made: Vec<PeftAdapter>,
}

impl Destination for Adapters<'_> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        self.made = Vec::new();
        let found = self.fitting(manifest)?;
        for (linear, alpha, a, b) in found {
            let (a, b) = (empty(&a)?, empty(&b)?);
            let dropout = self.config.dropout;
            self.made.push(PeftAdapter { module: linear.module.clone(), a, b, alpha, dropout });
        }
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        for adapter in &self.made {
            for (key, tensor) in keys(&adapter.module).into_iter().zip([&adapter.a, &adapter.b]) {
                let sink = TchSink::new(tensor)?;
                targets.add(TensorName::new(key)?, sink.spec().clone(), Box::new(sink))?;
            }
        }
        Ok(targets)
    }
}

/// A linear layer with alpha and the shapes of A and B.
type Found<'a> = (&'a PeftLinear, f64, TensorSpec, TensorSpec);

impl<'a> Adapters<'a> {
    fn fitting(&self, manifest: &Manifest) -> Result<Vec<Found<'a>>> {
        let mut rest: BTreeMap<&str, &TensorSpec> =
            manifest.tensors().iter().map(|t| (t.name.as_str(), &t.spec)).collect();
        let (patterns, mut found, mut faults) = (self.config.patterns()?, Vec::new(), Vec::new());
        for linear in self.linears {
            let [key_a, key_b] = keys(&linear.module);
            match (rest.remove(key_a.as_str()), rest.remove(key_b.as_str())) {
                (None, None) => {}
                (Some(_), None) => faults.push(format!("`{}` has no B", linear.module)),
                (None, Some(_)) => faults.push(format!("`{}` has no A", linear.module)),
                (Some(a), Some(b)) => {
                    let rank = patterns.rank(&linear.module);
                    faults.extend(misfit(linear, rank, a, b));
                    found.push((linear, patterns.alpha(&linear.module), a.clone(), b.clone()));
                }
            }
        }
        faults
            .extend(rest.keys().map(|key| format!("`{}` belongs to no linear layer", short(key))));
        faults.extend(
            manifest.aliases().iter().map(|(alias, _)| {
                format!("`{}` is a second name of a tensor", short(alias.as_str()))
            }),
        );
        if found.is_empty() && faults.is_empty() {
            faults.push("there are no adapters in it".to_owned());
        }
        if faults.is_empty() {
            return Ok(found);
        }
        let more = faults.len().saturating_sub(TOLD_MAX);
        faults.truncate(TOLD_MAX);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let message = format!("the adapters do not fit: {}{more}", faults.join("; "));
        Err(Error::new(ErrorKind::Mismatch, message).with_help("nothing was changed"))
    }
}

/// What is wrong with the two tensors of a linear layer.
fn misfit(linear: &PeftLinear, rank: u64, a: &TensorSpec, b: &TensorSpec) -> Option<String> {
    let module = &linear.module;
    let (wanted_a, wanted_b) = ([rank, linear.inputs], [linear.outputs, rank]);
    if a.shape() != wanted_a || b.shape() != wanted_b {
        let shapes = format!("A {a} and B {b}, not {wanted_a:?} and {wanted_b:?}");
        return Some(format!("`{module}` has {shapes}"));
    }
    let fits = is_floating(a) && a.dtype() == b.dtype();
    (!fits).then(|| format!("`{module}` has A {a} and B {b}, not both F32, F16 or BF16"))
}

fn empty(spec: &TensorSpec) -> Result<Tensor> {
    let shape: Vec<i64> =
        spec.shape().iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
    let made = Tensor::f_empty(&shape, (kind_of(spec.dtype())?, Device::Cpu));
    made.map_err(|e| torch_error("making room for an adapter", &e))
}
