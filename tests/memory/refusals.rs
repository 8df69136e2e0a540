//! Every large allocation of every operation refused in turn.
//!
//! An allocation that nobody checks ends the process, so a child tries, and says what it is about
//! to try: where it dies is a failure, and the next child goes on behind it.

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::Arc;

use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::load::read_floats;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

use crate::allocator::{LARGE, Refusal, refusing};
use crate::cases::{CASES, Case, check, prepared};

const CASE: &str = "TCH_CHECKPOINT_TEST_CASE";
const FROM: &str = "TCH_CHECKPOINT_TEST_FROM";
const PERSISTENT: &str = "TCH_CHECKPOINT_TEST_PERSISTENT";
const TRACE: &str = "TCH_CHECKPOINT_TEST_TRACE";
/// No operation here makes more large allocations, however many are refused.
const ALLOCATIONS_MAX: u64 = 400;
/// Enough to see what is wrong.
const FAILURES_MAX: usize = 12;

/// Refuses one large allocation after the other, from the given one on, until none is left. Does
/// nothing unless a parent asks for it.
#[test]
#[ignore = "runs as a process of its own"]
fn child() {
    let Ok(name) = std::env::var(CASE) else { return };
    let number = |variable| std::env::var(variable).map_or(0, |text| text.parse().unwrap());
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let (persistent, tracing) = (number(PERSISTENT) == 1, number(TRACE) == 1);
    let dir = prepared();
    for number in number(FROM).. {
        assert!(number < ALLOCATIONS_MAX, "{number} large allocations, and no end");
        println!("TRYING {number}");
        let refusal = Refusal { number, persistent, sizes: LARGE..=usize::MAX };
        let refused = case.try_once(dir.path(), &refusal, tracing);
        if refused == 0 {
            check(dir.path());
            println!("DONE {}", number - 1);
            return;
        }
    }
}

fn run(case: &Case, from: u64, persistent: bool, tracing: bool) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "refusals::child", "--ignored", "--nocapture"])
        .env("RUST_BACKTRACE", "0")
        .env(CASE, case.name)
        .env(FROM, from.to_string())
        .env(PERSISTENT, u8::from(persistent).to_string())
        .env(TRACE, u8::from(tracing).to_string())
        .output()
        .unwrap()
}

/// The number behind the last line that begins so.
fn last(text: &str, word: &str) -> Option<u64> {
    let mut lines = text.lines().rev();
    lines.find_map(|line| line.split_once(word)?.1.trim().parse().ok())
}

/// How many refusals there were; each must have been an error.
fn enumerate(case: &Case, persistent: bool) -> u64 {
    let (mut from, mut failures) = (1, BTreeSet::new());
    loop {
        let output = run(case, from, persistent, false);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(count) = last(&text, "DONE ").filter(|_| output.status.success()) {
            let all: Vec<_> = failures.into_iter().collect();
            assert!(all.is_empty(), "{}: {} places:\n{}", case.name, all.len(), all.join("\n"));
            return count;
        }
        let number = last(&text, "TRYING ").unwrap_or_else(|| panic!("{output:?}"));
        let traced = run(case, number, persistent, true);
        failures.insert(format!("{number}: {}: {}", traced.status, place(&traced.stderr)));
        assert!(failures.len() < FAILURES_MAX, "{}:\n{failures:#?}", case.name);
        from = number + 1;
    }
}

/// The frames of this crate, and how the child ended.
fn place(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr).into_owned();
    let of_ours = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("at ./src/") || line.contains("panicked") || line.contains("assert")
    };
    let frames: Vec<&str> = text.lines().filter(of_ours).map(str::trim).take(12).collect();
    frames.join(" < ")
}

fn each_refusal_is_an_error(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let (once, for_good) = (enumerate(case, false), enumerate(case, true));
    assert!(once >= case.at_least, "{name}: only {once} large allocations were refused");
    crate::tier::figure(&format!("{name}, refusals, once and for good"), once + for_good);
}

/// 16 bytes for each 16 KiB: large when a state is.
#[test]
fn no_room_for_block_sums_is_an_error_before_anything_is_written() {
    struct Unread;
    impl TensorSource for Unread {
        fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
            panic!("nothing is to be read")
        }
    }
    let blocks = 4801;
    let spec = TensorSpec::new(Dtype::U8, vec![blocks << 14]).unwrap();
    let mut state = StateDict::new();
    let name = TensorName::new("large").unwrap();
    state.add(&Component::model(), name, spec, Arc::new(Unread)).unwrap();
    // Of one size alone: other tests of this process go on meanwhile.
    let bytes = 32 + 16 * blocks as usize;
    let refusal = Refusal { number: 1, persistent: false, sizes: bytes..=bytes };
    let (storage, path) = (MemoryStorage::new(), CheckpointPath::parse("runs/a").unwrap());
    let (solo, options) = (ProcessGroup::solo(), SaveOptions::default());
    let (saved, refused) =
        refusing(&refusal, false, || save(&solo, &storage, &path, &state, &options));
    let error = saved.unwrap_err();
    assert_eq!((refused, error.kind()), (1, ErrorKind::Storage), "{error}");
}

/// The elements as numbers are as large again as the tensor, cast and read.
#[test]
fn no_room_for_a_tensor_as_numbers_is_an_error() {
    let elements = 70_001;
    let spec = TensorSpec::new(Dtype::F16, vec![elements]).unwrap();
    let mut state = StateDict::new();
    let name = TensorName::new("halves").unwrap();
    state.add(&Component::model(), name, spec, Arc::new(vec![0; 2 * elements as usize])).unwrap();
    let (storage, path) = (MemoryStorage::new(), CheckpointPath::parse("runs/a").unwrap());
    save(&ProcessGroup::solo(), &storage, &path, &state, &SaveOptions::default()).unwrap();
    let wanted = Wanted::parse("runs/a").unwrap();
    // The bytes of the cast, then the numbers.
    for number in 1..=2 {
        let bytes = 4 * elements as usize;
        let refusal = Refusal { number, persistent: false, sizes: bytes..=bytes };
        let (read, refused) =
            refusing(&refusal, false, || read_floats(&storage, &wanted, "halves"));
        let error = read.unwrap_err();
        assert_eq!((refused, error.kind()), (1, ErrorKind::Storage), "{error}");
    }
}

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            each_refusal_is_an_error(stringify!($name));
        }
    )*};
}
tests! {
    a_save
    a_save_beside_training
    a_save_with_an_audit
    a_save_as_one_file
    a_save_as_files
    an_atomic_load
    a_load_in_place
    a_load_through_copies
    a_load_of_one_file
    verifying
    verifying_one_file
    listing
    looking_at_a_tensor
    exporting
    exporting_a_directory
    resharding
    assessing
}
