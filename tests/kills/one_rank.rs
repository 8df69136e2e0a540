//! One process of a job killed at random: the others end by themselves, and say so.

use std::sync::mpsc;
use std::time::Duration;

use crate::job::Job;
use crate::oracle::Oracle;
use crate::random::{KEEP, Random};
use crate::tier;

const RANKS: u64 = 3;

#[test]
fn the_others_end_when_one_rank_is_killed_at_random() {
    let mut random = Random::seeded();
    let arguments =
        ["--ranks", "3", "--transport", "tcp", "--deadline-ms", "10000", "--bytes", "300000"];
    let arguments = [&arguments[..], &["--keep", "3"]].concat();
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("runs");
    let mut oracle = Oracle::new(KEEP);
    let count = tier::count(6, 100);
    for kill in 1..=count {
        let (told, acked) = mpsc::channel();
        let job = Job::start(&dir, &arguments, move |_| {
            let _ = told.send(());
        });
        acked.recv_timeout(Duration::from_secs(60)).expect("a first save");
        std::thread::sleep(random.around(Duration::from_millis(40)));
        let rank = random.below(RANKS) as u32;
        assert!(job.kill_rank(rank), "kill {kill}: rank {rank} is not there");
        let (status, acks, said) = job.end();
        let what = format!("kill {kill}, rank {rank}: {status}, {said}");
        assert!(matches!(status.code(), Some(5 | 6)), "{what}");
        assert!(!said.contains("panicked"), "{what}");
        oracle.hear(acks, &what);
        oracle.check(&dir, &what);
    }
    tier::figure("random kills of one rank", count);
}
