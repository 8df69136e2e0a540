//! Small models, and handlers over them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn, no_grad};
use tch_checkpoint::Result;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{LoadOptions, Loader, Model, NNHandler, TensorDataset};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::torch::{Adam, OptimizerConfig};

/// Values that need no random generator: ranks of a process share libtorch's.
pub fn ramp(shape: &[i64], scale: f64) -> Tensor {
    let elements = shape.iter().product::<i64>();
    (Tensor::arange(elements, (Kind::Float, Device::Cpu)) * 1.7).sin().reshape(shape) * scale
}

#[derive(Clone, Serialize, Deserialize)]
pub struct NetConfig {
    pub hidden: i64,
    pub dropout: f64,
}

/// Two layers with dropout in between, and a running mean of the inputs.
pub struct Net {
    input: Tensor,
    bias: Tensor,
    output: Tensor,
    running: Tensor,
    dropout: f64,
}

impl Model for Net {
    type Config = NetConfig;

    fn new(path: &nn::Path<'_>, config: &NetConfig) -> Self {
        Self {
            input: (path / "input").var_copy("weight", &ramp(&[4, config.hidden], 0.5)),
            bias: (path / "input").zeros("bias", &[config.hidden]),
            output: (path / "output").var_copy("weight", &ramp(&[config.hidden, 1], 0.5)),
            running: path.zeros_no_train("running", &[4]),
            dropout: config.dropout,
        }
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        if train {
            let mean = input.mean_dim(0, false, Kind::Float);
            no_grad(|| self.running.shallow_clone().copy_(&(&self.running * 0.9 + mean * 0.1)));
        }
        let hidden = (input.matmul(&self.input) + &self.bias).tanh();
        hidden.dropout(self.dropout, train).matmul(&self.output)
    }
}

/// A regression that the model can learn.
pub fn data(samples: i64) -> TensorDataset {
    let inputs = ramp(&[samples, 4], 1.0);
    let targets = inputs.sum_dim_intlist(1i64, true, Kind::Float);
    TensorDataset::new(inputs, targets).unwrap()
}

pub fn squared_error(output: &Tensor, target: &Tensor) -> Tensor {
    (output - target).square().mean(Kind::Float)
}

/// Samples per step over all ranks: 20 samples make three steps, the last one of 6.
pub const LOADER: Loader =
    Loader { batch_size: 32, global_batch_size: Some(7), shuffle: true, drop_last: false };

/// Loss and data, which no checkpoint holds.
pub fn equip(mut handler: NNHandler<Net>) -> NNHandler<Net> {
    handler.quiet(true);
    handler.set_loss_fn(squared_error);
    handler.set_train_loader(data(20), LOADER);
    handler
}

/// A handler without an optimizer, loss or data.
pub fn bare(group: &ProcessGroup, storage: &Arc<dyn Storage>, dropout: f64) -> NNHandler<Net> {
    let builder = NNHandler::builder(NetConfig { hidden: 6, dropout });
    builder.process_group(group).storage(storage.clone()).seed(5).build().unwrap()
}

/// A new handler that is ready to train.
pub fn handler(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    dropout: f64,
    optimizer: impl Into<OptimizerConfig>,
) -> NNHandler<Net> {
    let mut handler = equip(bare(group, storage, dropout));
    handler.set_optimizer(optimizer).unwrap();
    handler
}

/// The usual one: no dropout, Adam.
pub fn usual(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> NNHandler<Net> {
    handler(group, storage, 0.0, Adam { lr: 1e-2, ..Adam::default() })
}

pub fn options(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> LoadOptions {
    let (group, storage) = (Some(group.clone()), Some(storage.clone()));
    LoadOptions { group, storage, ..LoadOptions::default() }
}

/// Loads a handler, ready to train.
pub fn loaded(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    path: &str,
) -> Result<NNHandler<Net>> {
    NNHandler::load(path, options(group, storage)).map(equip)
}

/// The parameters, one after the other in order of name.
pub fn parameters<M: Model>(handler: &NNHandler<M>) -> Vec<f32> {
    let mut named: Vec<_> = handler.vars().variables().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let trainable = named.into_iter().filter(|(_, tensor)| tensor.requires_grad());
    trainable.flat_map(|(_, t)| Vec::<f32>::try_from(t.detach().flatten(0, -1)).unwrap()).collect()
}

pub fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-2), "{a} and {b}");
    }
}

