//! What the ranks of each case do.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tch_checkpoint::group::Channel;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Result};

use crate::driver::{DIR, report_path, within};
use crate::harness::{TestTensor, load_state, save_beside, save_state};

/// Elements of a sum that takes several pieces, the last one not full.
const MANY: usize = 2_500_001;
/// A rank of a case that should have been ended is still there after this.
const FOREVER: Duration = Duration::from_secs(600);

/// Runs this rank's part of `case`.
pub fn main(case: &str) -> ExitCode {
    let result = match case {
        "early_return" => early_return(),
        "odd_launcher" => odd_launcher(),
        _ => return run(case),
    };
    // As a program that knows nothing of MPI ends.
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// As a program should end.
fn run(case: &str) -> ExitCode {
    let group = ProcessGroup::from_env().unwrap_or_else(|error| leave(&error));
    let done = match case {
        "data" => data(&group),
        "save" => save(&group),
        "load" => load(&group),
        "beside" => beside(&group),
        "panic_outside" => panic_outside(&group),
        "panic_inside" => return panic_inside(group),
        "leave_with" => leave_with(&group),
        "dropped" => dropped(group.clone(), group),
        "killed" => lose(&group, Signal::KILL, in_phase),
        "killed_in_phase" => report_loss(&group, Signal::KILL, in_phase),
        "killed_in_sum" => report_loss(&group, Signal::KILL, in_sum),
        "stopped_in_phase" => report_loss(&group, Signal::STOP, in_phase),
        "stopped_in_sum" => report_loss(&group, Signal::STOP, in_sum),
        "disagreement" => disagreement(&group),
        "untouched" => untouched(&group),
        _ => panic!("no case {case}"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => leave(&error),
    }
}

fn leave(error: &Error) -> ! {
    eprintln!("{error}");
    ProcessGroup::leave_with(error)
}

fn dir() -> PathBuf {
    std::env::var_os(DIR).unwrap().into()
}

/// Writes down what this rank has found, all at once.
fn report(group: &ProcessGroup, text: &str) {
    report_as(group.rank().get(), text);
}

fn report_as(rank: u32, text: &str) {
    let path = report_path(&dir(), rank);
    let part = path.with_extension("part");
    fs::write(&part, text).unwrap();
    fs::rename(part, path).unwrap();
}

fn describe(error: &Error) -> String {
    let rank = error.rank().map_or("nobody".to_owned(), |rank| format!("rank {rank}"));
    format!("{:?} of {rank}: {}", error.kind(), error.message())
}

/// A phase that every rank takes part in.
fn meet(group: &ProcessGroup, name: &str) -> Result<Vec<u32>> {
    group.phase_all(Channel::Training, name, || Ok(group.rank().get()), Ok)
}

/// Values whose sums need rounding, different on every rank.
fn value(rank: u32, at: usize) -> f64 {
    (f64::from(rank) + 1.1) / ((at % 1013) as f64 + 0.7)
}

fn data(group: &ProcessGroup) -> Result<()> {
    let (rank, n) = (group.rank().get(), group.world_size().get());
    assert_eq!(meet(group, "roll call")?, (0..n).collect::<Vec<_>>());
    assert_eq!(group.local_rank().0, rank);
    assert_eq!(ProcessGroup::from_env()?.rank(), group.rank());
    let mut digest = blake3::Hasher::new();
    for length in [0, 1, 1000, MANY] {
        let mut sums: Vec<f32> = (0..length).map(|at| value(rank, at) as f32).collect();
        group.all_reduce_sum(&mut sums)?;
        let mut precise: Vec<f64> = (0..length).map(|at| value(rank, at)).collect();
        group.all_reduce_sum_f64(&mut precise)?;
        for (at, (sum, precise)) in sums.iter().zip(&precise).enumerate() {
            let expected: f64 = (0..n).map(|rank| value(rank, at)).sum();
            assert!((f64::from(*sum) - expected).abs() <= expected * 1e-6, "{sum} at {at}");
            assert!((precise - expected).abs() <= expected * 1e-14, "{precise} at {at}");
            digest.update(&sum.to_le_bytes()).update(&precise.to_le_bytes());
        }
        let mut bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8 ^ rank as u8).collect();
        group.broadcast(&mut bytes)?;
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
        let cut = |ranks: u32| length * ranks as usize / n as usize;
        let own = cut(rank)..cut(rank + 1);
        let mut bytes = vec![0xA5; length];
        own.clone().for_each(|at| bytes[at] = (at % 251) as u8);
        group.all_gather(&mut bytes, own)?;
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    }
    if n > 1 {
        other_threads_are_refused(group);
    }
    report(group, &digest.finalize().to_string());
    // Many short ones: a request must not be left behind by any of them.
    for round in 0..200u16 {
        let mut one = [f32::from(round)];
        group.all_reduce_sum(&mut one)?;
        assert_eq!(one, [f32::from(round) * n as f32]);
    }
    group.clone().finish()?;
    let error = meet(group, "after the end");
    assert_eq!(error.is_err(), n > 1, "{error:?}");
    Ok(())
}

fn other_threads_are_refused(group: &ProcessGroup) {
    let there = group.clone();
    let refused = std::thread::spawn(move || there.all_reduce_sum(&mut [1.0])).join().unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    let there = group.clone();
    let refused = std::thread::spawn(move || there.finish()).join().unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn tensors() -> Vec<TestTensor> {
    vec![
        TestTensor::new("rows", Dtype::F32, &[7, 3], Some(0)),
        TestTensor::new("whole", Dtype::I64, &[5], None),
    ]
}

fn save(group: &ProcessGroup) -> Result<()> {
    let storage = LocalStorage;
    save_state(group, &storage, &checkpoint(&dir()), &tensors(), 7)?;
    group.clone().finish()
}

/// Sums go on while a save is pending; its thread never has the last handle of the group.
fn beside(group: &ProcessGroup) -> Result<()> {
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage);
    for round in 0..3u16 {
        let at = checkpoint(&dir());
        let pending = save_beside(group, &storage, &at, &tensors(), 7)?;
        for step in 0..50 {
            let mut one = [f32::from(round)];
            group.all_reduce_sum(&mut one)?;
            assert_eq!(one, [f32::from(round) * group.world_size().get() as f32], "{step}");
        }
        if round == 1 { drop(pending) } else { drop(pending.wait()?) }
    }
    group.clone().finish()
}

fn load(group: &ProcessGroup) -> Result<()> {
    let at = checkpoint(Path::new(&std::env::var_os("SAVED_IN").unwrap()));
    let storage = LocalStorage;
    let loaded = load_state(group, &storage, &at, &tensors(), 7, Atomicity::Atomic)?;
    report(group, &format!("loaded step {}", loaded.manifest.step()));
    group.clone().finish()
}

fn checkpoint(dir: &Path) -> String {
    dir.join("saved").to_str().unwrap().to_owned()
}

fn panic_outside(group: &ProcessGroup) -> Result<()> {
    meet(group, "start")?;
    assert!(group.rank().get() != 1, "rank 1 fell over");
    in_sum(group, || ())?;
    group.clone().finish()
}

fn panic_inside(group: ProcessGroup) -> ExitCode {
    let verdict = in_phase(&group, || {
        assert!(group.rank().get() != 1, "rank 1 fell over");
    });
    let error = verdict.expect_err("a rank panicked");
    report(&group, describe(&error).lines().next().unwrap_or_default());
    match group.finish() {
        Ok(()) => ExitCode::from(error.exit_code()),
        Err(error) => leave(&error),
    }
}

fn early_return() -> Result<()> {
    let group = ProcessGroup::from_env()?;
    meet(&group, "start")?;
    if group.rank().get() == 1 {
        return Err(Error::new(ErrorKind::InvalidInput, "no such flag"));
    }
    if let Err(error) = meet(&group, "next") {
        leave(&error);
    }
    group.finish()
}

/// Rank 1 is told another size of the job by its launcher than by MPI.
fn odd_launcher() -> Result<()> {
    const SIZE: &str = "OMPI_COMM_WORLD_SIZE";
    let told = |name| std::env::var(name).unwrap();
    let rank: u32 = told("OMPI_COMM_WORLD_RANK").parse().unwrap();
    if rank == 1 && told(SIZE) != "7" {
        let program = std::env::current_exe().unwrap();
        panic!("{}", std::process::Command::new(program).env(SIZE, "7").exec());
    }
    let error = ProcessGroup::from_env().err().unwrap();
    report_as(rank, &describe(&error));
    Err(error)
}

fn leave_with(group: &ProcessGroup) -> Result<()> {
    meet(group, "start")?;
    if group.rank().get() == 1 {
        print!("last words");
        return Err(Error::new(ErrorKind::Corrupt, "nothing to load"));
    }
    in_sum(group, || ())
}

fn dropped(one: ProcessGroup, other: ProcessGroup) -> Result<()> {
    meet(&one, "start")?;
    if one.rank().get() == 2 {
        drop(one);
        drop(other);
        std::thread::sleep(FOREVER);
        return Ok(());
    }
    in_sum(&one, || ())
}

/// A phase in which each rank does `part`.
fn in_phase(group: &ProcessGroup, part: impl FnOnce()) -> Result<()> {
    let local = || {
        part();
        Ok(())
    };
    group.phase_all(Channel::Save, "at work", local, |_| Ok(()))
}

/// A sum before which each rank does `part`.
fn in_sum(group: &ProcessGroup, part: impl FnOnce()) -> Result<()> {
    part();
    group.all_reduce_sum(&mut vec![1.0; MANY])
}

/// Signals the rank that `VICTIM` names on its way to the others.
fn lose(
    group: &ProcessGroup,
    signal: Signal,
    meeting: impl Fn(&ProcessGroup, Box<dyn FnOnce()>) -> Result<()>,
) -> Result<()> {
    meet(group, "start")?;
    group.all_reduce_sum(&mut [1.0])?;
    let victim = std::env::var("VICTIM").map_or(2, |rank| rank.parse().unwrap());
    let is_victim = group.rank().get() == victim;
    meeting(
        group,
        Box::new(move || {
            if is_victim {
                kill_process(getpid(), signal).unwrap()
            }
        }),
    )
}

/// Writes down what a survivor is told, and waits for the other survivor to do so.
fn report_loss(
    group: &ProcessGroup,
    signal: Signal,
    meeting: impl Fn(&ProcessGroup, Box<dyn FnOnce()>) -> Result<()>,
) -> Result<()> {
    let error = lose(group, signal, meeting).expect_err("a rank is lost");
    report(group, &describe(&error));
    let reports = || (0..3).filter(|rank| report_path(&dir(), *rank).exists()).count();
    assert!(within(Duration::from_secs(30), || reports() == 2), "the other survivor is silent");
    Err(error)
}

/// Rank 1 sums something else; then all do the same again.
fn disagreement(group: &ProcessGroup) -> Result<()> {
    let different = match group.rank().get() {
        1 => group.all_reduce_sum_f64(&mut [1.0; 3]),
        _ => group.all_reduce_sum(&mut [1.0; 10]),
    };
    report(group, &describe(&different.expect_err("not the same")));
    let mut sum = [1.0];
    group.all_reduce_sum(&mut sum)?;
    assert_eq!(sum, [3.0]);
    group.clone().finish()
}

fn untouched(group: &ProcessGroup) -> Result<()> {
    let is_used = mpi::environment::is_initialized();
    report(group, &format!("{} ranks, MPI: {is_used}", group.world_size()));
    group.clone().finish()
}
