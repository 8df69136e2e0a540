//! Checks that training resumes exactly: k steps, save, load, k steps, against 2k steps at a stretch.
//!
//! Put your own model, optimizer and data in place of `Perceptron`, `make` and `equip`; then
//! ```sh
//! cargo run --example resume_check -- --steps 5
//! launch/torchrun.sh -n 2 target/debug/examples/resume_check --steps 5
//! ```
//! Prints `resume is exact`, or the first tensor or value that differs, with exit code 4.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tch::{Kind, Tensor, nn, nn::Module};
use tch_checkpoint::handler::{Loader, Model, NNHandler, TensorDataset, check_resume};
use tch_checkpoint::torch::AdamW;
use tch_checkpoint::{ProcessGroup, Result};

#[derive(Parser)]
struct Flags {
    /// Steps before the cut, and after it.
    #[arg(long, default_value_t = 5)]
    steps: u64,
    /// Where the checkpoint at the cut is saved.
    #[arg(long, default_value = "checkpoints/resume_check")]
    path: PathBuf,
    /// Forget something on purpose: draws a random number when a handler is equipped, so that the
    /// resumed run has other dropout masks.
    #[arg(long)]
    spoil: bool,
}

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

/// What a checkpoint holds.
fn make(group: &ProcessGroup) -> Result<NNHandler<Perceptron>> {
    let mut handler = NNHandler::builder(32).process_group(group).seed(1).build()?;
    handler.set_optimizer(AdamW { lr: 1e-2, ..Default::default() })?;
    Ok(handler)
}

/// What it does not hold.
fn equip(handler: &mut NNHandler<Perceptron>) -> Result<()> {
    handler.quiet(true);
    handler.set_loss_fn(|output, target| (output - target).square().mean(Kind::Float));
    let options = (Kind::Float, tch::Device::Cpu);
    let inputs = Tensor::linspace(-1.0, 1.0, 8 * 100, options).view([100, 8]);
    let targets = inputs.square().sum_dim_intlist(1i64, true, Kind::Float);
    let loader = Loader { global_batch_size: Some(12), shuffle: true, ..Default::default() };
    handler.set_train_loader(TensorDataset::new(inputs, targets)?, loader);
    Ok(())
}

fn run(flags: &Flags) -> Result<Option<String>> {
    let group = ProcessGroup::from_env()?;
    let equip = |handler: &mut NNHandler<Perceptron>| {
        if flags.spoil {
            let _other = Tensor::rand([1], (Kind::Float, tch::Device::Cpu));
        }
        equip(handler)
    };
    let difference = check_resume(flags.steps, &flags.path, || make(&group), equip)?;
    let is_coordinator = group.is_coordinator();
    group.finish()?;
    let verdict = match &difference {
        Some(difference) => format!("the resumed run differs: {difference}"),
        None => "resume is exact".to_owned(),
    };
    if is_coordinator {
        // Whoever closed stdout does not want to know.
        let _ = writeln!(std::io::stdout(), "{verdict}");
    }
    Ok(difference.map(|difference| difference.name))
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut differs = false;
    let code = ProcessGroup::run_main(|| {
        differs = run(&flags)?.is_some();
        Ok(())
    });
    if differs { ExitCode::from(4) } else { code }
}
