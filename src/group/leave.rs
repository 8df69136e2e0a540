//! Leaving the job, in good order or not.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{ExitCode, Termination};

use super::ProcessGroup;
use super::phase::panic_text;
#[cfg(feature = "mpi")]
use super::{Channel, Inner, mpi};
use crate::error::{Error, ErrorKind, Result};

impl ProcessGroup {
    /// Leaves the job in good order: peers do not report this rank as lost, unless they need it
    /// again. Ends the membership for all clones: in a job of several ranks, a phase that any of
    /// them starts from the goodbye on fails with [`ErrorKind::InvalidInput`], whatever becomes of
    /// the peers.
    ///
    /// # Collective
    /// Under MPI alone: waits for all ranks, then for `MPI_Finalize`, and must be called on the
    /// thread that joined. Everywhere else a rank leaves when it likes.
    ///
    /// # Errors
    /// Under MPI, as [`ProcessGroup::phase`], and [`ErrorKind::InvalidInput`] on another thread;
    /// end with [`ProcessGroup::leave_with`] then. Elsewhere none: a peer that can no longer be
    /// told is not waiting either.
    ///
    /// [`ErrorKind::InvalidInput`]: crate::ErrorKind::InvalidInput
    pub fn finish(self) -> Result<()> {
        #[cfg(feature = "mpi")]
        if let Some(owner) = self.0.mpi.filter(|owner| owner.is_running()) {
            owner.check_thread()?;
            self.phase_all(Channel::Training, "finish", || Ok(()), |_| Ok(()))?;
            self.leave_star();
            owner.finalise(self.0.deadlines.progress);
            return Ok(());
        }
        self.leave_star();
        Ok(())
    }

    fn leave_star(&self) {
        if let Some(star) = &self.0.star {
            star.finish();
        }
    }

    /// Ends this process with the exit code of `error` ([`Error::exit_code`]), and under MPI the
    /// whole job. Prints nothing: say what happened first.
    ///
    /// For the end of `main`, however far joining has come. Under MPI an exit without
    /// `MPI_Finalize` is left to the launcher; this is the way that all of them understand.
    pub fn leave_with(error: &Error) -> ! {
        // If nobody reads it, nothing can be done about it.
        drop(std::io::stdout().flush());
        #[cfg(feature = "mpi")]
        mpi::leave(error);
        std::process::exit(error.exit_code().into())
    }

    /// Runs the body of a program's `main`: an error, or a panic, is printed to stderr, and the
    /// process ends with its exit code ([`Error::exit_code`]; 3 for a panic), under MPI the job.
    /// What the body returns is what `main` returns: nothing, or an [`ExitCode`], such as that of
    /// [`Preempted`](crate::preempt::Preempted).
    ///
    /// ```no_run
    /// use tch_checkpoint::{ProcessGroup, Result};
    ///
    /// fn train() -> Result<()> {
    ///     let group = ProcessGroup::from_env()?;
    ///     group.finish()
    /// }
    ///
    /// fn main() -> std::process::ExitCode {
    ///     ProcessGroup::run_main(train)
    /// }
    /// ```
    pub fn run_main<T: Termination>(body: impl FnOnce() -> Result<T>) -> ExitCode {
        let ended = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            // The panic hook has printed where.
            Err(Error::new(ErrorKind::Panic, panic_text(&*panic)))
        });
        let error = match ended {
            Ok(done) => return done.report(),
            Err(error) => error,
        };
        // In one piece, as other ranks write to the same place. If nobody reads it, nothing can be
        // done about it.
        drop(std::io::stderr().write_all(format!("error: {error}\n").as_bytes()));
        Self::leave_with(&error)
    }

    /// The same group, which owes MPI an end.
    #[cfg(feature = "mpi")]
    pub(super) fn under_mpi(mut self, owner: &'static mpi::Owner) -> Self {
        if let Some(inner) = std::sync::Arc::get_mut(&mut self.0) {
            inner.mpi = Some(owner);
        }
        self
    }
}

#[cfg(feature = "mpi")]
impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(owner) = self.mpi.filter(|owner| owner.is_running()) {
            // Its connections stay until the process ends, so that what the launcher sees first
            // is this rank's exit code, not how the others take its loss.
            std::mem::forget(self.star.take());
            owner.dropped(self.member.rank);
        }
    }
}
