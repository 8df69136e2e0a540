//! Every way in which a steady tensor can change between the call and its copy: it is stored as it
//! was, or the save fails and names it.

use parking_lot::{Condvar, Mutex};
use tch::no_grad;

use super::*;
use crate::Error;
use crate::group::Deadlines;
use crate::rank::WorldSize;
use crate::state::TensorSink;
use crate::tensor::{Dtype, TensorSpec};
use crate::torch::{Adam, Ema, EmaConfig, OptimizerConfig, RmsProp, Sgd, Sharded};

/// Versions of all steady boxes by name.
fn versions(state: &StateDict) -> Vec<(String, u64)> {
    let steady = state.tensors().flat_map(|(name, boxes)| boxes.iter().map(move |b| (name, b)));
    let steady = steady.filter(|(_, entry)| entry.source.is_steady());
    steady.map(|(name, e)| (name.to_string(), e.source.version().unwrap())).collect()
}

fn assert_all_moved(before: &[(String, u64)], after: &[(String, u64)]) {
    assert!(before.len() >= 2 && before.len() == after.len(), "{before:?} {after:?}");
    for ((name, before), (_, after)) in before.iter().zip(after) {
        assert!(after > before, "{name}: {before} {after}");
    }
}

fn state_of(store: &nn::VarStore, optimizer: &Optimizer) -> StateDict {
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "", store).unwrap();
    optimizer.save_state("optimizer", &mut state).unwrap();
    state
}

fn step(store: &nn::VarStore, optimizer: &mut Optimizer) {
    optimizer.zero_grad().unwrap();
    let losses = store.trainable_variables();
    let losses: Vec<_> = losses.iter().map(|t| t.square().sum(Kind::Float)).collect();
    Tensor::stack(&losses, 0).sum(Kind::Float).backward();
    optimizer.step().unwrap();
}

/// A large parameter, which ranks share, and small ones, which belong to one rank each.
fn model() -> nn::VarStore {
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    for (name, shape) in [("a", &[4][..]), ("b", &[300, 100]), ("c", &[7]), ("d", &[3, 2])] {
        let _ = root.ones(name, shape);
    }
    let strided = Tensor::ones([20, 5], CPU).transpose(0, 1);
    let _ = root.add("strided", strided, true);
    store
}

fn optimizers() -> Vec<OptimizerConfig> {
    vec![
        Sgd::default().into(),
        Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() }.into(),
        Adam { amsgrad: true, weight_decay: 0.1, ..Adam::default() }.into(),
        AdamW::default().into(),
        RmsProp { momentum: 0.9, centered: true, ..RmsProp::default() }.into(),
    ]
}

#[test]
fn a_step_of_any_optimizer_counts_every_tensor_that_it_changes() {
    for config in optimizers() {
        let store = model();
        let mut optimizer = Optimizer::new(config, &store).unwrap();
        // The first step may take another way than later ones.
        for _ in 0..3 {
            let before = versions(&state_of(&store, &optimizer));
            step(&store, &mut optimizer);
            assert_all_moved(&before, &versions(&state_of(&store, &optimizer)));
        }
    }
}

