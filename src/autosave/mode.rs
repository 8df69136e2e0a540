//! Which way a monitored number is to go.

use serde::{Deserialize, Serialize};

/// Which way a monitored number is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Down: losses.
    #[default]
    Min,
    /// Up: accuracies.
    Max,
}

impl Mode {
    /// `min` or `max`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Min => "min",
            Self::Max => "max",
        }
    }

    /// Whether `value` is strictly better than `than`; NaN never is.
    #[must_use]
    pub fn is_better(self, value: f64, than: f64) -> bool {
        match self {
            Self::Min => value < than,
            Self::Max => value > than,
        }
    }
}
