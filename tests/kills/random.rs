//! Jobs killed at random times: what was acknowledged before stays, whatever came in between.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::job::{Job, run};
use crate::oracle::Oracle;
use crate::tier;

pub const KEEP: u64 = 3;

/// SplitMix64 (Steele, Lea and Flood 2014): the same numbers for the same seed.
pub struct Random(u64);

impl Random {
    /// From the variable `TCH_CHECKPOINT_TEST_SEED`, or another one each time; it is printed.
    pub fn seeded() -> Self {
        let given = std::env::var("TCH_CHECKPOINT_TEST_SEED").ok();
        let seed = given.map_or_else(fresh, |text| text.parse().unwrap());
        tier::figure("TCH_CHECKPOINT_TEST_SEED", seed);
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % bound.max(1)
    }

    /// A time from 0 to twice `time`.
    pub fn around(&mut self, time: Duration) -> Duration {
        Duration::from_micros(self.below(2 * time.as_micros() as u64))
    }
}

fn fresh() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_nanos() as u64
}

/// How long a job takes from its start to its second save.
fn time_of_two_saves(dir: &Path, arguments: &[&str]) -> Duration {
    let mut times: Vec<Duration> = (0..3)
        .map(|_| {
            let (told, acked) = mpsc::channel();
            let began = Instant::now();
            let job = Job::start(dir, arguments, move |_| {
                let _ = told.send(());
            });
            for _ in 0..2 {
                acked.recv_timeout(Duration::from_secs(60)).expect("a save");
            }
            let time = began.elapsed();
            job.kill();
            time
        })
        .collect();
    times.sort();
    times[1]
}

fn kills(count: u64, arguments: &[&str]) {
    let mut random = Random::seeded();
    let place = tempfile::tempdir().unwrap();
    let measured = time_of_two_saves(&place.path().join("clock"), arguments);
    let mut time = measured;
    let dir = place.path().join("runs");
    let mut oracle = Oracle::new(KEEP);
    for kill in 1..=count {
        let job = Job::start(&dir, arguments, |_| ());
        let after = random.around(time);
        std::thread::sleep(after);
        let (acks, said) = job.kill();
        let what = format!("kill {kill} of {arguments:?}, after {after:?}");
        assert_eq!(said, "", "{what}");
        // The machine may have become busier since.
        time = if acks.is_empty() { time * 9 / 8 } else { measured.max(time * 15 / 16) };
        oracle.hear(acks, &what);
        oracle.check(&dir, &what);
    }
    tier::figure(&format!("random kills, {arguments:?}"), count);
    tier::figure(&format!("acknowledged saves, {arguments:?}"), oracle.heard());
    assert!(oracle.heard() as u64 > count / 4, "too few saves to tell: {}", oracle.heard());
    check_end(&dir, arguments);
}

/// One more save leaves what retention keeps, and nothing hidden.
fn check_end(dir: &Path, arguments: &[&str]) {
    let step = u64::from(u32::MAX).to_string();
    let saved = run(dir, &[&["stress", "save", "--step", &step], arguments].concat());
    assert!(saved.status.success(), "{saved:?}");
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    let visible = names.iter().filter(|name| name.starts_with("step-")).count() as u64;
    assert_eq!(visible, KEEP, "{names:?}");
    let hidden = |name: &&String| name.starts_with('.') && *name != ".tch-checkpoint.lock";
    assert_eq!(names.iter().filter(hidden).count(), 0, "{names:?}");
}

#[test]
fn killed_at_random_with_ranks_as_threads() {
    kills(tier::count(40, 500), &["--ranks", "4", "--bytes", "300000", "--keep", "3"]);
}

#[test]
fn killed_at_random_with_ranks_as_processes() {
    let ranks = ["--ranks", "2", "--transport", "tcp"];
    kills(tier::count(12, 200), &[&ranks[..], &["--bytes", "300000", "--keep", "3"]].concat());
}

#[test]
fn killed_at_random_while_saving_beside_training() {
    let beside = ["--ranks", "3", "--async"];
    kills(tier::count(20, 300), &[&beside[..], &["--bytes", "2000000", "--keep", "3"]].concat());
}
