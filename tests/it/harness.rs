//! Ranks as threads with a deadline, and tensors whose content can be told from their name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Once, mpsc};
use std::time::Duration;

use tch_checkpoint::catalog::{self, CheckpointPath, Wanted};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::load::{Atomicity, Loaded, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{Checkpoint, PendingSave, SaveOptions, save, save_async};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::sweep::Pace;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{Error, OnExisting, Result, WorldSize};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// A hang is a failure: no body of a test may take longer.
const HANG: Duration = Duration::from_secs(60);

/// How long ranks wait for one that is silent: a busy machine must not look like that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `body` on `n` ranks, each a thread; the results in rank order.
pub fn on_ranks<T: Send + 'static>(
    n: u32,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<T> {
    on_ranks_within(PATIENCE, n, body)
}

/// The same, for tests of silent ranks: the others wait for them so long.
pub fn on_ranks_within<T: Send + 'static>(
    progress: Duration,
    n: u32,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let deadlines = Deadlines { progress, ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(n).unwrap(), deadlines);
    let body = Arc::new(body);
    let (sender, results) = mpsc::channel();
    for (rank, group) in groups.into_iter().enumerate() {
        let (body, sender) = (body.clone(), sender.clone());
        std::thread::spawn(move || sender.send((rank, body(group))));
    }
    drop(sender);
    let mut by_rank = BTreeMap::new();
    while by_rank.len() < n as usize {
        match results.recv_timeout(HANG) {
            Ok((rank, result)) => by_rank.insert(rank, result),
            Err(e) => panic!("{e:?}: only ranks {:?} of {n} ended", by_rank.keys()),
        };
    }
    by_rank.into_values().collect()
}

pub fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

pub fn path(text: &str) -> CheckpointPath {
    CheckpointPath::parse(text).unwrap()
}

pub fn wanted(text: &str) -> Wanted {
    Wanted::parse(text).unwrap()
}

/// The bytes that box `slice` of tensor `name` holds in generation `generation`.
pub fn content(name: &str, spec: &TensorSpec, slice: &Slice, generation: u64) -> Vec<u8> {
    let size = spec.dtype().size_bytes();
    let whole = Slice::full(spec.shape());
    let seed = name.bytes().fold(generation, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut bytes = Vec::new();
    for run in whole.runs_of(slice) {
        for at in run.from * size..(run.from + run.elements) * size {
            let mixed = (at ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            bytes.push((mixed >> 56) as u8);
        }
    }
    bytes
}

/// A tensor of a test and how ranks hold it.
#[derive(Debug, Clone)]
pub struct TestTensor {
    pub name: String,
    pub spec: TensorSpec,
    /// `None`: every rank holds all of it; else it is sharded along this dimension.
    pub sharded: Option<usize>,
}

impl TestTensor {
    pub fn new(name: &str, dtype: Dtype, shape: &[u64], sharded: Option<usize>) -> Self {
        let spec = TensorSpec::new(dtype, shape).unwrap();
        Self { name: name.to_owned(), spec, sharded }
    }

    /// The box of rank `rank` of `n`; `None` if it has no elements of a sharded tensor.
    pub fn held(&self, rank: u64, n: u64) -> Option<Slice> {
        let mut slice = Slice::full(self.spec.shape());
        if let Some(d) = self.sharded {
            let length = self.spec.shape()[d];
            let (begin, end) = (length * rank / n, length * (rank + 1) / n);
            let (mut offsets, mut lengths) = (slice.offsets().to_vec(), slice.lengths().to_vec());
            (offsets[d], lengths[d]) = (begin, end - begin);
            slice = Slice::new(offsets, lengths).unwrap();
            if begin == end {
                return None;
            }
        }
        Some(slice)
    }
}

/// A handful of tensors of every kind: split, whole, 0-dim, empty, sharded along dimension 1.
pub fn usual_tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("embedding", Dtype::BF16, &[301, 130], None),
        TestTensor::new("layers.0.weight", Dtype::F32, &[64, 257], None),
        TestTensor::new("layers.0.bias", Dtype::F32, &[257], None),
        TestTensor::new("step", Dtype::F32, &[], None),
        TestTensor::new("empty", Dtype::I64, &[0, 7], None),
        TestTensor::new("sharded.rows", Dtype::F64, &[97, 11], Some(0)),
        TestTensor::new("sharded.columns", Dtype::I32, &[13, 40], Some(1)),
    ]
}

