//! The next letter, out of the ones before it.

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};
use tch_checkpoint::Result;
use tch_checkpoint::progressive::{Architecture, Layer, Layers, Linear, LinearConfig};

use super::text::{CONTEXT, Text};

/// Features of a letter.
const WIDTH: i64 = 16;

/// What the parts are made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LettersConfig {
    letters: i64,
    hidden: i64,
}

impl LettersConfig {
    pub(crate) fn of(text: &Text) -> Self {
        Self { letters: text.letters(), hidden: 4 * CONTEXT * WIDTH }
    }
}

/// Embeddings of the letters of a context, blocks that each add something, and a head that says
/// which letter comes next.
pub(crate) struct Letters;

struct Embeddings(nn::Embedding);

struct Block {
    norm: nn::LayerNorm,
    up: Linear,
    down: Linear,
}

struct Head(nn::Linear);

impl Layer for Embeddings {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        nn::Module::forward(&self.0, input).flatten(1, 2)
    }
}

impl Layer for Block {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        let inner = self.up.forward(&nn::Module::forward(&self.norm, input), train);
        input + self.down.forward(&inner.gelu("none").dropout(0.1, train), train)
    }
}

impl Layer for Head {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        nn::Module::forward(&self.0, input)
    }
}

impl Architecture for Letters {
    type Config = LettersConfig;

    fn embeddings(layers: &Layers<'_>, config: &Self::Config) -> Result<Option<Box<dyn Layer>>> {
        let made = nn::embedding(layers.path(), config.letters, WIDTH, Default::default());
        Ok(Some(Box::new(Embeddings(made))))
    }

    fn block(layers: &Layers<'_>, config: &Self::Config) -> Result<Box<dyn Layer>> {
        let width = CONTEXT * WIDTH;
        let norm = nn::layer_norm(layers.sub("norm").path(), vec![width], Default::default());
        let up = layers.linear("up", width, config.hidden, LinearConfig::default())?;
        let down = layers.linear("down", config.hidden, width, LinearConfig::default())?;
        Ok(Box::new(Block { norm, up, down }))
    }

    fn head(layers: &Layers<'_>, config: &Self::Config) -> Result<Option<Box<dyn Layer>>> {
        let made = nn::linear(layers.path(), CONTEXT * WIDTH, config.letters, Default::default());
        Ok(Some(Box::new(Head(made))))
    }
}

pub(crate) fn loss(output: &Tensor, target: &Tensor) -> Tensor {
    output.cross_entropy_for_logits(target)
}
