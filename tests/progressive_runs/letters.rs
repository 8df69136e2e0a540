//! A small model of letters, and ranks to train it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use tch_checkpoint::checkpointer::{CheckpointerConfig, Location};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::progressive::{
    Architecture, Batches, Layer, Layers, Linear, LinearConfig, ProgressiveTrainer, Rack,
    RackBuilder, TrainingConfig,
};
use tch_checkpoint::torch::AdamW;
use tch_checkpoint::{Rank, Result, WorldSize};

pub const LETTERS: i64 = 11;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub width: i64,
}

pub struct Letters;

struct Embeddings(nn::Embedding);
struct Block(Linear, Linear);
struct Head(nn::Linear);

impl Layer for Embeddings {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        nn::Module::forward(&self.0, input)
    }
}

impl Layer for Block {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let inner = self.0.forward(input, train).relu().dropout(0.1, train);
        input + self.1.forward(&inner, train)
    }
}

impl Layer for Head {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        nn::Module::forward(&self.0, input)
    }
}

impl Architecture for Letters {
    type Config = Config;

    fn embeddings(layers: &Layers<'_>, config: &Config) -> Result<Option<Box<dyn Layer>>> {
        let made = nn::embedding(layers.path(), LETTERS, config.width, Default::default());
        Ok(Some(Box::new(Embeddings(made))))
    }

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let (width, inner) = (config.width, 2 * config.width);
        let up = layers.linear("up", width, inner, LinearConfig::default())?;
        let down = layers.linear("down", inner, width, LinearConfig::default())?;
        Ok(Box::new(Block(up, down)))
    }

    fn head(layers: &Layers<'_>, config: &Config) -> Result<Option<Box<dyn Layer>>> {
        Ok(Some(Box::new(Head(nn::linear(
            layers.path(),
            config.width,
            LETTERS,
            Default::default(),
        )))))
    }
}

/// Each letter is to be followed by a certain other one; four different batches.
pub struct Rows;

impl Batches for Rows {
    fn batch(
        &self,
        step: u64,
        rank: Rank,
        world: WorldSize,
        device: Device,
    ) -> Result<(Tensor, Tensor)> {
        let number = (step % 4) * world.len() as u64 + u64::from(rank.get());
        let letters: Vec<i64> = (0..24).map(|n| (n * 7 + number as i64 * 3) % LETTERS).collect();
        let input = Tensor::from_slice(&letters).to_device(device);
        let target = (&input * 3 + 2).remainder(LETTERS);
        Ok((input, target))
    }

    fn epoch(&self, steps: u64) -> u64 {
        steps / 4
    }
}

pub fn loss(output: &Tensor, target: &Tensor) -> Tensor {
    output.cross_entropy_for_logits(target)
}

pub fn rack() -> Rack<Letters> {
    RackBuilder::<Letters>::new(Config { width: 16 }).seed(3).build().unwrap()
}

/// Saves below `directory`, every step or so.
pub fn config(directory: &Path, save_interval: u64) -> TrainingConfig {
    TrainingConfig {
        steps_per_stack: 6,
        optimizer: AdamW { lr: 1e-2, ..AdamW::default() }.into(),
        save_interval,
        checkpoint: CheckpointerConfig {
            location: Location::Path(directory.to_path_buf()),
            experiment: "letters".to_owned(),
            save_on_signal: false,
            ..CheckpointerConfig::default()
        },
        ..TrainingConfig::default()
    }
}

pub fn trainer(group: &ProcessGroup, config: TrainingConfig) -> ProgressiveTrainer {
    ProgressiveTrainer::new(group, config).unwrap()
}

/// Every variable of a rack, bit for bit.
pub fn bits(rack: &Rack<Letters>) -> BTreeMap<String, Vec<u8>> {
    let variables = rack.store().variables().into_iter();
    let bytes = |tensor: Tensor| {
        let flat = tensor.detach().contiguous().flatten(0, -1).view_dtype(Kind::Uint8);
        Vec::try_from(flat).unwrap()
    };
    variables.map(|(name, tensor)| (name, bytes(tensor))).collect()
}

/// Runs `body` on `n` ranks, each a thread; a hang is a failure. libtorch's generator belongs to
/// the process: ranks share it, so that only what does not draw is compared between runs of several
/// ranks.
pub fn on_ranks<T: Send + 'static>(
    n: u32,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<T> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let groups = ProcessGroup::threads(WorldSize::new(n).unwrap(), Deadlines::default());
    let body = Arc::new(body);
    let (sender, results) = mpsc::channel();
    for (rank, group) in groups.into_iter().enumerate() {
        let (body, sender) = (Arc::clone(&body), sender.clone());
        std::thread::spawn(move || sender.send((rank, body(group))));
    }
    drop(sender);
    let mut by_rank = BTreeMap::new();
    while by_rank.len() < n as usize {
        match results.recv_timeout(Duration::from_secs(100)) {
            Ok((rank, result)) => by_rank.insert(rank, result),
            Err(error) => panic!("{error:?}: only ranks {:?} of {n} ended", by_rank.keys()),
        };
    }
    by_rank.into_values().collect()
}

/// As [`on_ranks`], of one.
pub fn alone<T: Send + 'static>(body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static) -> T {
    on_ranks(1, body).pop().unwrap()
}
