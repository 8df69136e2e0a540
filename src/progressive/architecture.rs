//! What a rack is made of: given by its user.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use super::Layers;
use crate::error::Result;

/// Something that maps a tensor to a tensor.
pub trait Layer {
    /// The output for `input`; `train` turns on what happens in training alone, such as dropout.
    fn forward(&self, input: &Tensor, train: bool) -> Tensor;
}

/// What the parts of a rack are made of. Every part is made under a name prefix of its own, in
/// [`Layers`], from the same configuration.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tch::Tensor;
/// use tch_checkpoint::progressive::{Architecture, Layer, Layers, Linear, LinearConfig, RackBuilder};
///
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// struct Config {
///     width: i64,
/// }
///
/// struct Residual(Linear);
/// impl Layer for Residual {
///     fn forward(&self, input: &Tensor, train: bool) -> Tensor {
///         input + self.0.forward(input, train).relu()
///     }
/// }
///
/// struct Mlp;
/// impl Architecture for Mlp {
///     type Config = Config;
///     fn block(layers: &Layers<'_>, config: &Config) -> tch_checkpoint::Result<Box<dyn Layer>> {
///         let linear = layers.linear("fc", config.width, config.width, LinearConfig::default())?;
///         Ok(Box::new(Residual(linear)))
///     }
/// }
///
/// let mut rack = RackBuilder::<Mlp>::new(Config { width: 4 }).stack(2, None).build()?;
/// let id = rack.append_stack(1, None)?;
/// assert_eq!((rack.stacks().len(), rack.index_of(id)), (2, Some(1)));
/// let output = rack.forward(&Tensor::ones([3, 4], (tch::Kind::Float, tch::Device::Cpu)), false)?;
/// assert_eq!(output.size(), [3, 4]);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
pub trait Architecture: 'static {
    /// What all parts are made from; stored with every checkpoint, and compared by loads.
    type Config: Serialize + DeserializeOwned + Clone + PartialEq + Debug + 'static;

    /// What comes before the first stack; by default nothing.
    ///
    /// # Errors
    /// Any; the rack is not built then.
    fn embeddings(layers: &Layers<'_>, config: &Self::Config) -> Result<Option<Box<dyn Layer>>> {
        let _ = (layers, config);
        Ok(None)
    }

    /// One block of a stack. Its output has the shape of its input.
    ///
    /// # Errors
    /// Any; the stack is not added then.
    fn block(layers: &Layers<'_>, config: &Self::Config) -> Result<Box<dyn Layer>>;

    /// What comes after the last stack; by default nothing. Made after the embeddings, whose
    /// variables it may [tie](Layers::tie).
    ///
    /// # Errors
    /// Any; the rack is not built then.
    fn head(layers: &Layers<'_>, config: &Self::Config) -> Result<Option<Box<dyn Layer>>> {
        let _ = (layers, config);
        Ok(None)
    }
}
