//! Phase "state": what is saved, and under which name, before anything is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::mean_over_ranks;
use super::state::save_metrics;
use super::{At, Checkpointer, InFlight, Parts, TrainerState};
use crate::autosave::{Counters, Number};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Channel;
use crate::layout::CheckpointName;
use crate::manifest::{ASIDE, AUTOMATIC, PINNED};
use crate::rank::Rank;
use crate::state::StateDict;

/// What a rank brings to phase "state".
#[derive(Serialize, Deserialize)]
struct Proposal {
    counters: (u64, u64),
    metrics: BTreeMap<String, f64>,
}

/// The coordinator's answer; nothing if this save is left out.
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
    Name(&'a CheckpointName),
}

impl Checkpointer {
    /// Phase "state": every rank has one, or all hear why not; and what the coordinator says about
    /// it is in it. `None`: another save hinders this one.
    pub(super) fn agree(
        &mut self,
        at: &At,
        parts: &mut Parts<'_>,
        under: Under<'_>,
    ) -> Result<Option<(Agreed, StateDict)>> {
        let mut made = None;
        let this = &*self;
        let agreed = this.group.phase_all(
            Channel::Save,
            "state",
            || {
                made = Some(parts.state_dict()?);
                let Counters { step, epoch } = at.counters();
                Ok(Proposal { counters: (step, epoch), metrics: at.metrics().clone() })
            },
            |proposals| this.decide(at, under, &proposals),
        )?;
        let Some(agreed) = agreed else { return Ok(None) };
        let mut state = made.ok_or_else(|| {
            Error::new(ErrorKind::Disagreement, "phase state passed without a state")
        })?;
        agreed.state.save(&mut state.values)?;
        save_metrics(&agreed.metrics, &mut state.values);
        this.lineage.save(&mut state.values)?;
        let marks: &[&str] = match under {
            Under::Template => &[AUTOMATIC],
            Under::Name(_) => &[PINNED],
            Under::Aside => &[PINNED, ASIDE],
        };
        marks.iter().for_each(|mark| state.values.set(*mark, true));
        Ok(Some((agreed, state)))
    }

    /// Phase "state", coordinator.
    fn decide(&self, at: &At, under: Under<'_>, proposals: &[Proposal]) -> Result<Option<Agreed>> {
        check_counters(at.counters(), proposals)?;
        if self.pending.as_ref().is_some_and(|pending| !pending.is_done()) {
            match self.config.in_flight {
                InFlight::Wait => {}
                InFlight::Skip => return Ok(None),
                InFlight::Error => {
                    let message = "a save is due while another one is still going on";
                    return Err(Error::new(ErrorKind::InvalidInput, message).with_help(
                        "save less often, or let `in_flight` be `wait` or `skip`; the save that \
                         goes on is not affected",
                    ));
                }
            }
        }
        let metrics: Vec<_> = proposals.iter().map(|proposal| proposal.metrics.clone()).collect();
        let metrics = mean_over_ranks(&metrics);
        let Counters { step, epoch } = at.counters();
        let mut state = TrainerState { step, epoch, ..self.state.clone() };
        state.save_with(&metrics, self.monitor());
        let name = match under {
            Under::Name(name) => name.clone(),
            Under::Template | Under::Aside => self.name(at.counters(), &metrics)?,
        };
        Ok(Some(Agreed { name, metrics, state }))
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

fn check_counters(ours: Counters, proposals: &[Proposal]) -> Result<()> {
    for (proposal, rank) in proposals.iter().zip(0..) {
        let (step, epoch) = proposal.counters;
        if (Counters { step, epoch }) != ours {
            let message = format!(
                "this rank is at step {step} of epoch {epoch}, the coordinator at step {} of \
                 epoch {}",
                ours.step, ours.epoch
            );
            return Err(Error::new(ErrorKind::Disagreement, message).at_rank(Rank::new(rank)));
        }
    }
    Ok(())
}
