//! Handlers in this process, and a real signal. A process that was told stays told: one test here
//! tells it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use parking_lot::Mutex;
use signal_hook::consts::SIGUSR1;
use signal_hook::low_level;
use tch::{Device, Kind, Tensor, nn, nn::Module};
use tch_checkpoint::autosave::Every;
use tch_checkpoint::group::Deadlines;
use tch_checkpoint::handler::{
    AsyncMode, Callback, CallbackContext, Dataset, LoadOptions, Loader, Model, NNHandler,
    TensorDataset,
};
use tch_checkpoint::preempt::Preempted;
use tch_checkpoint::torch::Adam;
use tch_checkpoint::{ErrorKind, ProcessGroup, Result, WorldSize};

/// libtorch has one generator for the whole process.
static GENERATOR: Mutex<()> = Mutex::new(());
/// Steps of an epoch: enough of them, and fast enough, for ranks to ask one another seldom.
const STEPS: u64 = 64;
const SAMPLES: i64 = 7 * 64;
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
            // To this thread, so that it is there before the batch is.
            low_level::raise(SIGUSR1).unwrap();
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

fn fresh(group: &ProcessGroup) -> NNHandler<Net> {
    let builder = NNHandler::<Net>::builder(()).process_group(group).seed(3);
    let mut handler = builder.device(Device::Cpu).build().unwrap();
    handler.set_optimizer(Adam::default()).unwrap();
    equip(handler)
}

#[test]
fn told_during_validation_it_saves_at_once_and_resumes_exactly() {
    let _generator = GENERATOR.lock();
    tch::set_num_threads(1);
    let (dir, solo) = (tempfile::tempdir().unwrap(), ProcessGroup::solo());
    let mut whole = fresh(&solo);
    whole.train(2).unwrap();

    let mut first = fresh(&solo);
    for refused in [
        first.save_on_signal(true).unwrap_err(),
        first.save_before_time_limit(Some(Duration::ZERO)).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        assert!(refused.to_string().contains("no place to save to"), "{refused}");
    }
    first.auto_save(Every::Off, dir.path(), "s{step}").unwrap();
    first.save_on_signal(true).unwrap();
    first.disable_auto_save();
    let refused = first.train(1).unwrap_err();
    assert!(refused.to_string().contains("`save_on_signal` has no place"), "{refused}");
    // One goes on beside training shortly before it is told.
    let before = STEPS - 1;
    let saver = first.auto_save(Every::steps(before).unwrap(), dir.path(), "s{step}").unwrap();
    saver.mode(AsyncMode::AsyncOverlap);

    let (batches, ends) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    first.add_callback(Ends(ends.clone())).unwrap();
    let telling = Telling { data: data(40), batches: batches.clone() };
    first.set_val_loader(telling, Loader { batch_size: 1, ..Loader::default() });
    first.train(2).unwrap();
    assert_eq!(first.preempted(), Some(Preempted::Signal(SIGUSR1)));
    assert_eq!(first.stop_reason(), Some("preempted: SIGUSR1"));
    // However seldom that was in training: in validation, in front of batches 1, 2, 4 and 8.
    assert!((5..8).contains(&batches.get()), "{} batches", batches.get());
    assert_eq!((first.epoch(), first.step()), (0, STEPS));
    assert_eq!(ends.get(), 0, "training goes on in another process");
    assert!(first.wait_for_save().unwrap().is_none(), "nothing is going on any more");
    assert!(dir.path().join(format!("s{before}/manifest.bin")).exists());

    let before = first.state_hash().unwrap();
    first.train(1).unwrap();
    assert_eq!(first.state_hash().unwrap(), before, "nothing is trained any more");
    drop(first);

    // Counted among the samples, the epoch lacks its end alone.
    let group = Some(ProcessGroup::solo());
    let options = LoadOptions { group, device: Some(Device::Cpu), ..LoadOptions::default() };
    let mut resumed =
        equip(NNHandler::load(dir.path().join(format!("s{STEPS}")), options).unwrap());
    assert_eq!(resumed.samples_in_epoch() as i64, SAMPLES, "all of them");
    resumed.train(2).unwrap();
    assert_eq!(resumed.preempted(), None, "it does not watch");
    assert_eq!((resumed.epoch(), resumed.step()), (2, 2 * STEPS));
    assert_eq!(resumed.state_hash().unwrap(), whole.state_hash().unwrap());

    // The process was told, whoever watches next.
    let mut next = fresh(&solo);
    next.auto_save(Every::Off, dir.path(), "next{step}").unwrap();
    next.save_on_signal(true).unwrap();
    next.train(2).unwrap();
    assert_eq!((next.preempted(), next.step()), (Some(Preempted::Signal(SIGUSR1)), 1));
    assert!(dir.path().join("next1").exists());
}

#[test]
fn ranks_that_watch_differently_are_told_so_before_training() {
    let _generator = GENERATOR.lock();
    let deadlines = Deadlines { progress: Duration::from_secs(20), ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(2).unwrap(), deadlines);
    let dir = tempfile::tempdir().unwrap();
    let ranks = groups.into_iter().map(|group| {
        let path = dir.path().to_owned();
        std::thread::spawn(move || {
            let mut handler = fresh(&group);
            handler.auto_save(Every::Off, path, "s{step}").unwrap();
            let margin = Duration::from_secs(u64::from(group.rank().get()));
            handler.save_before_time_limit(Some(margin)).unwrap();
            handler.train(1).unwrap_err()
        })
    });
    for rank in ranks.collect::<Vec<_>>() {
        let error = rank.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::Disagreement);
        assert!(error.to_string().contains("save_before_time_limit"), "{error}");
    }
}
