//! What a checkpoint that overlaps with training costs training: steps with a save beside them and
//! steps without, in turn, in one run of the handler's own loop.
//!
//!     cargo bench --bench overlap -- [--dir D] [--threads N] [--layers L] [--batch B] [--rounds K]
//!
//! A save is begun every `2 * STEPS` steps; the first `STEPS` of them are those with a save, the
//! others those without. What their sums differ by is the time lost, given beside the time that two
//! threads need to copy as many bytes into memory that was used before.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints")]

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};
use tch_checkpoint::ProcessGroup;
use tch_checkpoint::autosave::Every;
use tch_checkpoint::handler::{AsyncMode, Dataset, Loader, Model, NNHandler};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::torch::Adam;

/// Steps with a save, and as many without.
const STEPS: usize = 4;
const WIDTH: i64 = 2048;

#[derive(Clone, Serialize, Deserialize)]
struct Config {
    layers: i64,
}

/// Square layers: 16 MiB of parameters each.
struct Layers(Vec<Tensor>);

impl Model for Layers {
    type Config = Config;

    fn new(path: &nn::Path<'_>, config: &Config) -> Self {
        let layer = |i: i64| path.kaiming_uniform(&format!("layer{i}"), &[WIDTH, WIDTH]);
        Self((0..config.layers).map(layer).collect())
    }

    fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
        self.0.iter().fold(input.shallow_clone(), |x, layer| x.matmul(layer).tanh())
    }
}

/// The same numbers for every batch, and when each was asked for: that is when a step begins.
struct Batches {
    batches: usize,
    batch: i64,
    asked: Rc<RefCell<Vec<Instant>>>,
}

impl Dataset for Batches {
    fn len(&self) -> usize {
        self.batches * usize::try_from(self.batch).unwrap()
    }

    fn batch(&self, indices: &[i64], device: Device) -> (Tensor, Tensor) {
        self.asked.borrow_mut().push(Instant::now());
        let rows = i64::try_from(indices.len()).unwrap().min(self.batch);
        let input = Tensor::ones([rows, WIDTH], (Kind::Float, device)) * 0.1;
        (input.shallow_clone(), input)
    }
}

struct Arguments {
    dir: PathBuf,
    threads: i32,
    layers: i64,
    batch: usize,
    rounds: usize,
}

fn arguments() -> Arguments {
    let given: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = given.iter().position(|argument| argument == name)?;
        given.get(at + 1).cloned()
    };
    let number = |name: &str, default: usize| value(name).map_or(default, |n| n.parse().unwrap());
    Arguments {
        dir: value("--dir").map_or_else(|| std::env::temp_dir().join("tch-overlap"), PathBuf::from),
        threads: i32::try_from(number("--threads", 1)).unwrap(),
        layers: i64::try_from(number("--layers", 24)).unwrap(),
        batch: number("--batch", 128),
        rounds: number("--rounds", 5),
    }
}

/// Seconds that two threads need for `bytes`, a quarter at a time, into pages that were used.
fn copying(bytes: usize) -> f64 {
    let (from, mut into) = (vec![1u8; bytes / 4], vec![2u8; bytes / 4]);
    let half = into.len() / 2;
    let mut once = || {
        let began = Instant::now();
        let ((from_a, from_b), (into_a, into_b)) = (from.split_at(half), into.split_at_mut(half));
        std::thread::scope(|scope| {
            scope.spawn(|| into_a.copy_from_slice(from_a));
            into_b.copy_from_slice(from_b);
        });
        began.elapsed().as_secs_f64() * 4.0
    };
    median((0..9).map(|_| once()).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds of each step, from its batch to the next one.
fn steps(given: &Arguments, mode: AsyncMode) -> (Vec<f64>, usize) {
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
    let builder = NNHandler::<Layers>::builder(Config { layers: given.layers });
    let builder = builder.process_group(&ProcessGroup::solo()).storage(storage).seed(1);
    let mut handler = builder.build().unwrap();
    handler.quiet(true);
    handler.set_loss_fn(|output: &Tensor, target: &Tensor| {
        (output - target).square().mean(Kind::Float)
    });
    let asked = Rc::new(RefCell::new(Vec::new()));
    // One round in which nothing was touched before, and one step to end the last one.
    let (cycle, rounds) = (2 * STEPS, given.rounds + 2);
    let (batches, batch) = (rounds * cycle + 1, i64::try_from(given.batch).unwrap());
    let data = Batches { batches, batch, asked: asked.clone() };
    let loader = Loader {
        batch_size: given.batch,
        global_batch_size: None,
        shuffle: false,
        drop_last: true,
    };
    handler.set_train_loader(data, loader);
    handler.set_optimizer(Adam { lr: 1e-4, ..Adam::default() }).unwrap();
    let saver = handler.auto_save(Every::steps(cycle as u64).unwrap(), &given.dir, "overlap");
    saver.unwrap().mode(mode).overwrite(true).save_on_last_epoch(false);
    handler.train_steps(batches as u64).unwrap();
    let bytes = usize::try_from(handler.state_dict().unwrap().size_bytes()).unwrap();
    let asked = asked.borrow();
    (asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect(), bytes)
}

fn main() {
    let given = arguments();
    tch::set_num_threads(given.threads);
    let (seconds, bytes) = steps(&given, AsyncMode::AsyncOverlap);
    let copy = copying(bytes);
    // A save is begun at the end of the last step of a cycle, before the next batch is asked for.
    let cycles: Vec<&[f64]> = seconds[2 * STEPS - 1..].chunks_exact(2 * STEPS).skip(1).collect();
    let lost = |cycle: &&[f64]| {
        let (with, without) = cycle.split_at(STEPS);
        with.iter().sum::<f64>() - without.iter().sum::<f64>()
    };
    let step = median(cycles.iter().flat_map(|cycle| &cycle[STEPS..]).copied().collect());
    println!("step of a cycle  median ms (the save begins in the first)");
    for number in 0..2 * STEPS {
        let median = median(cycles.iter().map(|cycle| cycle[number]).collect());
        println!("{number:>15}  {:9.1}", median * 1e3);
    }
    let lost = median(cycles.iter().map(lost).collect());
    println!(
        "{{\"bytes\":{bytes},\"threads\":{},\"rounds\":{},\"step\":{step:.4},\"copy\":{copy:.4},\
        \"lost\":{lost:.4},\"ratio\":{:.3}}}",
        given.threads,
        cycles.len(),
        lost / copy
    );
}
