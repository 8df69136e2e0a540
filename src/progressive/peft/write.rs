//! Writing adapters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::text_of;
use super::{PeftAdapter, PeftOptions, keys};
use crate::agree::{agree, unlike};
use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::export::{NewFile, hash_text, write_directory};
use crate::group::{Channel, ProcessGroup};
use crate::layout::{EXPORT_CONFIG, EXPORT_SAVE_ID, PEFT_CONFIG, PEFT_MODEL, SaveId};
use crate::memory::zeroed;
use crate::shard::{HeaderTensor, plain_header};
use crate::state::TensorSource;
use crate::storage::{Storage, WriteFile};
use crate::sweep::Pace;
use crate::tensor::{Dtype, TensorName, TensorSpec};
use crate::torch::{TchSource, spec_of};

/// Most bytes of a tensor that are copied at once.
const PART_BYTES: u64 = 8 << 20;

/// What one rank has, which must be the same on all; that tensors are is taken as given.
#[derive(Serialize, Deserialize)]
struct Said {
    out: String,
    options: PeftOptions,
    config: String,
    tensors: Vec<(String, String)>,
}

/// Writes adapters as a directory that PEFT opens (`PeftModel.from_pretrained`), with
/// `adapter_model.safetensors` and `adapter_config.json`; where it lies.
///
/// ```
/// # use tch_checkpoint::ProcessGroup;
/// # use tch_checkpoint::storage::MemoryStorage;
/// use tch::{Device, Kind, Tensor};
/// use tch_checkpoint::progressive::{
///     PeftAdapter, PeftLinear, PeftOptions, read_peft, write_peft,
/// };
///
/// # let (group, storage) = (ProcessGroup::solo(), MemoryStorage::new());
/// let adapter = PeftAdapter {
///     module: "stacks.0.blocks.0.fc".into(),
///     a: Tensor::ones([2, 3], (Kind::Float, Device::Cpu)),
///     b: Tensor::zeros([4, 2], (Kind::Float, Device::Cpu)),
///     alpha: 16.0,
///     dropout: 0.0,
/// };
/// write_peft(&group, &storage, "out/adapters", &[adapter], &PeftOptions::default())?;
///
/// let linears = [PeftLinear { module: "stacks.0.blocks.0.fc".into(), inputs: 3, outputs: 4 }];
/// let read = read_peft(&group, &storage, "out/adapters", &linears)?;
/// assert_eq!((read[0].rank(), read[0].alpha), (2, 16.0));
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// Every rank, with equal adapters; the coordinator writes its own.
///
/// # Durability
/// As [`export`](fn@crate::export::export): the directory appears whole, by one rename.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for adapters that cannot be, with all that is wrong;
/// [`ErrorKind::Unsupported`] if they differ in dropout, of which a directory has one;
/// [`ErrorKind::Disagreement`]; [`ErrorKind::AlreadyExists`] if the name is taken;
/// [`ErrorKind::Storage`]. Nothing is visible then; but with [`ErrorKind::DurabilityUncertain`] it is.
pub fn write_peft(
    group: &ProcessGroup,
    storage: &dyn Storage,
    out: impl AsRef<Path>,
    adapters: &[PeftAdapter],
    options: &PeftOptions,
) -> Result<PathBuf> {
    let out = out.as_ref();
    let say = || said(out, adapters, options);
    group.phase_all(Channel::Save, "adapters", say, |said: Vec<Said>| {
        agree(&said, difference, "nothing was written; every rank must have equal adapters")?;
        write_alone(storage, out, adapters, options, &Pace::of(group))
    })
}

fn said(out: &Path, adapters: &[PeftAdapter], options: &PeftOptions) -> Result<Said> {
    CheckpointPath::parse(out)?;
    check(adapters)?;
    let config = String::from_utf8_lossy(&text_of(adapters, options)?).into_owned();
    let tensors = placed(adapters)?.into_iter();
    let tensors = tensors.map(|t| (t.header.name.to_string(), t.header.spec.to_string()));
    let out = out.to_string_lossy().into_owned();
    Ok(Said { out, options: options.clone(), config, tensors: tensors.collect() })
}

fn difference(ours: &Said, theirs: &Said) -> Option<String> {
    unlike("where adapters are written", &ours.out, &theirs.out)
        .or_else(|| unlike("what they are written with", &ours.options, &theirs.options))
        .or_else(|| unlike("their tensors", &ours.tensors, &theirs.tensors))
        .or_else(|| unlike("their configuration", &ours.config, &theirs.config))
}

