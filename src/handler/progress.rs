//! What the coordinator shows while training: a bar on a terminal, a line per epoch elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::handler::train::Goal;
use crate::handler::{Model, NNHandler};
use crate::shown;

/// The display of one epoch; shows nothing on other ranks.
pub(super) struct EpochDisplay(ProgressBar);

impl EpochDisplay {
    /// `done` of `samples` samples of the epoch lie behind.
    pub(super) fn start<M: Model>(
        handler: &NNHandler<M>,
        goal: Goal,
        done: usize,
        samples: usize,
    ) -> Self {
        if !handler.shows() || !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(samples as u64).with_position(done as u64);
        let form = "epoch {prefix} [{bar:24}] {pos}/{len} samples{msg}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(of(handler.epoch + 1, goal));
        Self(bar)
    }

    pub(super) fn advance(&self, done: usize, loss: f64) {
        self.0.set_message(format!(", loss {loss:.4}"));
        self.0.set_position(done as u64);
    }

    /// The line of a finished epoch.
    pub(super) fn line<M: Model>(handler: &NNHandler<M>, goal: Goal, logs: &BTreeMap<String, f64>) {
        if !handler.shows() {
            return;
        }
        let mut line = format!("epoch {:>3}", of(handler.epoch, goal));
        let shown = |name: &str| !matches!(name, "epoch_time" | "lr");
        for (name, value) in logs.iter().filter(|(name, v)| shown(name) && !v.is_nan()) {
            line.push_str(&format!("  {} {value:.4}", shown::line(name)));
        }
        if let Some(seconds) = logs.get("epoch_time") {
            line.push_str(&format!("  {seconds:.1} s"));
        }
        // A closed stderr is no reason to stop training.
        let _ = writeln!(stderr(), "{line}");
    }
}

/// The epoch, and the last one where it is known.
fn of(epoch: u64, goal: Goal) -> String {
    goal.last_epoch().map_or(epoch.to_string(), |last| format!("{epoch}/{last}"))
}

impl Drop for EpochDisplay {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl<M: Model> NNHandler<M> {
    /// Whether this handler prints progress. Default: yes, on the coordinator, to stderr.
    pub fn quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    fn shows(&self) -> bool {
        !self.quiet && self.group.is_coordinator()
    }
}
