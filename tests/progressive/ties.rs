//! Variables with two names.

use tch::{Kind, Tensor, no_grad};
use tch_checkpoint::progressive::{
    Architecture, Layer, Layers, Linear, LinearConfig, RackBuilder, StackPrecision,
};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::tensor::Component;
use tch_checkpoint::torch::{Optimizer, Sgd, add_var_store};
use tch_checkpoint::{ErrorKind, Result};

use super::models::{CONFIG, Config, alone, sentence, variable, words};

#[test]
fn a_tied_variable_is_one_memory_that_two_names_change() {
    let _alone = alone();
    let mut rack = words(1);
    rack.append_stack(1, Some(StackPrecision::Half)).unwrap();
    rack.prepend_stack(1, None).unwrap();
    rack.set_precision(0, StackPrecision::Bf16).unwrap();
    let [here, there] = ["embeddings.weight", "head.weight"].map(|name| variable(&rack, name));
    assert_eq!(here.data_ptr(), there.data_ptr());
    drop(no_grad(|| here.shallow_clone().fill_(0.25)));
    assert_eq!(there.double_value(&[0, 0]), 0.25);
}

#[test]
fn a_tied_variable_is_trained_once_with_both_gradients() {
    let _alone = alone();
    let rack = words(1);
    let mut optimizer = Optimizer::new(Sgd { lr: 1.0, ..Sgd::default() }, rack.store()).unwrap();
    let weight = variable(&rack, "head.weight");
    let before = weight.detach().copy();
    rack.forward(&sentence(), true).unwrap().square().sum(Kind::Float).backward();
    let gradient = weight.grad().copy();
    optimizer.step().unwrap();
    let moved = &before - &weight.detach();
    assert!((moved - gradient).abs().max().double_value(&[]) < 1e-4);
}

#[test]
fn a_tied_variable_is_stored_once_with_an_alias() {
    let _alone = alone();
    let rack = words(1);
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "", rack.store()).unwrap();
    let stored: Vec<_> = state.tensors().map(|(name, _)| name.as_str().to_owned()).collect();
    assert!(stored.contains(&"embeddings.weight".to_owned()), "{stored:?}");
    assert!(!stored.contains(&"head.weight".to_owned()), "{stored:?}");
}

/// Ties to what there is not, or under a name that is taken.
struct Wrong;

impl Architecture for Wrong {
    type Config = Config;

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let linear = layers.linear("fc", config.width, config.width, LinearConfig::default())?;
        let tied = match config.words {
            0 => layers.tie("other", "embeddings.weight"),
            1 => layers.tie("fc.weight", &format!("{}.bias", linear.name())),
            _ => layers.tie("other", &format!("{}.bias", linear.name())),
        };
        drop(tied?);
        Ok(Box::new(linear))
    }
}

#[test]
fn ties_to_nothing_and_under_a_taken_name_are_refused_and_leave_no_names() {
    let _alone = alone();
    for words in [0, 1] {
        let mut rack = RackBuilder::<Wrong>::new(Config { width: 3, words }).build().unwrap();
        let error = rack.append_stack(1, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.tensor().is_some(), "{error}");
        assert!(rack.store().variables().is_empty());
        assert_eq!(rack.info().next_id, 0);
    }
}

#[test]
fn a_tied_variable_counts_once() {
    let _alone = alone();
    let config = Config { width: 3, words: 2 };
    let rack = RackBuilder::<Wrong>::new(config).stack(1, None).build().unwrap();
    let info = &rack.info().stack_info[0];
    assert_eq!((info.total_parameters, info.trainable_parameters), (12, 12));
}

/// Ties a variable of a stack to one outside of it.
struct Across;

impl Architecture for Across {
    type Config = Config;

    fn embeddings(layers: &Layers<'_>, config: &Config) -> Result<Option<Box<dyn Layer>>> {
        Ok(Some(Box::new(layers.linear(
            "in",
            config.width,
            config.width,
            LinearConfig::default(),
        )?)))
    }

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let linear = layers.linear("fc", config.width, config.width, LinearConfig::default())?;
        drop(layers.tie("other", "embeddings.in.weight")?);
        Ok(Box::new(linear))
    }
}

#[test]
fn a_stack_is_tied_to_nothing_outside_of_it_since_it_is_cast_and_stored_alone() {
    let _alone = alone();
    let mut rack = RackBuilder::<Across>::new(CONFIG).build().unwrap();
    let error = rack.append_stack(1, Some(StackPrecision::Half)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(variable(&rack, "embeddings.in.weight").kind(), Kind::Float);
}

/// A linear layer with buffers: one of whole numbers, and one of others.
pub struct Counting;

struct Counted(Linear, Tensor);

impl Layer for Counted {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        drop(no_grad(|| self.1.shallow_clone().fill_(1)));
        self.0.forward(input, train)
    }
}

impl Architecture for Counting {
    type Config = Config;

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let linear = layers.linear("fc", config.width, config.width, LinearConfig::default())?;
        let path = layers.path();
        drop(path.zeros_no_train("mean", &[config.width]));
        let zero = Tensor::zeros([1], (Kind::Int64, path.device()));
        let count = path.add("count", zero, false);
        Ok(Box::new(Counted(linear, count)))
    }
}
