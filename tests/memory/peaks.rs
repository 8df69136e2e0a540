//! How much memory a save or a load takes beside the state, by the kernel's own count.

use std::process::Command;
use std::sync::Arc;

use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::export::{ExportOptions, HuggingFace, export};
use tch_checkpoint::import::{ImportOptions, import};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save, save_async};
use tch_checkpoint::state::{LoadTargets, StateDict, TensorSource};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{OnExisting, ProcessGroup, Result};

use crate::tier;

const CHILD: &str = "TCH_CHECKPOINT_TEST_PEAKS";
pub(crate) const MIB: u64 = 1 << 20;
/// So large that a second copy of it would not hide in the constant.
const SHARD_BYTES: u64 = 128 * MIB;
const TENSORS: u64 = 4;
/// What is promised beside a share.
pub(crate) const CONSTANT: u64 = 64 * MIB;

/// Content that takes no memory.
pub(crate) struct Zeros;

impl TensorSource for Zeros {
    fn read_into(&self, _: u64, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        Ok(())
    }
}

fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// The most memory that `body` held beyond what was there before it.
pub(crate) fn peak(body: impl FnOnce()) -> u64 {
    // Forgets the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    body();
    status("VmHWM").saturating_sub(before)
}

fn tensors() -> impl Iterator<Item = (TensorName, TensorSpec)> {
    let spec = TensorSpec::new(Dtype::U8, vec![SHARD_BYTES / TENSORS]).unwrap();
    (0..TENSORS).map(move |i| (TensorName::new(format!("t{i}")).unwrap(), spec.clone()))
}

fn saving(dir: &std::path::Path, beside: bool) {
    let mut state = StateDict::new();
    for (name, spec) in tensors() {
        state.add(&Component::model(), name, spec, Arc::new(Zeros)).unwrap();
    }
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
    let (solo, path) = (ProcessGroup::solo(), CheckpointPath::parse(dir.join("a")).unwrap());
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    if beside {
        let pending = save_async(&solo, &storage, &path, &state, &options, Box::new(|_| {}));
        pending.unwrap().wait().unwrap();
    } else {
        save(&solo, storage.as_ref(), &path, &state, &options).unwrap();
    }
}

fn loading(dir: &std::path::Path, atomicity: Atomicity, buffers: &mut [Vec<u8>]) {
    let mut targets = LoadTargets::new();
    for ((name, spec), buffer) in tensors().zip(buffers) {
        targets.add(name, spec, Box::new(buffer.as_mut_slice())).unwrap();
    }
    let (solo, wanted) = (ProcessGroup::solo(), Wanted::parse(dir.join("a")).unwrap());
    let rules = LoadRules::default();
    load(&solo, &LocalStorage::new(), &wanted, &mut targets, &rules, atomicity).unwrap();
}

fn exporting(dir: &std::path::Path) {
    let form = HuggingFace { max_shard_bytes: SHARD_BYTES / 2, ..HuggingFace::default() };
    let options = ExportOptions { hugging_face: Some(form), ..ExportOptions::default() };
    let (solo, wanted) = (ProcessGroup::solo(), Wanted::parse(dir.join("a")).unwrap());
    export(&solo, &LocalStorage::new(), &wanted, dir.join("hf"), &options).unwrap();
}

fn importing(dir: &std::path::Path) {
    let (solo, path) = (ProcessGroup::solo(), CheckpointPath::parse(dir.join("b")).unwrap());
    let options = ImportOptions::default();
    import(&solo, &LocalStorage::new(), dir.join("hf"), &path, &options).unwrap();
}

/// Measures, and prints, in a process where nothing else runs.
#[test]
#[ignore = "runs as a process of its own"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut buffers: Vec<Vec<u8>> =
        tensors().map(|(_, spec)| vec![0xEE; spec.size_bytes() as usize]).collect();
    println!("PEAK saving {}", peak(|| saving(dir.path(), false)));
    println!("PEAK beside {}", peak(|| saving(dir.path(), true)));
    println!("PEAK atomic {}", peak(|| loading(dir.path(), Atomicity::Atomic, &mut buffers)));
    println!("PEAK exporting {}", peak(|| exporting(dir.path())));
    println!("PEAK importing {}", peak(|| importing(dir.path())));
    println!("PEAK in-place {}", peak(|| loading(dir.path(), Atomicity::InPlace, &mut buffers)));
}

#[test]
fn a_save_or_load_takes_what_is_promised_and_no_more() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "peaks::child", "--ignored", "--nocapture"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let share = SHARD_BYTES + SHARD_BYTES / 10;
    let bounds = [
        ("saving", 0),
        ("beside", share),
        ("atomic", share),
        ("in-place", 0),
        ("exporting", 0),
        ("importing", 0),
    ];
    for (what, share) in bounds {
        let mut lines = text.lines().filter_map(|line| line.split_once(&format!("PEAK {what} ")));
        let taken: u64 = lines.next().unwrap().1.trim().parse().unwrap();
        let name = format!("peak of {what}, a share of {} MiB, in MiB", SHARD_BYTES / MIB);
        tier::figure(&name, taken / MIB);
        assert!(taken <= share + CONSTANT, "{what}: {taken} bytes");
    }
}
