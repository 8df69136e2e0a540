//! Racks and stacks out of checkpoints: read into fresh tensors, verified, voted, then taken over.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tch::{Device, Tensor, no_grad};

use super::architecture::Architecture;
use super::builder::RackBuilder;
use super::described::{RackInfo, StackId, StackInfo};
use super::rack::Rack;
use super::state::{self, Granularity, check_kind, refuse_all, stack_faults};
use super::{stack, variables};
use crate::catalog::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::load::{Atomicity, Destination, Loaded, load};
use crate::manifest::Manifest;
use crate::plan::load::LoadRules;
use crate::state::{LoadTargets, Values};
use crate::storage::{LocalStorage, Storage};
use crate::tensor::{Component, TensorName};
use crate::torch::{TchSink, torch_error};

impl<A: Architecture> Rack<A> {
    /// The rack of the checkpoint `path`, of a rack or of a run, on `device`: made as it says,
    /// frozen flags, precisions and adapters included.
    ///
    /// # Collective
    /// Every rank, with the same `path`; a world of any size.
    ///
    /// # Errors
    /// As [`load`](crate::load()); [`ErrorKind::Mismatch`] for a checkpoint of something else.
    pub fn open_rack(group: &ProcessGroup, path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let mut opened = Opened::<A> { device, rack: None };
        load_into(group, &LocalStorage::new(), path.as_ref(), &mut opened)?;
        opened.rack.ok_or_else(not_made)
    }

    /// Takes the rack of the checkpoint `path`, of a rack or of a run. A rack without stacks takes
    /// its structure too; any other must have that already. It may have as many stacks as the
    /// larger of both maxima says. The optimizer that trained it is left
    /// there. Whatever fails, this rack is as it was.
    ///
    /// # Collective
    /// As [`Rack::open_rack`].
    ///
    /// # Errors
    /// As [`Rack::open_rack`]; [`ErrorKind::Mismatch`] with every difference in structure:
    /// configuration, stacks, blocks, precision, adapters.
    pub fn load_rack(&mut self, group: &ProcessGroup, path: impl AsRef<Path>) -> Result<Loaded> {
        self.load_rack_on(group, &LocalStorage::new(), path.as_ref())
    }

    pub(crate) fn load_rack_on(
        &mut self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        path: &Path,
    ) -> Result<Loaded> {
        let mut whole = Whole { live: self, fresh: None };
        let loaded = load_into(group, storage, path, &mut whole)?;
        let fresh = whole.fresh.take().ok_or_else(not_made)?;
        *self = fresh;
        Ok(loaded)
    }

    /// Takes the stack of the checkpoint `path`, saved by [`Rack::save_stack`] from any place, into
    /// the stack at `index`, which keeps its place and identity. Adapters that are stored with it
    /// replace those that it has; freeze flag and merging are taken too. Whatever fails before the
    /// ranks have voted, this rack is as it was.
    ///
    /// # Collective
    /// As [`Rack::open_rack`], with the same index.
    ///
    /// # Errors
    /// As [`Rack::open_rack`]; [`ErrorKind::InvalidInput`] for an index that is out of range;
    /// [`ErrorKind::Mismatch`] with every difference: configuration, blocks, precision.
    pub fn load_stack(
        &mut self,
        group: &ProcessGroup,
        index: usize,
        path: impl AsRef<Path>,
    ) -> Result<Loaded> {
        self.load_stack_on(group, &LocalStorage::new(), index, path.as_ref())
    }

    pub(crate) fn load_stack_on(
        &mut self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        index: usize,
        path: &Path,
    ) -> Result<Loaded> {
        let mut one = OneStack { live: self, index, fresh: None };
        let loaded = load_into(group, storage, path, &mut one)?;
        let (fresh, info) = one.fresh.take().ok_or_else(not_made)?;
        self.take_stack(index, &fresh, &info)?;
        Ok(loaded)
    }