fn check(adapters: &[PeftAdapter]) -> Result<()> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for adapter in adapters {
        let PeftAdapter { module, a, b, alpha, .. } = adapter;
        let mut fault = |what: &str| faults.push(format!("`{module}`: {what}"));
        if module.is_empty() || !seen.insert(module) {
            fault("its name is empty or given twice");
        }
        let shapes = (spec_of(a)?, spec_of(b)?);
        let fits = match (shapes.0.shape(), shapes.1.shape()) {
            ([rank, _], [_, columns]) => rank == columns && *rank > 0,
            _ => false,
        };
        if !fits {
            fault(&format!("A {} and B {} do not fit", shapes.0, shapes.1));
        }
        if !is_floating(&shapes.0) || shapes.0.dtype() != shapes.1.dtype() {
            fault("A and B are not both F32, F16 or BF16");
        }
        if !alpha.is_finite() || *alpha <= 0.0 {
            fault(&format!("alpha {alpha} is no positive number"));
        }
        if !(0.0..1.0).contains(&adapter.dropout) {
            fault(&format!("dropout {} is not 0 to less than 1", adapter.dropout));
        }
    }
    if adapters.is_empty() {
        faults.push("there are none".to_owned());
    }
    if !faults.is_empty() {
        let message = format!("no adapters like this: {}", faults.join("; "));
        return Err(Error::new(ErrorKind::InvalidInput, message).with_help("nothing was written"));
    }
    let mut dropouts = adapters.iter().map(|adapter| adapter.dropout.to_bits());
    let first = dropouts.next();
    if dropouts.any(|dropout| Some(dropout) != first) {
        let message = "adapters of different dropout, of which PEFT has one for all";
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_help("nothing was written; write them to directories of their own"));
    }
    Ok(())
}

pub(super) fn is_floating(spec: &TensorSpec) -> bool {
    matches!(spec.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// A tensor and where it goes.
struct Placed {
    header: HeaderTensor,
    source: TchSource,
}

fn placed(adapters: &[PeftAdapter]) -> Result<Vec<Placed>> {
    let mut tensors = Vec::new();
    for adapter in adapters {
        for (key, tensor) in keys(&adapter.module).into_iter().zip([&adapter.a, &adapter.b]) {
            tensors.push((TensorName::new(key)?, TchSource::new(tensor)?));
        }
    }
    // Larger elements first, so that all are aligned.
    tensors.sort_by(|(name, source), (other, its)| {
        let bytes = |source: &TchSource| source.spec().dtype().size_bytes();
        bytes(its).cmp(&bytes(source)).then_with(|| name.cmp(other))
    });
    let mut end = 0u64;
    let place = |(name, source): (TensorName, TchSource)| {
        let begin = end;
        end = begin.saturating_add(source.spec().size_bytes());
        let spec = source.spec().clone();
        Placed { header: HeaderTensor { name, spec, begin, end }, source }
    };
    Ok(tensors.into_iter().map(place).collect())
}

fn write_alone(
    storage: &dyn Storage,
    out: &Path,
    adapters: &[PeftAdapter],
    options: &PeftOptions,
    pace: &Pace,
) -> Result<PathBuf> {
    let config = text_of(adapters, options)?;
    let tensors = placed(adapters)?;
    let metadata = [
        ("format", "pt".to_owned()),
        // They come from no save; this says that the directory is ours to replace.
        (EXPORT_SAVE_ID, SaveId::from_bytes([0; 16]).to_string()),
        (EXPORT_CONFIG, hash_text(&config)),
    ];
    let metadata: BTreeMap<_, _> = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let header = plain_header(metadata, tensors.iter().map(|t| t.header.clone()).collect())?;
    let data = tensors.last().map_or(0, |tensor| tensor.header.end);
    let fill_config = |file: &dyn WriteFile| file.write_at(0, &config);
    let fill_model = |file: &dyn WriteFile| {
        file.write_at(0, &header)?;
        tensors.iter().try_for_each(|tensor| copy(tensor, header.len() as u64, file))
    };
    let files = [
        NewFile { name: PEFT_MODEL, len: header.len() as u64 + data, fill: &fill_model },
        NewFile { name: PEFT_CONFIG, len: config.len() as u64, fill: &fill_config },
    ];
    write_directory(storage, out, &files, options.overwrite, pace)
}

fn copy(tensor: &Placed, data_start: u64, file: &dyn WriteFile) -> Result<()> {
    let (mut at, len) = (0, tensor.source.spec().size_bytes());
    let mut buffer = zeroed(len.min(PART_BYTES))?;
    while at < len {
        let count = (len - at).min(PART_BYTES);
        let part = usize::try_from(count).ok().and_then(|count| buffer.get_mut(..count));
        let part = part.unwrap_or_default();
        tensor.source.read_into(at, part)?;
        file.write_at(data_start + tensor.header.begin + at, part)?;
        at += count;
    }
    Ok(())
}
