//! The kind of number that the tensors of a stack are made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::error::{Error, ErrorKind, Result};
use crate::shown;

/// Known elsewhere as precisions, and not to be had by casting tensors alone.
const NOT_CASTS: [&str; 8] = ["nvfp4", "fp4", "nf4", "fp8", "int8", "int4", "qlora", "mxfp4"];

/// The kind of number that the tensors of a stack are made of. Written `full`, `half` and `bf16`.
///
/// ```
/// use tch_checkpoint::ErrorKind;
/// use tch_checkpoint::progressive::StackPrecision;
///
/// assert_eq!("bfloat16".parse::<StackPrecision>()?, StackPrecision::Bf16);
/// let refused = "nvfp4".parse::<StackPrecision>().unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::Unsupported);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StackPrecision {
    /// 32 bits, F32. Default.
    #[default]
    Full,
    /// 16 bits, F16.
    Half,
    /// 16 bits with the range of F32, BF16.
    Bf16,
}

impl StackPrecision {
    /// The kind of its tensors.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Full => Kind::Float,
            Self::Half => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// How it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Half => "half",
            Self::Bf16 => "bf16",
        }
    }
}

impl FromStr for StackPrecision {
    type Err = Error;

    /// Reads `full`, `half` and `bf16`, and the other usual names of these.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a precision that is known, but no cast;
    /// [`ErrorKind::InvalidInput`] for any other text.
    fn from_str(text: &str) -> Result<Self> {
        let (kind, fault) = match text {
            "full" | "float32" | "fp32" | "f32" => return Ok(Self::Full),
            "half" | "float16" | "fp16" | "f16" => return Ok(Self::Half),
            "bf16" | "bfloat16" => return Ok(Self::Bf16),
            known if NOT_CASTS.contains(&known) => {
                (ErrorKind::Unsupported, "needs kernels that libtorch does not have")
            }
            _ => (ErrorKind::InvalidInput, "is no precision"),
        };
        let message = format!("precision `{}` {fault}", shown::short(text));
        Err(Error::new(kind, message).with_help("use `full`, `half` or `bf16`"))
    }
}

impl TryFrom<String> for StackPrecision {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<StackPrecision> for String {
    fn from(precision: StackPrecision) -> Self {
        precision.as_str().to_owned()
    }
}

impl fmt::Display for StackPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
