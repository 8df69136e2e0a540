//! What a user hands over: a [`StateDict`] to save, [`LoadTargets`] to load into, and the seams
//! [`TensorSource`], [`TensorSink`] and [`Stateful`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::slice::Slice;
use crate::tensor::{Component, TensorName, TensorSpec};

mod adapters;
mod attached;
mod io;
mod value;

pub use adapters::{PerRank, Shared};
pub use io::{TensorSink, TensorSource};
pub use value::{Value, Values};

/// One box of a tensor that this rank holds.
#[derive(Clone)]
pub struct TensorEntry {
    /// Which files it belongs to.
    pub component: Component,
    /// Dtype and *global* shape.
    pub spec: TensorSpec,
    /// The box held by this rank; the whole tensor for replicated (DDP) state.
    pub slice: Slice,
    /// Its bytes.
    pub source: Arc<dyn TensorSource>,
}

/// What one rank wants saved. Boxes that several ranks declare equally are replicas: each is
/// written once, by one of them or shared among them.
#[derive(Clone, Default)]
pub struct StateDict {
    tensors: BTreeMap<TensorName, Vec<TensorEntry>>,
    aliases: BTreeMap<TensorName, TensorName>,
    attached: BTreeMap<String, Arc<[u8]>>,
    /// Values of the job: the same on every rank, or the save is refused.
    pub values: Values,
    /// Values of this rank alone (random state, data position), never merged.
    pub rank_values: Values,
}

impl StateDict {
    /// An empty state dict.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a whole tensor.
    ///
    /// # Errors
    /// As [`StateDict::add_slice`].
    pub fn add(
        &mut self,
        component: &Component,
        name: TensorName,
        spec: TensorSpec,
        source: Arc<dyn TensorSource>,
    ) -> Result<()> {
        let slice = Slice::full(spec.shape());
        self.add_slice(component, name, spec, slice, source)
    }

    /// Adds one box of a tensor. A rank may hold several disjoint boxes of a tensor.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the box leaves the tensor or overlaps another box of it on
    /// this rank, if component or spec differ between boxes, or if the name is an alias.
    pub fn add_slice(
        &mut self,
        component: &Component,
        name: TensorName,
        spec: TensorSpec,
        slice: Slice,
        source: Arc<dyn TensorSource>,
    ) -> Result<()> {
        let refuse = |what: &str| {
            Err(Error::new(ErrorKind::InvalidInput, what.to_owned()).with_tensor(name.as_str()))
        };
        if !slice.fits(spec.shape()) {
            return refuse(&format!("slice {slice} is not inside {spec}"));
        }
        if self.aliases.contains_key(&name) {
            return refuse("added as a tensor and as an alias");
        }
        let boxes = self.tensors.entry(name.clone()).or_default();
        if boxes.iter().any(|b| b.spec != spec || b.component != *component) {
            return refuse("its boxes differ in dtype, global shape or component");
        }
        if boxes.iter().any(|b| b.slice == slice || b.slice.intersect(&slice).is_some()) {
            return refuse("added twice, or with overlapping boxes");
        }
        boxes.push(TensorEntry { component: component.clone(), spec, slice, source });
        Ok(())
    }

    /// Adds a second name for a tensor, which is stored once (tied weights).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `name` is taken or `target` is not a tensor added before.
    pub fn add_alias(&mut self, name: TensorName, target: TensorName) -> Result<()> {
        let taken = self.tensors.contains_key(&name) || self.aliases.contains_key(&name);
        if taken || !self.tensors.contains_key(&target) {
            let message = format!("alias of `{target}`: name taken, or no such tensor");
            return Err(Error::new(ErrorKind::InvalidInput, message).with_tensor(name.as_str()));
        }
        self.aliases.insert(name, target);
        Ok(())
    }

    /// Every box, by tensor name.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorName, &[TensorEntry])> {
        self.tensors.iter().map(|(name, boxes)| (name, boxes.as_slice()))
    }

    /// The boxes of one tensor on this rank; empty if it has none.
    #[must_use]
    pub fn boxes(&self, name: &str) -> &[TensorEntry] {
        self.tensors.get(name).map_or(&[], Vec::as_slice)
    }

    /// Second names, with the name under which the tensor is stored.
    #[must_use]
    pub fn aliases(&self) -> &BTreeMap<TensorName, TensorName> {
        &self.aliases
    }

    /// Bytes of all boxes of this rank.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let boxes = self.tensors.values().flatten();
        boxes.map(|b| b.slice.elements() * b.spec.dtype().size_bytes()).sum()
    }
}

/// One box that a load fills.
pub struct LoadTarget<'a> {
    /// Dtype and global shape that the destination has.
    pub spec: TensorSpec,
    /// The box wanted on this rank.
    pub slice: Slice,
    /// Where its bytes go.
    pub sink: Box<dyn TensorSink + 'a>,
}

