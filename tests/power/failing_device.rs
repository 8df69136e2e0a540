//! A disk whose writes fail for a while: no save is called durable that is not there afterwards,
//! nothing older is harmed, and no file is fsynced again whose fsync has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::alone::alone_with_device;
use crate::command::{Ack, Saver, Work, around};
use crate::device::Device;
use crate::disk::{FileSystem, Mounted, done};
use crate::judge::{attempt, judge, visible};
use crate::{mix, tier};

const KEEP: u64 = 2;
const IMAGE_MIB: u64 = 32;
/// The step that is saved while the disk fails.
const STEP: u64 = 3;

/// When the disk begins to fail.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Files of the ranks are being written.
    Shards,
    /// The manifest is being written.
    Manifest,
    /// The new name is visible, and not yet durable.
    Directory,
    Whenever,
}

const PHASES: [Phase; 4] = [Phase::Shards, Phase::Manifest, Phase::Directory, Phase::Whenever];

impl Phase {
    /// Waits for it and a little more, but not for ever: the save may be through already.
    fn wait(self, dir: &Path, chance: u64) {
        let until = Instant::now() + Duration::from_secs(1);
        while !self.has_come(dir) && Instant::now() < until {}
        let within = if matches!(self, Self::Whenever) { 30_000 } else { 4_000 };
        std::thread::sleep(Duration::from_micros(chance % within));
    }

    fn has_come(self, dir: &Path) -> bool {
        let name = format!("step-{STEP:08}");
        match self {
            Self::Whenever => true,
            Self::Directory => dir.join(name).exists(),
            Self::Shards => attempt(dir).is_some(),
            Self::Manifest => attempt(dir).is_some_and(|at| at.join("manifest.bin").exists()),
        }
    }
}

