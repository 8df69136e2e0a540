//! Saves beside training with tensors of libtorch: what is stored is what the tensors were.

mod changes;
mod layouts;

use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Kind, Tensor, nn};

use super::{AdamW, Optimizer, TchSink, TchSource, add_var_store};
use crate::error::{ErrorKind, Result};
use crate::load::{Atomicity, load};
use crate::plan::load::LoadRules;
use crate::save::{Checkpoint, PendingSave, SaveOptions, save_async, save_async_overlapped};
use crate::state::{LoadTargets, StateDict, Stateful, TensorSource};
use crate::storage::{MemoryStorage, Storage};
use crate::tensor::{Component, TensorName};
use crate::{CheckpointPath, OnExisting, ProcessGroup, catalog::Wanted};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A model with a buffer, and its optimizer.
struct Training {
    store: nn::VarStore,
    weight: Tensor,
    buffer: Tensor,
    optimizer: Optimizer,
    group: ProcessGroup,
    storage: Arc<dyn Storage>,
}

type Start = fn(
    &ProcessGroup,
    &Arc<dyn Storage>,
    &CheckpointPath,
    &StateDict,
    &SaveOptions,
    crate::save::AfterCommit,
) -> Result<PendingSave>;

impl Training {
    fn new() -> Self {
        let store = nn::VarStore::new(Device::Cpu);
        let weight = store.root().ones("weight", &[40, 30]);
        let buffer = store.root().zeros_no_train("buffer", &[30]);
        let optimizer = Optimizer::new(AdamW { lr: 0.1, ..AdamW::default() }, &store).unwrap();
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        Self { store, weight, buffer, optimizer, group: ProcessGroup::solo(), storage }
    }

    /// Forward and backward change the buffer alone.
    fn forward_and_backward(&mut self) {
        self.optimizer.zero_grad().unwrap();
        let _ = self.buffer.g_add_scalar_(1.0);
        self.weight.square().sum(Kind::Float).backward();
    }

    fn step(&mut self) {
        self.forward_and_backward();
        self.optimizer.step().unwrap();
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        add_var_store(&mut state, &Component::model(), "", &self.store).unwrap();
        self.optimizer.save_state("optimizer", &mut state).unwrap();
        state
    }

    fn start(&self, start: Start) -> PendingSave {
        let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
        let path = CheckpointPath::parse("runs/a").unwrap();
        start(&self.group, &self.storage, &path, &self.state(), &options, Box::new(|_| {})).unwrap()
    }

    /// Weight, buffer and first moment.
    fn now(&self) -> [Tensor; 3] {
        let state = self.state();
        ["weight", "buffer", "optimizer.weight.exp_avg"].map(|name| {
            let entry = &state.boxes(name)[0];
            let mut bytes = vec![0u8; usize::try_from(entry.spec.size_bytes()).unwrap()];
            entry.source.read_into(0, &mut bytes).unwrap();
            Tensor::from_data_size(&bytes, &[i64::try_from(bytes.len()).unwrap()], Kind::Uint8)
        })
    }

    fn stored(&self) -> [Tensor; 3] {
        let names = ["weight", "buffer", "optimizer.weight.exp_avg"];
        let tensors = [&[40, 30][..], &[30], &[40, 30]].map(|shape| Tensor::zeros(shape, CPU));
        let mut targets = LoadTargets::new();
        for (name, tensor) in names.iter().zip(&tensors) {
            let sink = TchSink::new(tensor).unwrap();
            let spec = sink.spec().clone();
            targets.add(TensorName::new(*name).unwrap(), spec, Box::new(sink)).unwrap();
        }
        let rules = LoadRules { strict: false, ..LoadRules::default() };
        let (storage, at) = (self.storage.as_ref(), Wanted::parse("runs/a").unwrap());
        load(&self.group, storage, &at, &mut targets, &rules, Atomicity::Atomic).unwrap();
        drop(targets);
        tensors.map(|tensor| tensor.view([-1]).view_dtype(Kind::Uint8))
    }
}

