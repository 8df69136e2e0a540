//! Every failing operation ends in its typed error: nothing is lost, nothing hangs.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::error::{Error, ErrorKind};
use crate::state::TensorSource;

/// A state of two files that needs several turns of every buffer.
fn large() -> (StateDict, SavePlan) {
    let mut state = StateDict::new();
    let big = vec![whole(&mut state, "big", Dtype::U8, &[50 << 20])];
    let tiny = vec![whole(&mut state, "tiny", Dtype::F32, &[3])];
    (state, plan_of(vec![planned_file("big", big), planned_file("tiny", tiny)]))
}

fn disk_that_fails(at: usize, panics: bool) -> MemoryDir {
    let dir = MemoryDir::default();
    dir.0.lock().fail_at = Some(at);
    dir.0.lock().panics = panics;
    dir
}

#[test]
fn every_failing_operation_surfaces() {
    within_a_minute(|| {
        let (state, plan) = large();
        // More where the machine is so busy that shorter writes are wanted.
        let least = 3 * 3 + 9 + 1 + 1 + 1;
        for at in 0.. {
            let dir = disk_that_fails(at, false);
            let saved = save(&dir, &plan, &state);
            let operations = dir.0.lock().operations.clone();
            if operations.len() <= at {
                assert!(saved.is_ok() && at >= least, "{operations:?}");
                break;
            }
            let operation = operations[at].as_str();
            let error = saved.expect_err(operation);
            assert_eq!(error.kind(), ErrorKind::Storage, "{operation}: {error}");
            let name = operation.split(' ').nth(1).unwrap();
            let path = if name == "." { "/memory".to_owned() } else { format!("/memory/{name}") };
            assert_eq!(error.path(), Some(path.as_str()), "{operation}");
            assert_eq!(operations.len(), at + 1, "nothing happens after {operation}");
        }
    });
}

#[test]
fn every_panicking_operation_of_the_writer_thread_surfaces() {
    within_a_minute(|| {
        let (state, plan) = large();
        // The sums file and the directory come last, on the caller's own thread.
        for at in 0..15 {
            let error = save(&disk_that_fails(at, true), &plan, &state).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panic, "operation {at}");
            assert!(error.message().contains("told to panic"), "{error}");
        }
    });
}

/// Fails or panics once it is asked for bytes from `at` on.
struct Failing {
    at: u64,
    panics: bool,
}

impl TensorSource for Failing {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if offset + out.len() as u64 > self.at {
            assert!(!self.panics, "source told to panic");
            return Err(Error::new(ErrorKind::Device, "the device is gone"));
        }
        Ok(())
    }
}

fn failing_state(panics: bool) -> (StateDict, SavePlan) {
    let (mut state, mut plan) = large();
    let mut piece = plan.files[0].pieces[0].clone();
    piece.name = name("failing");
    let source = Arc::new(Failing { at: 45 << 20, panics });
    state.add(&Component::model(), name("failing"), piece.spec.clone(), source).unwrap();
    plan.files[0].pieces.push(piece);
    (state, plan)
}

#[test]
fn the_error_of_a_source_names_its_tensor_and_leaves_the_file_unfinished() {
    within_a_minute(|| {
        let (state, plan) = failing_state(false);
        let dir = MemoryDir::default();
        let error = save(&dir, &plan, &state).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Device, Some("failing")));
        assert!(dir.0.lock().operations.iter().all(|o| !o.starts_with("finish")));
    });
}

#[test]
fn a_panic_of_a_source_reaches_the_caller() {
    let caught = within_a_minute(|| {
        let (state, plan) = failing_state(true);
        let saving = || save(&MemoryDir::default(), &plan, &state);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(saving)).is_err()
    });
    assert!(caught);
}

#[test]
fn an_existing_file_is_an_error_and_stays() {
    let (state, plan) = small();
    let dir = MemoryDir::default();
    dir.0.lock().files.insert("b.safetensors".to_owned(), Vec::new());
    let error = save(&dir, &plan, &state).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.path(), Some("/memory/b.safetensors"));
}

#[test]
fn progress_moves_while_a_large_piece_is_written() {
    let (state, plan) = large();
    let calls = AtomicU64::new(0);
    let count = |_| {
        calls.fetch_add(1, Ordering::Relaxed);
    };
    write_shards(&MemoryDir::default(), &plan, RANK, STEP, &state, &count).unwrap();
    // More where the machine is so busy that shorter writes are wanted.
    let least = 9 + 1 + 1;
    assert!(calls.into_inner() >= least);
}
