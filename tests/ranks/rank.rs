//! What one rank does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tch_checkpoint::catalog::Wanted;
use tch_checkpoint::checkpointer::{Checkpointer, Outcome};
use tch_checkpoint::group::Deadlines;
use tch_checkpoint::handler::{EarlyStopping, NNHandler};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save, save_async};
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::LoadTargets;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::{ProcessGroup, Result, WorldSize};

use crate::harness::{TestTensor, name, path, state, usual_tensors};
use crate::job::{DEADLINE_S, DIR, RUNS, pid_path};
use crate::models;
use crate::report::{self, Report, Seen};
use crate::table::{Act, Cell, RANKS};
use crate::toy::{self, Toy, at};

/// What another rank waits for the reports of the others before it ends all of them.
const LAST_WORDS: Duration = Duration::from_secs(15);
/// A rank that has dropped its handle and goes on.
const FOREVER: Duration = Duration::from_secs(600);
/// The exit code of a program whose `main` returns an error.
const RETURNED: u8 = 7;

pub fn main(cell: &str) -> ExitCode {
    let cell = Cell::parse(cell).unwrap();
    match std::env::var(crate::job::THREADS) {
        Ok(_) => threads(&cell),
        Err(_) => process(&cell),
    }
}

fn dir() -> PathBuf {
    std::env::var_os(DIR).unwrap().into()
}