#[test]
fn what_other_ranks_have_updated_counts_as_well() {
    let deadlines = Deadlines { progress: Duration::from_secs(30), ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(3).unwrap(), deadlines);
    let ranks = groups.into_iter().map(|group| {
        std::thread::spawn(move || {
            let store = model();
            let spec = Sharded(AdamW::default());
            let mut optimizer = Optimizer::shared(spec, &store, &[], &group).unwrap();
            for _ in 0..2 {
                let before = versions(&state_of(&store, &optimizer));
                step(&store, &mut optimizer);
                assert_all_moved(&before, &versions(&state_of(&store, &optimizer)));
            }
        })
    });
    let ranks: Vec<_> = ranks.collect();
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

#[test]
fn what_a_load_writes_counts() {
    let whole = Tensor::zeros([4, 6], CPU);
    for tensor in [whole.shallow_clone(), whole.transpose(0, 1)] {
        let source = TchSource::new(&whole).unwrap();
        let mut sink = TchSink::new(&tensor).unwrap();
        let before = source.version().unwrap();
        sink.write_at(8, &[1; 4]).unwrap();
        let after = source.version().unwrap();
        assert!(after > before);
        if let Some(memory) = sink.bytes_mut() {
            memory.fill(2);
            assert!(source.version().unwrap() > after);
        }
    }
}

/// Keeps the saving thread from copying anything that comes after it.
#[derive(Clone, Default)]
struct Held(Arc<(Mutex<bool>, Condvar)>);

impl Held {
    fn release(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }
}

impl TensorSource for Held {
    fn read_into(&self, _offset: u64, _out: &mut [u8]) -> Result<()> {
        let mut released = self.0.0.lock();
        self.0.1.wait_while_for(&mut released, |released| !*released, Duration::from_secs(20));
        released.then_some(()).ok_or_else(|| Error::new(ErrorKind::Deadline, "never released"))
    }

    fn is_steady(&self) -> bool {
        true
    }
}

/// What it is called, and what it does.
type Change = (&'static str, fn(&mut Training));

/// Saves overlapped, changes something before anything steady is copied, and ends the save; with
/// what the state was at the call.
fn changed_after_the_call(
    change: impl FnOnce(&mut Training),
) -> (Training, Result<Checkpoint>, [Tensor; 3]) {
    let mut training = Training::new();
    training.step();
    let before = training.now();
    let (held, mut state) = (Held::default(), training.state());
    let (name, spec) = (TensorName::new("0first").unwrap(), TensorSpec::new(Dtype::U8, vec![1]));
    state.add(&Component::model(), name, spec.unwrap(), Arc::new(held.clone())).unwrap();
    let (group, storage) = (training.group.clone(), training.storage.clone());
    let path = CheckpointPath::parse("runs/a").unwrap();
    let (options, after) = (SaveOptions::default(), Box::new(|_: &Checkpoint| {}));
    let pending = save_async_overlapped(&group, &storage, &path, &state, &options, after).unwrap();
    drop(state);
    change(&mut training);
    held.release();
    let saved = pending.wait();
    (training, saved, before)
}

#[test]
fn what_leaves_the_values_alone_is_not_noticed_and_not_saved() {
    let changes: [Change; 6] = [
        ("frozen", |t| drop(t.weight.set_requires_grad(false))),
        ("other storage", |t| t.store.double()),
        ("other values", |t| t.weight.set_data(&Tensor::zeros([40, 30], CPU))),
        ("buffer", |t| t.forward_and_backward()),
        ("gradient", |t| t.optimizer.zero_grad().unwrap()),
        ("dropped", |t| {
            let group = t.group.clone();
            let (storage, kept) = (t.storage.clone(), t.weight.shallow_clone());
            *t = Training { group, storage, ..Training::new() };
            drop(kept);
        }),
    ];
    in_time(move || {
        for (what, change) in changes {
            let (training, saved, before) = changed_after_the_call(change);
            saved.unwrap_or_else(|e| panic!("{what}: {e}"));
            let equal = training.stored().iter().zip(&before).all(|(a, b)| a.equal(b));
            assert!(equal, "{what}");
        }
    });
}

#[test]
fn what_changes_a_steady_tensor_before_its_copy_fails_the_save() {
    let changes: [Change; 6] = [
        ("step", Training::step),
        ("step of its own", |t| no_grad(|| drop(t.weight.g_sub_scalar_(1.0)))),
        ("clamped in forward", |t| no_grad(|| drop(t.weight.clamp_(-0.5, 0.5)))),
        ("frozen, then changed", |t| {
            let mut frozen = t.weight.set_requires_grad(false);
            let _ = frozen.fill_(3.0);
        }),
        ("averages given to the model", |t| {
            let mut ema = Ema::new(EmaConfig::default(), &t.store).unwrap();
            ema.swap().unwrap();
        }),
        ("loaded", |t| {
            let mut sink = TchSink::new(&t.weight).unwrap();
            sink.write_at(0, &[0; 100]).unwrap();
        }),
    ];
    in_time(move || {
        for (what, change) in changes {
            let (training, saved, _) = changed_after_the_call(change);
            let error = saved.expect_err(what);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
            assert!(error.tensor().is_some_and(|name| name.contains("weight")), "{what}: {error}");
            let there =
                crate::catalog::find(training.storage.as_ref(), &Wanted::parse("runs/a").unwrap());
            assert!(there.is_err(), "{what}: nothing is committed");
        }
    });
}

/// Two names of one tensor are stored once, and guarded under the name that is stored.
#[test]
fn tied_parameters_are_guarded_through_either_handle() {
    let mut training = Training::new();
    let tied = training.weight.shallow_clone();
    {
        let mut variables = training.store.variables_.lock().unwrap();
        variables.named_variables.insert("another".to_owned(), tied.shallow_clone());
    }
    let state = training.state();
    let source = Arc::clone(&state.boxes("another")[0].source);
    assert!(source.is_steady() && state.boxes("weight").is_empty());
    for handle in [&mut training.weight, &mut tied.shallow_clone()] {
        let before = source.version().unwrap();
        no_grad(|| drop(handle.g_add_scalar_(1.0)));
        assert!(source.version().unwrap() > before);
    }
}
