//! Learning rates over time, kept in the state.

use std::collections::VecDeque;

use super::monitor::count;
use super::state::fit_id;
use super::{Callback, CallbackContext, CallbackState};
use crate::autosave::KnownFields;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Value, Values};

/// How many entries are kept, unless said otherwise.
const ENTRIES: usize = 10_000;

/// Learning rates of one moment.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// Epoch or step, counted from 1 over all runs.
    at: u64,
    rates: Vec<f64>,
}

/// Notes the learning rate of every parameter group after each epoch or each step. What it noted is
/// part of checkpoints and goes on after a resume; the oldest entries go when there are too many.
#[derive(Debug)]
pub struct LearningRateLogger {
    id: Option<String>,
    by_step: bool,
    keep: usize,
    entries: VecDeque<Entry>,
}

impl LearningRateLogger {
    /// After each epoch.
    #[must_use]
    pub fn by_epoch() -> Self {
        Self { id: None, by_step: false, keep: ENTRIES, entries: VecDeque::new() }
    }

    /// After each optimizer step.
    #[must_use]
    pub fn by_step() -> Self {
        Self { by_step: true, ..Self::by_epoch() }
    }

    /// How many entries to keep at most; at least 1. Default 10 000.
    #[must_use]
    pub fn keep(mut self, entries: usize) -> Self {
        self.keep = entries;
        self
    }

    /// The id. Default: says whether by epoch or by step.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// Epoch or step (counted from 1 over all runs), and the learning rate of each group, oldest
    /// first.
    pub fn rates(&self) -> impl Iterator<Item = (u64, &[f64])> {
        self.entries.iter().map(|entry| (entry.at, entry.rates.as_slice()))
    }

    fn note(&mut self, at: u64, context: &CallbackContext<'_>) {
        let groups = context.optimizer().map_or(&[][..], |optimizer| optimizer.groups());
        self.entries.push_back(Entry { at, rates: groups.iter().map(|group| group.lr).collect() });
        self.trim();
    }

    fn trim(&mut self) {
        let surplus = self.entries.len().saturating_sub(self.keep);
        self.entries.drain(..surplus);
    }

    /// One after the other: the positions, how many rates each has, and all rates.
    fn parse(values: &Values) -> Result<VecDeque<Entry>> {
        let unfit = || Error::new(ErrorKind::Mismatch, "positions and rates do not match");
        let positions: Vec<u64> = values.json("at")?;
        let groups: Vec<usize> = values.json("groups")?;
        let all = values.floats("rates")?;
        let mut rest = all.as_slice();
        if positions.len() != groups.len() {
            return Err(unfit());
        }
        let mut entries = VecDeque::new();
        for (at, groups) in positions.into_iter().zip(groups) {
            let (rates, others) = rest.split_at_checked(groups).ok_or_else(unfit)?;
            rest = others;
            entries.push_back(Entry { at, rates: rates.to_vec() });
        }
        if rest.is_empty() { Ok(entries) } else { Err(unfit()) }
    }
}

impl Callback for LearningRateLogger {
    fn id(&self) -> String {
        let moment = if self.by_step { "step" } else { "epoch" };
        self.id.clone().unwrap_or_else(|| fit_id(&format!("LearningRateLogger({moment})")))
    }

    fn check(&self, _: &KnownFields) -> Result<()> {
        if self.keep > 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, "learning rates of which none is kept"))
    }

    fn on_step_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if self.by_step {
            self.note(context.step(), context);
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if !self.by_step {
            self.note(context.epoch(), context);
        }
        Ok(())
    }

    fn save_state(&self) -> Result<CallbackState> {
        let positions: Vec<i64> = self.entries.iter().map(|entry| count(entry.at)).collect();
        let groups: Vec<usize> = self.entries.iter().map(|entry| entry.rates.len()).collect();
        let rates: Vec<f64> = self.entries.iter().flat_map(|entry| entry.rates.clone()).collect();
        Ok(CallbackState::new()
            .with("at", Value::json(&positions)?)
            .with("groups", Value::json(&groups)?)
            .with("rates", rates))
    }

    fn check_state(&self, state: &CallbackState) -> Result<()> {
        Self::parse(state.values()).map(|_| ())
    }

    fn load_state(&mut self, state: &CallbackState) -> Result<()> {
        self.entries = Self::parse(state.values())?;
        self.trim();
        Ok(())
    }
}
