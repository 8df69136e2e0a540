//! Every reader, set on one hostile checkpoint, and what must be true of each.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tch_checkpoint::catalog::{Order, Wanted, find, find_checkpoints};
use tch_checkpoint::load::{Atomicity, PartialOptions, load, load_partial, read_tensor};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::select::{Selection, SelectionRules};
use tch_checkpoint::state::LoadTargets;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Dtype, TensorName, TensorSpec};
use tch_checkpoint::verify::verify;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Result};

use crate::allocator::peak;
use crate::forge::{V_SHAPE, W_SHAPE};
use crate::outside::{Watch, snapshot};
use crate::scene::{SECRET, Scene};

/// A hang is a failure; no reader here takes a hundredth of it.
const HANG: Duration = Duration::from_secs(20);
const STORAGE: LocalStorage = LocalStorage::new();
/// What is promised beside the files, as far as there is anything in them: a manifest is parsed into
/// that many times its bytes at the most.
const MEMORY: u64 = 64 << 20;
const PARSED_TIMES: u64 = 33;

/// How much memory may be asked for to read what lies below `dir`.
pub fn memory_for(dir: &Path) -> u64 {
    MEMORY + PARSED_TIMES * bytes_on_disk(dir)
}

/// Holes take none.
fn bytes_on_disk(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    let entries = meta.is_dir().then(|| std::fs::read_dir(path).unwrap());
    let below = entries.into_iter().flatten().map(|entry| bytes_on_disk(&entry.unwrap().path()));
    meta.blocks() * 512 + below.sum::<u64>()
}

type Reader = fn(&Wanted) -> Result<()>;

pub const READERS: [(&str, Reader); 6] = [
    ("load", |wanted| loaded(wanted, true, Atomicity::Atomic)),
    ("a lenient load in place", |wanted| loaded(wanted, false, Atomicity::InPlace)),
    ("load_partial", partially),
    ("read_tensor", |wanted| read_tensor(&STORAGE, wanted, "w").map(drop)),
    ("verify", verified),
    ("a load on two ranks", |wanted| loaded_by_two(wanted)),
];

/// How a reader fared.
pub struct Read {
    pub reader: &'static str,
    pub result: Result<()>,
    pub took: Duration,
    pub peak: u64,
}

/// The buffers of a destination, and their specs.
fn buffers() -> Vec<(&'static str, TensorSpec, Vec<u8>)> {
    let spec = |dtype, shape: &[u64]| TensorSpec::new(dtype, shape).unwrap();
    [("v", spec(Dtype::U8, &V_SHAPE)), ("w", spec(Dtype::F32, &W_SHAPE))]
        .map(|(name, spec)| (name, spec.clone(), vec![0xee; spec.size_bytes() as usize]))
        .to_vec()
}