    /// Takes over what was loaded; `fresh` has one stack.
    fn take_stack(&mut self, index: usize, fresh: &Self, info: &StackInfo) -> Result<()> {
        if self.stack(index)?.adapters().is_some() {
            self.unmerge_adapters(index)?;
            self.detach_adapters(index)?;
        }
        if let Some(adapters) = &info.adapters {
            self.attach_adapters(index, &adapters.config)?;
        }
        let here = variables::below(self.store(), &self.stack(index)?.prefix());
        let there = variables::below(fresh.store(), &stack::prefix(info.id));
        for ((name, into), (_, from)) in here.iter().zip(&there) {
            copy(into, from).map_err(|e| e.with_tensor(name.as_str()))?;
        }
        self.set_frozen(index, info.frozen)?;
        if info.adapters.as_ref().is_some_and(|adapters| adapters.merged) {
            self.merge_adapters(index)?;
        }
        Ok(())
    }
}

fn copy(into: &Tensor, from: &Tensor) -> Result<()> {
    no_grad(|| into.shallow_clone().f_copy_(from))
        .map_err(|e| torch_error("taking over a variable", &e))
}

fn not_made() -> Error {
    Error::new(ErrorKind::Disagreement, "a load passed without a rack")
}

fn load_into(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &Path,
    destination: &mut dyn Destination,
) -> Result<Loaded> {
    let wanted = Wanted::parse(path)?;
    // What a rack would leave out is refused by name before; a run has more than its rack.
    let rules = LoadRules { components: Some(Vec::new()), ..LoadRules::default() };
    // What is filled is fresh, and is dropped on an error.
    load(group, storage, &wanted, destination, &rules, Atomicity::InPlace)
}

/// Most blocks of a stack that have no tensors.
const BARE_BLOCKS_MAX: usize = 64;
/// Most names that an error lists.
const UNEXPECTED_MAX: usize = 20;
const RACKS: [Granularity; 2] = [Granularity::Training, Granularity::Rack];

fn targets_of<A: Architecture>(rack: &Rack<A>) -> Result<LoadTargets<'static>> {
    let mut targets = LoadTargets::new();
    rack.targets_into(&mut targets)?;
    Ok(targets)
}

/// The variables of the only stack of `rack`.
fn targets_of_stack<A: Architecture>(
    rack: &Rack<A>,
    stored: &StackInfo,
) -> Result<LoadTargets<'static>> {
    let mut targets = LoadTargets::new();
    for (name, tensor) in variables::below(rack.store(), &stack::prefix(stored.id)) {
        let sink = TchSink::new(&tensor).map_err(|e| e.with_tensor(name.as_str()))?;
        targets.add(TensorName::new(&name)?, sink.spec().clone(), Box::new(sink))?;
    }
    Ok(targets)
}

/// Refuses a checkpoint that has tensors of a rack or stack which `targets` have no place for.
fn refuse_unexpected(manifest: &Manifest, targets: &LoadTargets<'_>) -> Result<()> {
    let beside = [Component::optimizer(), Component::cache()];
    let wanted = |name: &TensorName| targets.targets().contains_key(name);
    let tensors = manifest.tensors().iter();
    let unexpected = tensors.filter(|t| !beside.contains(&t.component) && !wanted(&t.name));
    let names = unexpected.map(|tensor| format!("tensor `{}` has no place here", tensor.name));
    refuse_all(&names.take(UNEXPECTED_MAX).collect::<Vec<_>>())
}

