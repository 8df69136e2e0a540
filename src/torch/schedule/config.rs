//! Settings of every kind of scheduler, as they are stored.

use std::iter::successors;

use serde::{Deserialize, Serialize};

use super::{
    CosineLr, CosineRestarts, ExponentialLr, MultiStepLr, OneCycle, ReduceOnPlateau, StepLr, Warmup,
};
use crate::error::{Error, ErrorKind, Result};

/// Most settings in a chain of warm-ups and followers.
const MAX_CHAIN: usize = 4;

/// A kind of scheduler with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "scheduler", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SchedulerConfig {
    /// See [`StepLr`].
    Step(StepLr),
    /// See [`MultiStepLr`].
    MultiStep(MultiStepLr),
    /// See [`ExponentialLr`].
    Exponential(ExponentialLr),
    /// See [`CosineLr`].
    Cosine(CosineLr),
    /// See [`CosineRestarts`].
    CosineRestarts(CosineRestarts),
    /// See [`OneCycle`].
    OneCycle(OneCycle),
    /// See [`ReduceOnPlateau`].
    Plateau(ReduceOnPlateau),
    /// See [`Warmup`].
    Warmup(Warmup),
}

macro_rules! config_from {
    ($($settings:ident => $kind:ident),*) => {$(
        impl From<$settings> for SchedulerConfig {
            fn from(settings: $settings) -> Self { Self::$kind(settings) }
        }
    )*};
}
config_from!(StepLr => Step, MultiStepLr => MultiStep, ExponentialLr => Exponential,
    CosineLr => Cosine, CosineRestarts => CosineRestarts, OneCycle => OneCycle,
    ReduceOnPlateau => Plateau, Warmup => Warmup);

/// What a scheduler counts, and so when it is advanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerUnit {
    /// Advanced at the end of every epoch, after validation.
    Epoch,
    /// Advanced after every step of the optimizer.
    Step,
}

impl SchedulerConfig {
    /// The scheduler's name in messages; of a chain, its first part's.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Step(_) => "StepLr",
            Self::MultiStep(_) => "MultiStepLr",
            Self::Exponential(_) => "ExponentialLr",
            Self::Cosine(_) => "CosineLr",
            Self::CosineRestarts(_) => "CosineRestarts",
            Self::OneCycle(_) => "OneCycle",
            Self::Plateau(_) => "ReduceOnPlateau",
            Self::Warmup(_) => "Warmup",
        }
    }

    /// The name of every part of the chain.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.chain().map(Self::name).collect()
    }

    /// The settings that a metric drives, which can only be the last of a chain.
    pub(crate) fn plateau(&self) -> Option<&ReduceOnPlateau> {
        self.chain().find_map(|part| match part {
            Self::Plateau(settings) => Some(settings),
            _ => None,
        })
    }

    pub(super) fn validate(&self, unit: SchedulerUnit) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        if self.chain().nth(MAX_CHAIN).is_some() {
            return invalid(format!("more than {MAX_CHAIN} schedulers in a chain"));
        }
        if let Some(part) = self.chain().find(|part| !part.is_valid()) {
            // Milestones from a file may be many.
            let shown: String = format!("{part:?}").chars().take(300).collect();
            return invalid(format!("settings of {} that cannot work: {shown}", part.name()));
        }
        if unit == SchedulerUnit::Step && self.plateau().is_some() {
            let message = "ReduceOnPlateau counts epochs, not steps";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("use `SchedulerUnit::Epoch`"));
        }
        Ok(())
    }

    /// The learning rate at `position` of a group that began with `base`; none where metrics
    /// decide it. For validated settings.
    pub(super) fn lr_at(&self, base: f64, mut position: u64) -> Option<f64> {
        let mut part = self;
        while let Self::Warmup(settings) = part {
            let Some(after) = position.checked_sub(settings.steps) else {
                return Some(settings.lr_at(base, position));
            };
            let Some(follower) = &settings.then else { return Some(base) };
            (part, position) = (follower, after);
        }
        match part {
            Self::Step(s) => Some(s.lr_at(base, position)),
            Self::MultiStep(s) => Some(s.lr_at(base, position)),
            Self::Exponential(s) => Some(s.lr_at(base, position)),
            Self::Cosine(s) => Some(s.lr_at(base, position)),
            Self::CosineRestarts(s) => Some(s.lr_at(base, position)),
            Self::OneCycle(s) => Some(s.lr_at(position)),
            Self::Plateau(_) => (position == 0).then_some(base),
            Self::Warmup(_) => None,
        }
    }

    fn chain(&self) -> impl Iterator<Item = &Self> {
        successors(Some(self), |part| match part {
            Self::Warmup(settings) => settings.then.as_deref(),
            _ => None,
        })
    }

    fn is_valid(&self) -> bool {
        match self {
            Self::Step(s) => s.is_valid(),
            Self::MultiStep(s) => s.is_valid(),
            Self::Exponential(s) => s.is_valid(),
            Self::Cosine(s) => s.is_valid(),
            Self::CosineRestarts(s) => s.is_valid(),
            Self::OneCycle(s) => s.is_valid(),
            Self::Plateau(s) => s.is_valid(),
            Self::Warmup(s) => s.is_valid(),
        }
    }
}

pub(super) fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

pub(super) fn is_rate(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

/// `factor^exponent`, as Python computes it.
pub(super) fn power(factor: f64, exponent: u64) -> f64 {
    factor.powf(exponent as f64)
}
