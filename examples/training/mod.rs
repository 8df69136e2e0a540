//! A small network on handwritten digits (8×8 pixels), trained step by step on any number of ranks:
//! what the examples with a loop of their own have in common.

#![allow(clippy::cast_possible_truncation, reason = "there are 1,797 samples")]
#![allow(dead_code, reason = "not every example needs all of it")]

use std::fmt;
use std::io::Write;

use tch::{Device, Kind, Tensor, nn, nn::ModuleT};
use tch_checkpoint::checkpointer::{At, Parts};
use tch_checkpoint::handler::{average_gradients, broadcast_tensors, epoch_order, shard};
use tch_checkpoint::state::{StateDict, Stateful};
use tch_checkpoint::torch::{AdamW, Optimizer, RandomState};
use tch_checkpoint::{ProcessGroup, Result};

#[path = "../data/mod.rs"]
mod data;

/// Samples of a step, over all ranks.
const BATCH: usize = 60;
/// Every so many steps the held-out samples are looked at.
const VALIDATE_EVERY: u64 = 25;

/// Warnings, or what `RUST_LOG` says, to stderr: stdout is for results.
pub(crate) fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")))
        .init();
}

/// A line of results, which rank 0 alone prints.
pub(crate) fn say(group: &ProcessGroup, line: fmt::Arguments<'_>) {
    if group.is_coordinator() {
        // Whoever closed stdout does not want to know.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// Everything that is trained, on one rank.
pub(crate) struct Training {
    group: ProcessGroup,
    seed: u64,
    vars: nn::VarStore,
    model: nn::SequentialT,
    optimizer: Optimizer,
    random: RandomState,
    images: Tensor,
    labels: Tensor,
    /// Samples that are trained on, and those that are not.
    kept: Vec<i64>,
    held_out: Vec<i64>,
}

impl Training {
    pub(crate) fn new(group: &ProcessGroup, seed: u64) -> Result<Self> {
        // All ranks begin alike, and then drop out differently.
        tch::manual_seed(seed.cast_signed());
        let vars = nn::VarStore::new(Device::Cpu);
        let root = vars.root();
        let model = nn::seq_t()
            .add(nn::linear(&root / "hidden", 64, 96, Default::default()))
            .add_fn(Tensor::relu)
            .add_fn_t(|hidden, train| hidden.dropout(0.2, train))
            .add(nn::linear(&root / "output", 96, 10, Default::default()));
        broadcast_tensors(group, &vars.trainable_variables())?;
        tch::manual_seed((seed ^ (u64::from(group.rank().get()) << 32)).cast_signed());
        let optimizer = Optimizer::new(AdamW { lr: 2e-3, ..Default::default() }, &vars)?;
        let (images, labels) = data::digits();
        let samples = labels.len();
        let mixed = epoch_order(0, 0, samples);
        let (held_out, kept) = mixed.split_at(samples / 5);
        Ok(Self {
            group: group.clone(),
            seed,
            images: Tensor::from_slice(&images).view([samples as i64, 64]),
            labels: Tensor::from_slice(&labels),
            held_out: held_out.to_vec(),
            kept: kept.to_vec(),
            random: RandomState::of(Device::Cpu),
            vars,
            model,
            optimizer,
        })
    }

    /// What a checkpoint consists of. The place in the data follows from the step alone.
    pub(crate) fn parts(&mut self) -> Parts<'_> {
        Parts::new()
            .model(&mut self.vars)
            .optimizer(&mut self.optimizer)
            .with("rng", &mut self.random)
    }

    fn steps_of_epoch(&self) -> u64 {
        (self.kept.len() / BATCH) as u64
    }

    /// This rank's samples of training step `step`, counted from 0.
    fn samples(&self, step: u64) -> Tensor {
        let order = epoch_order(self.seed, step / self.steps_of_epoch(), self.kept.len());
        let begin = (step % self.steps_of_epoch()) as usize * BATCH;
        let batch: Vec<i64> =
            order[begin..begin + BATCH].iter().map(|index| self.kept[*index as usize]).collect();
        Tensor::from_slice(shard(&batch, self.group.rank(), self.group.world_size()))
    }

    /// Training step `step`, counted from 0. `before_update` is called before anything that is
    /// trained changes: a save that overlaps with training has to have copied it by then.
    pub(crate) fn step(&mut self, step: u64, before_update: impl FnOnce()) -> Result<()> {
        let samples = self.samples(step);
        let output = self.model.forward_t(&self.images.index_select(0, &samples), true);
        let loss = output.cross_entropy_for_logits(&self.labels.index_select(0, &samples));
        self.optimizer.zero_grad()?;
        loss.backward();
        let weight = samples.numel() as f64 / BATCH as f64;
        average_gradients(&self.group, &self.vars.trainable_variables(), weight)?;
        before_update();
        self.optimizer.step()
    }

    /// Loss and accuracy of the held-out samples; every rank computes the same.
    fn validate(&self) -> (f64, f64) {
        tch::no_grad(|| {
            let index = Tensor::from_slice(&self.held_out);
            let target = self.labels.index_select(0, &index);
            let output = self.model.forward_t(&self.images.index_select(0, &index), false);
            let right = output.argmax(-1, false).eq_tensor(&target).to_kind(Kind::Float);
            let loss = output.cross_entropy_for_logits(&target).double_value(&[]);
            (loss, right.mean(Kind::Float).double_value(&[]))
        })
    }

    /// Where training is after `step` steps, with what there is to measure.
    pub(crate) fn at(&self, step: u64, steps: u64) -> At {
        let at = At::step(step).epoch(step / self.steps_of_epoch());
        if !step.is_multiple_of(VALIDATE_EVERY) && step != steps {
            return at;
        }
        let (loss, accuracy) = self.validate();
        at.metric("val_loss", loss).metric("accuracy", accuracy)
    }

    pub(crate) fn hash(&self, step: u64) -> Result<blake3::Hash> {
        let mut state = StateDict::new();
        self.vars.save_state("", &mut state)?;
        self.optimizer.save_state("optimizer", &mut state)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&step.to_le_bytes());
        for (name, boxes) in state.tensors() {
            hasher.update(name.as_str().as_bytes());
            for entry in boxes {
                let mut bytes = vec![0; entry.spec.size_bytes() as usize];
                entry.source.read_into(0, &mut bytes)?;
                hasher.update(&bytes);
            }
        }
        Ok(hasher.finalize())
    }
}
