//! What a tensor is, without libtorch: [`Dtype`], [`TensorSpec`], [`TensorName`].

use std::borrow::Borrow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::dims::Dims;
use crate::error::{Error, ErrorKind, Result, printable};

/// Most dimensions a tensor may have (PyTorch's own limit).
pub const DIMENSIONS_MAX: usize = 64;
/// Longest tensor name, in bytes.
pub const NAME_BYTES_MAX: usize = 4096;

/// Element type, under the names of the safetensors format. All are little-endian on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// Complex number of two F32.
    C64,
}

impl Dtype {
    /// Every dtype, in declaration order.
    pub const ALL: [Dtype; 16] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::F8E5M2,
        Self::F8E4M3,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::F64,
        Self::I64,
        Self::U64,
        Self::C64,
    ];

    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E5M2 | Self::F8E4M3 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 8,
        }
    }

    /// Its name in a safetensors header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::C64 => "C64",
        }
    }

    /// The dtype of a safetensors name, if there is one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.as_str() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Dtype and global shape; a value that exists has a byte size that fits `u64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SpecParts")]
pub struct TensorSpec {
    dtype: Dtype,
    shape: Dims,
}

/// A spec as decoded, before [`TensorSpec::new`] has seen it.
#[derive(Deserialize)]
struct SpecParts {
    dtype: Dtype,
    shape: Dims,
}

impl TryFrom<SpecParts> for TensorSpec {
    type Error = Error;
    fn try_from(parts: SpecParts) -> Result<Self> {
        Self::of_parts(parts.dtype, parts.shape)
    }
}

impl TensorSpec {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for more than [`DIMENSIONS_MAX`] dimensions, or a size that
    /// overflows (every product of non-zero dimensions counts, so `[0, u64::MAX]` is refused).
    pub fn new(dtype: Dtype, shape: impl Into<Vec<u64>>) -> Result<Self> {
        Self::of_parts(dtype, shape.into().into())
    }

    fn of_parts(dtype: Dtype, shape: Dims) -> Result<Self> {
        if shape.len() > DIMENSIONS_MAX {
            let message =
                format!("{} dimensions, at most {DIMENSIONS_MAX} are allowed", shape.len());
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let mut bytes = Some(dtype.size_bytes());
        for &dimension in shape.iter().filter(|&&d| d != 0) {
            bytes = bytes.and_then(|b| b.checked_mul(dimension));
        }
        if bytes.is_none_or(|b| b > i64::MAX as u64) {
            let message = format!("the byte size of {dtype} {shape:?} overflows");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self { dtype, shape })
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Length of each dimension; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Number of elements; 1 for a scalar.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of the whole tensor.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.elements() * self.dtype.size_bytes()
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// Name of a tensor, unique over all components of a checkpoint, for example
/// `optimizer.conv1.weight.exp_avg`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorName(Arc<str>);

impl TensorName {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty name, one over [`NAME_BYTES_MAX`] bytes, one with
    /// control characters, or `__metadata__`, which safetensors reserves.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        Self::of(&name.into())
    }

    fn of(name: &str) -> Result<Self> {
        let fault = if name.is_empty() {
            "is empty"
        } else if name.len() > NAME_BYTES_MAX {
            "is longer than 4096 bytes"
        } else if name.chars().any(char::is_control) {
            "holds control characters"
        } else if name == "__metadata__" {
            "is reserved by the safetensors format"
        } else {
            return Ok(Self(name.into()));
        };
        let shown: String = printable(name).chars().take(80).collect();
        Err(Error::new(ErrorKind::InvalidInput, format!("tensor name `{shown}` {fault}")))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TensorName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<TensorName> for String {
    fn from(name: TensorName) -> Self {
        name.as_str().to_owned()
    }
}

impl Borrow<str> for TensorName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of the state that gets files of its own: `model`, `optimizer`, `rng`, …
/// Lower-case letters, digits and `_`, at most 32 bytes, so that it can be part of a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Component(Arc<str>);

impl Component {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for any other form.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        Self::of(&name.into())
    }

    fn of(name: &str) -> Result<Self> {
        match name {
            "model" => return Ok(Self::model()),
            "optimizer" => return Ok(Self::optimizer()),
            "ema" => return Ok(Self::ema()),
            _ => {}
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        // `sums` would make the names of data files and of sums files collide.
        if name.is_empty() || name.len() > 32 || name == "sums" || !name.chars().all(allowed) {
            let shown: String = printable(name).chars().take(40).collect();
            let message = format!("component `{shown}` is not 1 to 32 of [a-z0-9_], or is `sums`");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self(name.into()))
    }

    /// The component of trainable parameters and buffers.
    #[must_use]
    pub fn model() -> Self {
        static WORD: LazyLock<Arc<str>> = LazyLock::new(|| "model".into());
        Self(Arc::clone(&WORD))
    }

    /// The component of optimizer state.
    #[must_use]
    pub fn optimizer() -> Self {
        static WORD: LazyLock<Arc<str>> = LazyLock::new(|| "optimizer".into());
        Self(Arc::clone(&WORD))
    }

    /// `cache`: what can be computed again. No load misses what nobody wants of it.
    #[must_use]
    pub fn cache() -> Self {
        Self("cache".into())
    }

    /// The component of averaged parameters.
    #[must_use]
    pub fn ema() -> Self {
        static WORD: LazyLock<Arc<str>> = LazyLock::new(|| "ema".into());
        Self(Arc::clone(&WORD))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Component {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<Component> for String {
    fn from(component: Component) -> Self {
        component.as_str().to_owned()
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that clones share, encoded like any other text, and checked when it is decoded.
macro_rules! encoded_as_text {
    ($word:ident) => {
        impl Serialize for $word {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $word {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $word;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a text")
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$word, E> {
                        $word::of(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
encoded_as_text!(TensorName);
encoded_as_text!(Component);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert!(TensorSpec::new(Dtype::F32, vec![u64::MAX, 2]).is_err());
        assert!(TensorSpec::new(Dtype::F32, vec![0, u64::MAX]).is_err());
        assert!(TensorSpec::new(Dtype::U8, vec![1; 65]).is_err());
        let scalar = TensorSpec::new(Dtype::F64, vec![]).unwrap();
        assert_eq!((scalar.elements(), scalar.size_bytes()), (1, 8));
        assert_eq!(TensorSpec::new(Dtype::F32, vec![0, 3]).unwrap().size_bytes(), 0);
    }

    #[test]
    fn names_are_parsed() {
        assert!(TensorName::new("layers.0.weight").is_ok());
        for bad in ["", "a\nb", "__metadata__", &"x".repeat(4097)] {
            assert!(TensorName::new(bad).is_err());
        }
        assert!(Component::new("model_ema").is_ok());
        for bad in ["", "Model", "a/b", "sums", ".", &"x".repeat(33)] {
            assert!(Component::new(bad).is_err());
        }
    }
}