pub fn state(tensors: &[TestTensor], group: &ProcessGroup, generation: u64) -> StateDict {
    let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let mut state = StateDict::new();
    for tensor in tensors {
        if let Some(slice) = tensor.held(rank, n) {
            let bytes = Arc::new(content(&tensor.name, &tensor.spec, &slice, generation));
            state
                .add_slice(
                    &Component::model(),
                    name(&tensor.name),
                    tensor.spec.clone(),
                    slice,
                    bytes,
                )
                .unwrap();
        }
    }
    state.values.set("generation", i64::try_from(generation).unwrap());
    state.rank_values.set("rank", group.rank().get());
    state
}

pub fn save_state(
    group: &ProcessGroup,
    storage: &dyn Storage,
    at: &str,
    tensors: &[TestTensor],
    generation: u64,
) -> Result<Checkpoint> {
    let options = SaveOptions {
        step: generation,
        on_existing: OnExisting::Replace,
        ..SaveOptions::default()
    };
    save(group, storage, &path(at), &state(tensors, group, generation), &options)
}

/// Starts to save `generation` in the background, replacing what is there.
pub fn save_beside(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    at: &str,
    tensors: &[TestTensor],
    generation: u64,
) -> Result<PendingSave> {
    let options = SaveOptions {
        step: generation,
        on_existing: OnExisting::Replace,
        ..SaveOptions::default()
    };
    let state = state(tensors, group, generation);
    save_async(group, storage, &path(at), &state, &options, Box::new(|_| {}))
}

/// Loads each rank's boxes and compares them with what `generation` held.
pub fn load_state(
    group: &ProcessGroup,
    storage: &dyn Storage,
    at: &str,
    tensors: &[TestTensor],
    generation: u64,
    atomicity: Atomicity,
) -> Result<Loaded> {
    let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let held: Vec<_> =
        tensors.iter().filter_map(|t| t.held(rank, n).map(|slice| (t, slice))).collect();
    let sized = |t: &TestTensor, s: &Slice| (s.elements() * t.spec.dtype().size_bytes()) as usize;
    let mut buffers: Vec<Vec<u8>> = held.iter().map(|(t, s)| vec![0xEE; sized(t, s)]).collect();
    let mut targets = LoadTargets::new();
    for ((tensor, slice), buffer) in held.iter().zip(&mut buffers) {
        let (spec, slice) = (tensor.spec.clone(), slice.clone());
        targets
            .add_slice(name(&tensor.name), spec, slice, Box::new(buffer.as_mut_slice()))
            .unwrap();
    }
    let rules = LoadRules { strict: n == 1, ..LoadRules::default() };
    let loaded = load(group, storage, &wanted(at), &mut targets, &rules, atomicity);
    drop(targets);
    let untouched = buffers.iter().all(|b| b.iter().all(|byte| *byte == 0xEE));
    match &loaded {
        Ok(_) => {
            for ((tensor, slice), buffer) in held.iter().zip(&buffers) {
                let want = content(&tensor.name, &tensor.spec, slice, generation);
                assert_eq!(*buffer, want, "{} {slice} of generation {generation}", tensor.name);
            }
        }
        Err(_) if atomicity == Atomicity::Atomic => {
            assert!(untouched, "a failed atomic load changed its destination");
        }
        Err(_) => {}
    }
    loaded
}

/// The pace of a coordinator without peers.
pub fn pace() -> Pace {
    Pace { patience: Duration::from_secs(1), progress: Default::default() }
}

