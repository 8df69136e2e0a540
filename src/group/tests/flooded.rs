//! A real job under a flood, from its first moment to its last: what it costs rank 0.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::strangers::{flood, wait_for};
use super::*;
use crate::OnExisting;
use crate::catalog::{CheckpointPath, Wanted};
use crate::layout::CheckpointName;
use crate::load::{Atomicity, load};
use crate::plan::load::LoadRules;
use crate::save::{SaveOptions, save};
use crate::slice::Slice;
use crate::state::{LoadTargets, StateDict};
use crate::storage::LocalStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

const FLOODED: &str = "TCH_CHECKPOINT_TEST_FLOODED";
const RANKS: u64 = 3;
const BYTES: u64 = 1 << 20;
/// Known to the ranks and told to nobody.
const TOKEN: &str = "CANARY-token-of-the-job";
/// Before the other ranks start.
const STRANGERS: usize = 3000;

fn tensor() -> (TensorName, TensorSpec) {
    (TensorName::new("x").unwrap(), TensorSpec::new(Dtype::U8, vec![RANKS * BYTES]).unwrap())
}

/// One rank of the job: saves and loads.
#[test]
fn child() {
    let Ok(dir) = std::env::var(FLOODED) else { return };
    let log = Path::new(&dir).join(format!("log-{}", std::env::var("RANK").unwrap()));
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(std::fs::File::create(log).unwrap())
        .init();
    let group = ProcessGroup::from_env().unwrap();
    let (rank, storage) = (u64::from(group.rank().get()), LocalStorage::new());
    let slice = Slice::new(vec![rank * BYTES], vec![BYTES]).unwrap();
    for step in 0..5 {
        let (name, spec) = tensor();
        let mut state = StateDict::new();
        let source = Arc::new(vec![rank as u8 ^ step as u8; BYTES as usize]);
        state
            .add_slice(&Component::model(), name.clone(), spec.clone(), slice.clone(), source)
            .unwrap();
        let path = CheckpointPath::new(&dir, CheckpointName::new("x").unwrap());
        let on_existing = OnExisting::Replace;
        let options = SaveOptions { step, on_existing, ..SaveOptions::default() };
        save(&group, &storage, &path, &state, &options).unwrap();
        let mut buffer = vec![0; BYTES as usize];
        let mut targets = LoadTargets::new();
        targets.add_slice(name, spec, slice.clone(), Box::new(buffer.as_mut_slice())).unwrap();
        let (wanted, rules) = (Wanted::latest(&dir), LoadRules::default());
        load(&group, &storage, &wanted, &mut targets, &rules, Atomicity::Atomic).unwrap();
        drop(targets);
        assert!(buffer.iter().all(|byte| *byte == rank as u8 ^ step as u8));
    }
    if group.is_coordinator() {
        std::fs::write(Path::new(&dir).join("cost"), cost().join(" ")).unwrap();
    }
    group.finish().unwrap();
}

/// KiB of memory at its highest, and open files, of this process.
fn cost() -> [String; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    [field("VmHWM:"), open.to_string()]
}

struct Job(Vec<Child>);

impl Job {
    fn start(&mut self, rank: u64, address: &str, dir: &Path) {
        let (host, port) = address.split_once(':').unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "group::tests::flooded::child", "--test-threads=1"])
            .envs([("MASTER_ADDR", host), ("MASTER_PORT", port)])
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", RANKS.to_string())])
            .env("TCH_CHECKPOINT_TOKEN", TOKEN)
            .env(FLOODED, dir)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join(format!("errors-{rank}"))).unwrap())
            .spawn()
            .unwrap();
        self.0.push(child);
    }

    /// File descriptors of rank 0.
    fn open(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0[0].id())).map_or(0, Iterator::count)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Ends a flood, however the test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a job among `strangers`; what it cost rank 0, and its most open files before it had started.
fn run(strangers: usize) -> (Vec<u64>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let (dir, address): (PathBuf, _) = (folder.path().into(), free_address());
    let (stop, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut job = Job(Vec::new());
    job.start(0, &address, &dir);
    let most = std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        if strangers > 0 {
            (0..2).for_each(|_| drop(scope.spawn(|| flood(&address, &stop, &opened))));
        }
        let mut most = 0;
        wait_for(|| {
            most = most.max(job.open());
            (opened.load(Ordering::Relaxed) >= strangers).then_some(())
        });
        (1..RANKS).for_each(|rank| job.start(rank, &address, &dir));
        for child in &mut job.0 {
            let ended = wait_for(|| child.try_wait().unwrap());
            assert!(ended.success(), "{ended}");
        }
        most
    });
    let told = told(&dir);
    assert!(told.contains("DEBUG") && !told.contains(TOKEN), "the token was told");
    let is_heard = told.contains("a proof of another job") && told.contains("a stranger");
    assert_eq!(is_heard, strangers > 0, "{strangers} strangers");
    let cost = std::fs::read_to_string(dir.join("cost")).unwrap();
    (cost.split(' ').map(|number| number.parse().unwrap()).collect(), most)
}

/// All that the ranks have logged and said.
fn told(dir: &Path) -> String {
    let files = (0..RANKS).flat_map(|rank| [format!("log-{rank}"), format!("errors-{rank}")]);
    files.map(|name| std::fs::read_to_string(dir.join(name)).unwrap()).collect()
}

#[test]
fn a_job_among_thousands_of_strangers_saves_and_loads_as_without() {
    let ((calm, _), (flooded, most)) = (run(0), run(STRANGERS));
    println!(
        "figure: KiB and files of rank 0: {calm:?}, among {STRANGERS} strangers {flooded:?}, at \
         most {most} files"
    );
    assert_eq!(calm[1], flooded[1], "files of strangers are left");
    assert!(flooded[0] < calm[0] + (8 << 10), "{calm:?} {flooded:?}");
    assert!(most < 700, "{most} files were open at once");
}
