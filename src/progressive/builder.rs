//! How a rack is made: anew, or as a stored description says.

use std::fmt;

use tch::{Device, nn};

use super::architecture::Architecture;
use super::described::{BuildingMode, RackInfo, StackId};
use super::precision::StackPrecision;
use super::rack::{End, Rack, STACKS_MAX};
use super::stack::{BLOCKS_IN_ALL_MAX, BLOCKS_MAX, Stack};
use crate::error::{Error, ErrorKind, Result};

/// Makes a [`Rack`]. Every rank makes one of the same settings; initial values follow from seed and
/// identity alone, so that all begin with the same bits.
pub struct RackBuilder<A: Architecture> {
    config: A::Config,
    max_stacks: usize,
    mode: BuildingMode,
    default_precision: StackPrecision,
    seed: u64,
    device: Device,
    stacks: Vec<(usize, Option<StackPrecision>)>,
}

impl<A: Architecture> RackBuilder<A> {
    /// No stacks yet, at most 32, appended, in full precision, on the CPU.
    #[must_use]
    pub fn new(config: A::Config) -> Self {
        Self {
            config,
            max_stacks: 32,
            mode: BuildingMode::default(),
            default_precision: StackPrecision::default(),
            seed: 0,
            device: Device::Cpu,
            stacks: Vec::new(),
        }
    }

    /// How many stacks the rack may have. Default: 32.
    #[must_use]
    pub fn max_stacks(self, max_stacks: usize) -> Self {
        Self { max_stacks, ..self }
    }

    /// Where [`Rack::add_stack`] puts new ones. Default: behind all others.
    #[must_use]
    pub fn mode(self, mode: BuildingMode) -> Self {
        Self { mode, ..self }
    }

    /// Of stacks that are added without one. Default: full.
    #[must_use]
    pub fn default_precision(self, default_precision: StackPrecision) -> Self {
        Self { default_precision, ..self }
    }

    /// From which initial values follow. Default: 0.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Where its variables lie. Default: the CPU.
    #[must_use]
    pub fn device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Adds a stack of so many blocks, as [`Rack::append_stack`] would.
    #[must_use]
    pub fn stack(mut self, num_blocks: usize, precision: Option<StackPrecision>) -> Self {
        self.stacks.push((num_blocks, precision));
        self
    }

    /// Makes it. Any rank.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for more stacks than it may have, or none of 1 to 4096 at most;
    /// as [`Rack::append_stack`]; those of the architecture.
    pub fn build(self) -> Result<Rack<A>> {
        let mut rack = self.empty()?;
        for (num_blocks, precision) in &self.stacks {
            rack.append_stack(*num_blocks, *precision)?;
        }
        Ok(rack)
    }

    fn empty(&self) -> Result<Rack<A>> {
        if self.max_stacks == 0 || self.max_stacks > STACKS_MAX {
            let message = format!("at most {} stacks, not 1 to {STACKS_MAX}", self.max_stacks);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let mut rack = Rack {
            store: nn::VarStore::new(self.device),
            config: self.config.clone(),
            max_stacks: self.max_stacks,
            mode: self.mode,
            default_precision: self.default_precision,
            seed: self.seed,
            next_id: 0,
            embeddings: None,
            stacks: Vec::new(),
            head: None,
        };
        rack.embeddings = rack.make_end(End::EMBEDDINGS, A::embeddings)?;
        rack.head = rack.make_end(End::HEAD, A::head)?;
        Ok(rack)
    }
}

impl<A: Architecture> Rack<A> {
    /// A rack of which `info` was said, with fresh values. Nothing of `info` is believed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a description of no rack; [`ErrorKind::Mismatch`] if the
    /// architecture makes other ends; those of the architecture.
    pub(crate) fn from_info(
        config: A::Config,
        info: &RackInfo,
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        check(info)?;
        let builder = RackBuilder::<A>::new(config)
            .max_stacks(info.max_stacks)
            .mode(info.building_mode)
            .default_precision(info.default_precision)
            .seed(seed)
            .device(device);
        let mut rack = builder.empty()?;
        rack.check_ends(info)?;
        for (index, stored) in info.stack_info.iter().enumerate() {
            let (blocks, precision) = (stored.num_blocks, stored.precision);
            let stack = rack.make_stack(stored.id, blocks, precision)?;
            rack.stacks.push(stack);
            if let Some(adapters) = &stored.adapters {
                rack.attach_adapters(index, &adapters.config)
                    .map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
            }
            rack.set_frozen(index, stored.frozen)?;
        }
        rack.next_id = info.next_id;
        rack.set_ends_frozen(info.embeddings_frozen, info.head_frozen)?;
        Ok(rack)
    }

    fn check_ends(&self, info: &RackInfo) -> Result<()> {
        let has = |there: bool| if there { "has" } else { "lacks" };
        let ends = [
            ("embeddings", self.embeddings.is_some(), info.has_embeddings),
            ("a head", self.head.is_some(), info.has_head),
        ];
        let differing = ends.into_iter().filter(|(_, here, there)| here != there);
        let faults: Vec<_> = differing
            .map(|(what, here, there)| {
                format!("the stored rack {} {what}, this one {} it", has(there), has(here))
            })
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Mismatch, faults.join("; ")))
    }

    pub(super) fn make_stack(
        &self,
        id: StackId,
        num_blocks: usize,
        precision: StackPrecision,
    ) -> Result<Stack> {
        let there: usize = self.stacks.iter().map(|stack| stack.blocks.len()).sum();
        if there.saturating_add(num_blocks) > BLOCKS_IN_ALL_MAX {
            let message = format!("{num_blocks} blocks beside {there}: over {BLOCKS_IN_ALL_MAX}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        self.seeded(id.get(), || {
            Stack::make::<A>(&self.store, &self.config, id, num_blocks, precision)
        })
    }
}

impl<A: Architecture> Clone for RackBuilder<A> {
    fn clone(&self) -> Self {
        Self { config: self.config.clone(), stacks: self.stacks.clone(), ..*self }
    }
}

impl<A: Architecture> fmt::Debug for RackBuilder<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RackBuilder")
            .field("config", &self.config)
            .field("stacks", &self.stacks)
            .finish_non_exhaustive()
    }
}

/// Whether there can be such a rack.
fn check(info: &RackInfo) -> Result<()> {
    let corrupt = |what: String| {
        Err(Error::new(ErrorKind::Corrupt, format!("the description of a rack {what}")))
    };
    let count = info.stack_info.len();
    if info.max_stacks == 0 || info.max_stacks > STACKS_MAX || count > info.max_stacks {
        return corrupt(format!("has {count} of at most {} stacks", info.max_stacks));
    }
    if info.current_stacks != count {
        return corrupt(format!("counts {} stacks and has {count}", info.current_stacks));
    }
    let blocks = info.stack_info.iter().map(|stack| stack.num_blocks);
    if blocks.fold(0, usize::saturating_add) > BLOCKS_IN_ALL_MAX {
        return corrupt(format!("has over {BLOCKS_IN_ALL_MAX} blocks"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (index, stack) in info.stack_info.iter().enumerate() {
        if !seen.insert(stack.id) || stack.id.get() >= info.next_id || stack.stack_idx != index {
            return corrupt(format!("has a stack {} that cannot be at {index}", stack.id));
        }
        if stack.num_blocks == 0 || stack.num_blocks > BLOCKS_MAX {
            return corrupt(format!("has a stack of {} blocks", stack.num_blocks));
        }
        if let Some(adapters) = &stack.adapters {
            adapters.config.check().map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
        }
    }
    Ok(())
}
