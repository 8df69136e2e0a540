//! What a model is to the handler.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Tensor, nn};

/// A model that the handler can build, train, save, and build again when loading.
///
/// The configuration is stored in the checkpoint, so [`NNHandler::load`](super::NNHandler::load)
/// rebuilds the model from it; code is never read from a file.
pub trait Model: Sized {
    /// What [`Model::new`] needs to build it; stored as JSON.
    type Config: Serialize + DeserializeOwned + Clone;

    /// Builds the model, registering its variables under `path`. Called with the device and the
    /// random state already set. The names of variables are the names of tensors on disk.
    fn new(path: &nn::Path<'_>, config: &Self::Config) -> Self;

    /// Output for a batch. `train` switches dropout and the like.
    fn forward(&self, input: &Tensor, train: bool) -> Tensor;
}
