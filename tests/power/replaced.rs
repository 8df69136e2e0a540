//! Power cuts while a checkpoint is replaced again and again: the name is never empty, and holds
//! the last acknowledged save or a newer one, whole.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch_checkpoint::catalog::{self, CheckpointPath, Wanted};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::save::{Checkpoint, SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{Error, OnExisting, Result, WorldSize};

use crate::alone::alone;
use crate::command::{Ack, slowed};
use crate::disk::FileSystem;
use crate::machine::Machine;
use crate::{mix, tier};

const DIR: &str = "TCH_CHECKPOINT_TEST_REPLACED_IN";
const FIRST: &str = "TCH_CHECKPOINT_TEST_REPLACED_FROM";
const LAST: &str = "TCH_CHECKPOINT_TEST_REPLACED_TO";
const RANKS: u32 = 2;
/// Longest wait for two saves.
const LATE: Duration = Duration::from_secs(30);

fn save_rank(group: &ProcessGroup, path: &CheckpointPath, step: u64) -> Result<Checkpoint> {
    let (rank, own) = (u64::from(group.rank().get()), 200_000 + step % 1000);
    let spec = TensorSpec::new(Dtype::U8, vec![u64::from(RANKS) * own])?;
    let slice = Slice::new(vec![rank * own], vec![own])?;
    let bytes: Vec<u8> = (0..own).map(|at| mix(step ^ at).to_le_bytes()[0]).collect();
    let mut state = StateDict::new();
    let name = TensorName::new("w")?;
    state.add_slice(&Component::model(), name, spec, slice, Arc::new(bytes))?;
    let options = SaveOptions { step, on_existing: OnExisting::Replace, ..SaveOptions::default() };
    save(group, &LocalStorage::new(), path, &state, &options)
}

fn save_step(path: &CheckpointPath, step: u64) -> Result<Checkpoint> {
    let deadlines = Deadlines { progress: Duration::from_secs(10), ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(RANKS)?, deadlines);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || save_rank(&group, path, step)))
            .collect();
        let verdicts: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        verdicts.into_iter().next().unwrap()
    })
}

/// The saving process of the tests below, which start it; ends after the last step, or when a save
/// fails.
#[test]
#[ignore = "runs as a process of its own"]
fn saver() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let path = CheckpointPath::parse(format!("{dir}/current")).unwrap();
    let step = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    for step in step(FIRST)..=step(LAST) {
        match save_step(&path, step) {
            Ok(done) => println!("\nCOMMITTED {step} {}", done.save_id),
            Err(error) => {
                eprintln!("{error}");
                std::process::exit(1);
            }
        }
    }
}

/// What is under the name, every byte of it verified.
fn current(dir: &Path) -> Result<Ack, Error> {
    let wanted = Wanted::parse(format!("{}/current", dir.display()))?;
    let found = catalog::find(&LocalStorage::new(), &wanted)?;
    let verified = tch_checkpoint::verify::verify(&found, &mut |_| ())?;
    verified.damage.into_iter().next().map_or(Ok(()), Err)?;
    Ok(Ack { step: found.manifest.step(), save_id: found.manifest.save_id().to_string() })
}

fn saver_from(dir: &Path, first: u64, last: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "replaced::saver", "--ignored", "--nocapture"]);
    command.env(DIR, dir).env(FIRST, first.to_string()).env(LAST, last.to_string());
    command
}

/// One cut: after one save, with nothing else going on; right after a neighbour's fsync; or at any
/// time, with long pauses before each rename, while the name is looked at.
fn cycle(machine: Machine, number: u64, next: u64) -> Machine {
    let (chance, dir) = (mix(number), machine.dir());
    let pause = Duration::from_micros(mix(chance) % 40_000);
    match number % 3 {
        0 => machine.cut(saver_from(&dir, next, next), 1, |_, _| ()),
        1 => machine.cut(saver_from(&dir, next, u64::MAX), chance % 4, |machine, _| {
            std::thread::sleep(pause);
            machine.neighbour();
        }),
        _ => machine.cut(slowed(saver_from(&dir, next, u64::MAX)), 1, |machine, saver| {
            let is_there = || assert!(machine.dir().join("current").exists(), "the name is empty");
            // Two whole replacements, however long they take.
            let (watched, late) = (saver.acks().len() + 2, Instant::now() + LATE);
            while saver.acks().len() < watched {
                assert!(Instant::now() < late, "no save is acknowledged");
                is_there();
            }
            let until = Instant::now() + pause;
            while Instant::now() < until {
                is_there();
            }
        }),
    }
}

fn survives(file_system: FileSystem, scratch: &Path) {
    let begun = Instant::now();
    let cycles = tier::count(6, 200);
    let mut machine = Machine::new(file_system, scratch);
    let mut next = 1;
    for number in 0..cycles {
        machine = cycle(machine, number, next);
        let last = machine.acked.last().unwrap();
        let found = current(&machine.dir()).unwrap_or_else(|e| panic!("cut {number}: {e}"));
        assert!(found.step >= last.step, "cut {number}: {last:?} is lost, {found:?} is there");
        assert!(found.step > last.step || found == *last, "{last:?} is not {found:?}");
        next = found.step + 1;
    }
    let (saves, took) = (machine.acked.len(), begun.elapsed());
    tier::figure(
        &format!("power cuts while replacing on {file_system:?}"),
        format!("{cycles} cuts, {saves} acknowledged saves, 0 lost, 0 torn, {took:.0?}"),
    );
}

#[test]
fn ext4_ordered() {
    alone("replaced::ext4_ordered", |scratch| survives(FileSystem::Ext4Ordered, scratch));
}

#[test]
fn ext4_writeback() {
    alone("replaced::ext4_writeback", |scratch| survives(FileSystem::Ext4Writeback, scratch));
}

#[test]
fn xfs() {
    alone("replaced::xfs", |scratch| survives(FileSystem::Xfs, scratch));
}
