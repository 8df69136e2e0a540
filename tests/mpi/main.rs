//! Jobs under `mpirun`. Started plainly this program is the driver, which starts itself as the
//! ranks of one job per case; every job has a hard deadline and must leave no process behind.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::cast_possible_truncation)]

mod driver;
#[allow(dead_code, reason = "ranks are processes here, not threads")]
#[path = "../it/harness.rs"]
mod harness;
#[path = "../jobs/marked.rs"]
mod marked;
mod ranks;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use driver::{Ended, Job};

type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("sums_and_broadcasts_have_the_same_bits_on_all_ranks", sums_and_broadcasts),
    ("three_ranks_save_and_two_load", three_ranks_save_and_two_load),
    ("three_ranks_save_beside_sums", three_ranks_save_beside_sums),
    ("a_panic_outside_a_phase_ends_the_job", a_panic_outside_a_phase),
    ("a_panic_inside_a_phase_is_everybodys_verdict", a_panic_inside_a_phase),
    ("a_rank_that_returns_early_ends_the_job_with_its_code", an_early_return),
    ("leave_with_ends_the_job_with_the_code_of_the_error", leave_with),
    ("a_rank_that_drops_its_group_and_stays_ends_the_job", a_dropped_group),
    ("a_killed_rank_ends_the_job", a_killed_rank),
    ("survivors_of_a_killed_rank_name_it", survivors_of_a_killed_rank),
    ("survivors_of_a_killed_coordinator_know", survivors_of_a_killed_coordinator),
    ("survivors_of_a_stopped_rank_name_it", survivors_of_a_stopped_rank),
    ("a_rank_that_does_something_else_is_named", a_disagreement),
    ("a_rank_that_was_started_otherwise_is_every_ranks_error", an_odd_launcher),
    ("without_mpirun_mpi_is_not_touched", without_mpirun),
];

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(driver::CASE) {
        return ranks::main(&case);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("TCH_CHECKPOINT_SKIP_MPI").is_some_and(|v| v == "1") {
        println!("SKIPPED: all {} cases, as TCH_CHECKPOINT_SKIP_MPI=1 says", CASES.len());
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, case) in CASES {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(case)) {
            Ok(()) => passed += 1,
            Err(_) => failed.push(*name),
        }
        println!("test {name} ... {}", if failed.contains(name) { "FAILED" } else { "ok" });
    }
    println!("\n{passed} passed, {} failed {failed:?}", failed.len());
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// The one text that all these ranks have left behind.
#[track_caller]
fn same_report(ended: &Ended, ranks: &[u32]) -> String {
    let reports: BTreeSet<String> = ranks.iter().map(|rank| ended.report(*rank)).collect();
    assert_eq!(reports.len(), 1, "{reports:?}\n{}", ended.stderr);
    reports.into_iter().next().unwrap()
}

fn sums_and_broadcasts() {
    for n in 1..=4 {
        let ended = Job::mpi(n, "data").run();
        assert_eq!(ended.code, Some(0), "{n} ranks: {}", ended.stderr);
        same_report(&ended, &(0..n).collect::<Vec<_>>());
    }
}

fn three_ranks_save_and_two_load() {
    let saved = Job::mpi(3, "save").run();
    assert_eq!(saved.code, Some(0), "{}", saved.stderr);
    let loaded = Job::mpi(2, "load").env("SAVED_IN", saved.dir()).run();
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
    assert_eq!(same_report(&loaded, &[0, 1]), "loaded step 7");
}

fn three_ranks_save_beside_sums() {
    let saved = Job::mpi(3, "beside").run();
    assert_eq!(saved.code, Some(0), "{}", saved.stderr);
    assert_eq!(saved.stderr, "", "nobody was ended");
    let loaded = Job::mpi(2, "load").env("SAVED_IN", saved.dir()).run();
    assert_eq!(loaded.code, Some(0), "{}", loaded.stderr);
}

fn a_panic_outside_a_phase() {
    let ended = Job::mpi(3, "panic_outside").run();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 1 fell over"), "{}", ended.stderr);
    assert!(ended.stderr.contains("this rank panicked"), "{}", ended.stderr);
}

