//! What has not changed since an earlier checkpoint of the directory is linked and not written
//! again, and never anything else.

mod changed;
mod linked;
mod lost;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch_checkpoint::catalog;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{Checkpoint, SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::verify::verify;
use tch_checkpoint::{OnExisting, Result};

use crate::harness::{content, name, path, wanted};

/// A tensor: component, name, rows of 100 F32, and whether ranks hold rows of it or all of it.
#[derive(Clone)]
struct Held {
    component: &'static str,
    name: String,
    rows: u64,
    generation: u64,
    is_sharded: bool,
}

impl Held {
    fn spec(&self) -> TensorSpec {
        TensorSpec::new(Dtype::F32, [self.rows, 100]).unwrap()
    }
}

/// What a job holds: a trunk that stays, a head and the state of its optimizer.
#[derive(Clone)]
struct Job {
    tensors: Vec<Held>,
    aliases: Vec<(&'static str, &'static str)>,
}

impl Job {
    fn usual() -> Self {
        let held = |component, name: &str, rows| Held {
            component,
            name: name.to_owned(),
            rows,
            generation: 1,
            is_sharded: false,
        };
        let tensors = vec![
            held("trunk", "trunk.0.weight", 700),
            held("trunk", "trunk.0.bias", 1),
            held("trunk", "trunk.1.weight", 333),
            held("head", "head.weight", 50),
            held("optimizer", "optimizer.head.weight.exp_avg", 50),
        ];
        Self { tensors, aliases: Vec::new() }
    }

    /// One step of training: everything but the trunk changes.
    fn step(mut self) -> Self {
        let trained = self.tensors.iter_mut().filter(|t| t.component != "trunk");
        trained.for_each(|t| t.generation += 1);
        self
    }

    fn tensor(&mut self, name: &str) -> &mut Held {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    fn state(&self, group: &ProcessGroup) -> StateDict {
        let mut state = StateDict::new();
        for tensor in &self.tensors {
            let (component, slice) = (Component::new(tensor.component).unwrap(), tensor.of(group));
            let bytes = content(&tensor.name, &tensor.spec(), &slice, tensor.generation);
            let name = name(&tensor.name);
            state.add_slice(&component, name, tensor.spec(), slice, Arc::new(bytes)).unwrap();
        }
        for (alias, target) in &self.aliases {
            state.add_alias(name(alias), name(target)).unwrap();
        }
        state
    }

    fn save_on(
        &self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        at: &Path,
    ) -> Result<Checkpoint> {
        let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
        save(group, storage, &path(at.to_str().unwrap()), &self.state(group), &options)
    }

    fn save(&self, group: &ProcessGroup, at: &Path) -> Checkpoint {
        self.save_on(group, &LocalStorage::new(), at).unwrap()
    }

    /// Loads `at`, which must hold exactly this, and be whole.
    fn check(&self, group: &ProcessGroup, storage: &dyn Storage, at: &Path) {
        let mut bytes: Vec<Vec<u8>> =
            self.tensors.iter().map(|t| vec![0; t.spec().size_bytes() as usize]).collect();
        let mut targets = LoadTargets::new();
        for (tensor, bytes) in self.tensors.iter().zip(&mut bytes) {
            targets.add(name(&tensor.name), tensor.spec(), Box::new(bytes.as_mut_slice())).unwrap();
        }
        let (at, rules) = (wanted(at.to_str().unwrap()), LoadRules::default());
        load(group, storage, &at, &mut targets, &rules, Atomicity::Atomic).unwrap();
        drop(targets);
        for (tensor, bytes) in self.tensors.iter().zip(bytes) {
            let whole = Slice::full(tensor.spec().shape());
            let meant = content(&tensor.name, &tensor.spec(), &whole, tensor.generation);
            assert!(bytes == meant, "{}", tensor.name);
        }
        if group.is_coordinator() {
            let found = catalog::find(storage, &at).unwrap();
            assert!(verify(&found, &mut |_| ()).unwrap().damage.is_empty());
        }
    }
}

impl Held {
    fn of(&self, group: &ProcessGroup) -> Slice {
        let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        let rows = if self.is_sharded {
            self.rows * rank / n..self.rows * (rank + 1) / n
        } else {
            0..self.rows
        };
        Slice::new(vec![rows.start, 0], vec![rows.end - rows.start, 100]).unwrap()
    }
}

/// The data files of a component of a checkpoint.
fn files_of(at: &Path, component: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    let prefix = format!("{component}-");
    let mut files: Vec<_> = entries
        .filter(|file| file.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
        .collect();
    files.sort();
    files
}

/// How many names each of these files has.
fn names(files: &[PathBuf]) -> Vec<u64> {
    files.iter().map(|file| std::fs::metadata(file).unwrap().nlink()).collect()
}

/// Bytes of the data files of a component.
fn bytes_of(at: &Path, component: &str) -> u64 {
    files_of(at, component).iter().map(|file| std::fs::metadata(file).unwrap().len()).sum()
}
