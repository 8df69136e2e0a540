//! Two jobs that save under one name at the same moment.

use std::path::Path;
use std::time::Duration;

use crate::job::{Job, Plan, Random, behind, plainly};
use crate::looks::{debris, owner, steps};
use crate::tier::{self, Need};

/// Every attempt to lock a file is answered with ENOSYS.
const WITHOUT_LOCKS: [&str; 8] =
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e"];
const LOCKS_FAIL: &str = "inject=flock:error=ENOSYS";
/// What the one that comes second may hear.
const LOSES: [&str; 2] = ["AlreadyExists", "Superseded"];

fn start(plan: &Plan, random: &mut Random, has_locks: bool) -> Job {
    Job::start(plan, random, |_, arguments| match has_locks {
        true => plainly(arguments),
        false => behind(&[&WITHOUT_LOCKS[..], &[LOCKS_FAIL]].concat(), arguments),
    })
}

/// Both jobs save the same steps; who wins each is nobody's business, but one does.
fn race(dir: &Path, steps_of_race: u64, random: &mut Random, has_locks: bool) -> [u64; 2] {
    let plan = |tag| Plan { tag, last: steps_of_race, bytes: 20_000, go_on: true, ..Plan::of(dir) };
    let jobs = [1, 2].map(|tag| {
        let job = start(&plan(tag), random, has_locks);
        std::thread::sleep(Duration::from_millis(random.below(20)));
        job
    });
    let said: Vec<String> = jobs.iter().map(Job::said).collect();
    let notes = jobs.map(Job::end);
    let said = format!("{said:?} {notes:?}");
    assert_eq!(steps(dir), (1..=steps_of_race).collect::<Vec<_>>(), "{said}");
    let mut wins = [0, 0];
    for step in 1..=steps_of_race {
        let (id, tag) = owner(dir, step);
        let winner = usize::from(tag) - 1;
        wins[winner] += 1;
        for rank in 0..2 {
            let of = |job: usize| notes[job].outcome(rank, step);
            assert_eq!(of(winner), format!("COMMITTED {step} {id}"), "{said}");
            let lost = of(1 - winner);
            let kind = lost.strip_prefix(&format!("REFUSED {step} ")).unwrap_or(&lost);
            let kind = kind.split(' ').next().unwrap_or_default();
            assert!(LOSES.contains(&kind), "step {step}: {lost}: {said}");
        }
    }
    if has_locks {
        assert_eq!(debris(dir), [""; 0], "{said}");
    }
    wins
}

fn races(has_locks: bool) {
    let (mut random, mut wins) = (Random::seeded(), [0, 0]);
    // Jobs need longer to start than to save: they meet at most steps, but not at all.
    let (rounds, steps_each) = (tier::count(1, 10), 20);
    for _ in 0..rounds {
        let place = tempfile::tempdir().unwrap();
        let more = race(&place.path().join("runs"), steps_each, &mut random, has_locks);
        wins = [wins[0] + more[0], wins[1] + more[1]];
    }
    let locks = if has_locks { "with" } else { "without" };
    tier::figure(&format!("races {locks} locks, won by each of two jobs"), format!("{wins:?}"));
}

#[test]
fn of_two_jobs_that_save_under_one_name_one_commits() {
    races(true);
}

#[test]
fn of_two_jobs_without_locks_that_save_under_one_name_one_commits() {
    if tier::has(&[Need::Program("strace")]) {
        races(false);
    }
}
