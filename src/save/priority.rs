//! How a save beside training leaves the cores to training.

/// Where everybody wants a core, a thread with this nice value gets one part in ten (110 to 1024, see
/// sched(7)): training keeps nine tenths, and a save beside training that keeps every core busy is
/// still done some time. With 19 it would get one part in seventy.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Lowers the priority of this thread, and so of those that it starts, for good. Where that is
/// refused it stays as it is.
pub(super) fn lower() {
    #[cfg(target_os = "linux")]
    if !crate::sync::is_modelled() {
        // By its number a thread of Linux has a nice value of its own.
        let thread = rustix::thread::gettid();
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
            tracing::debug!(%error, "a save beside training keeps the priority of training");
        }
    }
}
