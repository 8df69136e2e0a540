//! The thread of a save beside training. It is there before phase "plan beside", in which the ranks
//! agree whether each of them has one: a rank that saved in its caller's thread while the others
//! train would have to wait for them without a sign of life.

use super::background::{Job, Verdict};
use super::{Checkpoint, priority};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{self, JoinHandle, Sender, unbounded};

/// A thread that waits for its job. It ends without one when this is dropped.
pub(super) struct Helper {
    give: Sender<Job>,
    thread: JoinHandle<Result<Checkpoint>>,
}

impl Helper {
    /// `None` where there is no thread to be had.
    pub(super) fn start() -> Option<Self> {
        let (give, todo) = unbounded::<Job>();
        let run = move || {
            let nothing = |_| Error::new(ErrorKind::Panic, "nothing to save");
            let job = todo.recv().map_err(nothing)?;
            drop(todo);
            job.run(priority::lower)
        };
        match sync::spawn("tch-save", run) {
            Ok(thread) => Some(Self { give, thread }),
            Err(error) => {
                tracing::warn!(%error, "no thread for a save beside training, which waits for it");
                None
            }
        }
    }

    /// Gives it its job.
    pub(super) fn run(self, job: Job) -> Verdict {
        // Never fails: the thread waits as long as there is a sender.
        let _ = self.give.send(job);
        Verdict::Coming(self.thread)
    }
}
