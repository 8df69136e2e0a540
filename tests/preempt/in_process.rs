//! One handler in this process, and a real signal. A process that was told stays told, so there is
//! one test here.

use std::cell::Cell;
use std::rc::Rc;

use rustix::process::{Signal, getpid, kill_process};
use tch::{Device, Kind, Tensor, nn, nn::Module};
use tch_checkpoint::autosave::Every;
use tch_checkpoint::handler::{
    Callback, CallbackContext, Dataset, LoadOptions, Loader, Model, NNHandler, TensorDataset,
};
use tch_checkpoint::preempt::Preempted;
use tch_checkpoint::torch::Adam;
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

const USR1: i32 = 10;
const SAMPLES: i64 = 21;
/// So many batches of validation there are, one sample each.
const VALIDATION: u64 = 40;

struct Net(nn::Linear);

impl Model for Net {
    type Config = ();

    fn new(path: &nn::Path<'_>, (): &()) -> Self {
        Self(nn::linear(path / "linear", 4, 1, nn::LinearConfig::default()))
    }

    fn forward(&self, input: &Tensor, train: bool) -> Tensor {
        self.0.forward(&input.dropout(0.3, train))
    }
}

fn data(samples: i64) -> TensorDataset {
    let numbers = Tensor::arange(samples * 4, (Kind::Float, Device::Cpu));
    let inputs = (numbers * 1.7).sin().view([samples, 4]);
    let targets = inputs.sum_dim_intlist(1i64, true, Kind::Float);
    TensorDataset::new(inputs, targets).unwrap()
}

/// Counts its batches, and tells this process to end with the fifth.
struct Telling {
    data: TensorDataset,
    batches: Rc<Cell<u64>>,
}

impl Dataset for Telling {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn batch(&self, indices: &[i64], device: Device) -> (Tensor, Tensor) {
        self.batches.set(self.batches.get() + 1);
        if self.batches.get() == 5 {
            kill_process(getpid(), Signal::USR1).unwrap();
        }
        self.data.batch(indices, device)
    }
}

/// Counts how often training ended.
struct Ends(Rc<Cell<u64>>);

impl Callback for Ends {
    fn id(&self) -> String {
        "ends".to_owned()
    }

    fn on_train_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

fn equip(mut handler: NNHandler<Net>) -> NNHandler<Net> {
    handler.quiet(true);
    handler.set_loss_fn(|output, target| (output - target).square().mean(Kind::Float));
    let loader = Loader { batch_size: 7, shuffle: true, ..Loader::default() };
    handler.set_train_loader(data(SAMPLES), loader);
    let one = Loader { batch_size: 1, ..Loader::default() };
    handler.set_val_loader(data(i64::try_from(VALIDATION).unwrap()), one);
    handler
}

fn fresh() -> NNHandler<Net> {
    let builder = NNHandler::<Net>::builder(()).process_group(&ProcessGroup::solo()).seed(3);
    let mut handler = builder.device(Device::Cpu).build().unwrap();
    handler.set_optimizer(Adam::default()).unwrap();
    equip(handler)
}

#[test]
fn told_during_validation_it_saves_at_once_and_resumes_exactly() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let mut whole = fresh();
    whole.train(2).unwrap();

    let mut first = fresh();
    for refused in [
        first.save_on_signal(true).unwrap_err(),
        first.save_before_time_limit(Some(std::time::Duration::ZERO)).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        assert!(refused.to_string().contains("no place to save to"), "{refused}");
    }
    first.auto_save(Every::Off, dir.path(), "s{step}").unwrap();
    first.save_on_signal(true).unwrap();
    first.disable_auto_save();
    let refused = first.train(1).unwrap_err();
    assert!(refused.to_string().contains("`save_on_signal` has no place"), "{refused}");
    first.auto_save(Every::Off, dir.path(), "s{step}").unwrap();

    let (batches, ends) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    first.add_callback(Ends(ends.clone())).unwrap();
    let telling = Telling { data: data(40), batches: batches.clone() };
    first.set_val_loader(telling, Loader { batch_size: 1, ..Loader::default() });
    first.train(2).unwrap();
    assert_eq!(first.preempted(), Some(Preempted::Signal(USR1)));
    assert_eq!(first.stop_reason(), Some("preempted: SIGUSR1"));
    assert!((5..VALIDATION).contains(&batches.get()), "{} batches", batches.get());
    assert_eq!((first.epoch(), first.step()), (0, 3));
    assert_eq!(ends.get(), 0, "training goes on in another process");

    let before = first.state_hash().unwrap();
    first.train(1).unwrap();
    assert_eq!(first.state_hash().unwrap(), before, "nothing is trained any more");
    drop(first);

    // Counted among the samples, the epoch lacks its end alone.
    let group = Some(ProcessGroup::solo());
    let options = LoadOptions { group, device: Some(Device::Cpu), ..LoadOptions::default() };
    let mut resumed = equip(NNHandler::load(dir.path().join("s3"), options).unwrap());
    assert_eq!(resumed.samples_in_epoch(), SAMPLES as usize);
    resumed.train(2).unwrap();
    assert_eq!(resumed.preempted(), None, "it does not watch");
    assert_eq!((resumed.epoch(), resumed.step()), (2, 6));
    assert_eq!(resumed.state_hash().unwrap(), whole.state_hash().unwrap());

    // The process was told, whoever watches next.
    let mut next = fresh();
    next.auto_save(Every::Off, dir.path(), "next{step}").unwrap();
    next.save_on_signal(true).unwrap();
    next.train(2).unwrap();
    assert_eq!((next.preempted(), next.step()), (Some(Preempted::Signal(USR1)), 1));
    assert!(dir.path().join("next1").exists());
}
