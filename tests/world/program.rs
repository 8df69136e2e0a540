//! A rank of a small job: saves step after step, and writes down what became of each. Started by the
//! tests as a program of its own; everything that it is to do is in variables.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use tch_checkpoint::autosave::Retention;
use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::retain::keep;
use tch_checkpoint::save::{SaveOptions, save, save_async};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::sweep::Pace;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Rank, Result, WorldSize};

use crate::hooked::Hooked;
use crate::job::now;

/// What the variables say.
struct Orders {
    dir: PathBuf,
    notes: PathBuf,
    /// Tells the content of one job from that of another.
    tag: u8,
    steps: std::ops::RangeInclusive<u64>,
    bytes: u64,
    keep: Option<u64>,
    beside: bool,
    go_on: bool,
    /// All writes go through the page cache.
    cached: bool,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("WORLD_{name}")).ok()
}

fn number(name: &str) -> Option<u64> {
    variable(name).map(|text| text.parse().unwrap())
}

impl Orders {
    fn read() -> Option<Self> {
        let rank = std::env::var("RANK").unwrap_or_default();
        Some(Self {
            dir: variable("DIR")?.into(),
            notes: PathBuf::from(variable("NOTES")?).join(format!("rank-{rank}")),
            tag: number("TAG")? as u8,
            steps: number("FIRST")?..=number("LAST")?,
            bytes: number("BYTES")?,
            keep: number("KEEP"),
            beside: variable("BESIDE").is_some(),
            go_on: variable("GO_ON").is_some(),
            cached: variable("CACHED").is_some(),
        })
    }

    /// One line, with the time; at once, since the next thing may be the end.
    fn note(&self, what: &str) {
        let line = format!("{} {what}\n", now());
        let file = OpenOptions::new().create(true).append(true).open(&self.notes);
        file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
    }
}

pub fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// A byte of the content of a job.
pub fn content(tag: u8, step: u64, rank: u32, at: u64) -> u8 {
    (at as u8).wrapping_mul(31) ^ tag ^ (step as u8).wrapping_mul(7) ^ (rank as u8).wrapping_mul(17)
}

/// The share of a rank: a slice of one tensor.
fn state(orders: &Orders, step: u64, rank: Rank, world: WorldSize) -> Result<StateDict> {
    let Orders { tag, bytes, .. } = *orders;
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, vec![bytes * u64::from(world.get())])?;
    let slice = Slice::new(vec![bytes * u64::from(rank.get())], vec![bytes])?;
    let data: Vec<u8> = (0..bytes).map(|at| content(tag, step, rank.get(), at)).collect();
    state.add_slice(
        &Component::model(),
        TensorName::new("weights")?,
        spec,
        slice,
        Arc::new(data),
    )?;
    state.values.set("tag", i64::from(tag));
    state.values.set("checkpoint.automatic", true);
    Ok(state)
}

fn save_step(orders: &Orders, group: &ProcessGroup, step: u64) -> Result<String> {
    let storage: Arc<dyn Storage> = match orders.cached {
        // From memory of its own, which no direct write can take.
        true => Arc::new(Hooked::altering(&LocalStorage::new(), |_, _, _| {})),
        false => Arc::new(LocalStorage::new()),
    };
    let path = CheckpointPath::new(&orders.dir, CheckpointName::new(&name_of(step))?);
    let state = state(orders, step, group.rank(), group.world_size())?;
    let options = SaveOptions { step, ..SaveOptions::default() };
    if !orders.beside {
        return Ok(save(group, storage.as_ref(), &path, &state, &options)?.save_id.to_string());
    }
    orders.note(&format!("HOLDS {step}"));
    let pending = save_async(group, &storage, &path, &state, &options, Box::new(|_| {}))?;
    orders.note(&format!("TRAINS {step}"));
    Ok(pending.wait()?.save_id.to_string())
}

fn keep_newest(orders: &Orders, group: &ProcessGroup) -> Result<()> {
    let Some(last) = orders.keep.and_then(std::num::NonZeroU64::new) else { return Ok(()) };
    group.on_coordinator("keep", || {
        let dir = LocalStorage::new().open_dir(&orders.dir)?;
        let retention = Retention { last: Some(last), ..Retention::default() };
        keep(dir.as_ref(), &retention, &[], &Pace::of(group)).map(drop)
    })
}

/// Another job has that name.
fn is_taken(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Superseded)
}

fn work(orders: &Orders) -> Result<()> {
    let group = ProcessGroup::from_env()?;
    orders.note("JOINED");
    let saved = orders.steps.clone().try_for_each(|step| {
        orders.note(&format!("BEGIN {step}"));
        let id = match save_step(orders, &group, step) {
            Err(error) if orders.go_on && is_taken(&error) => {
                orders
                    .note(&format!("REFUSED {step} {:?} {error}", error.kind()).replace('\n', " "));
                return Ok(());
            }
            saved => saved?,
        };
        orders.note(&format!("COMMITTED {step} {id}"));
        keep_newest(orders, &group)
    });
    if let Err(error) = &saved {
        orders.note(&format!("FAILED {:?} {error}", error.kind()).replace('\n', " "));
    }
    let left = group.finish();
    saved.and(left)
}

#[test]
#[ignore = "a program for the tests"]
fn rank() {
    let Some(orders) = Orders::read() else { return };
    let done = work(&orders);
    let code = done.as_ref().err().map_or(0, Error::exit_code);
    if done.is_err_and(|error| error.kind() == ErrorKind::Panic) {
        orders.note("PANICKED");
    }
    orders.note(&format!("ENDED {code}"));
    std::process::exit(code.into());
}