/// Refuses a description of more blocks than the checkpoint has tensors for, before they are made.
fn check_blocks(manifest: &Manifest, stacks: &[StackInfo]) -> Result<()> {
    let mut there: HashMap<StackId, HashSet<&str>> = HashMap::new();
    for tensor in manifest.tensors() {
        let rest = tensor.name.as_str().strip_prefix("stacks.");
        let Some((id, rest)) = rest.and_then(|rest| rest.split_once('.')) else { continue };
        let block = rest.strip_prefix("blocks.").and_then(|rest| rest.split('.').next());
        if let (Ok(id), Some(block)) = (id.parse(), block) {
            there.entry(StackId::new(id)).or_default().insert(block);
        }
    }
    for stack in stacks {
        let blocks = there.get(&stack.id).map_or(0, HashSet::len);
        if stack.num_blocks > blocks.saturating_add(BARE_BLOCKS_MAX) {
            let message = format!(
                "stack {} of {} blocks has tensors of {blocks}",
                stack.id, stack.num_blocks
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
    }
    Ok(())
}

/// A rack that does not exist until the checkpoint is known.
struct Opened<A: Architecture> {
    device: Device,
    rack: Option<Rack<A>>,
}

impl<A: Architecture> Destination for Opened<A> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let values = manifest.values();
        check_kind(values, &RACKS)?;
        check_blocks(manifest, &values.json::<RackInfo>(state::RACK)?.stack_info)?;
        let config: A::Config = values.json(state::CONFIG)?;
        let empty = RackBuilder::<A>::new(config).max_stacks(1).device(self.device).build()?;
        let rack = empty.fresh_of(values)?;
        refuse_unexpected(manifest, &targets_of(&rack)?)?;
        self.rack = Some(rack);
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        targets_of(self.rack.as_ref().ok_or_else(not_made)?)
    }

    fn take_values(&mut self, manifest: &Manifest, _: Option<&Values>) -> Result<()> {
        let info: RackInfo = manifest.values().json(state::RACK)?;
        self.rack.as_mut().ok_or_else(not_made)?.merge_as(&info.stack_info)
    }
}

/// A rack in whose place another one comes.
struct Whole<'r, A: Architecture> {
    live: &'r Rack<A>,
    fresh: Option<Rack<A>>,
}

impl<A: Architecture> Destination for Whole<'_, A> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        check_kind(manifest.values(), &RACKS)?;
        check_blocks(manifest, &manifest.values().json::<RackInfo>(state::RACK)?.stack_info)?;
        let fresh = self.live.fresh_of(manifest.values())?;
        refuse_unexpected(manifest, &targets_of(&fresh)?)?;
        self.fresh = Some(fresh);
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        targets_of(self.fresh.as_ref().ok_or_else(not_made)?)
    }

    fn take_values(&mut self, manifest: &Manifest, _: Option<&Values>) -> Result<()> {
        let info: RackInfo = manifest.values().json(state::RACK)?;
        self.fresh.as_mut().ok_or_else(not_made)?.merge_as(&info.stack_info)
    }
}

/// A stack that gets other values.
struct OneStack<'r, A: Architecture> {
    live: &'r Rack<A>,
    index: usize,
    /// A rack of one stack, which has the identity under which it was saved.
    fresh: Option<(Rack<A>, StackInfo)>,
}

impl<A: Architecture> Destination for OneStack<'_, A> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let values = manifest.values();
        check_kind(values, &[Granularity::Stack])?;
        let here = self.live.stack(self.index)?.info(self.live.store(), self.index);
        self.live.check_config(values)?;
        let stored: StackInfo = values.json(state::STACK)?;
        refuse_all(&stack_faults(&here, &stored))?;
        check_blocks(manifest, std::slice::from_ref(&stored))?;
        let alone = StackInfo { stack_idx: 0, ..stored.clone() };
        let next_id = stored.id.get().saturating_add(1);
        let info =
            RackInfo { current_stacks: 1, next_id, stack_info: vec![alone], ..self.live.info() };
        let (config, device) = (self.live.config().clone(), self.live.device());
        let fresh = Rack::from_info(config, &info, state::seed_of(values)?, device)?;
        refuse_unexpected(manifest, &targets_of_stack(&fresh, &stored)?)?;
        self.fresh = Some((fresh, stored));
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let (fresh, stored) = self.fresh.as_ref().ok_or_else(not_made)?;
        targets_of_stack(fresh, stored)
    }
}
