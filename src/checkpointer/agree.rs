//! Phase "state": what is saved, and under which name, before anything is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::mean_over_ranks;
use super::{At, Checkpointer, Parts, TrainerState};
use crate::autosave::{Counters, Number};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Channel;
use crate::layout::CheckpointName;
use crate::manifest::{ASIDE, AUTOMATIC, PINNED, save_metrics};
use crate::rank::Rank;
use crate::save::help_uncommitted;
use crate::state::StateDict;

/// What a rank brings to phase "state".
#[derive(Serialize, Deserialize)]
struct Proposal {
    counters: (u64, u64),
    /// The name that the program gives, if it does.
    name: Option<CheckpointName>,
    metrics: BTreeMap<String, f64>,
}

/// The coordinator's answer.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Agreed {
    pub(super) name: CheckpointName,
    metrics: BTreeMap<String, f64>,
    pub(super) state: TrainerState,
}

/// Under which name, and whether a rule may remove it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Under<'a> {
    /// A name of the template.
    Template,
    /// The same, but no part of the run: neither rule nor link takes note of it.
    Aside,
    /// A name of the user's, which nothing removes.
    Name(&'a str),
}

impl Under<'_> {
    /// Values that say so.
    fn marks(self) -> &'static [&'static str] {
        match self {
            Under::Template => &[AUTOMATIC],
            Under::Name(_) => &[PINNED],
            Under::Aside => &[PINNED, ASIDE],
        }
    }
}

impl Checkpointer {
    /// Phase "state": every rank has one, or all hear why not; and what the coordinator says about
    /// it is in it.
    pub(super) fn agree(
        &self,
        at: &At,
        parts: &mut Parts<'_>,
        under: Under<'_>,
    ) -> Result<(Agreed, StateDict)> {
        let mut made = None;
        let propose = || {
            self.refuse_if_poisoned()?;
            made = Some(parts.state_dict()?);
            let Counters { step, epoch } = at.counters();
            let name = match under {
                Under::Name(name) => Some(CheckpointName::new(name)?),
                Under::Template | Under::Aside => None,
            };
            Ok(Proposal { counters: (step, epoch), name, metrics: at.metrics().clone() })
        };
        let decide = |proposals: Vec<Proposal>| self.decide(at, &proposals);
        let agreed = self
            .group
            .phase_all(Channel::Save, "state", propose, decide)
            .map_err(help_uncommitted)?;
        // What can fail from here on fails on every rank: it follows from what was agreed.
        let mut state = made.ok_or_else(|| {
            Error::new(ErrorKind::Disagreement, "phase state passed without a state")
        })?;
        agreed.state.save(&mut state.values)?;
        save_metrics(&agreed.metrics, &mut state.values);
        self.lineage.save(&mut state.values)?;
        under.marks().iter().for_each(|mark| state.values.set(*mark, true));
        Ok((agreed, state))
    }

    fn refuse_if_poisoned(&self) -> Result<()> {
        if !self.poisoned {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Poisoned, "an earlier load failed half-way")
            .with_help("load a checkpoint that lacks nothing before saving"))
    }

    /// Metrics are given, but not the monitored one: then nothing is ever the best.
    pub(super) fn warn_unmonitored(&mut self, agreed: &Agreed) {
        let Some((monitor, _)) = self.monitor() else { return };
        let is_missing = !agreed.metrics.is_empty() && !agreed.metrics.contains_key(monitor);
        if !is_missing || self.has_warned || !self.group.is_coordinator() {
            return;
        }
        let given = agreed.metrics.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        tracing::warn!(monitor, given, "the monitored metric is not among those measured");
        self.has_warned = true;
    }

    /// Into the event log: the metrics of this save, and the newest of all others.
    pub(super) fn tell_measured(&self, agreed: &Agreed, at: &At) {
        let Some(events) = &self.events else { return };
        let Counters { step, epoch } = at.counters();
        let mut all = agreed.state.metrics.clone();
        all.extend(agreed.metrics.clone());
        #[expect(clippy::cast_precision_loss, reason = "a number to be drawn")]
        all.insert("epoch".to_owned(), epoch as f64);
        events.scalars(step, all.iter().map(|(name, value)| (name.as_str(), *value)));
    }

    /// Phase "state", coordinator.
    fn decide(&self, at: &At, proposals: &[Proposal]) -> Result<Agreed> {
        check_alike(proposals)?;
        let metrics: Vec<_> = proposals.iter().map(|proposal| proposal.metrics.clone()).collect();
        let metrics = mean_over_ranks(&metrics);
        let Counters { step, epoch } = at.counters();
        let mut state = TrainerState { step, epoch, ..self.state.clone() };
        state.save_with(&metrics, self.monitor());
        let name = match proposals.first().and_then(|ours| ours.name.clone()) {
            Some(name) => name,
            None => self.name(at.counters(), &metrics)?,
        };
        Ok(Agreed { name, metrics, state })
    }

    fn name(&self, counters: Counters, metrics: &BTreeMap<String, f64>) -> Result<CheckpointName> {
        let mut fields: BTreeMap<String, Number> =
            metrics.iter().map(|(name, value)| (name.clone(), Number::Float(*value))).collect();
        let monitored = self.config.monitor.as_ref().and_then(|name| metrics.get(name));
        if let Some(value) = monitored {
            fields.insert("metric".to_owned(), Number::Float(*value));
        }
        let count = |value| Number::Int(i64::try_from(value).unwrap_or(i64::MAX));
        fields.insert("step".to_owned(), count(counters.step));
        fields.insert("epoch".to_owned(), count(counters.epoch));
        let rendered = self.template.render(counters.epoch, &fields);
        if let Some(warning) = rendered.warning {
            tracing::warn!(warning, "name of the checkpoint");
        }
        CheckpointName::new(&rendered.name)
    }
}

fn check_alike(proposals: &[Proposal]) -> Result<()> {
    let Some(ours) = proposals.first() else { return Ok(()) };
    let differs = |message: String, rank| {
        Err(Error::new(ErrorKind::Disagreement, message)
            .at_rank(Rank::new(rank))
            .with_help("every rank has to save at the same step, under the same name"))
    };
    for (theirs, rank) in proposals.iter().zip(0..) {
        if theirs.counters != ours.counters {
            let ((step, epoch), (our_step, our_epoch)) = (theirs.counters, ours.counters);
            let message = format!(
                "this rank is at step {step} of epoch {epoch}, the coordinator at step {our_step} \
                 of epoch {our_epoch}"
            );
            return differs(message, rank);
        }
        if theirs.name != ours.name {
            let [theirs, ours] = [theirs, ours].map(|it| match &it.name {
                Some(name) => format!("`{name}`"),
                None => "a name of the template".to_owned(),
            });
            let message = format!("this rank saves under {theirs}, the coordinator under {ours}");
            return differs(message, rank);
        }
    }
    Ok(())
}