impl LoadTarget<'_> {
    fn borrowed(&mut self) -> LoadTarget<'_> {
        let (spec, slice) = (self.spec.clone(), self.slice.clone());
        LoadTarget { spec, slice, sink: Box::new(self.sink.as_mut()) }
    }
}

/// Everything that a load fills on this rank.
#[derive(Default)]
pub struct LoadTargets<'a> {
    targets: BTreeMap<TensorName, Vec<LoadTarget<'a>>>,
}

impl<'a> LoadTargets<'a> {
    /// No targets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a whole tensor as destination.
    ///
    /// # Errors
    /// As [`LoadTargets::add_slice`].
    pub fn add(
        &mut self,
        name: TensorName,
        spec: TensorSpec,
        sink: Box<dyn TensorSink + 'a>,
    ) -> Result<()> {
        let slice = Slice::full(spec.shape());
        self.add_slice(name, spec, slice, sink)
    }

    /// Adds one box of a tensor as destination; several boxes of a tensor may overlap.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the box leaves the tensor.
    pub fn add_slice(
        &mut self,
        name: TensorName,
        spec: TensorSpec,
        slice: Slice,
        sink: Box<dyn TensorSink + 'a>,
    ) -> Result<()> {
        if !slice.fits(spec.shape()) {
            let message = format!("slice {slice} is not inside {spec}");
            return Err(Error::new(ErrorKind::InvalidInput, message).with_tensor(name.as_str()));
        }
        self.targets.entry(name).or_default().push(LoadTarget { spec, slice, sink });
        Ok(())
    }

    /// The same targets, for a load that leaves these to their owner.
    pub(crate) fn borrowed(&mut self) -> LoadTargets<'_> {
        let lists = self.targets.iter_mut();
        let lists = lists.map(|(name, list)| {
            (name.clone(), list.iter_mut().map(LoadTarget::borrowed).collect())
        });
        LoadTargets { targets: lists.collect() }
    }

    /// The targets, by tensor name.
    #[must_use]
    pub fn targets(&self) -> &BTreeMap<TensorName, Vec<LoadTarget<'a>>> {
        &self.targets
    }

    /// The targets, to be filled.
    pub fn targets_mut(&mut self) -> &mut BTreeMap<TensorName, Vec<LoadTarget<'a>>> {
        &mut self.targets
    }
}

/// Something that can be part of a checkpoint: a model, an optimizer, a schedule, a data loader.
pub trait Stateful {
    /// Adds its tensors and values to `state`, under names that begin with `prefix`.
    /// Copies nothing and does no I/O.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for tensors that cannot be stored (sparse, quantised).
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()>;

    /// Called first of all by a load, with the values of the checkpoint that was found: the place
    /// to make what follows from them, such as tensors that are to be filled, beside what is
    /// there. Default: nothing.
    ///
    /// # Errors
    /// Any; the load then fails on every rank, and nothing was changed.
    fn prepare(&mut self, prefix: &str, values: &Values, rank_values: &Values) -> Result<()> {
        let _ = (prefix, values, rank_values);
        Ok(())
    }

    /// Adds the destinations of its tensors to `targets`, under the names that
    /// [`Stateful::save_state`] used.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for tensors that cannot be loaded.
    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()>;

    /// Whether [`Stateful::load_values`] would take these values; called before anything changes.
    ///
    /// # Errors
    /// As [`Stateful::load_values`].
    fn check_values(&self, prefix: &str, values: &Values, rank_values: &Values) -> Result<()> {
        let _ = (prefix, values, rank_values);
        Ok(())
    }

    /// Takes its values from a checkpoint; called after every tensor is in place.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Mismatch`] for absent or unfit values.
    fn load_values(&mut self, prefix: &str, values: &Values, rank_values: &Values) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn name(text: &str) -> TensorName {
        TensorName::new(text).unwrap()
    }

    #[test]
    fn overlapping_boxes_and_bad_aliases_are_refused() {
        let mut state = StateDict::new();
        let model = Component::model();
        let spec = TensorSpec::new(Dtype::U8, vec![4]).unwrap();
        let half = |o| Slice::new(vec![o], vec![2]).unwrap();
        let bytes = || Arc::new(vec![0u8; 2]);
        state.add_slice(&model, name("a"), spec.clone(), half(0), bytes()).unwrap();
        state.add_slice(&model, name("a"), spec.clone(), half(2), bytes()).unwrap();
        assert!(state.add_slice(&model, name("a"), spec.clone(), half(1), bytes()).is_err());
        assert!(state.add_slice(&model, name("b"), spec, half(3), bytes()).is_err());
        assert!(state.add_alias(name("tied"), name("missing")).is_err());
        state.add_alias(name("tied"), name("a")).unwrap();
        assert!(state.add_alias(name("tied"), name("a")).is_err());
        assert_eq!(state.size_bytes(), 4);
    }
}
