//! What is done while memory is short, and what must be true afterwards.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tch_checkpoint::catalog::{self, CheckpointPath, Found, Order, Wanted};
use tch_checkpoint::export::{ExportOptions, HuggingFace, export};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::load::{Atomicity, load, read_tensor};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::repair::assess;
use tch_checkpoint::reshard::{ReshardOptions, reshard};
use tch_checkpoint::save::{SaveOptions, save, save_async};
use tch_checkpoint::single::{save_multi_files, save_single_file};
use tch_checkpoint::state::{LoadTargets, StateDict, TensorSink};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::verify::verify;
use tch_checkpoint::{Error, ErrorKind, OnExisting, Result, WorldSize};

use crate::allocator::{Refusal, refusing};

const HANG: Duration = Duration::from_secs(60);
/// More than one buffer of the writer, and of the reader.
const WEIGHT_BYTES: u64 = 9 << 20;
/// Tensors with names so long that plans, headers and manifests are large, while lists of them
/// are not.
const NAMES: usize = 40;
const NAME_BYTES: usize = 4000;

/// What an operation of one rank has at hand: made while there is memory.
pub struct Inputs {
    /// Where a checkpoint `old` and a file `one.safetensors` lie.
    dir: PathBuf,
    state: StateDict,
    buffers: Vec<Vec<u8>>,
}

type Operation = fn(&ProcessGroup, &mut Inputs) -> Result<()>;

pub struct Case {
    pub name: &'static str,
    /// How many large allocations it makes at the least.
    pub at_least: u64,
    ranks: u32,
    /// Whether an error must leave the buffers as they were.
    is_atomic: bool,
    run: Operation,
}

const fn case(name: &'static str, ranks: u32, at_least: u64, run: Operation) -> Case {
    Case { name, at_least, ranks, is_atomic: true, run }
}

pub const CASES: &[Case] = &[
    case("a_save", 2, 10, |g, i| i.save(g, &options(2))),
    case("a_save_with_an_audit", 2, 10, |g, i| {
        i.save(g, &SaveOptions { audit: true, ..options(2) })
    }),
    case("a_save_beside_training", 2, 10, Inputs::save_beside),
    case("a_save_as_one_file", 2, 10, |g, i| {
        save_single_file(g, &LocalStorage::new(), &i.at("new"), &i.state, &options(2)).map(drop)
    }),
    case("a_save_as_files", 2, 10, |g, i| {
        save_multi_files(g, &LocalStorage::new(), &i.at("new"), &i.state, &options(2)).map(drop)
    }),
    case("an_atomic_load", 2, 5, |g, i| i.load(g, "old", Atomicity::Atomic, &memory_sink)),
    Case {
        is_atomic: false,
        ..case("a_load_in_place", 2, 5, |g, i| i.load(g, "old", Atomicity::InPlace, &memory_sink))
    },
    case("a_load_through_copies", 2, 5, |g, i| i.load(g, "old", Atomicity::Atomic, &copying_sink)),
    case("a_load_of_one_file", 1, 5, |g, i| {
        i.load(g, "one.safetensors", Atomicity::Atomic, &memory_sink)
    }),
    case("verifying", 1, 2, |_, i| i.verify("old")),
    case("verifying_one_file", 1, 2, |_, i| i.verify("one.safetensors")),
    case("listing", 1, 1, |_, i| {
        let listed = catalog::find_checkpoints(&LocalStorage::new(), &i.dir, &Order::Latest)?;
        let names: Vec<_> = listed.iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["old"]);
        Ok(())
    }),
    case("looking_at_a_tensor", 1, 3, |_, i| {
        read_tensor(&LocalStorage::new(), &i.wanted("old"), "weight").map(drop)
    }),
    case("resharding", 1, 3, |g, i| {
        let (from, options) = (i.found("old")?, as_ranks(2));
        reshard(g, &LocalStorage::new(), &from, &i.at("new"), &options).map(drop)
    }),
    case("assessing", 1, 3, |_, i| {
        let assessment = assess(&i.found("old")?, &mut |_| {})?;
        assert!(assessment.is_intact(), "short memory is no damage");
        Ok(())
    }),
    case("exporting", 1, 3, |g, i| {
        let out = i.dir.join("out.safetensors");
        let options = ExportOptions { cast: Some(Dtype::F32), ..ExportOptions::default() };
        export(g, &LocalStorage::new(), &i.wanted("old"), out, &options).map(drop)
    }),
    case("exporting_a_directory", 1, 3, |g, i| {
        let form = HuggingFace { max_shard_bytes: 1 << 20, ..HuggingFace::default() };
        let options = ExportOptions { hugging_face: Some(form), ..ExportOptions::default() };
        let out = i.dir.join("out");
        export(g, &LocalStorage::new(), &i.wanted("old"), out, &options).map(drop)
    }),
];

impl Case {
    /// Runs it under `refusal`; how many allocations were refused.
    ///
    /// # Panics
    /// If ranks disagree, if a refusal is no error that says so, or if anything is lost.
    pub fn try_once(&self, dir: &Path, refusal: &Refusal, tracing: bool) -> u64 {
        let inputs: Vec<Inputs> = (0..self.ranks).map(|_| Inputs::new(dir)).collect();
        let (results, refused) = refusing(refusal, tracing, || on_ranks(inputs, self.run));
        let (results, buffers): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        let errors: Vec<Option<&Error>> = results.iter().map(|r| r.as_ref().err()).collect();
        assert!(errors.iter().all(|error| *error == errors[0]), "ranks disagree: {errors:#?}");
        match errors[0] {
            Some(error) => {
                assert!(refused > 0, "nothing was refused: {error}");
                let is_said = error.to_string().contains("memory");
                assert!(error.kind() == ErrorKind::Storage && is_said, "{error:?}");
                let before = Inputs::new(dir).buffers;
                let untouched = buffers.iter().all(|buffers| *buffers == before);
                assert!(untouched || !self.is_atomic, "{error}, and the destination has changed");
            }
            None => assert_eq!(refused, 0, "refusals, and no error"),
        }
        refused
    }
}

