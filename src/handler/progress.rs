//! What the coordinator shows while training: a bar on a terminal, a line per epoch elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::handler::{Model, NNHandler};

/// The display of one epoch; shows nothing on other ranks.
pub(super) struct EpochDisplay(ProgressBar);

impl EpochDisplay {
    pub(super) fn start<M: Model>(handler: &NNHandler<M>, last: u64, batches: usize) -> Self {
        if !handler.shows() || !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(batches as u64);
        let form = "epoch {prefix} [{bar:30}] {pos}/{len} loss {msg}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(format!("{}/{last}", handler.epoch + 1));
        Self(bar)
    }

    pub(super) fn advance(&self, loss: f64) {
        self.0.set_message(format!("{loss:.4}"));
        self.0.inc(1);
    }

    /// The line of a finished epoch.
    pub(super) fn line<M: Model>(handler: &NNHandler<M>, last: u64, logs: &BTreeMap<String, f64>) {
        if !handler.shows() {
            return;
        }
        let mut line = format!("epoch {:>3}/{last}", handler.epoch);
        let shown = |name: &str| !matches!(name, "epoch_time" | "lr");
        for (name, value) in logs.iter().filter(|(name, v)| shown(name) && !v.is_nan()) {
            line.push_str(&format!("  {name} {value:.4}"));
        }
        if let Some(seconds) = logs.get("epoch_time") {
            line.push_str(&format!("  {seconds:.1} s"));
        }
        // A closed stderr is no reason to stop training.
        let _ = writeln!(stderr(), "{line}");
    }
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
