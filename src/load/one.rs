//! Looking at a checkpoint: one tensor, in host memory, without a model and without libtorch.

use crate::cast::cast;
use crate::catalog::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::load::{Atomicity, Destination, load};
use crate::manifest::Manifest;
use crate::memory::{room_for, zeroed};
use crate::plan::load::{LoadRules, list};
use crate::state::LoadTargets;
use crate::storage::Storage;
use crate::tensor::{Dtype, TensorName, TensorSpec};

/// Reads one whole tensor, by its name or an alias, from a checkpoint of any form and any world
/// size: dtype and shape, and its bytes, verified, row-major and little-endian.
///
/// With [`find`](crate::catalog::find) and its manifest, this is how a checkpoint is looked at
/// without the program that saved it, on a machine without a GPU or libtorch:
///
/// ```
/// # use std::sync::Arc;
/// # use tch_checkpoint::catalog::CheckpointPath;
/// # use tch_checkpoint::state::StateDict;
/// # use tch_checkpoint::storage::MemoryStorage;
/// # use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
/// # use tch_checkpoint::{ProcessGroup, SaveOptions, save};
/// # let storage = MemoryStorage::new(); // LocalStorage::new() for the file system
/// # let mut state = StateDict::new();
/// # let spec = TensorSpec::new(Dtype::F32, [2])?;
/// # let bytes = [0.5f32, 2.0].map(f32::to_le_bytes).concat();
/// # state.add(&Component::model(), TensorName::new("conv1.weight")?, spec, Arc::new(bytes))?;
/// # state.values.set("trainer.step", 1200);
/// # let options = SaveOptions { step: 1200, epoch: 3, ..SaveOptions::default() };
/// # save(&ProcessGroup::solo(), &storage, &CheckpointPath::parse("runs/e3")?, &state, &options)?;
/// use tch_checkpoint::catalog::{self, Wanted};
/// use tch_checkpoint::load::{read_floats, read_tensor};
///
/// let wanted = Wanted::parse("runs/latest")?;
/// let manifest = catalog::find(&storage, &wanted)?.manifest;
/// assert_eq!((manifest.step(), manifest.epoch()), (1200, 3));
/// assert_eq!(manifest.values().int("trainer.step")?, 1200);
/// let names: Vec<&str> = manifest.tensors().iter().map(|t| t.name.as_str()).collect();
/// assert_eq!(names, ["conv1.weight"]);
///
/// let (spec, bytes) = read_tensor(&storage, &wanted, "conv1.weight")?;
/// assert_eq!((spec.shape(), bytes.len()), (&[2][..], 8));
/// let (_, values) = read_floats(&storage, &wanted, "conv1.weight")?;
/// assert_eq!(values, [0.5, 2.0]);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// Not collective: one process looks.
///
/// # Errors
/// [`ErrorKind::NotFound`], with the names that there are, if there is no such tensor; as
/// [`load`](fn@load). [`ErrorKind::Storage`] also if the tensor does not fit into memory.
pub fn read_tensor(
    storage: &dyn Storage,
    wanted: &Wanted,
    name: &str,
) -> Result<(TensorSpec, Vec<u8>)> {
    let mut one = One { name: TensorName::new(name)?, read: None };
    let rules = LoadRules { strict: false, components: Some(Vec::new()), ..LoadRules::default() };
    let group = ProcessGroup::solo();
    load(&group, storage, wanted, &mut one, &rules, Atomicity::InPlace)?;
    one.read.ok_or_else(|| Error::new(ErrorKind::NotFound, "no tensor was read").with_tensor(name))
}

/// As [`read_tensor`], its elements as `f32`, for tensors of F16, BF16, F32 and F64 (rounded to
/// nearest).
///
/// # Errors
/// As [`read_tensor`]; [`ErrorKind::Unsupported`] for other dtypes.
pub fn read_floats(
    storage: &dyn Storage,
    wanted: &Wanted,
    name: &str,
) -> Result<(TensorSpec, Vec<f32>)> {
    let (spec, bytes) = read_tensor(storage, wanted, name)?;
    let mut floats = Vec::new();
    cast(spec.dtype(), Dtype::F32, &bytes, &mut floats).map_err(|e| e.with_tensor(name))?;
    let elements = floats.as_chunks::<4>().0;
    let mut values = room_for(elements.len()).map_err(|e| e.with_tensor(name))?;
    values.extend(elements.iter().map(|element| f32::from_le_bytes(*element)));
    Ok((spec, values))
}

/// A tensor whose size is known once the checkpoint is.
struct One {
    name: TensorName,
    read: Option<(TensorSpec, Vec<u8>)>,
}

impl Destination for One {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let Some(record) = manifest.tensor(self.name.as_str()) else {
            let names: Vec<_> = manifest.tensors().iter().map(|tensor| &tensor.name).collect();
            let mut text = String::from("no such tensor in the checkpoint");
            list(&mut text, "stored", &names);
            return Err(Error::new(ErrorKind::NotFound, text).with_tensor(self.name.as_str()));
        };
        self.read = Some((record.spec.clone(), zeroed(record.spec.size_bytes())?));
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        if let Some((spec, bytes)) = &mut self.read {
            targets.add(self.name.clone(), spec.clone(), Box::new(bytes.as_mut_slice()))?;
        }
        Ok(targets)
    }
}
