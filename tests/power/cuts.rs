//! Power cuts while checkpoints are saved and old ones removed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use crate::alone::alone;
use crate::command::{Saver, Work, slowed, without_fsync};
use crate::disk::FileSystem;
use crate::judge::{Fault, attempt, judge, visible};
use crate::machine::Machine;
use crate::{mix, tier};

/// Checkpoints that stay.
const KEEP: u64 = 2;

/// When the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// At any time, right after another program's fsync has made durable what it could.
    AfterNeighbour,
    /// As soon as a new name is visible, and a neighbour's fsync has made it durable.
    NewName,
    /// At any time.
    Whenever,
    /// The kernel has written data of a save that goes on, of its own accord, and no metadata.
    EarlyData,
    /// A save is acknowledged, and nothing else happens any more.
    Idle,
}

const MOMENTS: [Moment; 5] =
    [Moment::AfterNeighbour, Moment::NewName, Moment::EarlyData, Moment::Whenever, Moment::Idle];

impl Moment {
    fn wait(self, machine: &Machine, saver: &Saver, newest: u64, chance: u64) {
        match self {
            Self::Idle => {}
            Self::Whenever => pause(chance),
            Self::AfterNeighbour => {
                pause(chance);
                machine.neighbour();
            }
            Self::EarlyData => write_early(&machine.dir()),
            Self::NewName => {
                wait_for_name_after(machine, saver.acks().last().map_or(newest, |ack| ack.step));
                machine.neighbour();
            }
        }
    }
}

/// Up to two saves long.
fn pause(chance: u64) {
    std::thread::sleep(Duration::from_micros(chance % 40_000));
}

fn wait_for_name_after(machine: &Machine, newest: u64) {
    let until = Instant::now() + Duration::from_secs(2);
    while visible(&machine.dir()).last().is_none_or(|&step| step <= newest) {
        if Instant::now() > until {
            break;
        }
    }
}

/// Waits for data of a save that goes on, and writes it as the kernel may at any time.
fn write_early(dir: &Path) {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let files: Vec<_> = attempt(dir).iter().flat_map(|at| data_files(at)).collect();
        for file in files.iter().filter_map(|path| File::open(path).ok()) {
            // Written in order to be forgotten; nothing else becomes durable.
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        if !files.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            return;
        }
    }
}

/// Files with tensors in which something is.
fn data_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_data = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "safetensors")
            && path.metadata().is_ok_and(|file| file.len() > 0)
    };
    entries.map(|entry| entry.path()).filter(is_data).collect()
}

/// Saves, cuts the power at a moment of it, and looks what is there. `modified` changes how the
/// saving process is started.
fn cycle(
    machine: Machine,
    number: u64,
    moment: Moment,
    modified: &dyn Fn(Command) -> Command,
) -> (Machine, Vec<Fault>) {
    let chance = mix(number ^ mix(machine.file_system as u64));
    let work = Work { ranks: 2 + chance % 3, bytes: (64 << 10) + chance % (2 << 20), keep: KEEP };
    let dir = machine.dir();
    let newest = visible(&dir).last().copied().unwrap_or(0);
    let (command, acks) = match moment {
        Moment::Idle => (work.once(&dir, newest + 1), 1),
        Moment::NewName => (slowed(work.forever(&dir)), chance % 2),
        Moment::EarlyData => (slowed(work.forever(&dir)), 1),
        // A fresh machine has something to lose only after an acknowledgement.
        _ => (work.forever(&dir), chance % 4 + u64::from(newest == 0)),
    };
    let machine = machine.cut(modified(command), acks, |machine, saver| {
        moment.wait(machine, saver, newest, mix(chance));
    });
    let faults = judge(&dir, &machine.acked, KEEP);
    (machine, faults)
}

/// Many cuts of one machine, none of which may do harm.
fn survives(file_system: FileSystem, scratch: &Path) {
    let begun = Instant::now();
    let cycles = tier::count(12, 500);
    let mut machine = Machine::new(file_system, scratch);
    for (number, moment) in (0..cycles).zip(MOMENTS.iter().cycle()) {
        let faults;
        (machine, faults) = cycle(machine, number, *moment, &|command| command);
        assert!(faults.is_empty(), "{file_system:?}, cut {number}, {moment:?}: {faults:#?}");
    }
    let (saves, took) = (machine.acked.len(), begun.elapsed());
    tier::figure(
        &format!("power cuts on {file_system:?}"),
        format!("{cycles} cuts, {saves} acknowledged saves, 0 lost, 0 torn, {took:.0?}"),
    );
}

#[test]
fn ext4_ordered() {
    alone("cuts::ext4_ordered", |scratch| survives(FileSystem::Ext4Ordered, scratch));
}

#[test]
fn ext4_writeback() {
    alone("cuts::ext4_writeback", |scratch| survives(FileSystem::Ext4Writeback, scratch));
}

#[test]
fn xfs() {
    alone("cuts::xfs", |scratch| survives(FileSystem::Xfs, scratch));
}

/// A cut that hits an undurable save is seen: the tests above could fail.
#[test]
fn saves_without_fsync_do_not_survive() {
    alone("cuts::saves_without_fsync_do_not_survive", |scratch| {
        let (mut lost, mut torn, mut caught) = (0, 0, 0);
        let cycles = tier::count(3, 21);
        let moments = [Moment::AfterNeighbour, Moment::Idle, Moment::Whenever];
        for (number, file_system) in (0..cycles).zip(FileSystem::ALL.into_iter().cycle()) {
            let moment = moments[usize::try_from(number / 3).unwrap() % moments.len()];
            let machine = Machine::new(file_system, scratch);
            let (_machine, faults) = cycle(machine, number, moment, &without_fsync);
            caught += u64::from(!faults.is_empty());
            lost += u64::from(faults.iter().any(|f| matches!(f, Fault::Lost(_))));
            torn += u64::from(faults.iter().any(|f| matches!(f, Fault::Torn(_))));
        }
        tier::figure(
            "power cuts without fsync",
            format!("{caught} of {cycles} caught: {lost} with lost saves, {torn} with torn ones"),
        );
        assert!(caught * 10 >= cycles * 9, "{caught} of {cycles} cuts without fsync are seen");
    });
}
