//! Many seeds, on all cores, until one breaks a promise.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, Once};
use std::time::Instant;

use crate::disk::Lie;
use crate::history::{self, Outcome};
use crate::machine::Stats;
use crate::machine::faults::PANIC;
use crate::tier;

const SEED: &str = "TCH_CHECKPOINT_SIM_SEED";
const COUNT: &str = "TCH_CHECKPOINT_SIM_COUNT";
const THREADS_MAX: usize = 8;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, which is no number")))
}

/// Panics that a seed asks for print nothing: the code that they strike reports them.
pub fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            if text != Some(PANIC) {
                earlier(info);
            }
        }));
    });
}

/// The seed that is to be replayed.
pub fn seed_of_environment() -> Option<u64> {
    number(SEED)
}

/// Runs one seed and shows what happens.
///
/// # Panics
/// If it breaks a promise.
pub fn show(seed: u64) {
    let Outcome { hash, violation, .. } = history::run(seed, Lie::None, true);
    eprintln!("seed {seed}: trace {hash:016x}");
    assert_eq!(violation, None, "seed {seed}");
}

/// Runs seeds from 0 up, `count` of them or as many as the environment says.
///
/// # Panics
/// At the first that breaks a promise, saying how to replay it.
pub fn run_all(count: u64) {
    let count = number(COUNT).unwrap_or(count);
    let began = Instant::now();
    let (next, total) = (AtomicU64::new(0), Mutex::new(Stats::default()));
    let broken: Mutex<Option<(u64, String)>> = Mutex::default();
    let work = || {
        let mut own = Stats::default();
        while broken.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= count {
                break;
            }
            let outcome = history::run(seed, Lie::None, false);
            own.add(outcome.stats);
            if let Some(violation) = outcome.violation {
                broken.lock().unwrap().get_or_insert((seed, violation));
            }
        }
        total.lock().unwrap().add(own);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Some((seed, violation)) = broken.into_inner().unwrap() {
        panic!("seed {seed}: {violation}\nreplay it with {}", replay(seed));
    }
    figures(count, &total.into_inner().unwrap(), began);
}

fn replay(seed: u64) -> String {
    format!(
        "{SEED}={seed} cargo test --no-default-features --features sabotage --test sim \
         no_schedule_loses_what_was_committed -- --nocapture"
    )
}

fn figures(count: u64, stats: &Stats, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let Stats { operations, messages, faults, cuts, lives } = stats;
    if count >= 1000 {
        assert!(*faults > count / 2 && *cuts > count / 10, "too little happens: {stats:?}");
    }
    tier::figure("simulated schedules, 0 violations", count);
    tier::figure("schedules per second", (count as f64 / seconds) as u64);
    let events = format!(
        "{operations} operations, {messages} messages, {faults} faults, {cuts} power cuts, \
         {lives} jobs, each with a look at the disk after it"
    );
    tier::figure("in these schedules", events);
}

/// How many seeds it takes until something is found wrong on a disk that tells `lie`.
///
/// # Panics
/// If `most` seeds find nothing.
pub fn found_by(lie: Lie, most: u64) -> u64 {
    let finds = |seed: &u64| history::run(*seed, lie, false).violation.is_some();
    1 + (0..most).find(finds).unwrap_or_else(|| panic!("{lie:?}: nothing found in {most}"))
}
