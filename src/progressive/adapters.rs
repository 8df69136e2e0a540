//! Adapters of low rank (LoRA) on linear layers: `W x + (alpha / rank) · B A x`, where A and B are
//! small and W stays as it is.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::layers::Linear;
use crate::error::{Error, ErrorKind, Result};
use crate::globs::{Globs, glob_fault};
use crate::torch::torch_error;

/// Largest rank: beyond it an adapter is none of low rank.
const RANK_MAX: usize = 4096;
/// Most targets.
const TARGETS_MAX: usize = 256;

/// What adapters are like.
///
/// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of A and columns of B. Default: 8.
    pub rank: usize,
    /// What the product is multiplied by, times `rank`. Default: 16.
    pub alpha: f64,
    /// Share of the inputs of A that are left out in training. Default: 0.
    pub dropout: f64,
    /// Globs over the names of linear layers within a block, such as `fc*`. Default: all.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets: vec!["*".to_owned()] }
    }
}

impl LoraConfig {
    /// Whether there can be such adapters.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with everything that is wrong.
    pub fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        if self.rank == 0 || self.rank > RANK_MAX {
            faults.push(format!("rank {} is not 1 to {RANK_MAX}", self.rank));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            faults.push(format!("alpha {} is no positive number", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(format!("dropout {} is not 0 to less than 1", self.dropout));
        }
        if self.targets.is_empty() || self.targets.len() > TARGETS_MAX {
            faults.push(format!("{} targets, not 1 to {TARGETS_MAX}", self.targets.len()));
        }
        faults.extend(self.targets.iter().filter_map(|target| {
            let fault = glob_fault(target)?;
            Some(format!("target `{}` {fault}", crate::shown::short(target)))
        }));
        if faults.is_empty() {
            return Ok(());
        }
        let message = format!("no adapters like this: {}", faults.join("; "));
        Err(Error::new(ErrorKind::InvalidInput, message).with_help("nothing was changed"))
    }

    /// What the product is multiplied by: `alpha / rank`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
        let rank = self.rank as f64;
        self.alpha / rank
    }

    pub(super) fn globs(&self) -> Result<Globs> {
        Globs::new("targets", &self.targets)
    }
}

/// The adapter of one linear layer.
#[derive(Debug)]
pub(super) struct Lora {
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
    scale: f64,
    dropout: f64,
    /// While merged: the weight as it was.
    original: Option<Tensor>,
}

impl Lora {
    /// A of numbers within ±1/√in, as PEFT draws them, and B of zeros, so that it begins without
    /// effect.
    pub(super) fn new(linear: &Linear, config: &LoraConfig) -> Result<Self> {
        let (inputs, outputs) = linear.features();
        if config.rank > inputs.min(outputs) {
            let message = format!("rank {} for a layer from {inputs} to {outputs}", config.rank);
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_tensor(linear.name())
                .with_help("a rank is at most the smaller of both; nothing was changed"));
        }
        let made = || {
            let (kind, device) = (linear.weight().kind(), linear.weight().device());
            let size = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let (rank, inputs, outputs) = (size(config.rank), size(inputs), size(outputs));
            #[expect(clippy::cast_precision_loss, reason = "a bound needs no more digits")]
            let bound = 1.0 / (inputs as f64).sqrt();
            // Drawn on the host in F32, so that it is the same for every kind and device.
            let a = Tensor::f_empty([rank, inputs], (Kind::Float, Device::Cpu))?
                .f_uniform_(-bound, bound)?
                .f_to_kind(kind)?
                .f_to_device(device)?;
            let b = Tensor::f_zeros([outputs, rank], (kind, device))?;
            Ok((a.f_set_requires_grad(true)?, b.f_set_requires_grad(true)?))
        };
        let (a, b) = made().map_err(|e| torch_error("making an adapter", &e))?;
        let (scale, dropout) = (config.scale(), config.dropout);
        Ok(Self { a, b, scale, dropout, original: None })
    }

    /// What it adds to the output.
    pub(super) fn delta(&self, input: &Tensor, train: bool) -> Tensor {
        let input = input.dropout(self.dropout, train && self.dropout > 0.0);
        input.linear(&self.a, None::<&Tensor>).linear(&self.b, None::<&Tensor>) * self.scale
    }

    pub(super) fn is_merged(&self) -> bool {
        self.original.is_some()
    }

    /// The weight without it.
    pub(super) fn original(&self) -> Option<&Tensor> {
        self.original.as_ref()
    }

    /// Adds it to the weight, of which a copy is kept: what was rounded cannot be subtracted.
    pub(super) fn merge(&mut self, weight: &Tensor) -> Result<()> {
        if self.is_merged() {
            return Ok(());
        }
        let merged = no_grad(|| {
            let original = weight.f_detach_copy()?;
            let wide = |t: &Tensor| t.detach().f_to_kind(Kind::Float);
            let delta = wide(&self.b)?.f_matmul(&wide(&self.a)?)?.f_mul_scalar(self.scale)?;
            let sum = wide(weight)?.f_add(&delta)?.f_to_kind(weight.kind())?;
            weight.shallow_clone().f_copy_(&sum)?;
            Ok(original)
        });
        self.original = Some(merged.map_err(|e| torch_error("merging an adapter", &e))?);
        Ok(())
    }

    /// Gives the weight back as it was, bit for bit.
    pub(super) fn unmerge(&mut self, weight: &Tensor) -> Result<()> {
        let Some(original) = &self.original else { return Ok(()) };
        no_grad(|| weight.shallow_clone().f_copy_(original))
            .map_err(|e| torch_error("taking an adapter out", &e))?;
        self.original = None;
        Ok(())
    }
}
