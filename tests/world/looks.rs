//! What lies in a directory of checkpoints, and whose it is.

use std::path::Path;

use tch_checkpoint::catalog::{Wanted, find};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::state::LoadTargets;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Dtype, TensorName, TensorSpec};
use tch_checkpoint::verify::verify;
use tch_checkpoint::{ErrorKind, ProcessGroup};

use crate::program::{content, name_of};

pub fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The steps of all visible checkpoints.
pub fn steps(dir: &Path) -> Vec<u64> {
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    entries(dir).into_iter().filter_map(step).collect()
}

/// What is hidden and no lock.
pub fn debris(dir: &Path) -> Vec<String> {
    let is_debris = |name: &String| name.starts_with('.') && name != ".tch-checkpoint.lock";
    entries(dir).into_iter().filter(is_debris).collect()
}

/// Id of the save under the name of `step` and the job that saved it: every byte is of that job and
/// that step, and every file of that save.
pub fn owner(dir: &Path, step: u64) -> (String, u8) {
    let path = dir.join(name_of(step));
    let wanted = Wanted::parse(&path).unwrap();
    let found = find(&LocalStorage::new(), &wanted).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let verified = verify(&found, &mut |_| ()).unwrap();
    assert_eq!(verified.damage, [], "{path:?}");
    let manifest = &found.manifest;
    let id = manifest.save_id().to_string();
    let tag = manifest.values().int("tag").unwrap() as u8;
    assert_eq!(manifest.step(), step);
    for file in entries(&path) {
        let plain = ["manifest.bin", "model.safetensors.index.json"].contains(&file.as_str());
        assert!(plain || file.contains(&id), "{path:?} of {id} holds {file}");
    }
    let (ranks, bytes) = (u64::from(manifest.world_size().get()), manifest.tensor_bytes());
    let mut held = vec![0; bytes as usize];
    let mut targets = LoadTargets::new();
    let spec = TensorSpec::new(Dtype::U8, vec![bytes]).unwrap();
    let name = TensorName::new("weights").unwrap();
    targets.add(name, spec, Box::new(held.as_mut_slice())).unwrap();
    let (group, rules) = (ProcessGroup::solo(), LoadRules::default());
    load(&group, &LocalStorage::new(), &wanted, &mut targets, &rules, Atomicity::Atomic).unwrap();
    drop(targets);
    let share = bytes / ranks;
    let right = |at: usize| {
        let (rank, at) = (at as u64 / share, at as u64 % share);
        content(tag, step, rank as u32, at)
    };
    let wrong = held.iter().enumerate().position(|(at, byte)| *byte != right(at));
    assert_eq!(wrong, None, "{path:?}: a byte of somebody else");
    (id, tag)
}

/// The newest checkpoint, if there is one.
pub fn newest(dir: &Path) -> Option<u64> {
    let wanted = Wanted::parse(dir.join("latest")).unwrap();
    match find(&LocalStorage::new(), &wanted) {
        Ok(found) => Some(found.manifest.step()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}
