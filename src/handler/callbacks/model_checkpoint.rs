//! Saving the best epochs, or every so many, beside automatic checkpoints.

use std::path::{Path, PathBuf};

use super::monitor::{Monitor, Reading, load_best, save_best};
use super::state::fit_id;
use super::{Callback, CallbackContext, CallbackState, Mode, SaveRequest};
use crate::autosave::{KnownFields, NameTemplate};
use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::auto_save::{is_version_of, keep_newest};
use crate::layout::{CheckpointName, SaveId};
use crate::save::Checkpoint;
use crate::state::{Value, Values};

/// Saves after an epoch in which a number is better than ever before, or after every so many
/// epochs.
///
/// The best value survives a resume: an epoch that is worse than the best before it saves nothing.
/// Improvement is strict; a number that is absent, NaN or infinite never improves. Names follow the
/// rules of [`auto_save`](crate::NNHandler::auto_save), and so does what overwriting means. A save
/// that fails is an error of `train`, and the best value is then what it was before.
#[derive(Debug)]
pub struct ModelCheckpoint {
    id: Option<String>,
    directory: PathBuf,
    template: String,
    monitor: Monitor,
    best_only: bool,
    weights_only: bool,
    freq: u64,
    overwrite: bool,
    state: State,
    /// The state once the save that was asked for is committed.
    candidate: Option<State>,
    /// The state to go back to if the save that was begun fails.
    undo: Option<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    best: Option<f64>,
    best_epoch: u64,
    /// Its own checkpoints, which overwriting removes: the last one, and the one before it where
    /// a crash came between commit and removal.
    previous: Vec<(CheckpointName, SaveId)>,
    /// The name asked for, inside the checkpoint that is being saved: its save id is not known
    /// before there is one.
    saving: Option<CheckpointName>,
}

impl ModelCheckpoint {
    /// Saves to `directory` (empty means the current one), under names of `template`, whenever
    /// `val_loss` is lower than ever before.
    #[must_use]
    pub fn new(directory: impl AsRef<Path>, template: &str) -> Self {
        let directory = directory.as_ref();
        let here = directory.as_os_str().is_empty();
        Self {
            id: None,
            directory: if here { PathBuf::from(".") } else { directory.to_path_buf() },
            template: template.to_owned(),
            monitor: Monitor::new("val_loss"),
            best_only: true,
            weights_only: false,
            freq: 1,
            overwrite: false,
            state: State::default(),
            candidate: None,
            undo: None,
        }
    }

    /// The number that has to improve: one of the logs of an epoch. Default `val_loss`.
    #[must_use]
    pub fn monitor(mut self, name: &str) -> Self {
        self.monitor.name = name.to_owned();
        self
    }

    /// Which way it is to go. Default [`Mode::Min`].
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.monitor.mode = mode;
        self
    }

    /// Whether only improvements are saved; then [`ModelCheckpoint::save_freq`] does not matter.
    /// Default: yes.
    #[must_use]
    pub fn save_best_only(mut self, best_only: bool) -> Self {
        self.best_only = best_only;
        self
    }

    /// Whether only the model is saved (see [`SaveRequest::weights_only`]). Default: no.
    #[must_use]
    pub fn save_weights_only(mut self, weights_only: bool) -> Self {
        self.weights_only = weights_only;
        self
    }

    /// Without [`ModelCheckpoint::save_best_only`]: after every so many epochs, counted over all
    /// runs. Default 1.
    #[must_use]
    pub fn save_freq(mut self, epochs: u64) -> Self {
        self.freq = epochs;
        self
    }

    /// Keep one: after a new checkpoint is committed, the one that this callback saved before it is
    /// removed, also across a resume; never any other. So one that it saved after the checkpoint
    /// from which a run resumes stays, as does its name: [`ModelCheckpoint::last_saved`] says
    /// which is the last. Default: no.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// The id. Default: made of the settings, so that two that differ keep separate states.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// The best value so far, over all runs.
    #[must_use]
    pub fn best(&self) -> Option<f64> {
        self.state.best
    }

    /// The epoch of the best value, counted from 1; 0 if there is none.
    #[must_use]
    pub fn best_epoch(&self) -> u64 {
        self.state.best_epoch
    }

    /// The checkpoint that it saved last, as far as it knows.
    #[must_use]
    pub fn last_saved(&self) -> Option<PathBuf> {
        self.state.previous.last().map(|(name, _)| self.directory.join(name.as_str()))
    }

    /// The state after a save of this epoch, if one is due.
    fn due(&mut self, context: &CallbackContext<'_>) -> Option<State> {
        let mut next = self.state.clone();
        if !self.best_only {
            return context.epoch().is_multiple_of(self.freq).then_some(next);
        }
        let Reading::Value(value) = self.monitor.read(context) else { return None };
        next.best = Some(value);
        next.best_epoch = context.epoch();
        self.monitor.improves(value, self.state.best, 0.0).then_some(next)
    }

    fn name(&self, context: &CallbackContext<'_>) -> Result<CheckpointName> {
        let template =
            NameTemplate::parse(&self.template, &KnownFields::new(context.logs().keys()))?;
        let rendered = template.render(context.epoch(), &context.name_fields());
        if let Some(warning) = rendered.warning.filter(|_| context.is_coordinator()) {
            tracing::warn!(warning, "name of the checkpoint");
        }
        CheckpointName::new(&rendered.name)
    }

    fn parse(&self, stored: &CallbackState) -> Result<State> {
        let values = stored.values();
        let (best, best_epoch) = load_best(values)?;
        let mut state = State { best, best_epoch, ..State::default() };
        if !self.monitor.is_that_of(values)? {
            (state.best, state.best_epoch) = (None, 0);
        }
        // Elsewhere nothing is its own.
        if Path::new(&values.text("directory")?) == self.directory {
            state.previous = values.json("previous")?;
        }
        if values.find("saving").is_some() {
            let asked = CheckpointName::new(&values.text("saving")?)
                .map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
            if values.find("overwrite").is_some() && !values.bool("overwrite")? {
                // The checkpoint that holds this followed them, and they were to stay.
                state.previous.clear();
            }
            if let Some(own) = own_origin(stored, &asked) {
                // It took the place of an earlier one of that name.
                state.previous.retain(|(name, _)| *name != own.0);
                state.previous.push(own);
            }
        }
        keep_newest(&mut state.previous);
        Ok(state)
    }
}