fn with_targets<T>(
    is_atomic: bool,
    load: impl FnOnce(&mut LoadTargets<'_>) -> Result<T>,
) -> Result<()> {
    let mut all = buffers();
    let mut targets = LoadTargets::new();
    for (name, spec, buffer) in &mut all {
        let name = TensorName::new(*name).unwrap();
        targets.add(name, spec.clone(), Box::new(buffer.as_mut_slice())).unwrap();
    }
    let done = load(&mut targets);
    drop(targets);
    let untouched = all.iter().all(|(_, _, buffer)| buffer.iter().all(|byte| *byte == 0xee));
    assert!(untouched || done.is_ok() || !is_atomic, "a failed atomic load changed something");
    done.map(drop)
}

fn loaded(wanted: &Wanted, strict: bool, atomicity: Atomicity) -> Result<()> {
    let rules = LoadRules { strict, ..LoadRules::default() };
    let solo = ProcessGroup::solo();
    with_targets(atomicity == Atomicity::Atomic, |targets| {
        load(&solo, &STORAGE, wanted, targets, &rules, atomicity)
    })
}

fn loaded_by_two(wanted: &Wanted) -> Result<()> {
    let world = tch_checkpoint::WorldSize::new(2).unwrap();
    let groups = ProcessGroup::threads(world, Default::default());
    let verdicts: Vec<Result<()>> = std::thread::scope(|scope| {
        let load_on = |group: ProcessGroup| {
            with_targets(true, |targets| {
                let rules = LoadRules { strict: false, ..LoadRules::default() };
                load(&group, &STORAGE, wanted, targets, &rules, Atomicity::Atomic)
            })
        };
        let spawn = |group| scope.spawn(move || load_on(group));
        let ranks: Vec<_> = groups.into_iter().map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_eq!(verdicts[0], verdicts[1], "ranks disagree");
    verdicts.into_iter().next().unwrap()
}

fn partially(wanted: &Wanted) -> Result<()> {
    let selection = Selection::new(SelectionRules::default())?;
    let options = PartialOptions::default();
    with_targets(true, |targets| {
        load_partial(&ProcessGroup::solo(), &STORAGE, wanted, targets, &selection, &options)
    })
}

/// Damage is an error here.
fn verified(wanted: &Wanted) -> Result<()> {
    let found = find(&STORAGE, wanted)?;
    match verify(&found, &mut |_| ())?.damage.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Sets every reader on `wanted`, with a deadline; whatever is listed beside it is no error.
pub fn read_all(scene: &Scene, wanted: &Wanted) -> Vec<Read> {
    let (sender, receiver) = mpsc::channel();
    let (dir, wanted) = (scene.dir(), wanted.clone());
    std::thread::spawn(move || {
        let reads = READERS.map(|(reader, read)| {
            let begun = Instant::now();
            let (result, peak) = peak(|| read(&wanted));
            Read { reader, result, took: begun.elapsed(), peak }
        });
        let listed = find_checkpoints(&STORAGE, &dir, &Order::Latest);
        let _ = sender.send((reads, listed));
    });
    let (reads, listed) = receiver.recv_timeout(HANG).expect("a reader hangs or panics");
    if let Err(error) = listed {
        panic!("listing: {error}");
    }
    reads.into_iter().collect()
}

/// What is wrong with how `reads` fared, if something is.
pub fn fault_of(read: &Read, kind: ErrorKind, word: &str, memory: u64) -> Option<String> {
    let Err(error) = &read.result else { return Some("no error".to_owned()) };
    let text = error.to_string();
    if error.kind() != kind || !text.contains(word) {
        return Some(format!("not {kind:?} with `{word}`, but {:?}: {text}", error.kind()));
    }
    unfit(&text).or_else(|| (read.peak > memory).then(|| format!("{} bytes taken", read.peak)))
}

/// What no message may hold.
pub fn unfit(text: &str) -> Option<String> {
    if text.contains(SECRET) {
        return Some(format!("it shows a secret: {text}"));
    }
    if let Some(odd) = text.chars().find(|c| c.is_control() && *c != '\n') {
        return Some(format!("it holds {odd:?}"));
    }
    (text.len() > 4096).then(|| format!("a message of {} bytes", text.len()))
}

/// Runs `body`, after which everything must be as it was, and nothing outside was even opened.
pub fn without_a_trace<T>(scene: &Scene, body: impl FnOnce() -> T) -> (T, Option<String>) {
    let before = snapshot(scene.top());
    let watch = Watch::over(&scene.outside());
    let done = body();
    let seen = watch.seen();
    let after = snapshot(scene.top());
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, entry)| before.get(*path) != Some(entry))
        .map(|(path, _)| path)
        .collect();
    let fault = (!seen.is_empty() || !changed.is_empty() || after.len() != before.len())
        .then(|| format!("touched outside: {seen:?}; changed: {changed:?}"));
    (done, fault)
}

/// What the command says of it: an exit code of its own, and nothing that drives a terminal.
pub fn command_fault(arguments: &[&str], is_refused: bool) -> Option<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let output = command.args(arguments).env_remove("RUST_BACKTRACE").output().unwrap();
    let code = output.status.code();
    let good: &[i32] = if is_refused { &[3, 7] } else { &[0, 3, 7] };
    let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    if !code.is_some_and(|code| good.contains(&code)) {
        return Some(format!("{arguments:?} ends with {code:?}: {said:?}"));
    }
    said.iter().find_map(|text| unfit(text)).map(|what| format!("{arguments:?}: {what}"))
}

/// The error of a case that has no checkpoint to be read.
pub fn refused<T>(result: Result<T>) -> Error {
    result.err().expect("it was accepted")
}
