//! Ranks that are killed, stopped, end, panic, fail or leave, in each phase of everything that
//! ranks do together: those that are left hear the same, by whom it came and in which phase, within
//! their deadline; nothing is left running, and nothing is visible that was not committed.
//!
//! Started plainly this program is the driver, which starts itself as the ranks of one job per cell
//! of the table; the short tier runs a spread of cells, the long one all of them.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::cast_possible_truncation)]

#[allow(dead_code, reason = "ranks are processes here, or threads of one")]
#[path = "../it/harness.rs"]
mod harness;
mod job;
mod judge;
#[path = "../jobs/marked.rs"]
mod marked;
#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "../handler/models.rs"]
mod models;
mod rank;
mod report;
mod table;
#[path = "../tier/mod.rs"]
mod tier;
#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "../it/checkpointer/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use job::Job;
use judge::judge;
use table::{Cell, Way};

/// Jobs at a time: most of them wait for a deadline most of the time.
const AT_A_TIME: usize = 3;

type Case = (&'static str, Way);

const CASES: [Case; 4] = [
    ("ranks_that_are_threads", Way::Threads),
    ("ranks_that_are_processes", Way::Tcp),
    ("ranks_of_mpirun_with_recovery", Way::MpiRecovery),
    ("ranks_of_mpirun", Way::Mpi),
];

fn main() -> ExitCode {
    if let Ok(cell) = std::env::var(job::CELL) {
        return rank::main(&cell);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // `way:scenario:act@place@rank`, for one cell alone.
    if let Some(cell) = arguments.iter().find(|argument| argument.contains('@')) {
        judge(&Job::run(&Cell::parse(cell).expect("WAY:SCENARIO:ACT@PLACE@RANK")));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let mut failed = Vec::new();
    for (name, way) in CASES {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        if !tier::has(way.needs()) {
            continue;
        }
        let (passed, bad) = run_all(way);
        println!("test {name} ... {}", if bad == 0 { "ok" } else { "FAILED" });
        tier::figure(name, format!("{passed} of {} cells", passed + bad));
        if bad > 0 {
            failed.push(name);
        }
    }
    println!("\n{} failed {failed:?}", failed.len());
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// How many cells of this way went well, and how many did not.
fn run_all(way: Way) -> (usize, usize) {
    let cells = table::cells(way, tier::is_full());
    let (next, bad) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slowest = Mutex::new(BTreeMap::<&str, (Duration, String)>::new());
    let work = || {
        while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = catch_unwind(AssertUnwindSafe(|| judge(&Job::run(cell))));
            let Ok(took) = run else {
                eprintln!("FAILED: {cell}");
                bad.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let mut slowest = slowest.lock().unwrap();
            let seen = slowest.entry(cell.act.name()).or_default();
            *seen = std::mem::take(seen).max((took, cell.to_string()));
        }
    };
    std::thread::scope(|scope| {
        (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work)));
    });
    for (act, (took, cell)) in slowest.into_inner().unwrap() {
        let text = format!("{:.2} s, deadline {} s ({cell})", took.as_secs_f64(), job::DEADLINE_S);
        tier::figure(&format!("slowest survivor, {act}, {way:?}"), text);
    }
    let bad = bad.into_inner();
    (cells.len() - bad, bad)
}