/// The checkpoint out of which a state was loaded, if it was saved under the name `asked`. A copy
/// under a name of the user's has the same save id, and is the user's.
fn own_origin(stored: &CallbackState, asked: &CheckpointName) -> Option<(CheckpointName, SaveId)> {
    let origin = stored.origin()?;
    let name = CheckpointName::new(origin.path.file_name()?.to_str()?).ok()?;
    is_version_of(name.as_str(), asked.as_str()).then_some((name, origin.save_id))
}

impl Callback for ModelCheckpoint {
    fn id(&self) -> String {
        let what = if self.weights_only { "weights" } else { "full" };
        let when = match self.best_only {
            true => format!("best {}, {}", self.monitor.name, self.monitor.mode.as_str()),
            false => format!("every {}", self.freq),
        };
        let place = self.directory.join(&self.template);
        let made = || fit_id(&format!("ModelCheckpoint({}, {when}, {what})", place.display()));
        self.id.clone().unwrap_or_else(made)
    }

    fn check(&self, fields: &KnownFields) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidInput, message));
        if self.freq == 0 {
            return invalid("a save_freq of 0 epochs");
        }
        if self.directory.to_str().is_none() {
            return invalid("a directory whose name is no UTF-8");
        }
        if self.best_only {
            fields.check(&self.monitor.name)?;
        }
        NameTemplate::parse(&self.template, fields).map(|_| ())
    }

    fn on_train_begin(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.monitor.begin();
        Ok(())
    }

    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        self.candidate = None;
        let Some(mut next) = self.due(context) else { return Ok(()) };
        let name = self.name(context)?;
        next.saving = Some(name.clone());
        self.candidate = Some(next);
        let request = SaveRequest::new(&CheckpointPath::new(&self.directory, name))
            .weights_only(self.weights_only);
        let earlier = if self.overwrite { self.state.previous.clone() } else { Vec::new() };
        context.save(request.supersede(earlier));
        Ok(())
    }

    fn on_train_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if self.best_only {
            self.monitor.end(context);
        }
        Ok(())
    }

    fn on_saving(&mut self, _: &SaveRequest) {
        if let Some(next) = self.candidate.take() {
            self.undo = Some(std::mem::replace(&mut self.state, next));
        }
    }

    fn on_saved(&mut self, _: &SaveRequest, outcome: Result<&Checkpoint, &Error>) {
        self.candidate = None;
        let undo = self.undo.take();
        match outcome {
            Ok(committed) => {
                self.state.previous = vec![(committed.name.clone(), committed.save_id)];
                self.state.saving = None;
            }
            Err(_) => self.state = undo.unwrap_or_else(|| std::mem::take(&mut self.state)),
        }
    }

    fn save_state(&self) -> Result<CallbackState> {
        let mut values = Values::new();
        self.monitor.save(&mut values);
        save_best(self.state.best, self.state.best_epoch, &mut values);
        values.set("directory", self.directory.to_string_lossy().into_owned());
        values.set("previous", Value::json(&self.state.previous)?);
        if let Some(asked) = &self.state.saving {
            values.set("saving", asked.as_str());
            values.set("overwrite", self.overwrite);
        }
        Ok(CallbackState::from(values))
    }

    fn check_state(&self, state: &CallbackState) -> Result<()> {
        self.parse(state).map(|_| ())
    }

    fn load_state(&mut self, stored: &CallbackState) -> Result<()> {
        let state = self.parse(stored)?;
        if !self.monitor.is_that_of(stored.values())? {
            tracing::warn!(
                callback = Callback::id(self),
                "the stored best value is of another number or direction; it begins anew"
            );
        }
        (self.state, self.candidate, self.undo) = (state, None, None);
        Ok(())
    }
}
