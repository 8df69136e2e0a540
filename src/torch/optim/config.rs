//! Settings of every algorithm, as they are stored.

use serde::{Deserialize, Serialize};

use super::adam::{Moments, decay};
use super::{Adam, AdamW, RmsProp, Sgd, Update, copy};
use crate::error::{Error, ErrorKind, Result};
use crate::torch::ffi;

/// An algorithm with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "algorithm", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// See [`Sgd`].
    Sgd(Sgd),
    /// See [`Adam`].
    Adam(Adam),
    /// See [`AdamW`].
    AdamW(AdamW),
    /// See [`RmsProp`].
    RmsProp(RmsProp),
}

macro_rules! config_from {
    ($($algorithm:ident),*) => {$(
        impl From<$algorithm> for OptimizerConfig {
            fn from(config: $algorithm) -> Self { Self::$algorithm(config) }
        }
    )*};
}
config_from!(Sgd, Adam, AdamW, RmsProp);

/// An algorithm with its settings, and whether every rank keeps all of its state or a share (see
/// [`Sharded`](super::Sharded)). Made from either by `into`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSpec {
    pub(super) config: OptimizerConfig,
    pub(super) is_sharded: bool,
}

impl<C: Into<OptimizerConfig>> From<C> for OptimizerSpec {
    fn from(config: C) -> Self {
        Self { config: config.into(), is_sharded: false }
    }
}

impl OptimizerConfig {
    /// The algorithm's name in messages.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sgd(_) => "SGD",
            Self::Adam(_) => "Adam",
            Self::AdamW(_) => "AdamW",
            Self::RmsProp(_) => "RMSprop",
        }
    }

    /// Learning rate to begin with.
    #[must_use]
    pub fn lr(&self) -> f64 {
        match self {
            Self::Sgd(c) => c.lr,
            Self::Adam(c) => c.lr,
            Self::AdamW(c) => c.lr,
            Self::RmsProp(c) => c.lr,
        }
    }

    /// Weight decay to begin with.
    #[must_use]
    pub fn weight_decay(&self) -> f64 {
        match self {
            Self::Sgd(c) => c.weight_decay,
            Self::Adam(c) => c.weight_decay,
            Self::AdamW(c) => c.weight_decay,
            Self::RmsProp(c) => c.weight_decay,
        }
    }

    /// Names of the state tensors of a parameter, besides `step`; PyTorch's.
    #[must_use]
    pub fn slots(&self) -> Vec<&'static str> {
        match self {
            Self::Sgd(c) => c.slots(),
            Self::Adam(c) => Moments::from(*c).slots(),
            Self::AdamW(c) => Moments::from(*c).slots(),
            Self::RmsProp(c) => c.slots(),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let own = match self {
            Self::Sgd(c) => c.is_valid(),
            Self::Adam(c) => Moments::from(*c).is_valid(),
            Self::AdamW(c) => Moments::from(*c).is_valid(),
            Self::RmsProp(c) => c.is_valid(),
        };
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        if own && rate(self.lr()) && rate(self.weight_decay()) {
            return Ok(());
        }
        let message = format!("settings of {} that cannot work: {self:?}", self.algorithm());
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    pub(super) fn apply(&self, update: Update<'_>) -> Result<()> {
        if let Self::AdamW(config) = self {
            decay(update.parameter, update.lr, update.weight_decay)?;
            return Moments::from(*config).apply(update);
        }
        if update.weight_decay == 0.0 {
            return self.apply_decayed(update);
        }
        let mut gradient = copy(update.gradient)?;
        ffi::add(&mut gradient, update.parameter, update.weight_decay)?;
        self.apply_decayed(Update { gradient: &gradient, ..update })
    }

    fn apply_decayed(&self, update: Update<'_>) -> Result<()> {
        match self {
            Self::Sgd(c) => c.apply(update),
            Self::Adam(c) => Moments::from(*c).apply(update),
            Self::AdamW(c) => Moments::from(*c).apply(update),
            Self::RmsProp(c) => c.apply(update),
        }
    }
}
