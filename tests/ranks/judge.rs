//! Whether what became of a job is what is promised.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tch_checkpoint::catalog::{Wanted, find};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::verify::verify;

use crate::job::Ended;
use crate::report::{Report, Seen};
use crate::table::{Act, Way};

/// Exit codes of errors that were told; none of a panic, an abort or a signal.
const TOLD: [i32; 4] = [3, 5, 6, 7];
/// Within so many seconds mpirun's job is to be gone; a machine that does much else gets more.
const GONE: Duration = Duration::from_secs(15);
/// What has lost a rank.
const LOSSES: [&str; 4] = ["PeerLost", "Deadline", "CoordinatorLost", "OutcomeUnknown"];

/// Checks it, and gives how long after it had happened the slowest survivor was told; where mpirun
/// ends all of them, how long until they were gone.
///
/// # Panics
/// If anything is not as it must be.
pub fn judge(ended: &Ended) -> Duration {
    let cell = &ended.cell;
    let is_ended_by_launcher = cell.way == Way::Mpi;
    if is_ended_by_launcher {
        assert!(ended.codes.iter().all(|code| *code != Some(0)), "{cell}: {:?}", ended.codes);
        let gone_after = ended.since_mark(ended.gone);
        assert!(gone_after < GONE, "{cell}: gone after {gone_after:?}");
    } else {
        let heard: Vec<(u32, &Report)> = ended
            .survivors()
            .map(|(rank, it)| {
                (
                    rank,
                    it.unwrap_or_else(|| panic!("{cell}: rank {rank} is silent: {}", ended.output)),
                )
            })
            .collect();
        check_verdicts(ended, &heard);
    }
    check_codes(ended);
    check_visible(ended);
    assert!(!ended.output.contains("stack backtrace"), "{cell}: {}", ended.output);
    let last = ended.survivors().filter_map(|(_, it)| Some(it?.ended)).max();
    ended.since_mark(if is_ended_by_launcher { ended.gone } else { last.unwrap_or(ended.marked) })
}

/// All were told the same, whom it came by, and in which phase; or all that it went well.
fn check_verdicts(ended: &Ended, heard: &[(u32, &Report)]) {
    let cell = &ended.cell;
    let errors: Vec<&Seen> = heard.iter().filter_map(|(_, it)| it.error.as_ref()).collect();
    if errors.is_empty() {
        assert!(cell.is_after_vote(), "{cell}: it went well without {}", cell.rank);
        return;
    }
    assert_eq!(errors.len(), heard.len(), "{cell}: {errors:#?}");
    let kinds: BTreeSet<&str> = errors.iter().map(|seen| seen.kind.as_str()).collect();
    for seen in &errors {
        assert_eq!(seen.rank, Some(cell.rank), "{cell}: {seen:?}");
        let phase = seen.phase.as_deref().unwrap_or_default();
        let is_step = cell.phase == "train" && cell.point == "step";
        let is_named = phase == cell.phase || cell.is_after_vote() || is_step;
        let is_write = cell.phase == "write" && phase == "commit";
        assert!(!phase.is_empty() || is_step, "{cell}: no phase: {seen:?}");
        assert!(is_named || is_write, "{cell}: {seen:?}");
    }
    match cell.act {
        Act::Panic => assert_eq!(kinds, ["Panic"].into(), "{cell}: {errors:?}"),
        Act::Fail => assert_eq!(kinds, ["Storage"].into(), "{cell}: {errors:?}"),
        _ => assert!(kinds.iter().all(|kind| LOSSES.contains(kind)), "{cell}: {errors:#?}"),
    }
    // How the connection to the coordinator ended, each sees for itself.
    if cell.rank != 0 || cell.act.is_voted() {
        assert!(errors.iter().all(|seen| *seen == errors[0]), "{cell}: {errors:#?}");
    }
}

/// Ranks that are processes of ours end as their errors say.
fn check_codes(ended: &Ended) {
    let cell = &ended.cell;
    if cell.way == Way::Threads {
        assert_eq!(ended.codes, [Some(0)], "{cell}: {}", ended.output);
    }
    if cell.way != Way::Tcp {
        return;
    }
    for (rank, report) in ended.survivors() {
        let told = report.and_then(|it| it.error.as_ref()).map_or(0, |seen| i32::from(seen.code));
        // What went well may be followed by the loss of a rank that had voted.
        assert_eq!(ended.codes[rank as usize], Some(told), "{cell}: rank {rank}");
        assert!(told == 0 || TOLD.contains(&told), "{cell}: rank {rank} ended with {told}");
    }
}

/// What is visible is whole, and was committed for all that any rank knows.
fn check_visible(ended: &Ended) {
    let cell = &ended.cell;
    let runs = ended.runs();
    let visible = visible(&runs);
    assert!(visible.contains("first"), "{cell}: the older one is gone: {visible:?}");
    let reports: Vec<&Report> = ended.reports.iter().flatten().collect();
    let acked: BTreeSet<&str> =
        reports.iter().flat_map(|it| it.acked.iter().map(String::as_str)).collect();
    if let Some(last) = acked.last() {
        assert!(visible.contains(*last), "{cell}: {last} was acknowledged: {visible:?}");
    }
    let is_unknown = |it: &&Report| it.error.as_ref().is_some_and(|e| e.kind == "OutcomeUnknown");
    // Whoever was to hear of it may be gone as well.
    let may_be_new = cell.is_after_vote() || reports.iter().any(is_unknown);
    let new = visible.iter().filter(|name| *name != "first" && !acked.contains(name.as_str()));
    let new: Vec<&String> = new.collect();
    assert!(new.is_empty() || may_be_new, "{cell}: {new:?} without all votes: {}", ended.output);
}

/// The names of all visible checkpoints, each of which is whole.
fn visible(runs: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for directory in [runs.to_path_buf(), runs.join("run")] {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let kind = entry.file_type().unwrap();
            let is_link = kind.is_symlink() || name.ends_with(".json");
            if name.starts_with('.') || name == "run" || is_link {
                continue;
            }
            let wanted = Wanted::parse(directory.join(&name)).unwrap();
            let found = find(&LocalStorage::new(), &wanted).unwrap();
            assert_eq!(verify(&found, &mut |_| ()).unwrap().damage, [], "{name}");
            names.insert(name);
        }
    }
    names
}
