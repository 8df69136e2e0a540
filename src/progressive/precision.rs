//! The kind of number that the tensors of a stack are made of.

use serde::{Deserialize, Serialize};
use tch::Kind;

/// The kind of number that the tensors of a stack are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackPrecision {
    /// 32 bits, F32.
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
}
