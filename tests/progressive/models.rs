//! Architectures for racks, and what tests ask of them.

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn, no_grad};
use tch_checkpoint::Result;
use tch_checkpoint::progressive::{
    Architecture, Layer, Layers, Linear, LinearConfig, Rack, RackBuilder,
};

/// Held by every test here: they share libtorch's generator, which building a rack uses.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub width: i64,
    pub words: i64,
}

pub const CONFIG: Config = Config { width: 6, words: 5 };

/// A bare linear layer per block: `stacks.0.blocks.0.fc`. No embeddings, no head.
pub struct Bare;

impl Architecture for Bare {
    type Config = Config;

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let linear = layers.linear("fc", config.width, config.width, LinearConfig::default())?;
        Ok(Box::new(linear))
    }
}

/// Embeddings of words, blocks of two linear layers behind a norm, and a head whose weight is that
/// of the embeddings.
pub struct Words;

struct Embeddings(nn::Embedding);
struct Block {
    norm: nn::LayerNorm,
    up: Linear,
    down: Linear,
}
struct Head(Tensor);

impl Layer for Embeddings {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        nn::Module::forward(&self.0, input)
    }
}

impl Layer for Block {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let inner = self.up.forward(&nn::Module::forward(&self.norm, input), train).relu();
        input + self.down.forward(&inner, train)
    }
}

impl Layer for Head {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.linear(&self.0, None::<&Tensor>)
    }
}

impl Architecture for Words {
    type Config = Config;

    fn embeddings(layers: &Layers<'_>, config: &Config) -> Result<Option<Box<dyn Layer>>> {
        let like = nn::EmbeddingConfig::default();
        let made = nn::embedding(layers.path(), config.words, config.width, like);
        Ok(Some(Box::new(Embeddings(made))))
    }

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let (width, inner) = (config.width, 2 * config.width);
        let norm = nn::layer_norm(layers.sub("norm").path(), vec![width], Default::default());
        let up = layers.linear("up", width, inner, LinearConfig::default())?;
        let down = layers.sub("out").linear("down", inner, width, LinearConfig { bias: false })?;
        Ok(Box::new(Block { norm, up, down }))
    }

    fn head(layers: &Layers<'_>, _: &Config) -> Result<Option<Box<dyn Layer>>> {
        Ok(Some(Box::new(Head(layers.tie("weight", "embeddings.weight")?))))
    }
}

/// A rack of bare linear layers, so many stacks of one block.
pub fn bare(stacks: usize) -> Rack<Bare> {
    let builder = RackBuilder::<Bare>::new(CONFIG);
    (0..stacks).fold(builder, |builder, _| builder.stack(1, None)).build().unwrap()
}

/// A rack over words, with so many stacks of two blocks.
pub fn words(stacks: usize) -> Rack<Words> {
    let builder = RackBuilder::<Words>::new(CONFIG);
    (0..stacks).fold(builder, |builder, _| builder.stack(2, None)).build().unwrap()
}

/// Rows for bare racks: no two numbers equal.
pub fn rows() -> Tensor {
    (Tensor::arange(4 * CONFIG.width, (Kind::Float, Device::Cpu)) * 1.7)
        .sin()
        .reshape([4, CONFIG.width])
}

pub fn sentence() -> Tensor {
    Tensor::from_slice(&[0i64, 3, 1, 4, 2, 2]).reshape([2, 3])
}

/// The variable of this name.
pub fn variable<A: Architecture>(rack: &Rack<A>, name: &str) -> Tensor {
    let variables = rack.store().variables();
    let names: Vec<_> = variables.keys().collect();
    variables.get(name).unwrap_or_else(|| panic!("no {name} in {names:?}")).shallow_clone()
}

/// Names of all variables, in order.
pub fn names<A: Architecture>(rack: &Rack<A>) -> Vec<String> {
    let mut names: Vec<_> = rack.store().variables().into_keys().collect();
    names.sort();
    names
}

/// The same bits, kind and shape.
pub fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    a.kind() == b.kind() && a.size() == b.size() && bytes(a) == bytes(b)
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.detach().contiguous().flatten(0, -1).view_dtype(Kind::Uint8);
    Vec::try_from(flat).unwrap()
}

/// Largest distance of two tensors of any kinds.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let wide = |t: &Tensor| t.detach().to_kind(Kind::Double);
    (wide(a) - wide(b)).abs().max().double_value(&[])
}

/// A copy that nothing shares.
pub fn copy(tensor: &Tensor) -> Tensor {
    tensor.detach().copy()
}

/// Writes values that need no generator into a variable.
pub fn fill(tensor: &Tensor, scale: f64) {
    let ramp = Tensor::arange(i64::try_from(tensor.numel()).unwrap(), (Kind::Float, Device::Cpu));
    let values = ((ramp * 1.3 + 0.4).sin() * scale).reshape(tensor.size());
    no_grad(|| tensor.shallow_clone().copy_(&values));
}
