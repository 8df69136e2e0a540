//! The adapters of a rack without its weights, as files of Hugging Face PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tch::{Tensor, no_grad};

use super::adapters::LoraConfig;
use super::architecture::Architecture;
use super::layers::Linear;
use super::peft::{PeftAdapter, PeftLinear, PeftOptions, read_peft, write_peft};
use super::rack::Rack;
use super::stack::Stack;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::storage::{LocalStorage, Storage};
use crate::torch::torch_error;

/// Most faults that are told.
const TOLD_MAX: usize = 32;

/// What a stack is about to get.
struct Incoming {
    index: usize,
    config: LoraConfig,
    /// By linear layer.
    tensors: BTreeMap<String, (Tensor, Tensor)>,
}

impl<A: Architecture> Rack<A> {
    /// Saves the adapters of all stacks that have some as a directory that PEFT opens; where it
    /// lies. Modules are called as their layers are: `stacks.<id>.blocks.<n>.<layer>`.
    ///
    /// # Collective
    /// Every rank, with equal racks; the coordinator writes.
    ///
    /// # Durability
    /// As [`write_peft`].
    ///
    /// # Errors
    /// As [`write_peft`]; [`ErrorKind::InvalidInput`] if there are no adapters.
    pub fn save_adapters(
        &self,
        group: &ProcessGroup,
        out: impl AsRef<Path>,
        options: &PeftOptions,
    ) -> Result<PathBuf> {
        self.save_adapters_on(group, &LocalStorage::new(), out.as_ref(), options)
    }

    pub(crate) fn save_adapters_on(
        &self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        out: &Path,
        options: &PeftOptions,
    ) -> Result<PathBuf> {
        let mut adapters = Vec::new();
        for stack in self.stacks() {
            let Some(config) = stack.adapters() else { continue };
            for linear in stack.linears() {
                let lora = linear.adapter().borrow();
                adapters.extend(lora.as_ref().map(|lora| PeftAdapter {
                    module: linear.name().to_owned(),
                    a: lora.a.shallow_clone(),
                    b: lora.b.shallow_clone(),
                    alpha: config.alpha,
                    dropout: config.dropout,
                }));
            }
        }
        write_peft(group, storage, out, &adapters, options)
    }

    /// Takes the adapters of a directory that [`Rack::save_adapters`] or PEFT wrote; on which stacks,
    /// by place. Stacks that have adapters of the same kind get other values, others get adapters;
    /// those of which the directory has none stay as they are. Merged adapters of a stack that gets
    /// others are taken out first. Whatever is refused, nothing has changed.
    ///
    /// # Collective
    /// Every rank, with equal racks and the same directory.
    ///
    /// # Errors
    /// As [`read_peft`]; [`ErrorKind::Unsupported`] for adapters on some blocks of a stack only, or
    /// of different rank or alpha within one; [`ErrorKind::Mismatch`] for another dtype than that of
    /// the stack.
    pub fn load_adapters(
        &mut self,
        group: &ProcessGroup,
        from: impl AsRef<Path>,
    ) -> Result<Vec<usize>> {
        self.load_adapters_on(group, &LocalStorage::new(), from.as_ref())
    }

    pub(crate) fn load_adapters_on(
        &mut self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        from: &Path,
    ) -> Result<Vec<usize>> {
        let linears = self.stacks().iter().flat_map(Stack::linears);
        let linears: Vec<PeftLinear> = linears
            .map(|linear| {
                let (inputs, outputs) = linear.features();
                let module = linear.name().to_owned();
                PeftLinear { module, inputs: inputs as u64, outputs: outputs as u64 }
            })
            .collect();
        let read = read_peft(group, storage, from, &linears)?;
        // From here on everything follows from what all ranks have read alike.
        let mut incoming = Vec::new();
        let mut faults = Vec::new();
        for (index, stack) in self.stacks().iter().enumerate() {
            match incoming_of(index, stack, &read) {
                Ok(found) => incoming.extend(found),
                Err(fault) => faults.push(fault),
            }
        }
        faults.truncate(TOLD_MAX);
        if let Some(first) = faults.first() {
            let message: Vec<&str> = faults.iter().map(|fault| fault.message()).collect();
            return Err(
                Error::new(first.kind(), message.join("; ")).with_help("nothing was changed")
            );
        }
        let places = incoming.iter().map(|incoming| incoming.index).collect();
        incoming.into_iter().try_for_each(|incoming| self.take_adapters(&incoming))?;
        Ok(places)
    }

