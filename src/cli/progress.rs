//! Progress of long work: drawn while standard error is a terminal, else nothing.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
