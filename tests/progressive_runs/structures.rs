//! Racks whose structure is not as usual: ties, more room, more blocks than there are.

use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Device, Kind, Tensor};
use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::progressive::{
    Architecture, Layer, Layers, Linear, LinearConfig, LoraConfig, Rack, RackBuilder,
};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{StateDict, Value};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::Component;
use tch_checkpoint::torch::add_var_store;
use tch_checkpoint::{ErrorKind, Result};

use crate::letters::{Config, Letters, Rows, alone, config, loss, trainer};

fn adapters() -> LoraConfig {
    LoraConfig { rank: 2, ..LoraConfig::default() }
}

#[test]
fn a_rack_that_may_have_more_stacks_than_the_stored_one_may_go_on_growing() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let of = |max| {
            let builder = RackBuilder::<Letters>::new(Config { width: 16 });
            builder.seed(3).max_stacks(max).build().unwrap()
        };
        let (mut small, mut large) = (of(1), of(3));
        let mut first = trainer(&group, config(dir.path(), 0));
        first.train_rack(&mut small, &Rows, &loss, 1).unwrap();
        let mut second = trainer(&group, config(dir.path(), 0));
        second.resume(&mut large).unwrap().unwrap();
        assert_eq!(large.info().max_stacks, 3);
        second.train_rack(&mut large, &Rows, &loss, 2).unwrap();
        // The other way round nothing is cut off.
        let mut again = of(1);
        let mut third = trainer(&group, config(dir.path(), 0));
        third.resume(&mut again).unwrap().unwrap();
        assert_eq!((again.stacks().len(), again.info().max_stacks), (2, 3));
    });
}

/// Ties within blocks, and of the head to the embeddings.
struct Tied;

struct Twice(Linear, Tensor);

impl Layer for Twice {
    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        self.0.forward(input, train).linear(&self.1, None::<&Tensor>)
    }
}

struct Ends(Tensor);

impl Layer for Ends {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.linear(&self.0, None::<&Tensor>)
    }
}

impl Architecture for Tied {
    type Config = ();

    fn embeddings(layers: &Layers<'_>, (): &()) -> Result<Option<Box<dyn Layer>>> {
        Ok(Some(Box::new(Ends(layers.path().randn_standard("weight", &[4, 4])))))
    }

    fn block(layers: &Layers<'_>, (): &()) -> Result<Box<dyn Layer>> {
        let linear = layers.linear("fc", 4, 4, LinearConfig::default())?;
        let again = layers.tie("again", &format!("{}.weight", linear.name()))?;
        Ok(Box::new(Twice(linear, again)))
    }

    fn head(layers: &Layers<'_>, (): &()) -> Result<Option<Box<dyn Layer>>> {
        Ok(Some(Box::new(Ends(layers.tie("weight", "embeddings.weight")?))))
    }
}

fn tied(seed: u64) -> Rack<Tied> {
    let builder = RackBuilder::<Tied>::new(()).seed(seed);
    builder.stack(2, None).stack(2, None).build().unwrap()
}

fn ones() -> Tensor {
    Tensor::ones([1, 4], (Kind::Float, Device::Cpu))
}

fn is_tied(rack: &Rack<Tied>, first: &str, second: &str) -> bool {
    let variables = rack.store().variables();
    variables[first].data_ptr() == variables[second].data_ptr()
}

#[test]
fn ties_come_back_as_ties_with_racks_and_with_stacks() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, path) = (tied(1), dir.path().join("rack"));
        saved.attach_adapters(1, &adapters()).unwrap();
        let output = saved.forward(&ones(), false).unwrap();
        saved.save_rack(&group, &path).unwrap();
        let opened = Rack::<Tied>::open_rack(&group, &path, Device::Cpu).unwrap();
        assert!(is_tied(&opened, "embeddings.weight", "head.weight"));
        assert!(is_tied(&opened, "stacks.1.blocks.0.again", "stacks.1.blocks.0.fc.weight"));
        assert_eq!(opened.forward(&ones(), false).unwrap(), output);

        let path = dir.path().join("stack");
        saved.save_stack(&group, 1, &path).unwrap();
        let mut other = tied(2);
        other.load_stack(&group, 0, &path).unwrap();
        assert!(is_tied(&other, "stacks.0.blocks.0.again", "stacks.0.blocks.0.fc.weight"));
        let (ours, theirs) = (other.store().variables(), saved.store().variables());
        for name in ["again", "fc.weight", "fc.bias"] {
            let name = format!("blocks.1.{name}");
            assert_eq!(ours[&format!("stacks.0.{name}")], theirs[&format!("stacks.1.{name}")]);
        }
    });
}

/// How many blocks were made of [`Counted`].
static MADE: AtomicUsize = AtomicUsize::new(0);

struct Counted;

impl Architecture for Counted {
    type Config = ();

    fn block(layers: &Layers<'_>, (): &()) -> Result<Box<dyn Layer>> {
        MADE.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(layers.linear("fc", 4, 4, LinearConfig::default())?))
    }
}

/// A small file must not make a rack that fills the memory.
#[test]
fn a_checkpoint_that_claims_more_blocks_than_it_has_is_refused_before_one_is_made() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let rack = RackBuilder::<Counted>::new(()).stack(1, None).build().unwrap();
        let mut info = rack.info();
        let mut claim = |blocks: usize, name: &str| {
            info.stack_info[0].num_blocks = blocks;
            let mut state = StateDict::new();
            let component = Component::new("stack_0").unwrap();
            add_var_store(&mut state, &component, "", rack.store()).unwrap();
            state.values.set("progressive.kind", "rack");
            state.values.set("progressive.config", Value::json(&()).unwrap());
            state.values.set("progressive.rack", Value::json(&info).unwrap());
            state.values.set("progressive.seed", "0");
            let path = dir.path().join(name);
            let at = CheckpointPath::parse(&path).unwrap();
            let storage = LocalStorage::new();
            save(&group, &storage, &at, &state, &SaveOptions::default()).unwrap();
            path
        };
        let (honest, claimed) = (claim(1, "honest"), claim(4096, "claimed"));
        Rack::<Counted>::open_rack(&group, &honest, Device::Cpu).unwrap();
        let made = MADE.load(Ordering::Relaxed);
        let error = Rack::<Counted>::open_rack(&group, &claimed, Device::Cpu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let mut empty = RackBuilder::<Counted>::new(()).build().unwrap();
        let error = empty.load_rack(&group, &claimed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(MADE.load(Ordering::Relaxed), made);
    });
}
