//! Every kind of box, and every part of a training's state, changed right after the call: what is
//! stored is what was there at the call.

use std::collections::BTreeMap;

use tch::no_grad;

use super::*;
use crate::catalog;
use crate::state::Values;
use crate::sync::explore::tier;
use crate::torch::{
    Ema, EmaConfig, GradScaler, GradScalerConfig, RandomState, Scheduler, SchedulerUnit, StepLr,
};

type Bytes = BTreeMap<String, Vec<u8>>;

/// One variable of each layout and of several kinds; which of them are trained.
fn every_layout() -> nn::VarStore {
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let of = |kind, shape: &[i64]| Tensor::zeros(shape, (kind, Device::Cpu));
    let float = |shape: &[i64]| of(Kind::Float, shape);
    let tied = float(&[4, 3]);
    let tensors = [
        ("contiguous", float(&[5, 7]), true),
        ("transposed", float(&[6, 4]).transpose(0, 1), true),
        ("rows", float(&[9, 3]).narrow(0, 2, 4), true),
        ("columns", float(&[5, 8]).narrow(1, 3, 2), true),
        ("every_other", float(&[12]).slice(0, 1, 12, 2), true),
        ("channels_last", float(&[2, 4, 4, 3]).permute([0, 3, 1, 2]), true),
        ("tied_a", tied.shallow_clone(), true),
        ("tied_b", tied, true),
        ("scalar", of(Kind::Double, &[]), true),
        ("empty", float(&[0, 3]), true),
        ("bf16", of(Kind::BFloat16, &[5, 3]), true),
        ("bf16_strided", of(Kind::BFloat16, &[4, 3]).transpose(0, 1), false),
        ("f16", of(Kind::Half, &[7]), false),
        ("broadcast", float(&[1, 3]).expand([4, 3], false), false),
        ("counts", of(Kind::Int64, &[3]), false),
        ("mask", of(Kind::Bool, &[9]), false),
        ("bytes", of(Kind::Uint8, &[2, 2]), false),
    ];
    for (name, tensor, is_trained) in tensors {
        let _ = root.add(name, tensor, is_trained);
    }
    store
}

/// Other values for those that are trained, or for the others.
fn change(store: &nn::VarStore, is_trained: bool, round: i64) {
    for (name, variable) in store.variables() {
        if variable.requires_grad() == is_trained && name != "broadcast" {
            let count = i64::try_from(variable.numel()).unwrap();
            // Of truth there are two values, each of which becomes the other.
            let period = if variable.kind() == Kind::Bool { 2.0 } else { 97.0 };
            let values = (Tensor::arange(count, CPU) + round).remainder(period);
            let values = values.view_as(&variable).to_kind(variable.kind());
            no_grad(|| variable.shallow_clone().copy_(&values));
        }
    }
}

fn boxes(state: &StateDict) -> Bytes {
    let tensors = state.tensors().map(|(name, boxes)| {
        let mut bytes = vec![0; usize::try_from(boxes[0].spec.size_bytes()).unwrap()];
        boxes[0].source.read_into(0, &mut bytes).unwrap();
        (name.to_string(), bytes)
    });
    tensors.collect()
}

/// What is stored of the tensors of `state`, and the values beside them.
fn stored(group: &ProcessGroup, storage: &Arc<dyn Storage>, state: &StateDict) -> (Bytes, Values) {
    let sizes = state.tensors().map(|(name, boxes)| (name.clone(), boxes[0].spec.clone()));
    let mut buffers: Vec<_> = sizes
        .map(|(name, spec)| {
            let bytes = vec![0; usize::try_from(spec.size_bytes()).unwrap()];
            (name, spec, bytes)
        })
        .collect();
    let mut targets = LoadTargets::new();
    for (name, spec, bytes) in &mut buffers {
        targets.add(name.clone(), spec.clone(), Box::new(bytes.as_mut_slice())).unwrap();
    }
    let at = Wanted::parse("runs/a").unwrap();
    let rules = LoadRules { strict: true, ..LoadRules::default() };
    load(group, storage.as_ref(), &at, &mut targets, &rules, Atomicity::Atomic).unwrap();
    drop(targets);
    let found = catalog::find(storage.as_ref(), &at).unwrap();
    let bytes = buffers.into_iter().map(|(name, _, bytes)| (name.to_string(), bytes));
    (bytes.collect(), found.manifest.rank_values(group.rank()).cloned().unwrap_or_default())
}

fn begin(
    start: Start,
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    state: &StateDict,
) -> PendingSave {
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    let path = CheckpointPath::parse("runs/a").unwrap();
    start(group, storage, &path, state, &options, Box::new(|_| {})).unwrap()
}

