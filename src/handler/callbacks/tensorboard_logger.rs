//! What a training run measures and what its saves take, for TensorBoard.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::set::Callbacks;
use super::state::fit_id;
use super::{Callback, CallbackContext};
use crate::autosave::KnownFields;
use crate::error::{Error, ErrorKind, Result};
use crate::tensorboard::EventLog;

/// Writes event files that TensorBoard opens: the logs of each epoch (losses, metrics, learning
/// rate, times), the learning rate of every further parameter group, and what automatic saves
/// take. `docs/tensorboard.md` is the guide.
///
/// The coordinator writes them, on its file system, wherever checkpoints are kept. It needs no
/// state: a run that is resumed begins a file of its own, which takes back what an earlier one
/// wrote after the checkpoint. What cannot be written is warned of once, and training goes on.
///
/// ```no_run
/// use tch_checkpoint::handler::{Model, NNHandler, TensorBoardLogger};
///
/// fn log<M: Model>(handler: &mut NNHandler<M>) -> tch_checkpoint::Result<()> {
///     handler.add_callback(TensorBoardLogger::new("logs/digits").every_steps(100))
/// }
/// ```
#[derive(Debug)]
pub struct TensorBoardLogger {
    id: Option<String>,
    directory: PathBuf,
    every_steps: Option<u64>,
    log: Arc<EventLog>,
}

impl TensorBoardLogger {
    /// Files in this directory, which is one run of TensorBoard: `tensorboard --logdir` is given
    /// it, or the one above it.
    #[must_use]
    pub fn new(directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref().to_path_buf();
        let log = Arc::new(EventLog::new(&directory));
        Self { id: None, directory, every_steps: None, log }
    }

    /// Learning rates also after every so many optimizer steps; at least 1.
    #[must_use]
    pub fn every_steps(mut self, steps: u64) -> Self {
        self.every_steps = Some(steps);
        self
    }

    /// The id. Default: names the directory.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }
}

/// `lr` of the first group, and of others under the names that templates know.
fn rates(context: &CallbackContext<'_>) -> Vec<(String, f64)> {
    let groups = context.optimizer().map_or(&[][..], |optimizer| optimizer.groups());
    let name = |index| match index {
        0 => "lr".to_owned(),
        _ => format!("lr_group_{index}"),
    };
    groups.iter().enumerate().map(|(index, group)| (name(index), group.lr)).collect()
}

impl Callback for TensorBoardLogger {
    fn id(&self) -> String {
        let made = || fit_id(&format!("TensorBoardLogger({})", self.directory.display()));
        self.id.clone().unwrap_or_else(made)
    }

    fn check(&self, _: &KnownFields) -> Result<()> {
        let fault = if self.directory.as_os_str().is_empty() {
            "event files in an empty path"
        } else if self.every_steps == Some(0) {
            "learning rates every 0 steps"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidInput, fault))
    }

    fn on_train_begin(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if context.is_coordinator() {
            let step = context.step();
            self.log.go_on_with(if step == 0 { 0 } else { step.saturating_add(1) });
        }
        Ok(())
    }

    fn on_step_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        let due = |every: u64| context.step().is_multiple_of(every);
        if context.is_coordinator() && self.every_steps.is_some_and(due) {
            let rates = rates(context);
            let rates = rates.iter().map(|(name, rate)| (name.as_str(), *rate));
            self.log.scalars(context.step(), rates);
        }
        Ok(())
    }

    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        if !context.is_coordinator() {
            return Ok(());
        }
        let mut all = context.logs().clone();
        all.retain(|name, _| context.validated() || !name.starts_with("val_"));
        all.extend(rates(context).into_iter().skip(1));
        #[expect(clippy::cast_precision_loss, reason = "a number to be drawn")]
        all.insert("epoch".to_owned(), context.epoch() as f64);
        self.log.scalars(context.step(), all.iter().map(|(name, value)| (name.as_str(), *value)));
        Ok(())
    }
}

impl Callbacks {
    /// Where saves tell what they take.
    pub(in crate::handler) fn event_log(&self) -> Option<Arc<EventLog>> {
        self.entries.iter().find_map(|entry| {
            let callback: &dyn Any = entry.callback.as_ref();
            callback.downcast_ref::<TensorBoardLogger>().map(|logger| logger.log.clone())
        })
    }
}
