//! A training whose result can be told exactly, and the loop around it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch_checkpoint::checkpointer::{
    At, Checkpointer, CheckpointerConfig, Location, Outcome, Parts, Reason,
};
use tch_checkpoint::state::{LoadTargets, PerRank, StateDict, Stateful, Values};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ProcessGroup, Result};

const WEIGHTS: usize = 1000;
pub const STEPS_OF_EPOCH: u64 = 4;

/// Weights that depend on every step that was made, and a place in the data of each rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Toy {
    pub weights: Vec<u8>,
    pub place: u64,
}

pub struct Weights<'a>(pub &'a mut Vec<u8>);

impl Toy {
    pub fn new() -> Self {
        Self { weights: vec![0; WEIGHTS], place: 0 }
    }

    pub fn step(&mut self, step: u64, rank: u32) {
        for (weight, index) in self.weights.iter_mut().zip(0_u64..) {
            let mixed = (step ^ index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            *weight = weight.wrapping_mul(3).wrapping_add((mixed >> 56) as u8);
        }
        self.place += u64::from(rank) + 1;
    }

    /// What so many steps lead to on a rank.
    pub fn after(steps: u64, rank: u32) -> Self {
        let mut toy = Self::new();
        (1..=steps).for_each(|step| toy.step(step, rank));
        toy
    }

    /// Calls `with` with all its parts.
    pub fn with<R>(&mut self, with: impl FnOnce(&mut Parts<'_>) -> R) -> R {
        let (mut weights, mut place) = (Weights(&mut self.weights), PerRank(&mut self.place));
        with(&mut Parts::new().model(&mut weights).dataloader("train", &mut place))
    }
}

impl Stateful for Weights<'_> {
    fn save_state(&self, _prefix: &str, state: &mut StateDict) -> Result<()> {
        state.add(&Component::model(), name(), spec(), Arc::new(self.0.clone()))
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        targets.add(name(), spec(), Box::new(self.0.as_mut_slice()))
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        Ok(())
    }
}

fn name() -> TensorName {
    TensorName::new("weights").unwrap()
}

fn spec() -> TensorSpec {
    TensorSpec::new(Dtype::U8, [WEIGHTS as u64]).unwrap()
}

/// The configuration of a run in `directory/run`.
pub fn config(directory: &Path) -> CheckpointerConfig {
    CheckpointerConfig {
        location: Location::Path(directory.to_path_buf()),
        experiment: "run".to_owned(),
        save_on_signal: false,
        save_before_time_limit: false,
        ..CheckpointerConfig::default()
    }
}

pub fn checkpointer(group: &ProcessGroup, config: CheckpointerConfig) -> Result<Checkpointer> {
    Checkpointer::with_storage(group, Arc::new(LocalStorage::new()), config)
}

/// Where training is after `step` steps.
pub fn at(step: u64) -> At {
    At::step(step).epoch(step / STEPS_OF_EPOCH)
}

/// What a run did.
pub struct Ran {
    pub toy: Toy,
    pub first: u64,
    /// The steps at which a checkpoint was begun, and why.
    pub saved: Vec<(u64, Reason)>,
    pub checkpointer: Checkpointer,
}

/// Resumes, trains up to `steps` with `metrics` of each step, and finishes.
pub fn run(
    group: &ProcessGroup,
    config: CheckpointerConfig,
    steps: u64,
    metrics: impl Fn(u64) -> Vec<(&'static str, f64)>,
) -> Result<Ran> {
    let mut checkpointer = checkpointer(group, config)?;
    let mut toy = Toy::new();
    let resumed = toy.with(|parts| checkpointer.resume(parts))?;
    let first = resumed.map_or(0, |resumed| resumed.state.step);
    let mut saved = Vec::new();
    let measured = |step: u64| {
        metrics(step).into_iter().fold(at(step), |at, (name, value)| at.metric(name, value))
    };
    for step in first + 1..=steps {
        toy.step(step, group.rank().get());
        let stepped = toy.with(|parts| checkpointer.step_callback(&measured(step), parts))?;
        if let Some((reason, Outcome::Saved(_) | Outcome::Started(_))) = stepped.save {
            saved.push((step, reason));
        }
    }
    let last = steps.max(first);
    let finished = toy.with(|parts| checkpointer.finish(&measured(last), parts))?;
    if matches!(finished, Outcome::Saved(_)) {
        saved.push((last, Reason::End));
    }
    Ok(Ran { toy, first, saved, checkpointer })
}

pub fn no_metrics(_step: u64) -> Vec<(&'static str, f64)> {
    Vec::new()
}

/// The steps of the committed checkpoints in `directory/run`, newest first.
pub fn steps_of(checkpointer: &Checkpointer) -> Vec<u64> {
    let found = checkpointer.find_checkpoints().unwrap();
    found.into_iter().filter(|info| info.is_committed()).map(|info| info.step).collect()
}

/// The file of the checkpoint of `step` whose name begins with `prefix`.
pub fn file_of(directory: &Path, step: u64, prefix: &str) -> PathBuf {
    let dir = directory.join(format!("run/checkpoint_step_{step:08}"));
    let entries = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    let mut found: Vec<PathBuf> = entries.filter(named).collect();
    found.sort();
    found.remove(0)
}

/// Flips one bit of the last byte.
pub fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}
