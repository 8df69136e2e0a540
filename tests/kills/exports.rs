//! Exports that meet a full disk, or are killed: what is under the name is whole.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tch_checkpoint::export::{ExportOptions, HuggingFace, export};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Result};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::mount::{PAGE, Tmpfs};
use crate::random::Random;
use crate::tier::{self, Need};

const INDEX: &str = "model.safetensors.index.json";

fn tensors(elements: u64) -> Vec<TestTensor> {
    let tensor = |name: &str| TestTensor::new(name, Dtype::F32, &[elements], None);
    vec![tensor("a"), tensor("b"), tensor("c"), tensor("d")]
}

/// The step of the export, all of whose files are of it; `None` if there is nothing.
fn step_of(dir: &Path, shards: usize) -> Option<u64> {
    let mut names = entries(&LocalStorage, dir.to_str().unwrap());
    if names.is_empty() && !dir.exists() {
        return None;
    }
    assert!(names.contains(&INDEX.to_owned()), "half an export: {names:?}");
    names.retain(|name| name != INDEX);
    assert_eq!(names.len(), shards, "half an export: {names:?}");
    let step = |name: &String| -> u64 {
        let bytes = std::fs::read(dir.join(name)).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let texts = metadata.metadata().as_ref().unwrap();
        texts["tch_checkpoint.source_step"].parse().unwrap()
    };
    let steps: Vec<u64> = names.iter().map(step).collect();
    assert!(steps.iter().all(|step| *step == steps[0]), "half an export: {steps:?}");
    Some(steps[0])
}

/// Four shards of checkpoint `step-<step>`.
fn exported(storage: &dyn Storage, disk: &Tmpfs, step: u64) -> Result<()> {
    let form = HuggingFace { max_shard_bytes: 100_000, ..HuggingFace::default() };
    let options =
        ExportOptions { hugging_face: Some(form), overwrite: true, ..ExportOptions::default() };
    let from = disk.runs().join(format!("step-{step}"));
    let (solo, from) = (ProcessGroup::solo(), wanted(from.to_str().unwrap()));
    export(&solo, storage, &from, disk.path().join("hf"), &options).map(drop)
}

/// With an export of step 1 in place.
fn scene() -> Tmpfs {
    let disk = Tmpfs::mounted();
    for step in [1, 2] {
        let at = disk.runs().join(format!("step-{step}"));
        saved(LocalStorage, 1, at.to_str().unwrap(), &tensors(25_000), step);
    }
    exported(&LocalStorage, &disk, 1).unwrap();
    disk
}

/// Of an old export and one that meets a full disk; whether the new one is there.
fn check(disk: &Tmpfs, verdict: &Result<()>, what: &str) -> bool {
    let is_full = |e: &Error| e.kind() == ErrorKind::NoSpace || e.os_code() == Some(28);
    if let Err(error) = verdict {
        assert!(is_full(error), "{what}: {error:?}");
    }
    let step = step_of(&disk.path().join("hf"), 4);
    assert_eq!(step, Some(1 + u64::from(verdict.is_ok())), "{what}");
    let mut left = entries(&LocalStorage, disk.path().to_str().unwrap());
    left.retain(|name| name != "neighbour");
    assert_eq!(left, ["hf", "runs"], "{what}");
    verdict.is_ok()
}

#[test]
fn an_export_on_a_disk_with_too_little_room_leaves_the_old_one() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let disk = scene();
    let (mut made, mut refused) = (0, 0);
    for pages in (0..130).step_by(tier::count(9, 1) as usize) {
        disk.leave(Some(pages), None);
        let verdict = exported(&LocalStorage, &disk, 2);
        let is_made = check(&disk, &verdict, &format!("{pages} pages left: {verdict:?}"));
        *if is_made { &mut made } else { &mut refused } += 1;
        disk.leave(None, None);
        exported(&LocalStorage, &disk, 1).unwrap();
    }
    tier::figure("exports by pages left", format!("{refused} refused, {made} made"));
    assert!(made > 0 && refused > 0, "the sweep misses the edge");
}

fn fill(disk: &Tmpfs) {
    let mut file = std::fs::File::create(disk.path().join("neighbour")).unwrap();
    while std::io::Write::write_all(&mut file, &[0; PAGE as usize]).is_ok() {}
}

/// It fits when the export begins; then, at each operation in turn, somebody else takes the rest.
#[test]
fn a_disk_that_runs_full_in_mid_export_leaves_the_old_one() {
    if !tier::has(&[Need::Root]) {
        return;
    }
    let disk = Arc::new(scene());
    let (mut made, mut refused) = (0, 0);
    for operation in (1..).step_by(tier::count(3, 1) as usize) {
        disk.leave(Some(500), None);
        let operations = AtomicU64::new(0);
        let place = disk.clone();
        let hooked = Hooked::new(&LocalStorage, move |_| {
            if operations.fetch_add(1, Ordering::SeqCst) + 1 == operation {
                fill(&place);
            }
            Ok(())
        });
        let verdict = exported(&hooked, &disk, 2);
        let is_made = check(&disk, &verdict, &format!("full at operation {operation}"));
        *if is_made { &mut made } else { &mut refused } += 1;
        let is_filled = std::fs::remove_file(disk.path().join("neighbour")).is_ok();
        disk.leave(None, None);
        exported(&LocalStorage, &disk, 1).unwrap();
        if !is_filled {
            break;
        }
    }
    tier::figure("exports on a disk that runs full", format!("{refused} failed, {made} made"));
    assert!(made > 0 && refused > 0, "{refused} failed, {made} made");
}

/// The command, killed at random: the old export or the new one, and debris goes with the next.
#[test]
fn an_export_killed_at_random_leaves_the_old_one_or_the_new_one() {
    let mut random = Random::seeded();
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for step in [1, 2] {
        let run = at(&format!("step-{step}"));
        saved(LocalStorage, 1, run.to_str().unwrap(), &tensors(1_000_000), step);
    }
    let command = |step: u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
        command.arg("export").arg(at(&format!("step-{step}"))).arg("-o").arg(at("hf/out"));
        command.args(["--max-shard-size", "4MB", "--force"]).stdout(Stdio::null());
        command
    };
    let begun = Instant::now();
    assert!(command(1).status().unwrap().success());
    let whole = begun.elapsed();
    let (mut step, mut ended) = (1, [0, 0]);
    let count = tier::count(20, 1000);
    for kill in 1..=count {
        let next = 3 - step;
        let mut child = command(next).spawn().unwrap();
        std::thread::sleep(random.around(whole.min(Duration::from_secs(5)) * 3 / 5));
        child.kill().unwrap();
        child.wait().unwrap();
        let there = step_of(&at("hf/out"), 4).unwrap_or_else(|| panic!("kill {kill}: gone"));
        assert!(there == step || there == next, "kill {kill}: step {there}");
        ended[usize::from(there == next)] += 1;
        step = there;
    }
    assert!(command(2).status().unwrap().success());
    assert_eq!(step_of(&at("hf/out"), 4), Some(2));
    assert_eq!(entries(&LocalStorage, at("hf").to_str().unwrap()), ["out"]);
    tier::figure("exports killed at random", format!("{count}: {} before the end", ended[0]));
}
