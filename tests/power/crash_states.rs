//! Every content that the disk may have after a power cut, while a save of four ranks and a pass of
//! retention go on: what is written to the device is recorded and played back in part.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::alone::alone_with_device;
use crate::command::{Ack, Saver, Work, without_fsync};
use crate::device::Device;
use crate::disk::{FileSystem, Mounted};
use crate::judge::{Fault, judge};
use crate::replay::{Log, Part, Replayer, Sparse, State};
use crate::tier;

const KEEP: u64 = 2;
const IMAGE_MIB: u64 = 16;
/// States per file system in the short tier.
const SHORT: usize = 20;
const WORK: Work = Work { ranks: 4, bytes: 150_000, keep: KEEP };

/// A save, and how many writes and flushes there had been when it was acknowledged.
struct Marked {
    ack: Ack,
    at: usize,
}

struct Recording {
    base: Sparse,
    log: Log,
    /// Oldest first.
    acked: Vec<Marked>,
}

fn record(
    file_system: FileSystem,
    scratch: &Path,
    modified: &dyn Fn(Command) -> Command,
) -> Recording {
    let (image, log, mount) = (scratch.join("image"), scratch.join("log"), scratch.join("mounted"));
    file_system.make(&image, IMAGE_MIB);
    let mounted = Mounted::image(file_system, &image, &mount).unwrap();
    let mut acked = Vec::new();
    for step in [1, 2] {
        let ack = save(WORK.once(&mount.join("ck"), step), scratch, || 0).0;
        acked.push(Marked { ack, at: 0 });
    }
    mounted.unmount();
    let base = Sparse::read(&image);
    let device = Device::start(&image, &log, &scratch.join("fails"), scratch);
    let mounted = Mounted::image(file_system, &device.path(), &mount).unwrap();
    let mut lengths = Vec::new();
    for step in [3, 4] {
        let path = log.clone();
        let len = move || std::fs::metadata(&path).unwrap().len();
        lengths.push(save(modified(WORK.once(&mount.join("ck"), step)), scratch, len));
    }
    mounted.unmount();
    device.stop();
    let log = Log::read(&log);
    let marked = |(ack, len)| Marked { ack, at: log.count_at(len) };
    acked.extend(lengths.into_iter().map(marked));
    Recording { base, log, acked }
}

/// Lets `command` save once; what `measure` gives when the save is acknowledged.
fn save(
    command: Command,
    scratch: &Path,
    measure: impl Fn() -> u64 + Send + 'static,
) -> (Ack, u64) {
    let measured = Arc::new(Mutex::new(0));
    let at_ack = measured.clone();
    let saver = Saver::start(command, scratch, move |_| {
        *at_ack.lock().unwrap() = measure();
    });
    let (code, mut acks, errors) = saver.end();
    assert_eq!(code, Some(0), "{errors}");
    let measured = *measured.lock().unwrap();
    (acks.pop().unwrap(), measured)
}

/// The states to look at, in the order of the log: all, or a few; and always what is durable at
/// each acknowledgement.
fn chosen(log: &Log, unit: usize, acked: &[Marked]) -> Vec<State> {
    let mut states = State::all(log, unit, tier::count(8, 200));
    if !tier::is_full() {
        let step = states.len() / SHORT;
        states = states.into_iter().skip(step / 2).step_by(step).collect();
    }
    states.extend(acked.iter().map(durable_at));
    states.sort_by_key(|state| state.after);
    states
}

/// Only what was flushed when a save was acknowledged.
fn durable_at(ack: &Marked) -> State {
    State { after: ack.at, part: Part::Nothing, torn_at: None }
}

/// Looks at these states, in the order of the log; the first that must not be, and its faults.
fn first_bad(
    file_system: FileSystem,
    recording: Recording,
    states: Vec<State>,
    scratch: &Path,
) -> Option<(State, Vec<Fault>)> {
    let (crashed, mount) = (scratch.join("crashed"), scratch.join("mounted"));
    let unit = file_system.never_torn();
    let mut replayer = Replayer::new(&recording.log, recording.base, unit);
    for state in states {
        replayer.store(&state, &crashed);
        let acked: Vec<Ack> = recording
            .acked
            .iter()
            .filter(|marked| marked.at <= state.after)
            .map(|marked| marked.ack.clone())
            .collect();
        let mounted = Mounted::image(file_system, &crashed, &mount)
            .unwrap_or_else(|e| panic!("{file_system:?}, {state:?}: {e}"));
        let faults = judge(&mount.join("ck"), &acked, KEEP);
        mounted.unmount();
        if !faults.is_empty() {
            return Some((state, faults));
        }
    }
    None
}

fn survives(file_system: FileSystem, scratch: &Path) {
    let begun = Instant::now();
    let recording = record(file_system, scratch, &|command| command);
    let flushes = recording.log.epochs().len();
    let states = chosen(&recording.log, file_system.never_torn(), &recording.acked);
    let count = states.len();
    let bad = first_bad(file_system, recording, states, scratch);
    assert!(bad.is_none(), "{file_system:?}: {bad:#?}");
    tier::figure(
        &format!("crash states of {file_system:?}"),
        format!("{count} states around {flushes} flushes, 0 bad, {:.0?}", begun.elapsed()),
    );
}

/// What is not durable is missing in some state: the tests below could fail.
#[test]
fn saves_without_fsync_do_not_survive() {
    alone_with_device("crash_states::saves_without_fsync_do_not_survive", |scratch| {
        let recording = record(FileSystem::Ext4Ordered, scratch, &without_fsync);
        let states = recording.acked.iter().map(durable_at).collect();
        assert!(first_bad(FileSystem::Ext4Ordered, recording, states, scratch).is_some());
    });
}

#[test]
fn ext4_ordered() {
    alone_with_device("crash_states::ext4_ordered", |scratch| {
        survives(FileSystem::Ext4Ordered, scratch);
    });
}

#[test]
fn ext4_writeback() {
    alone_with_device("crash_states::ext4_writeback", |scratch| {
        survives(FileSystem::Ext4Writeback, scratch);
    });
}

#[test]
fn xfs() {
    alone_with_device("crash_states::xfs", |scratch| survives(FileSystem::Xfs, scratch));
}