fn process(cell: &Cell) -> ExitCode {
    let group = match ProcessGroup::from_env() {
        Ok(group) => group,
        Err(error) => {
            eprintln!("joining: {error}");
            ProcessGroup::leave_with(&error)
        }
    };
    let rank = group.rank().get();
    std::fs::write(pid_path(&dir(), rank), std::process::id().to_string()).unwrap();
    let (result, report) = play(&group, cell);
    report::write(&dir(), rank, &report);
    let is_victim = rank == cell.rank;
    match result {
        Err(_) if is_victim && cell.act == Act::Return => {
            drop(group);
            return ExitCode::from(RETURNED);
        }
        Err(_) if is_victim && cell.act == Act::Drop => {
            drop(group);
            std::thread::sleep(FOREVER);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if cell.way.is_mpi() {
        // Whoever ends first ends all of them.
        let heard = |rank: &u32| report::path(&dir(), *rank).exists();
        let until = Instant::now() + LAST_WORDS;
        while (0..RANKS).filter(|r| is_expected(cell, *r)).any(|r| !heard(&r)) {
            if Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    match result.and_then(|()| group.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if cell.way.is_mpi() => ProcessGroup::leave_with(&error),
        Err(error) => ExitCode::from(error.exit_code()),
    }
}

/// Whether that rank lives to say how it ended.
pub fn is_expected(cell: &Cell, rank: u32) -> bool {
    rank != cell.rank || cell.act.is_voted() || cell.act == Act::Stop
}

fn threads(cell: &Cell) -> ExitCode {
    let progress = Duration::from_secs(DEADLINE_S);
    let deadlines = Deadlines { progress, ..Deadlines::default() };
    let groups = ProcessGroup::threads(WorldSize::new(RANKS).unwrap(), deadlines);
    let (done, ended) = std::sync::mpsc::channel();
    for group in groups {
        let (cell, done) = (cell.clone(), done.clone());
        std::thread::spawn(move || {
            let rank = group.rank().get();
            std::fs::write(pid_path(&dir(), rank), "").unwrap();
            let (result, report) = play(&group, &cell);
            report::write(&dir(), rank, &report);
            drop(group);
            // It goes on, without its handle.
            if result.is_err() && rank == cell.rank && cell.act == Act::Drop {
                std::thread::sleep(FOREVER);
            }
            let _ = done.send(rank);
        });
    }
    drop(done);
    let is_gone =
        |rank: u32| rank == cell.rank && matches!(cell.act, Act::PanicBetween | Act::Drop);
    for _ in (0..RANKS).filter(|rank| !is_gone(*rank)) {
        if ended.recv_timeout(Duration::from_secs(30)).is_err() {
            eprintln!("a rank hangs");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The scenario on this rank, and how it ended.
fn play(group: &ProcessGroup, cell: &Cell) -> (Result<()>, Report) {
    let mut acked = Vec::new();
    let runs = dir().join(RUNS);
    let result = match cell.scenario.as_str() {
        "save" => saves(group, &runs, &mut acked),
        "files" => files(group, &runs, &mut acked),
        "beside" => beside(group, &runs, &mut acked),
        "load" => loads(group, &runs),
        "loop" => own_loop(group, &runs, &mut acked),
        "train" => train(group, &runs, &mut acked),
        other => panic!("no scenario {other}"),
    };
    let error = result.as_ref().err().map(Seen::of);
    (result, Report { error, ended: SystemTime::now(), acked })
}

fn second(runs: &Path) -> String {
    runs.join("second").to_str().unwrap().to_owned()
}

fn options(audit: bool) -> SaveOptions {
    SaveOptions { step: 2, audit, ..SaveOptions::default() }
}

fn saves(group: &ProcessGroup, runs: &Path, acked: &mut Vec<String>) -> Result<()> {
    let (at, state) = (path(&second(runs)), state(&usual_tensors(), group, 2));
    let saved = save(group, &LocalStorage::new(), &at, &state, &options(true))?;
    acked.push(saved.name.to_string());
    Ok(())
}

fn files(group: &ProcessGroup, runs: &Path, acked: &mut Vec<String>) -> Result<()> {
    let (at, state) = (path(&second(runs)), state(&usual_tensors(), group, 2));
    let saved = save_single_file(group, &LocalStorage::new(), &at, &state, &options(false))?;
    acked.push(saved.name.to_string());
    Ok(())
}

fn beside(group: &ProcessGroup, runs: &Path, acked: &mut Vec<String>) -> Result<()> {
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
    let (at, state) = (path(&second(runs)), state(&usual_tensors(), group, 2));
    let pending = save_async(group, &storage, &at, &state, &options(false), Box::new(|_| {}))?;
    acked.push(pending.wait()?.name.to_string());
    Ok(())
}

/// All or nothing; what was verified everywhere is put into place before the last vote.
fn loads(group: &ProcessGroup, runs: &Path) -> Result<()> {
    let tensors = usual_tensors();
    let shares =
        tensors.iter().filter_map(|t| Some((t, t.held(group.rank().get().into(), RANKS.into())?)));
    let shares: Vec<_> = shares.collect();
    let size = |t: &TestTensor, s: &Slice| s.elements() * t.spec.dtype().size_bytes();
    let mut buffers: Vec<Vec<u8>> =
        shares.iter().map(|(t, slice)| vec![0xEE; size(t, slice) as usize]).collect();
    let mut targets = LoadTargets::new();
    for ((tensor, slice), buffer) in shares.iter().zip(&mut buffers) {
        let (spec, slice) = (tensor.spec.clone(), slice.clone());
        targets.add_slice(name(&tensor.name), spec, slice, Box::new(buffer.as_mut_slice()))?;
    }
    let first = Wanted::parse(runs.join("first"))?;
    let rules = LoadRules { strict: false, ..LoadRules::default() };
    let storage = LocalStorage::new();
    let loaded = load(group, &storage, &first, &mut targets, &rules, Atomicity::Atomic);
    drop(targets);
    let is_untouched = buffers.iter().flatten().all(|byte| *byte == 0xEE);
    match &loaded {
        Ok(_) => assert!(!is_untouched, "nothing was loaded"),
        Err(error) if error.phase() == Some("place") => {}
        Err(error) => assert!(is_untouched, "changed by a load that failed: {error}"),
    }
    loaded.map(drop)
}

/// Four steps, of which every second one is saved and replaces the one before.
fn own_loop(group: &ProcessGroup, runs: &Path, acked: &mut Vec<String>) -> Result<()> {
    let mut config = toy::config(runs).every_steps(2).keep_last(1);
    config.save_on_signal = true;
    let mut checkpointer = Checkpointer::new(group, config)?;
    checkpointer.save_when(|_| false);
    let mut toy = Toy::new();
    let _none = toy.with(|parts| checkpointer.resume(parts))?;
    for step in 1..=4 {
        toy.step(step, group.rank().get());
        let stepped = toy.with(|parts| checkpointer.step_callback(&at(step), parts))?;
        if let Some((_, Outcome::Saved(saved))) = stepped.save {
            acked.push(saved.name.to_string());
        }
    }
    toy.with(|parts| checkpointer.finish(&at(4), parts)).map(drop)
}

fn train(group: &ProcessGroup, runs: &Path, acked: &mut Vec<String>) -> Result<()> {
    tch::set_num_threads(1);
    let config = models::NetConfig { hidden: 6, dropout: 0.0 };
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
    let built = NNHandler::builder(config).process_group(group).device(tch::Device::Cpu);
    let mut handler = models::equip(built.storage(storage).seed(5).build()?);
    handler.set_optimizer(tch_checkpoint::torch::Adam::default())?;
    handler.auto_save(1, runs, "e{epoch}")?;
    handler.save_on_signal(true)?;
    handler.add_callback(EarlyStopping::new().monitor("loss"))?;
    handler.train(1)?;
    acked.push("e1".to_owned());
    Ok(())
}
