//! What a user hands over: a [`StateDict`] to save, [`LoadTargets`] to load into, and the seams
//! [`TensorSource`], [`TensorSink`] and [`Stateful`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::slice::Slice;
use crate::tensor::{Component, TensorName, TensorSpec};

/// Where the bytes of one box come from when saving: little-endian, row-major over the box.
///
/// Called from several threads; must give the same bytes every time until the save has staged
/// them.
pub trait TensorSource: Send + Sync {
    /// The whole box, if it already lies contiguous in host memory.
    fn bytes(&self) -> Option<&[u8]> {
        None
    }

    /// Fills `out` with the bytes that begin `offset` bytes into the box.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy from the device fails.
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()>;
}

impl<T: AsRef<[u8]> + Send + Sync> TensorSource for T {
    fn bytes(&self) -> Option<&[u8]> {
        Some(self.as_ref())
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = begin.checked_add(out.len()).and_then(|end| self.as_ref().get(begin..end));
        let Some(part) = part else {
            let have = self.as_ref().len();
            let message = format!("the source holds {have} bytes, not {offset} + {}", out.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        out.copy_from_slice(part);
        Ok(())
    }
}

/// Where the bytes of one box go when loading: little-endian, row-major over the box.
pub trait TensorSink: Send {
    /// The whole box as host memory, if it is that; bytes are then placed without a copy.
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        None
    }

    /// Places `bytes` that begin `offset` bytes into the box.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy to the device fails.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
}

impl<T: TensorSink + ?Sized> TensorSink for &mut T {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        (**self).bytes_mut()
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        (**self).write_at(offset, bytes)
    }
}

impl TensorSink for [u8] {
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(self)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let have = self.len();
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = begin.checked_add(bytes.len());
        let Some(part) = end.and_then(|end| self.get_mut(begin..end)) else {
            let message = format!("the sink holds {have} bytes, not {offset} + {}", bytes.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        part.copy_from_slice(bytes);
        Ok(())
    }
}

/// A counter, metric or small piece of state that is no tensor.
///
/// Not recursive, so that decoding needs no depth limit: anything structured is JSON text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Value {
    /// A flag.
    Bool(bool),
    /// A counter.
    Int(i64),
    /// A number; NaN and infinities survive.
    Float(f64),
    /// Text.
    Text(String),
    /// Opaque bytes, such as the state of a random generator.
    Bytes(Vec<u8>),
    /// A history; NaN and infinities survive.
    Floats(Vec<f64>),
    /// A structured value as JSON text.
    Json(String),
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self { Self::$variant(value.into()) }
        }
    )*};
}
value_from!(bool => Bool, i64 => Int, i32 => Int, u32 => Int, f64 => Float, f32 => Float,
    &str => Text, String => Text, Vec<u8> => Bytes, Vec<f64> => Floats);

impl Value {
    /// Any serde value, as JSON text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it has no JSON form.
    pub fn json<T: Serialize>(value: &T) -> Result<Self> {
        serde_json::to_string(value)
            .map(Self::Json)
            .map_err(|e| Error::new(ErrorKind::InvalidInput, format!("no JSON form: {e}")))
    }

    /// Whether both are the same, bit for bit (unlike `==`, NaN equals itself).
    #[must_use]
    pub fn same(&self, other: &Value) -> bool {
        let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Floats(a), Self::Floats(b)) => bits(a) == bits(b),
            _ => self == other,
        }
    }
}

/// Named values, such as `trainer.step` or `history.val_loss`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Values(BTreeMap<String, Value>);

macro_rules! value_getters {
    ($($(#[$doc:meta])* $name:ident -> $type:ty: $variant:ident, $words:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`ErrorKind::NotFound`] if absent, [`ErrorKind::Mismatch`] if of another type.
        pub fn $name(&self, name: &str) -> Result<$type> {
            match self.require(name)? {
                Value::$variant(value) => Ok(value.clone().into()),
                _ => Err(Error::new(
                    ErrorKind::Mismatch,
                    format!(concat!("value `{}` is not ", $words), name),
                )),
            }
        }
    )*};
}

impl Values {
    /// No values.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a value; an existing one of that name is replaced.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// A value, if present.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    fn require(&self, name: &str) -> Result<&Value> {
        self.find(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("the checkpoint holds no value `{name}`"))
        })
    }

    value_getters! {
        /// A flag.
        bool -> bool: Bool, "a flag";
        /// A counter.
        int -> i64: Int, "an integer";
        /// A number.
        float -> f64: Float, "a number";
        /// Text.
        text -> String: Text, "text";
        /// Opaque bytes.
        bytes -> Vec<u8>: Bytes, "bytes";
        /// A history.
        floats -> Vec<f64>: Floats, "a list of numbers";
    }

    /// A structured value stored with [`Value::json`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if absent, [`ErrorKind::Mismatch`] if it does not fit `T`.
    pub fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let mismatch =
            |what: String| Error::new(ErrorKind::Mismatch, format!("value `{name}` {what}"));
        match self.require(name)? {
            Value::Json(text) => serde_json::from_str(text)
                .map_err(|e| mismatch(format!("does not have the expected form: {e}"))),
            _ => Err(mismatch("is not structured".to_owned())),
        }
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first name whose value differs, or which only one side has.
    #[must_use]
    pub fn first_difference<'a>(&'a self, other: &'a Values) -> Option<&'a str> {
        let names = self.0.keys().chain(other.0.keys());
        let same = |name: &String| match (self.0.get(name), other.0.get(name)) {
            (Some(a), Some(b)) => a.same(b),
            _ => false,
        };
        names.into_iter().find(|name| !same(name)).map(String::as_str)
    }
}

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

    /// Adds the destinations of its tensors to `targets`, under the names that
    /// [`Stateful::save_state`] used.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for tensors that cannot be loaded.
    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()>;

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

    #[test]
    fn nan_agrees_with_itself_and_differences_are_named() {
        let (mut a, mut b) = (Values::new(), Values::new());
        a.set("loss", f64::NAN);
        b.set("loss", f64::NAN);
        assert_eq!(a.first_difference(&b), None);
        b.set("step", 3i64);
        assert_eq!(a.first_difference(&b), Some("step"));
        assert_eq!(b.int("step").unwrap(), 3);
        assert_eq!(b.int("loss").unwrap_err().kind(), ErrorKind::Mismatch);
        assert_eq!(a.int("step").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
