//! Training that is saved, loaded and continued, against training at a stretch.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor, nn, nn::Module};
use tch_checkpoint::handler::{Loader, Model, NNHandler, TensorDataset, check_resume};
use tch_checkpoint::torch::{AdamW, Sgd};
use tch_checkpoint::{ProcessGroup, Result};

use crate::Outcome;

struct Perceptron {
    hidden: nn::Linear,
    output: nn::Linear,
}

impl Model for Perceptron {
    type Config = i64;

    fn new(path: &nn::Path<'_>, hidden: &i64) -> Self {
        Self {
            hidden: nn::linear(path / "hidden", 8, *hidden, Default::default()),
            output: nn::linear(path / "output", *hidden, 1, Default::default()),
        }
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        self.output.forward(&self.hidden.forward(input).tanh().dropout(0.2, train))
    }
}

/// `spoil` draws one number more, after the load, from the device's generator, of which dropout
/// comes.
pub(crate) fn run(device: Device, dir: &Path, steps: u64, spoil: bool) -> Result<Outcome> {
    let mut checked = Vec::new();
    for optimizer in ["AdamW", "SGD"] {
        let make = || {
            let builder = NNHandler::<Perceptron>::builder(64).process_group(&ProcessGroup::solo());
            let mut handler = builder.seed(1).device(device).build()?;
            match optimizer {
                "AdamW" => handler.set_optimizer(AdamW { lr: 1e-2, ..Default::default() })?,
                _ => {
                    handler.set_optimizer(Sgd { lr: 1e-2, momentum: 0.9, ..Default::default() })?
                }
            };
            Ok(handler)
        };
        let equip = |handler: &mut NNHandler<Perceptron>| {
            if spoil {
                let _other = Tensor::rand([1], (Kind::Float, device));
            }
            equip(handler)
        };
        if let Some(difference) = check_resume(steps, dir.join("resume"), make, equip)? {
            return Ok(Outcome::Failed(format!("{optimizer}: {difference}")));
        }
        checked.push(optimizer);
    }
    Ok(Outcome::Passed(json!({ "optimizers": checked, "steps": 2 * steps })))
}

fn equip(handler: &mut NNHandler<Perceptron>) -> Result<()> {
    handler.quiet(true);
    handler.set_loss_fn(|output, target| (output - target).square().mean(Kind::Float));
    let inputs = Tensor::linspace(-1.0, 1.0, 8 * 100, (Kind::Float, Device::Cpu)).view([100, 8]);
    let targets = inputs.square().sum_dim_intlist(1i64, true, Kind::Float);
    let loader = Loader { batch_size: 12, shuffle: true, ..Default::default() };
    handler.set_train_loader(TensorDataset::new(inputs, targets)?, loader);
    Ok(())
}