fn a_panic_inside_a_phase() {
    let ended = Job::mpi(3, "panic_inside").run();
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let report = same_report(&ended, &[0, 1, 2]);
    assert!(report.starts_with("Panic of rank 1: rank 1 fell over"), "{report}");
    assert!(!ended.stderr.contains("MPI_ABORT"), "{}", ended.stderr);
}

fn an_early_return() {
    let ended = Job::mpi(3, "early_return").run();
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    assert!(ended.stderr.contains("no such flag"), "{}", ended.stderr);
}

fn leave_with() {
    let ended = Job::mpi(3, "leave_with").run();
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stdout.contains("last words"), "{}", ended.stdout);
}

fn a_dropped_group() {
    let ended = Job::mpi(3, "dropped").run();
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 2 dropped its process group"), "{}", ended.stderr);
}

fn a_killed_rank() {
    let ended = Job::mpi(3, "killed").run();
    assert_eq!(ended.code, Some(128 + 9), "{}", ended.stderr);
}

/// With recovery Open MPI leaves the survivors alone, and its own exit code says nothing.
fn survivors_of_a_killed_rank() {
    for case in ["killed_in_phase", "killed_in_sum"] {
        let job = Job::mpi(3, case).env("VICTIM", "2").env("OMPI_MCA_orte_enable_recovery", "1");
        let ended = job.run();
        let report = same_report(&ended, &[0, 1]);
        assert!(report.starts_with("PeerLost of rank 2: rank 2 is gone"), "{case}: {report}");
    }
}

fn survivors_of_a_killed_coordinator() {
    for case in ["killed_in_phase", "killed_in_sum"] {
        let job = Job::mpi(3, case).env("VICTIM", "0").env("OMPI_MCA_orte_enable_recovery", "1");
        let ended = job.run();
        for report in [ended.report(1), ended.report(2)] {
            // How the connection ended, each sees for itself.
            assert!(report.starts_with("CoordinatorLost of rank 0"), "{case}: {report}");
        }
    }
}

fn survivors_of_a_stopped_rank() {
    for (case, victim) in [("stopped_in_phase", 1), ("stopped_in_sum", 1), ("stopped_in_sum", 2)] {
        let job = Job::mpi(3, case).env("VICTIM", victim.to_string());
        let ended = job.env("TCH_CHECKPOINT_DEADLINE_MS", "2000").run();
        assert_eq!(ended.code, Some(5), "{case}: {}", ended.stderr);
        let report = same_report(&ended, &[0, 3 - victim]);
        assert!(report.starts_with(&format!("Deadline of rank {victim}: no ")), "{report}");
        assert!(report.contains(&format!("from rank {victim}")), "{report}");
        assert!(!report.contains(", "), "{report} names somebody else");
    }
}

fn a_disagreement() {
    let ended = Job::mpi(3, "disagreement").run();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let report = same_report(&ended, &[0, 1, 2]);
    let expected = "Disagreement of rank 1: rank 0 does a sum of f32 of 40 bytes (operation 1), \
                    rank 1 does a sum of f64 of 24 bytes (operation 1)";
    assert_eq!(report, expected);
}

/// With recovery, so that the end of one rank is not what ends the others.
fn an_odd_launcher() {
    let ended = Job::mpi(3, "odd_launcher").env("OMPI_MCA_orte_enable_recovery", "1").run();
    let own = ended.report(1);
    assert!(own.contains("rank 1 of 3, but OMPI_COMM_WORLD_SIZE=7"), "{own}\n{}", ended.stderr);
    let others = same_report(&ended, &[0, 2]);
    assert!(others.starts_with("InvalidInput of rank 1: rank 1 was not started"), "{others}");
}

fn without_mpirun() {
    let alone = Job::plain("untouched").run();
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    assert_eq!(alone.report(0), "1 ranks, MPI: false");
    let tcp = Job::torchrun(2, "untouched").run();
    assert_eq!(tcp.code, Some(0), "{}", tcp.stderr);
    assert_eq!(same_report(&tcp, &[0, 1]), "2 ranks, MPI: false");
    let mpi = Job::mpi(2, "untouched").run();
    assert_eq!(mpi.code, Some(0), "{}", mpi.stderr);
    assert_eq!(same_report(&mpi, &[0, 1]), "2 ranks, MPI: true");
}