/// A variable of a [`Bag`]: name, shape, and one of the words of [`kind`].
pub type BagItem = (String, Vec<i64>, String);

pub fn item(name: &str, shape: &[i64], kind: &str) -> BagItem {
    (name.to_owned(), shape.to_vec(), kind.to_owned())
}

fn add(path: &nn::Path<'_>, (name, shape, kind): &BagItem) {
    let values = ramp(shape, 3.0);
    let kind = match kind.as_str() {
        "f16" => Kind::Half,
        "bf16" => Kind::BFloat16,
        "f64" => Kind::Double,
        "bool" => Kind::Bool,
        "i64" => Kind::Int64,
        "u8" => Kind::Uint8,
        "c128" => Kind::ComplexDouble,
        "quantised" => {
            let _ = path.add(name, values.quantize_per_tensor(0.1, 0, Kind::QInt8), false);
            return;
        }
        _ => Kind::Float,
    };
    let _ = path.add(name, values.to_kind(kind), false);
}

/// Whatever variables the configuration lists.
pub struct Bag;

impl Model for Bag {
    type Config = Vec<BagItem>;

    fn new(path: &nn::Path<'_>, items: &Vec<BagItem>) -> Self {
        items.iter().for_each(|item| add(path, item));
        Self
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.shallow_clone()
    }
}

pub fn bag<M: Model<Config = Vec<BagItem>>>(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    items: &[BagItem],
) -> Result<NNHandler<M>> {
    let builder = NNHandler::builder(items.to_vec());
    builder.process_group(group).storage(storage.clone()).build()
}

/// A later version of [`Bag`] whose variables differ, by their names, from what was saved.
pub struct ChangedBag;

impl Model for ChangedBag {
    type Config = Vec<BagItem>;

    fn new(path: &nn::Path<'_>, items: &Vec<BagItem>) -> Self {
        static BUILT: AtomicI64 = AtomicI64::new(1);
        for (name, shape, kind) in items {
            let changed = match name.as_str() {
                "gone" => continue,
                "old_name" => item("new_name", shape, kind),
                "shape" => item(name, &[3, 2], kind),
                "wider" => item(name, &[4], kind),
                "dtype" => item(name, shape, "f64"),
                _ => item(name, shape, kind),
            };
            add(path, &changed);
        }
        // Another value on each rank, as with a generator that ranks do not share.
        let value = BUILT.fetch_add(1, Ordering::Relaxed);
        let _ = path.add("added", Tensor::from(value), false);
        Self
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.shallow_clone()
    }
}

/// One vector of weights in double precision.
pub struct DoubleNet(Tensor);

impl Model for DoubleNet {
    type Config = Vec<BagItem>;

    fn new(path: &nn::Path<'_>, _: &Vec<BagItem>) -> Self {
        Self(path.add("weight", ramp(&[4], 0.3).to_kind(Kind::Double), true))
    }

    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.to_kind(Kind::Double).mv(&self.0).unsqueeze(1)
    }
}

/// Adds a metric `m` whose mean over epoch `i`, counted from here, is `script[i]`: 3 batches make
/// an epoch of [`equip`], on any number of ranks up to 6.
pub fn scripted(mut handler: NNHandler<Net>, script: &[f64]) -> NNHandler<Net> {
    let (script, calls) = (script.to_vec(), std::cell::Cell::new(0));
    handler.add_metric("m", move |_, _| {
        let call = calls.replace(calls.get() + 1);
        script.get(call / 3).copied().unwrap_or(f64::NAN)
    });
    handler
}

/// A later version of [`Net`] with one more parameter, which begins with another value on each
/// rank, as with a generator that ranks do not share.
pub struct GrownNet(Net, Tensor);

impl Model for GrownNet {
    type Config = NetConfig;

    fn new(path: &nn::Path<'_>, config: &NetConfig) -> Self {
        static BUILT: AtomicI64 = AtomicI64::new(1);
        let value = Tensor::from(BUILT.fetch_add(1, Ordering::Relaxed)).to_kind(Kind::Float);
        let net = Net::new(path, config);
        Self(net, path.var_copy("added", &value))
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        self.0.forward(input, train) + &self.1
    }
}
