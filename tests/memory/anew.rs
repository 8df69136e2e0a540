//! How much memory it takes to write a checkpoint anew, and to look at tensors that are larger than
//! any memory should be asked for.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tch_checkpoint::catalog::{CheckpointPath, Found, Wanted, find};
use tch_checkpoint::difference::difference;
use tch_checkpoint::repair::{assess, salvage};
use tch_checkpoint::reshard::{ReshardOptions, reshard};
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::statistics::statistics;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ProcessGroup, WorldSize};

use crate::peaks::{CONSTANT, MIB, Zeros, peak};
use crate::tier;

const CHILD: &str = "TCH_CHECKPOINT_TEST_ANEW";
/// One tensor of 80 MiB: it would not hide in the constant.
const SHAPE: [u64; 2] = [5 << 13, 256];
/// In so many pieces side by side.
const COLUMNS: u64 = 16;
/// What a plan says of each of so many tensors, told by each of so many ranks, would not hide in the
/// constant.
const SMALL: u64 = 6000;
const RANKS: u32 = 96;

fn saved(dir: &Path, name: &str, state: &StateDict) -> Found {
    let (solo, path) = (ProcessGroup::solo(), CheckpointPath::parse(dir.join(name)).unwrap());
    save(&solo, &LocalStorage::new(), &path, state, &SaveOptions::default()).unwrap();
    found(dir, name)
}

fn found(dir: &Path, name: &str) -> Found {
    find(&LocalStorage::new(), &Wanted::parse(dir.join(name)).unwrap()).unwrap()
}

fn in_columns() -> StateDict {
    let spec = TensorSpec::new(Dtype::F64, SHAPE).unwrap();
    let (mut state, each) = (StateDict::new(), SHAPE[1] / COLUMNS);
    for column in 0..COLUMNS {
        let slice = Slice::new(vec![0, column * each], vec![SHAPE[0], each]).unwrap();
        let (name, zeros) = (TensorName::new("large").unwrap(), Arc::new(Zeros));
        state.add_slice(&Component::model(), name, spec.clone(), slice, zeros).unwrap();
    }
    state
}

fn small() -> StateDict {
    let spec = TensorSpec::new(Dtype::U8, [1]).unwrap();
    let mut state = StateDict::new();
    for number in 0..SMALL {
        let name = TensorName::new(format!("t{number}")).unwrap();
        state.add(&Component::model(), name, spec.clone(), Arc::new(Zeros)).unwrap();
    }
    state
}

fn resharded(dir: &Path, from: &Found, name: &str, ranks: u32) {
    let (solo, path) = (ProcessGroup::solo(), CheckpointPath::parse(dir.join(name)).unwrap());
    let options = ReshardOptions { world_size: WorldSize::new(ranks).unwrap(), overwrite: false };
    reshard(&solo, &LocalStorage::new(), from, &path, &options).unwrap();
}

fn salvaged(dir: &Path, from: &Found) {
    let (solo, path) = (ProcessGroup::solo(), CheckpointPath::parse(dir.join("rest")).unwrap());
    let assessment = assess(from, &mut |_| {}).unwrap();
    assert!(assessment.is_intact());
    let options = ReshardOptions { world_size: WorldSize::new(1).unwrap(), overwrite: false };
    salvage(&solo, &LocalStorage::new(), from, &assessment, &path, &options).unwrap();
}

/// Measures, and prints, in a process where nothing else runs.
#[test]
#[ignore = "runs as a process of its own"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (columns, many) = (saved(dir, "columns", &in_columns()), saved(dir, "many", &small()));
    println!("PEAK planning {}", peak(|| resharded(dir, &many, "ranks", RANKS)));
    println!("PEAK columns {}", peak(|| resharded(dir, &columns, "rows", 3)));
    let rows = found(dir, "rows");
    println!("PEAK salvaging {}", peak(|| salvaged(dir, &rows)));
    let compare = || assert!(difference(&columns, &rows, &mut |_| {}).unwrap().is_equal());
    println!("PEAK comparing {}", peak(compare));
    let look = || drop(statistics(&columns, "large", &mut |_| {}).unwrap());
    println!("PEAK looking {}", peak(look));
}

#[test]
fn what_is_written_anew_or_looked_at_is_never_all_in_memory() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "anew::child", "--ignored", "--nocapture"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    for what in ["planning", "columns", "salvaging", "comparing", "looking"] {
        let mut lines = text.lines().filter_map(|line| line.split_once(&format!("PEAK {what} ")));
        let taken: u64 = lines.next().unwrap().1.trim().parse().unwrap();
        tier::figure(&format!("peak of {what}, 80 MiB of tensors, in MiB"), taken / MIB);
        assert!(taken <= CONSTANT, "{what}: {taken} bytes");
    }
}