/// The names of everything in a directory, sorted, without the lock file.
pub fn entries(storage: &dyn Storage, directory: &str) -> Vec<String> {
    let listed = storage.open_dir(Path::new(directory)).and_then(|dir| dir.list());
    let mut names: Vec<String> = listed.unwrap_or_default().into_iter().map(|e| e.name).collect();
    names.retain(|name| name != ".tch-checkpoint.lock");
    names.sort();
    names
}

/// Opens a checkpoint and checks every byte of it.
pub fn assert_good(storage: &dyn Storage, at: &str) {
    let found = catalog::find(storage, &wanted(at)).unwrap();
    let verified = tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap();
    assert_eq!(verified.damage, [], "{at}");
    assert_eq!(verified.foreign, [""; 0], "{at}");
}

/// The error that every rank got; a rank that succeeded, or got another one, is a failure.
pub fn one_error<T>(verdicts: &[Result<T>], what: &str) -> Error {
    let errors: Vec<Option<&Error>> = verdicts.iter().map(|v| v.as_ref().err()).collect();
    let first = errors[0].unwrap_or_else(|| panic!("{what}: rank 0 succeeded"));
    for error in &errors {
        assert_eq!(*error, Some(first), "{what}: ranks disagree");
    }
    first.clone()
}

/// Saves generation `generation` of `tensors` as checkpoint `at` from `ranks` ranks.
pub fn saved(
    storage: impl Storage + Clone + 'static,
    ranks: u32,
    at: &str,
    tensors: &[TestTensor],
    generation: u64,
) -> Checkpoint {
    let (at, tensors) = (at.to_owned(), tensors.to_vec());
    let save = move |group| save_state(&group, &storage, &at, &tensors, generation).unwrap();
    on_ranks(ranks, save).remove(0)
}

/// Loads `tensors` of generation `generation` on `ranks` ranks, all or nothing.
pub fn loaded(
    storage: impl Storage + Clone + 'static,
    ranks: u32,
    at: &str,
    tensors: &[TestTensor],
    generation: u64,
) -> Vec<Result<Loaded>> {
    let (at, tensors) = (at.to_owned(), tensors.to_vec());
    on_ranks(ranks, move |group| {
        load_state(&group, &storage, &at, &tensors, generation, Atomicity::Atomic)
    })
}

/// What is logged on this thread, at `level` (`INFO` at most) and above, while `body` runs.
///
/// By one subscriber for the whole process: whether an event is of interest is remembered for all
/// threads, so that one that is there for a thread alone may be told nothing.
pub fn logged(level: Level, body: impl FnOnce()) -> String {
    static EVERYBODYS: Once = Once::new();
    EVERYBODYS.call_once(|| {
        let fmt = tracing_subscriber::fmt().with_max_level(Level::INFO).with_ansi(false);
        tracing::subscriber::set_global_default(fmt.with_writer(ToThread).finish()).unwrap();
    });
    LOG.set(Some((level, Vec::new())));
    body();
    let (_, bytes) = LOG.take().unwrap();
    String::from_utf8(bytes).unwrap()
}

thread_local! {
    /// What this thread takes, if it does, and what it was told.
    static LOG: RefCell<Option<(Level, Vec<u8>)>> = const { RefCell::new(None) };
}

struct ToThread;

/// Whether the event is to be kept.
struct ThreadLog(bool);

impl MakeWriter<'_> for ToThread {
    type Writer = ThreadLog;

    fn make_writer(&self) -> ThreadLog {
        ThreadLog(true)
    }

    fn make_writer_for(&self, event: &Metadata<'_>) -> ThreadLog {
        ThreadLog(LOG.with_borrow(|log| log.as_ref().is_some_and(|(max, _)| event.level() <= max)))
    }
}

impl Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| {
            if let Some((_, text)) = log.as_mut().filter(|_| self.0) {
                text.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
