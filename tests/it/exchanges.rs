//! Two jobs without locks that replace the same checkpoint at once.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tch_checkpoint::catalog;
use tch_checkpoint::storage::{MemoryStorage, Rename};
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind, Result};

use crate::harness::*;
use crate::hooked::*;

fn small() -> Vec<TestTensor> {
    vec![TestTensor::new("w", Dtype::F32, &[30, 7], None)]
}

/// Without locks: job B replaces `a` between A's last look and A's exchange.
fn exchange_races(fail_look_after: bool) -> (MemoryStorage, Result<()>) {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    let no_locks = |c: &Call| match c.operation {
        "try_lock" | "try_lock_self" => Err(Error::new(ErrorKind::Unsupported, "no locks")),
        _ => Ok(()),
    };
    let (other, stage) = (Hooked::new(&memory, no_locks), AtomicU32::new(0));
    let hooked = Hooked::new(&memory, move |c| {
        no_locks(c)?;
        if c.operation == "rename" && c.mode == Some(Rename::Exchange) && stage.load(SeqCst) == 0 {
            stage.store(1, SeqCst);
            let other = other.clone();
            on_ranks(1, move |g| save_state(&g, &other, "runs/a", &small(), 7)).remove(0)?;
        } else if fail_look_after
            && c.operation == "list"
            && stage.compare_exchange(1, 2, SeqCst, SeqCst).is_ok()
        {
            return Err(Error::new(ErrorKind::Storage, "EIO"));
        }
        Ok(())
    });
    let verdict = on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 2)).remove(0);
    (memory, verdict.map(drop))
}

#[test]
fn an_exchange_that_took_out_another_jobs_checkpoint_is_undone() {
    let (memory, verdict) = exchange_races(false);
    assert_eq!(verdict.unwrap_err().kind(), ErrorKind::Superseded);
    let found = catalog::find(&memory, &wanted("runs/a")).unwrap();
    assert_eq!(found.manifest.step(), 7, "theirs is back");
    assert_eq!(entries(&memory, "runs"), ["a"]);
}

#[test]
fn an_exchange_that_cannot_be_checked_is_not_called_uncommitted() {
    let (memory, verdict) = exchange_races(true);
    assert_eq!(verdict.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(entries(&memory, "runs").len(), 2, "nothing was removed");
    assert_good(&memory, "runs/a");
}
