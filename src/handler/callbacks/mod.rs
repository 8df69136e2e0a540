//! Callbacks: what a user wants done at the moments of a training run, with state that survives
//! a resume.
//!
//! Hooks run on every rank; what they ask for (a stop, a save) is decided once per moment by a
//! vote, in which the coordinator's requests are the answer for all ([`run`]).

use std::any::Any;

use crate::autosave::KnownFields;
use crate::error::{Error, Result};
use crate::save::Checkpoint;

mod context;
mod early_stopping;
mod history_logger;
mod loggers;
mod model_checkpoint;
mod monitor;
mod request;
mod run;
mod set;
mod state;
mod tensorboard_logger;
mod vote;
mod weights;

pub use context::CallbackContext;
pub use early_stopping::EarlyStopping;
pub use history_logger::HistoryLogger;
pub use loggers::LearningRateLogger;
pub use model_checkpoint::ModelCheckpoint;
pub use monitor::Mode;
pub use request::SaveRequest;
pub use set::CallbackReport;
pub(super) use set::Callbacks;
pub(super) use state::{COMPONENT, agree_on_values, replace_values, values_of_callbacks};
pub use state::{CallbackState, Origin};
pub use tensorboard_logger::TensorBoardLogger;

/// Something that looks on while a handler trains, and may ask it to stop or to save.
///
/// Every rank has its own, added in the same order under the same id, and its hooks run on every
/// rank with the same numbers: what a callback asks for must follow from those alone. An error or
/// a panic in a hook is a warning on every rank and training goes on; from then on the
/// coordinator's callback of this id decides for all. Hooks must not call anything collective.
/// A hook that runs for long calls [`CallbackContext::progress`] now and then.
///
/// ```
/// use tch_checkpoint::handler::{Callback, CallbackContext, CallbackState};
/// use tch_checkpoint::Result;
///
/// /// Stops when the loss is low enough.
/// struct Target {
///     loss: f64,
///     reached: bool,
/// }
/// impl Callback for Target {
///     fn id(&self) -> String {
///         "target".to_owned()
///     }
///     fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
///         self.reached = context.log("loss").is_some_and(|loss| loss <= self.loss);
///         if self.reached {
///             context.stop("the loss is low enough");
///         }
///         Ok(())
///     }
///     fn save_state(&self) -> Result<CallbackState> {
///         Ok(CallbackState::new().with("reached", self.reached))
///     }
///     fn load_state(&mut self, state: &CallbackState) -> Result<()> {
///         self.reached = state.values().bool("reached")?;
///         Ok(())
///     }
/// }
/// ```
#[expect(unused_variables, reason = "hooks that do nothing")]
pub trait Callback: Any {
    /// Under which its state is kept: unique in a handler, the same in the run that resumes; 1 to
    /// 200 bytes without control characters. Asked once, when it is added.
    fn id(&self) -> String;

    /// Whether its settings can work. `fields` are those that names of checkpoints may mention.
    /// Asked when it is added, and on every rank before training begins.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput); nothing is trained then.
    fn check(&self, fields: &KnownFields) -> Result<()> {
        Ok(())
    }

    /// Training begins: at the start of each `train`, also of a resumed run.
    ///
    /// # Errors
    /// Become a warning on every rank, as in every hook.
    fn on_train_begin(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        Ok(())
    }

    /// After each optimizer step, on this rank alone: there is no vote, so nothing can be asked
    /// for, and there are no logs. A failure is told to other ranks at the end of the epoch.
    ///
    /// # Errors
    /// Become a warning.
    fn on_step_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        Ok(())
    }

    /// An epoch is trained, validated and part of the history, but not yet saved.
    ///
    /// # Errors
    /// Become a warning on every rank; what this callback has asked for is dropped.
    fn on_epoch_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        Ok(())
    }

    /// `train` is about to return, with the logs of its last epoch; also after a stop, not after
    /// an error, nor when the job is preempted: the run that resumes has that end.
    ///
    /// # Errors
    /// Become a warning on every rank.
    fn on_train_end(&mut self, context: &mut CallbackContext<'_>) -> Result<()> {
        Ok(())
    }

    /// A save that it asked for begins. From here to [`Callback::on_saved`] its state must be what
    /// it will be if that save is committed, because that is the state inside it.
    fn on_saving(&mut self, request: &SaveRequest) {}

    /// What became of a save that it asked for. After an error its state must be what it was
    /// before [`Callback::on_saving`], which was not called if the save was never begun.
    fn on_saved(&mut self, request: &SaveRequest, outcome: Result<&Checkpoint, &Error>) {}

    /// What a resumed run needs to go on. The coordinator's values and tensors are stored for
    /// all ranks.
    ///
    /// # Errors
    /// Any; the save then fails on every rank, rather than lose this.
    fn save_state(&self) -> Result<CallbackState> {
        Ok(CallbackState::new())
    }

    /// Whether [`Callback::load_state`] would take this state. Called before anything is changed;
    /// the content of its tensors is not there yet.
    ///
    /// # Errors
    /// Any; a load into a live handler then fails on every rank and nothing was changed.
    fn check_state(&self, state: &CallbackState) -> Result<()> {
        Ok(())
    }

    /// Takes over the state of the run that is resumed. Settings stay as they are. On an error it
    /// must be unchanged.
    ///
    /// # Errors
    /// [`Mismatch`](crate::ErrorKind::Mismatch) for a state that is not its own.
    fn load_state(&mut self, state: &CallbackState) -> Result<()> {
        Ok(())
    }
}