    fn take_adapters(&mut self, incoming: &Incoming) -> Result<()> {
        let index = incoming.index;
        let same = self.stack(index)?.adapters().is_some_and(|config| {
            (config.rank, config.alpha) == (incoming.config.rank, incoming.config.alpha)
                && self.adapted(index) == incoming.tensors.keys().cloned().collect()
        });
        if self.stack(index)?.adapters().is_some() {
            self.unmerge_adapters(index)?;
        }
        if !same {
            if self.stack(index)?.adapters().is_some() {
                self.detach_adapters(index)?;
            }
            self.attach_adapters(index, &incoming.config)?;
        }
        for linear in self.stack(index)?.linears() {
            let lora = linear.adapter().borrow();
            if let (Some(lora), Some((a, b))) = (&*lora, incoming.tensors.get(linear.name())) {
                let copied = no_grad(|| {
                    lora.a.shallow_clone().f_copy_(a)?;
                    lora.b.shallow_clone().f_copy_(b)
                });
                copied.map_err(|e| torch_error("taking over an adapter", &e))?;
            }
        }
        Ok(())
    }

    /// The linear layers of a stack that have adapters.
    fn adapted(&self, index: usize) -> BTreeSet<String> {
        let linears = self.stacks().get(index).map_or(&[][..], Stack::linears).iter();
        let has = linears.filter(|linear| linear.adapter().borrow().is_some());
        has.map(|linear| linear.name().to_owned()).collect()
    }
}

/// What `read` has for a stack; an error if that cannot be the adapters of one.
fn incoming_of(index: usize, stack: &Stack, read: &[PeftAdapter]) -> Result<Option<Incoming>> {
    let own = |adapter: &&PeftAdapter| stack.linears().iter().any(|l| l.name() == adapter.module);
    let own: Vec<&PeftAdapter> = read.iter().filter(own).collect();
    let Some(first) = own.first() else { return Ok(None) };
    let refuse = |kind, what: String| Err(Error::new(kind, format!("stack {index}: {what}")));
    let kind = stack.precision().kind();
    if let Some(other) = own.iter().find(|adapter| adapter.a.kind() != kind) {
        let what = format!("`{}` is {:?}, the stack {kind:?}", other.module, other.a.kind());
        return refuse(ErrorKind::Mismatch, what);
    }
    let alike = |adapter: &&PeftAdapter| {
        adapter.rank() == first.rank() && adapter.alpha.to_bits() == first.alpha.to_bits()
    };
    if !own.iter().all(alike) {
        return refuse(ErrorKind::Unsupported, "adapters of different rank or alpha".to_owned());
    }
    let is_high = |adapter: &&&PeftAdapter| {
        let linear = stack.linears().iter().find(|linear| linear.name() == adapter.module);
        let (inputs, outputs) = linear.map_or((0, 0), Linear::features);
        adapter.rank() > inputs.min(outputs) as u64
    };
    if let Some(high) = own.iter().find(is_high) {
        let what = format!("rank {} is above what `{}` has", high.rank(), high.module);
        return refuse(ErrorKind::Unsupported, what);
    }
    let within: BTreeSet<&str> = own.iter().map(|a| stack.within(&a.module)).collect();
    let meant = stack.linears().iter().filter(|l| within.contains(stack.within(l.name())));
    if meant.count() != own.len() {
        return refuse(ErrorKind::Unsupported, "adapters on some of its blocks only".to_owned());
    }
    let config = LoraConfig {
        rank: usize::try_from(first.rank()).unwrap_or(usize::MAX),
        alpha: first.alpha,
        dropout: first.dropout,
        targets: within.into_iter().map(globset::escape).collect(),
    };
    config.check()?;
    let tensors = own.iter().map(|adapter| {
        (adapter.module.clone(), (adapter.a.shallow_clone(), adapter.b.shallow_clone()))
    });
    Ok(Some(Incoming { index, config, tensors: tensors.collect() }))
}