/// Both ways to save, with whether it overlaps.
const STARTS: [(Start, bool); 2] = [(save_async, false), (save_async_overlapped, true)];

/// Rounds that have to end within one deadline, on a machine that may be busy with others: the
/// thread that saves leaves the cores to them.
const AT_ONCE: usize = 20;

fn rounds_of_every_layout(rounds: std::ops::Range<i64>) {
    let (store, group) = (every_layout(), ProcessGroup::solo());
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    for round in rounds {
        [true, false].into_iter().for_each(|trained| change(&store, trained, round));
        let mut state = StateDict::new();
        add_var_store(&mut state, &Component::model(), "", &store).unwrap();
        let expected = boxes(&state);
        let (start, overlaps) = STARTS[usize::from(round % 2 == 1)];
        let pending = begin(start, &group, &storage, &state);
        change(&store, false, round + 41);
        if overlaps {
            pending.wait_copied();
        }
        change(&store, true, round + 41);
        pending.wait().unwrap();
        let changed = boxes(&state);
        let (found, _) = stored(&group, &storage, &state);
        for (name, bytes) in &expected {
            assert_eq!(&found[name], bytes, "{name} in round {round}");
            let is_fixed = ["broadcast", "empty"].contains(&name.as_str());
            assert!(is_fixed || changed[name] != *bytes, "{name} was not changed");
        }
    }
}

#[test]
fn every_layout_is_stored_as_it_was_at_the_call() {
    let rounds = i64::try_from(tier::count(100, 1000)).unwrap();
    for begin in (0..rounds).step_by(AT_ONCE) {
        let end = rounds.min(begin + i64::try_from(AT_ONCE).unwrap());
        in_time(move || rounds_of_every_layout(begin..end));
    }
    tier::figure("snapshots of every layout, changed right after the call", rounds);
}

/// All that a training has beside its model, in one state.
struct Whole {
    training: Training,
    ema: Ema,
    scaler: GradScaler,
    scheduler: Scheduler,
    random: RandomState,
}

impl Whole {
    fn new() -> Self {
        let mut training = Training::new();
        let ema = Ema::new(EmaConfig::default(), &training.store).unwrap();
        let scaler = GradScaler::new(GradScalerConfig::default()).unwrap();
        let schedule = StepLr { step_size: 3, gamma: 0.5 };
        let unit = SchedulerUnit::Step;
        let scheduler = Scheduler::new(schedule, unit, &mut training.optimizer).unwrap();
        Self { training, ema, scaler, scheduler, random: RandomState::of(Device::Cpu) }
    }

    fn state(&self) -> StateDict {
        let mut state = self.training.state();
        self.ema.save_state("ema", &mut state).unwrap();
        self.scaler.save_state("scaler", &mut state).unwrap();
        self.scheduler.save_state("scheduler", &mut state).unwrap();
        self.random.save_state("rng", &mut state).unwrap();
        state
    }

    /// What comes before the optimizer's step: buffers and chance.
    fn forward(&mut self) {
        self.training.forward_and_backward();
        let _ = Tensor::randn([3], CPU);
    }

    fn update(&mut self) {
        self.training.optimizer.step().unwrap();
        self.scheduler.advance(&mut self.training.optimizer, None).unwrap();
        self.scaler.update(false);
        self.ema.update().unwrap();
        self.ema.swap().unwrap();
        self.ema.swap().unwrap();
    }
}

#[test]
fn a_step_of_everything_right_after_the_call_is_not_saved() {
    in_time(|| {
        let mut whole = Whole::new();
        for round in 0..20 {
            let (start, overlaps) = STARTS[round % 2];
            let (group, storage) = (whole.training.group.clone(), whole.training.storage.clone());
            let state = whole.state();
            let (expected, values, chance) =
                (boxes(&state), state.values.clone(), state.rank_values.clone());
            let pending = begin(start, &group, &storage, &state);
            whole.forward();
            if overlaps {
                pending.wait_copied();
            }
            whole.update();
            pending.wait().unwrap();
            let now = whole.state();
            assert!(now.values != values && now.rank_values != chance, "nothing was changed");
            let (found, found_chance) = stored(&group, &storage, &state);
            assert_eq!(found, expected, "round {round}");
            assert!(found_chance == chance, "random state in round {round}");
            let at = Wanted::parse("runs/a").unwrap();
            let found = catalog::find(storage.as_ref(), &at).unwrap();
            assert!(*found.manifest.values() == values, "values in round {round}");
            assert!(expected.keys().any(|name| name.starts_with("ema.")), "{:?}", expected.keys());
        }
    });
}