/// The same process, which writes its fsyncs to `trace`.
fn traced(command: &Command, trace: &Path) -> Command {
    let mut strace = tier::program("strace");
    strace.args(["-f", "-qq", "-y", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-o"]);
    strace.arg(trace);
    around(strace, command)
}

/// Fsyncs that failed, by path.
///
/// # Panics
/// If a file was fsynced again after that.
fn failed_fsyncs(trace: &Path) -> BTreeSet<String> {
    let trace = std::fs::read_to_string(trace).unwrap();
    let (mut failed, mut begun) = (BTreeSet::new(), BTreeMap::new());
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        if let Some((_, rest)) = call.split_once("sync(") {
            let path = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
            let path = path.unwrap_or_else(|| panic!("{line}")).0.to_owned();
            // Each rank fsyncs the directory of the attempt, which holds no data that can be lost.
            let is_file = path.ends_with(".safetensors") || path.ends_with(".bin");
            assert!(!is_file || !failed.contains(&path), "fsynced again: {path}\n{trace}");
            begun.insert(thread.to_owned(), path);
        }
        if call.contains("= -1 EIO") {
            failed.extend(begun.get(thread).cloned());
        }
    }
    failed
}

/// Makes so many requests fail, all if there is no number.
fn begin_to_fail(fails: &Path, count: &str) {
    let made = fails.with_extension("new");
    std::fs::write(&made, count).unwrap();
    std::fs::rename(made, fails).unwrap();
}

/// What became of a save on a failing disk.
#[derive(Default)]
struct Tally {
    runs: u64,
    committed: u64,
    uncertain: u64,
    not_committed: u64,
    failed_fsyncs: usize,
}

/// Two good checkpoints; each run begins with a copy of this image.
fn template(file_system: FileSystem, scratch: &Path) -> PathBuf {
    let (image, mount) = (scratch.join("template"), scratch.join("mounted"));
    file_system.make(&image, IMAGE_MIB);
    let mounted = Mounted::image(file_system, &image, &mount).unwrap();
    for step in 1..STEP {
        let work = Work { ranks: 2, bytes: 300_000, keep: KEEP };
        done(&mut work.once(&mount.join("ck"), step)).unwrap();
    }
    mounted.unmount();
    image
}

/// Saves while the device fails for a while, which begins in a phase of the save; how the saving
/// process ended, what it acknowledged and what it said.
fn save_on_failing_device(
    file_system: FileSystem,
    image: &Path,
    number: u64,
    scratch: &Path,
) -> (Option<i32>, Vec<Ack>, String) {
    let at = |name: &str| scratch.join(name);
    let (log, mount, fails) = (at("log"), at("mounted"), at("fails"));
    let dir = mount.join("ck");
    drop(std::fs::remove_file(&log));
    let device = Device::start(image, &log, &fails, scratch);
    let mounted = Mounted::image(file_system, &device.path(), &mount).unwrap();
    let chance = mix(number ^ mix(file_system as u64));
    let work = Work { ranks: 2 + chance % 3, bytes: 100_000 + chance % (4 << 20), keep: KEEP };
    let saver = Saver::start(traced(&work.once(&dir, STEP), &at("trace")), scratch, |_| ());
    PHASES[usize::try_from(number).unwrap() % PHASES.len()].wait(&dir, mix(chance));
    // As long as the save lasts; or for a moment, so that nobody notices later what was lost then.
    let count = if chance.is_multiple_of(4) { String::new() } else { (1 + chance % 3).to_string() };
    begin_to_fail(&fails, &count);
    let ended = saver.end();
    drop(std::fs::remove_file(&fails));
    if chance & 8 == 0 {
        // Nothing that is only in memory may come to the rescue. XFS may have given up by itself.
        let _ = mounted.cut();
    }
    mounted.unmount();
    device.stop();
    ended
}

fn run(file_system: FileSystem, template: &Path, number: u64, scratch: &Path, tally: &mut Tally) {
    let (image, mount) = (scratch.join("image"), scratch.join("mounted"));
    let dir = mount.join("ck");
    done(tier::program("cp").arg("--sparse=always").args([template, &image])).unwrap();
    let (code, acks, errors) = save_on_failing_device(file_system, &image, number, scratch);
    tally.runs += 1;
    tally.failed_fsyncs += failed_fsyncs(&scratch.join("trace")).len();
    match (code, acks.is_empty()) {
        (Some(0), false) => tally.committed += 1,
        (Some(6), true) => tally.uncertain += 1,
        (Some(1 | 3), true) => tally.not_committed += 1,
        other => panic!("{file_system:?}, run {number}: {other:?}: {errors}"),
    }
    // What the disk holds, not what this kernel remembers of it.
    let mounted = Mounted::image(file_system, &image, &mount).unwrap();
    let faults = judge(&dir, &acks, KEEP);
    assert!(faults.is_empty(), "{file_system:?}, run {number}: {faults:#?}");
    // Step 2 stays, whatever becomes of step 3.
    assert!(visible(&dir).contains(&(STEP - 1)), "run {number}: an older checkpoint is gone");
    mounted.unmount();
}

fn survives(scratch: &Path) {
    let begun = Instant::now();
    let mut tally = Tally::default();
    for file_system in [FileSystem::Ext4Ordered, FileSystem::Xfs] {
        let template = template(file_system, scratch);
        for number in 0..tier::count(4, 25) {
            run(file_system, &template, number, scratch, &mut tally);
        }
    }
    let Tally { runs, committed, uncertain, not_committed, failed_fsyncs } = tally;
    assert!(failed_fsyncs > 0, "no fsync has failed in {runs} runs");
    tier::figure(
        "saves on a failing device",
        format!(
            "{runs} runs, {failed_fsyncs} failed fsyncs: {committed} committed and there, \
             {not_committed} not committed, {uncertain} uncertain, 0 wrong, {:.0?}",
            begun.elapsed()
        ),
    );
}

#[test]
fn nothing_is_called_durable_that_is_not() {
    alone_with_device("failing_device::nothing_is_called_durable_that_is_not", survives);
}