/// Runs `body` on a thread of its own, with a deadline.
fn in_time(body: impl FnOnce() + Send + 'static) {
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        body();
        let _ = sender.send(());
    });
    done.recv_timeout(Duration::from_secs(60)).expect("it fails, or hangs");
}

#[test]
fn versions_count_changes_in_place_through_every_view() {
    let base = Tensor::zeros([4, 6], CPU);
    let variable = Tensor::ones([4, 6], CPU).set_requires_grad(true);
    for tensor in [&base, &variable] {
        let whole = TchSource::new(tensor).unwrap();
        let strided = TchSource::new(&tensor.transpose(0, 1)).unwrap();
        let part = TchSource::new(&tensor.narrow(0, 1, 2)).unwrap();
        let sources = [whole, strided, part];
        let versions = || sources.iter().map(|s| s.version().unwrap()).collect::<Vec<_>>();
        let mut before = versions();
        let changes: [fn(&Tensor); 3] = [
            |t| drop(tch::no_grad(|| t.shallow_clone().g_add_scalar_(1.0))),
            |t| drop(tch::no_grad(|| t.get(0).fill_(3.0))),
            |t| tch::no_grad(|| t.shallow_clone().copy_(&t.neg())),
        ];
        for change in changes {
            change(tensor);
            let after = versions();
            assert!(before.iter().zip(&after).all(|(a, b)| a < b), "{before:?} {after:?}");
            before = after;
        }
        // Reading, also by autograd, changes nothing.
        let _ = sources.each_ref().map(|s| s.read_into(0, &mut [0; 9]).unwrap());
        if tensor.requires_grad() {
            tensor.square().sum(Kind::Float).backward();
        }
        assert_eq!(before, versions());
    }
}

#[test]
fn trainable_parameters_and_moments_are_steady_and_a_step_is_seen() {
    let mut training = Training::new();
    training.step();
    let state = training.state();
    let steady = |name: &str| state.boxes(name)[0].source.is_steady();
    assert!(steady("weight") && steady("optimizer.weight.exp_avg_sq"));
    assert!(steady("optimizer.weight.step") && !steady("buffer"));
    let version = |name: &str| state.boxes(name)[0].source.version().unwrap();
    let names = ["weight", "optimizer.weight.exp_avg", "optimizer.weight.exp_avg_sq"];
    let before = names.map(version);
    training.forward_and_backward();
    assert_eq!(names.map(version), before);
    training.optimizer.step().unwrap();
    assert!(names.map(version).iter().zip(before).all(|(now, before)| *now > before));
}

#[test]
fn a_step_right_after_the_call_is_not_saved() {
    in_time(|| {
        let mut training = Training::new();
        for _ in 0..100 {
            training.step();
            let before = training.now();
            let pending = training.start(save_async);
            training.step();
            pending.wait().unwrap();
            assert!(training.stored().iter().zip(&before).all(|(a, b)| a.equal(b)));
        }
    });
}

#[test]
fn forward_and_backward_run_beside_the_copy_and_the_step_waits() {
    in_time(|| {
        let mut training = Training::new();
        for _ in 0..100 {
            training.step();
            let before = training.now();
            let pending = training.start(save_async_overlapped);
            training.forward_and_backward();
            pending.wait_copied();
            training.optimizer.step().unwrap();
            pending.wait().unwrap();
            assert!(training.stored().iter().zip(&before).all(|(a, b)| a.equal(b)));
        }
    });
}

/// Whether the copy came first or the step, a step that did not wait fails the save or is not in
/// it.
#[test]
fn a_step_that_does_not_wait_never_gets_into_a_checkpoint() {
    in_time(|| {
        let mut training = Training::new();
        for _ in 0..20 {
            training.step();
            let before = training.now();
            let pending = training.start(save_async_overlapped);
            training.step();
            match pending.wait() {
                Ok(Checkpoint { .. }) => {
                    assert!(training.stored().iter().zip(&before).all(|(a, b)| a.equal(b)));
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidInput);
                    assert!(error.help().unwrap().contains("wait_copied()"), "{error}");
                    assert!(error.tensor().unwrap().contains("weight"), "{error}");
                }
            }
        }
    });
}