/// A directory with a checkpoint `old` and a file `one.safetensors`; in memory where there is such a
/// place, since nothing here is about the disk.
pub fn prepared() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let (dir, solo, storage) = (dir.unwrap(), ProcessGroup::solo(), LocalStorage::new());
    let inputs = Inputs::new(dir.path());
    save(&solo, &storage, &inputs.at("old"), &inputs.state, &options(1)).unwrap();
    let one = inputs.at("one.safetensors");
    save_single_file(&solo, &storage, &one, &inputs.state, &options(1)).unwrap();
    dir
}

/// Whether both are as they were.
pub fn check(dir: &Path) {
    let inputs = Inputs::new(dir);
    inputs.verify("old").unwrap();
    inputs.verify("one.safetensors").unwrap();
}

const UNTOUCHED: u8 = 0xEE;

impl Inputs {
    fn new(dir: &Path) -> Self {
        let (mut state, mut buffers) = (StateDict::new(), Vec::new());
        for (name, spec) in specs() {
            let bytes = vec![7; spec.size_bytes() as usize];
            buffers.push(vec![UNTOUCHED; bytes.len()]);
            state.add(&Component::model(), name, spec, Arc::new(bytes)).unwrap();
        }
        Self { dir: dir.to_owned(), state, buffers }
    }

    fn at(&self, name: &str) -> CheckpointPath {
        CheckpointPath::parse(self.dir.join(name)).unwrap()
    }

    fn wanted(&self, name: &str) -> Wanted {
        Wanted::parse(self.dir.join(name)).unwrap()
    }

    fn found(&self, name: &str) -> Result<Found> {
        catalog::find(&LocalStorage::new(), &self.wanted(name))
    }

    fn save(&self, group: &ProcessGroup, options: &SaveOptions) -> Result<()> {
        save(group, &LocalStorage::new(), &self.at("new"), &self.state, options).map(drop)
    }

    fn save_beside(group: &ProcessGroup, inputs: &mut Self) -> Result<()> {
        let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
        let (path, after) = (inputs.at("new"), Box::new(|_: &_| {}));
        let pending = save_async(group, &storage, &path, &inputs.state, &options(2), after)?;
        pending.wait().map(drop)
    }

    fn load(
        &mut self,
        group: &ProcessGroup,
        name: &str,
        atomicity: Atomicity,
        sink: &dyn for<'b> Fn(&'b mut [u8]) -> Box<dyn TensorSink + 'b>,
    ) -> Result<()> {
        let (wanted, mut targets) = (self.wanted(name), LoadTargets::new());
        for ((name, spec), buffer) in specs().into_iter().zip(&mut self.buffers) {
            targets.add(name, spec, sink(buffer))?;
        }
        let (storage, rules) = (LocalStorage::new(), LoadRules::default());
        load(group, &storage, &wanted, &mut targets, &rules, atomicity).map(drop)
    }

    fn verify(&self, name: &str) -> Result<()> {
        let found = catalog::find(&LocalStorage::new(), &self.wanted(name))?;
        assert_eq!(verify(&found, &mut |_| {})?.damage, [], "short memory is no damage");
        Ok(())
    }
}

fn memory_sink<'b>(buffer: &'b mut [u8]) -> Box<dyn TensorSink + 'b> {
    Box::new(buffer)
}

/// As memory of a device: bytes arrive in copies.
fn copying_sink<'b>(buffer: &'b mut [u8]) -> Box<dyn TensorSink + 'b> {
    struct Copying<'b>(&'b mut [u8]);
    impl TensorSink for Copying<'_> {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
            self.0.write_at(offset, bytes)
        }
    }
    Box::new(Copying(buffer))
}

fn on_ranks(inputs: Vec<Inputs>, run: Operation) -> Vec<(Result<()>, Vec<Vec<u8>>)> {
    let deadlines = Deadlines { progress: Duration::from_secs(20), ..Deadlines::default() };
    let world = WorldSize::new(inputs.len() as u32).unwrap();
    let ranks = ProcessGroup::threads(world, deadlines).into_iter().zip(inputs);
    let started = ranks.map(|(group, mut inputs)| {
        let (sender, result) = mpsc::channel();
        std::thread::spawn(move || {
            let done = run(&group, &mut inputs);
            sender.send((done, inputs.buffers))
        });
        result
    });
    let started: Vec<_> = started.collect();
    started.iter().map(|result| result.recv_timeout(HANG).unwrap()).collect()
}

fn as_ranks(ranks: u32) -> ReshardOptions {
    ReshardOptions { world_size: WorldSize::new(ranks).unwrap(), overwrite: true }
}

fn options(step: u64) -> SaveOptions {
    // To look for what is unchanged is no part of a save that must not fail.
    let (on_existing, copy_unchanged) = (OnExisting::Replace, true);
    SaveOptions { step, on_existing, copy_unchanged, ..SaveOptions::default() }
}

fn specs() -> Vec<(TensorName, TensorSpec)> {
    let long = |i: usize| format!("{i}.{}", "n".repeat(NAME_BYTES));
    let names = (0..NAMES).map(long).map(|name| (name, 8)).chain([("weight".into(), WEIGHT_BYTES)]);
    let spec = |bytes| TensorSpec::new(Dtype::U8, vec![bytes]).unwrap();
    names.map(|(name, bytes)| (TensorName::new(name).unwrap(), spec(bytes))).collect()
}
