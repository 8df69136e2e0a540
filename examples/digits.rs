//! Trains a small convolutional network on handwritten digits (8×8 pixels), on any number of
//! ranks, saving by itself and resuming.
//!
//! ```sh
//! cargo run --example digits -- --epochs 10
//! launch/torchrun.sh -n 2 target/debug/examples/digits --epochs 10 --save-dir runs --auto-save 2
//! launch/torchrun.sh -n 3 target/debug/examples/digits --epochs 5 --save-dir runs --resume latest
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tch::{Device, Kind, Tensor, nn, nn::Module};
use tch_checkpoint::autosave::Every;
use tch_checkpoint::handler::{
    Dataset, EarlyStopping, LoadOptions, Loader, Model, NNHandler, TensorDataset, epoch_order,
};
use tch_checkpoint::torch::{
    Adam, AdamW, CosineLr, EmaConfig, OptimizerConfig, ReduceOnPlateau, RmsProp, SchedulerUnit,
    Sgd, Warmup,
};
use tch_checkpoint::{ModelCode, ProcessGroup, Result, model_code};

#[path = "data/mod.rs"]
mod data;

/// Trains a small network on handwritten digits.
#[derive(Parser)]
struct Flags {
    /// Epochs to train, in addition to those of a checkpoint.
    #[arg(long, default_value_t = 10)]
    epochs: u64,
    /// Epochs to train, those of a checkpoint included: what a job that may be killed says.
    #[arg(long, conflicts_with = "epochs")]
    total_epochs: Option<u64>,
    /// Seed of initial values, data order and dropout.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Samples per step over all ranks.
    #[arg(long, default_value_t = 60)]
    global_batch_size: usize,
    /// Directory of the automatic checkpoints.
    #[arg(long, default_value = "checkpoints")]
    save_dir: PathBuf,
    /// Save every N epochs; 0 = off, -1 = only after the last.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    auto_save: i64,
    /// Save every N training steps instead.
    #[arg(long)]
    auto_save_steps: Option<u64>,
    /// Save and end with 75 so many seconds before the job's time ends (`SLURM_JOB_END_TIME`), as at
    /// SIGUSR1 and SIGTERM; only with automatic saves.
    #[arg(long)]
    time_margin: Option<u64>,
    /// Template of their names.
    #[arg(long, default_value = "epoch{epoch:03d}_valloss{val_loss:.4f}")]
    name: String,
    /// Keep only the newest automatic checkpoint.
    #[arg(long)]
    overwrite: bool,
    /// `none`, `latest` (of the save directory), or the path of a checkpoint.
    #[arg(long, default_value = "none")]
    resume: String,
    /// Where to save at the end.
    #[arg(long)]
    r#final: Option<PathBuf>,
    /// `auto` (each rank its own: CUDA where there is one), `cpu` or `cuda:N`.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Optimizer of a new run.
    #[arg(long, value_enum, default_value_t = OptimizerName::AdamW)]
    optimizer: OptimizerName,
    /// Schedule of the learning rate of a new run.
    #[arg(long, value_enum, default_value_t = SchedulerName::None)]
    scheduler: SchedulerName,
    /// Keep averages of the parameters with this decay, and validate with them (new runs).
    #[arg(long)]
    ema: Option<f64>,
    /// Stop after this many epochs in which the validation loss did not improve.
    #[arg(long)]
    patience: Option<u64>,
    /// By how much the validation loss must fall to count as improved.
    #[arg(long, default_value_t = 0.0)]
    min_delta: f64,
    /// Print a hash of parameters, optimizer state and counters as the last line.
    #[arg(long)]
    print_state_hash: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "lower")]
enum OptimizerName {
    Sgd,
    Adam,
    AdamW,
    RmsProp,
}

impl OptimizerName {
    fn config(self) -> OptimizerConfig {
        match self {
            Self::Sgd => Sgd { lr: 0.05, momentum: 0.9, ..Default::default() }.into(),
            Self::Adam => Adam { lr: 2e-3, ..Default::default() }.into(),
            Self::AdamW => AdamW { lr: 2e-3, ..Default::default() }.into(),
            Self::RmsProp => RmsProp { lr: 1e-3, ..Default::default() }.into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum SchedulerName {
    None,
    /// One epoch of linear warm-up, then a cosine over nine.
    WarmupCosine,
    /// A tenth whenever the validation loss has not improved for two epochs.
    Plateau,
}

/// Steps of an epoch at the default batch size.
const STEPS: u64 = 24;

impl SchedulerName {
    fn apply(self, handler: &mut NNHandler<ConvNet>) -> Result<()> {
        let cosine = CosineLr { t_max: 9 * STEPS, ..Default::default() };
        let warmup =
            Warmup { steps: STEPS, then: Some(Box::new(cosine.into())), ..Default::default() };
        let plateau = ReduceOnPlateau { patience: 2, ..Default::default() };
        match self {
            Self::None => Ok(()),
            Self::WarmupCosine => handler.set_scheduler(warmup, SchedulerUnit::Step),
            Self::Plateau => handler.set_scheduler(plateau, SchedulerUnit::Epoch),
        }
    }
}

/// A device, or none: then each rank takes its own.
#[derive(Clone, Copy)]
struct DeviceChoice(Option<Device>);

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let cuda = || text.strip_prefix("cuda:")?.parse().ok().map(Device::Cuda);
        match text {
            "auto" => Ok(Self(None)),
            "cpu" => Ok(Self(Some(Device::Cpu))),
            _ => cuda().map(|d| Self(Some(d))).ok_or_else(|| "not a device".to_owned()),
        }
    }
}

/// Two convolutions and two linear layers; dropout in between.
struct ConvNet {
    conv1: nn::Conv2D,
    conv2: nn::Conv2D,
    hidden: nn::Linear,
    output: nn::Linear,
    dropout: f64,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct ConvNetConfig {
    channels: i64,
    hidden: i64,
    dropout: f64,
}

impl Model for ConvNet {
    type Config = ConvNetConfig;

