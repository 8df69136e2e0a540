//! How a save beside training leaves the cores to training.

/// As far below the rest as nice values go: it gets what nobody else wants, and where everybody
/// wants something, one part in seventy.
#[cfg(target_os = "linux")]
const NICE: i32 = 19;

/// Lowers the priority of this thread, and so of those that it starts, for good. Where that is
/// refused it stays as it is.
pub(super) fn lower() {
    #[cfg(target_os = "linux")]
    {
        // By its number a thread of Linux has a nice value of its own.
        let thread = rustix::thread::gettid();
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
            tracing::debug!(%error, "a save beside training keeps the priority of training");
        }
    }
}
