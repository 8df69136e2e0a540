//! Progress of long work: drawn while standard error is a terminal, else nothing.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::group::Progress;

/// How often what is counted elsewhere is drawn.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs `work`, which counts up to about `total` bytes in `progress`; on a terminal a bar shows how
/// far it is.
pub(super) fn shown<T>(
    doing: &str,
    total: impl FnOnce() -> u64,
    progress: &Progress,
    work: impl FnOnce() -> T,
) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let total = total();
    let bar = bytes(doing, total);
    let (end, ended) = bounded::<()>(0);
    thread::scope(|scope| {
        let draw = || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(INTERVAL) {
                bar.set_position(progress.total().min(total));
            }
        };
        // Without a thread there is no bar.
        drop(thread::Builder::new().name("progress".to_owned()).spawn_scoped(scope, draw));
        let _ended_even_by_a_panic = end;
        let done = work();
        bar.finish_and_clear();
        done
    })
}

/// A bar that counts so many bytes. `doing` is what is done, as `verifying`.
pub(super) fn bytes(doing: &str, total: u64) -> ProgressBar {
    drawn(
        ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()),
        &format!("{doing} [{{bar:30}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{eta}}"),
    )
}

/// A count of things whose number is not known. `doing` is what is done, as `looking at`.
pub(super) fn count(doing: &str, things: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    drawn(bar, &format!("{doing} {{pos}} {things}"))
}

fn drawn(bar: ProgressBar, form: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
