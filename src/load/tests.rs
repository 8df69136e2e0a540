//! Loads into the memory of devices, by several ranks.

use std::time::Duration;

mod once;

use super::*;
use crate::catalog::CheckpointPath;
use crate::device::fake::{FakeDevice, FakeTensor, Faults};
use crate::group::Deadlines;
use crate::rank::{Rank, WorldSize};
use crate::save::{SaveOptions, save};
use crate::slice::Slice;
use crate::state::StateDict;
use crate::storage::MemoryStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// More than all slots of a ring.
const ROWS: u64 = 20_000;
const NAMES: [&str; 2] = ["large", "small"];

fn spec(name: &str) -> TensorSpec {
    let rows = if name == "large" { ROWS } else { 3 };
    TensorSpec::new(Dtype::U8, vec![rows, 1000]).unwrap()
}

fn stored(name: &str) -> Vec<u8> {
    let bytes = usize::try_from(spec(name).size_bytes()).unwrap();
    (0..bytes).map(|i| u8::try_from((i / 7 + i) % 251).unwrap()).collect()
}

fn checkpoint() -> MemoryStorage {
    let (storage, mut state) = (MemoryStorage::new(), StateDict::new());
    for name in NAMES {
        let (tensor, source) = (TensorName::new(name).unwrap(), Arc::new(stored(name)));
        state.add(&Component::model(), tensor, spec(name), source).unwrap();
    }
    let path = CheckpointPath::parse("runs/a").unwrap();
    save(&ProcessGroup::solo(), &storage, &path, &state, &SaveOptions::default()).unwrap();
    storage
}

/// The tensors of one rank on its device, filled with 99.
struct OnDevice(Vec<(TensorName, FakeTensor)>);

impl OnDevice {
    fn new(faults: Faults) -> Self {
        Self::on(&FakeDevice::new("fake:0", faults))
    }

    fn on(device: &Arc<FakeDevice>) -> Self {
        let tensor = |name: &&str| {
            let bytes = vec![99; stored(name).len()];
            (TensorName::new(*name).unwrap(), FakeTensor::new(device, bytes))
        };
        Self(NAMES.iter().map(tensor).collect())
    }

    fn is_all(&self, expected: impl Fn(&str) -> Vec<u8>) -> bool {
        self.0.iter().all(|(name, tensor)| tensor.now() == expected(name.as_str()))
    }
}

impl Destination for OnDevice {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        for (name, tensor) in &mut self.0 {
            let spec = spec(name.as_str());
            let slice = Slice::full(spec.shape());
            targets.add_slice(name.clone(), spec, slice, Box::new(tensor))?;
        }
        Ok(targets)
    }
}

fn groups(world: u32) -> Vec<ProcessGroup> {
    let deadlines = Deadlines { progress: Duration::from_secs(20), ..Deadlines::default() };
    ProcessGroup::threads(WorldSize::new(world).unwrap(), deadlines)
}

/// All load, each into what `model` makes for it.
fn load_on(
    groups: &[ProcessGroup],
    storage: &MemoryStorage,
    model: impl Fn(&ProcessGroup) -> OnDevice + Sync,
    replicas: Replicas,
    atomicity: Atomicity,
) -> Vec<(Result<Loaded>, OnDevice)> {
    let model = &model;
    std::thread::scope(|scope| {
        let ranks = groups.iter().map(|group| {
            scope.spawn(move || {
                let mut model = model(group);
                let wanted = Wanted::parse("runs/a").unwrap();
                let rules = LoadRules { replicas, ..LoadRules::default() };
                let loaded = load(group, storage, &wanted, &mut model, &rules, atomicity);
                (loaded, model)
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Two ranks load, of which the second has a device with `faults`.
fn load_on_two(
    storage: &MemoryStorage,
    faults: Faults,
    atomicity: Atomicity,
) -> Vec<(Result<Loaded>, OnDevice)> {
    let model = |group: &ProcessGroup| {
        OnDevice::new(if group.is_coordinator() { Faults::default() } else { faults })
    };
    load_on(&groups(2), storage, model, Replicas::ReadEach, atomicity)
}

/// Flips a bit in the last byte of the data.
fn damage(storage: &MemoryStorage) {
    let directory = storage.open_dir("runs/a".as_ref()).unwrap();
    let names = directory.list().unwrap();
    let data = names.iter().find(|entry| entry.name.ends_with(".safetensors")).unwrap();
    let file = std::path::Path::new("runs/a").join(&data.name);
    storage.corrupt(&file, storage.read(&file).unwrap().len() as u64 - 1, 1).unwrap();
}

#[test]
fn tensors_of_devices_are_filled_while_copies_lag_behind() {
    let storage = checkpoint();
    let lagging = Faults { delay: Duration::from_millis(2), ..Faults::default() };
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        for (loaded, model) in load_on_two(&storage, lagging, atomicity) {
            loaded.unwrap();
            assert!(model.is_all(stored), "{atomicity:?}");
        }
    }
}

#[test]
fn a_copy_that_fails_on_one_rank_fails_the_load_on_all_and_names_it() {
    let storage = checkpoint();
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        for number in [1, 4, 6] {
            for faults in [
                Faults { refuse: Some(number), ..Faults::default() },
                Faults { fail: Some(number), ..Faults::default() },
            ] {
                for (loaded, _) in load_on_two(&storage, faults, atomicity) {
                    let error = loaded.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Device, "{faults:?}");
                    assert_eq!((error.rank(), error.phase()), (Some(Rank::new(1)), Some("place")));
                    assert!(error.tensor().is_some(), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_device_changes_only_after_every_rank_has_verified_its_bytes() {
    let storage = checkpoint();
    damage(&storage);
    for (loaded, model) in load_on_two(&storage, Faults::default(), Atomicity::Atomic) {
        assert_eq!(loaded.unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(model.is_all(|name| vec![99; stored(name).len()]));
    }
}