    fn new(path: &nn::Path<'_>, config: &ConvNetConfig) -> Self {
        let same = nn::ConvConfig { padding: 1, ..Default::default() };
        let channels = config.channels;
        Self {
            conv1: nn::conv2d(path / "conv1", 1, channels, 3, same),
            conv2: nn::conv2d(path / "conv2", channels, 2 * channels, 3, same),
            hidden: nn::linear(path / "hidden", 32 * channels, config.hidden, Default::default()),
            output: nn::linear(path / "output", config.hidden, 10, Default::default()),
            dropout: config.dropout,
        }
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let features = self.conv1.forward(&input.view([-1, 1, 8, 8])).relu();
        let features = self.conv2.forward(&features).relu().max_pool2d_default(2);
        let hidden = self.hidden.forward(&features.flatten(1, -1)).relu();
        self.output.forward(&hidden.dropout(self.dropout, train))
    }
}

/// Training and validation data: one sample in five is held out, by a fixed shuffle.
fn split_digits() -> Result<(TensorDataset, TensorDataset)> {
    let (images, labels) = data::digits();
    let samples = labels.len();
    let all = TensorDataset::new(
        Tensor::from_slice(&images).view([samples as i64, 64]),
        Tensor::from_slice(&labels),
    )?;
    let (inputs, targets) = all.batch(&epoch_order(0, 0, samples), Device::Cpu);
    let mixed = TensorDataset::new(inputs, targets)?;
    let held_out = samples as i64 / 5;
    Ok((mixed.range(held_out..samples as i64)?, mixed.range(0..held_out)?))
}

fn accuracy(output: &Tensor, target: &Tensor) -> f64 {
    output
        .argmax(-1, false)
        .eq_tensor(target)
        .to_kind(Kind::Float)
        .mean(Kind::Float)
        .double_value(&[])
}

/// Saved with every checkpoint, never executed.
fn code() -> ModelCode {
    model_code!("digits.rs", "data/mod.rs")
}

fn handler(flags: &Flags, group: &ProcessGroup) -> Result<NNHandler<ConvNet>> {
    let path = match flags.resume.as_str() {
        "none" => {
            let config = ConvNetConfig { channels: 16, hidden: 64, dropout: 0.2 };
            let mut builder = NNHandler::builder(config).process_group(group).seed(flags.seed);
            if let Some(device) = flags.device.0 {
                builder = builder.device(device);
            }
            let mut handler = builder.build()?;
            handler.set_optimizer(flags.optimizer.config())?;
            flags.scheduler.apply(&mut handler)?;
            if let Some(decay) = flags.ema {
                handler.set_ema(EmaConfig { decay, ..Default::default() })?;
            }
            handler.save_model_code(code());
            return Ok(handler);
        }
        "latest" => flags.save_dir.join("latest"),
        path => PathBuf::from(path),
    };
    let options = LoadOptions {
        group: Some(group.clone()),
        device: flags.device.0,
        model_code: Some(code()),
        ..Default::default()
    };
    NNHandler::load(path, options)
}

fn run(flags: &Flags) -> Result<ExitCode> {
    tch::set_num_threads(1);
    let group = ProcessGroup::from_env()?;
    let mut handler = handler(flags, &group)?;
    handler.set_loss_fn(|output, target| output.cross_entropy_for_logits(target));
    handler.add_metric("accuracy", accuracy);
    let (train, val) = split_digits()?;
    let loader = Loader {
        global_batch_size: Some(flags.global_batch_size),
        shuffle: true,
        ..Default::default()
    };
    handler.set_train_loader(train, loader);
    handler.set_val_loader(val, Loader { shuffle: false, ..loader });
    let every = match flags.auto_save_steps {
        Some(steps) => Every::steps(steps)?,
        None => Every::try_from(flags.auto_save)?,
    };
    handler.auto_save(every, &flags.save_dir, &flags.name)?.overwrite(flags.overwrite);
    if every != Every::Off {
        handler.save_on_signal(true)?;
        handler.save_before_time_limit(flags.time_margin.map(Duration::from_secs))?;
    }
    if let Some(patience) = flags.patience {
        let stopping = EarlyStopping::new().patience(patience).min_delta(flags.min_delta);
        handler.add_callback(stopping.restore_best_weights(true))?;
    }
    let total = flags.total_epochs.unwrap_or(handler.epoch() + flags.epochs);
    handler.train(total.saturating_sub(handler.epoch()))?;
    if let Some(reason) = handler.preempted() {
        drop(handler);
        group.finish()?;
        return Ok(reason.into());
    }
    if let Some(path) = &flags.r#final {
        handler.save(path)?;
    }
    if flags.print_state_hash {
        let hash = handler.state_hash()?;
        if group.is_coordinator() {
            use std::io::Write;
            // Whoever closed stdout does not want to know.
            let _ = writeln!(std::io::stdout(), "state {hash}");
        }
    }
    drop(handler);
    group.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    ProcessGroup::run_main(|| run(&flags))
}
