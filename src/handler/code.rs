//! Model code of a handler: saved with its checkpoints, compared when one is loaded.

use std::path::Path;

use crate::code::read::{code_files, code_values, read_open};
use crate::code::{CodeDifference, ModelCode, load_model_code};
use crate::error::Result;
use crate::handler::{Model, NNHandler};
use crate::load::Loaded;
use crate::state::StateDict;

/// How many differences a warning lists; [`NNHandler::code_differences`] has all.
const DIFFERENCES_LISTED_MAX: usize = 8;

/// The code of the running program, and how that of the loaded checkpoint differed.
#[derive(Default)]
pub(super) struct KeptCode {
    running: Option<ModelCode>,
    differences: Option<Vec<CodeDifference>>,
}

impl KeptCode {
    pub(super) fn new(running: Option<ModelCode>) -> Self {
        Self { running, differences: None }
    }

    pub(super) fn attach_to(&self, state: &mut StateDict) -> Result<()> {
        self.running.as_ref().map_or(Ok(()), |code| code.attach_to(state))
    }
}

impl<M: Model> NNHandler<M> {
    /// Saves this code with every checkpoint from now on, automatic ones included. The same on
    /// every rank, or a save is refused. To compare it with that of a checkpoint, give it to
    /// [`LoadOptions`](super::LoadOptions), which saves it as well; code other than that forgets
    /// what differed. See [`model_code!`](crate::model_code).
    pub fn save_model_code(&mut self, code: ModelCode) {
        if self.code.running.as_ref() != Some(&code) {
            self.code = KeptCode::new(Some(code));
        }
    }

    /// Compares replicas before every save from now on, automatic ones included: costs one pass
    /// over the state. The same on every rank. Default: no. See [`audit`](fn@crate::audit::audit).
    pub fn audit_replicas(&mut self, audit: bool) {
        self.audit = audit;
    }

    /// Whether saves from now on, automatic ones included, write components again that have not
    /// changed since an earlier checkpoint of the directory; otherwise their files are linked. The
    /// same on every rank. Default: no. See
    /// [`SaveOptions::copy_unchanged`](crate::SaveOptions::copy_unchanged).
    pub fn copy_unchanged(&mut self, copy_unchanged: bool) {
        self.copy_unchanged = copy_unchanged;
    }

    /// The code that was saved with a checkpoint on the file system; none if none was. Not
    /// collective. The same as [`load_model_code`], which needs no
    /// libtorch.
    ///
    /// # Errors
    /// As [`read_code`](crate::code::read_code).
    pub fn load_model_code(path: impl AsRef<Path>) -> Result<Option<ModelCode>> {
        load_model_code(path)
    }

    /// What differed between the running program's code and that of the checkpoint that was
    /// loaded last; empty if nothing. `None` if they were not compared: one of them has no code,
    /// or that of the checkpoint could not be read on this rank.
    #[must_use]
    pub fn code_differences(&self) -> Option<&[CodeDifference]> {
        self.code.differences.as_deref()
    }

    /// After a load. Each rank reads for itself, so that nothing has to be agreed on, and what
    /// cannot be read is no reason to lose the load.
    pub(super) fn compare_code(&mut self, loaded: &Loaded) {
        self.code.differences = None;
        let Some(running) = &self.code.running else { return };
        let saved = self.code_of(loaded).unwrap_or_else(|error| {
            self.warn(&format!("the checkpoint's code cannot be read: {error}"));
            None
        });
        self.code.differences = saved.map(|saved| running.differences(&saved));
        if let Some(all @ [_, ..]) = self.code.differences.as_deref() {
            self.warn(&format!("the checkpoint was saved by other code: {}", listed(all)));
        }
    }

    /// The code of the very checkpoint that was loaded: its manifest binds what is read.
    fn code_of(&self, loaded: &Loaded) -> Result<Option<ModelCode>> {
        if code_files(&loaded.manifest).next().is_none() {
            return ModelCode::from_attached(&code_values(&loaded.manifest));
        }
        read_open(&self.storage.open_dir(&loaded.path)?, &loaded.manifest)
    }

    fn warn(&self, text: &str) {
        if self.group.is_coordinator() {
            tracing::warn!("{text}");
        }
    }
}

fn listed(all: &[CodeDifference]) -> String {
    let shown = all.iter().take(DIFFERENCES_LISTED_MAX).map(ToString::to_string);
    let more = all.len().saturating_sub(DIFFERENCES_LISTED_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    shown.chain(more).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_differences_are_counted() {
        let all: Vec<_> =
            (0..1000).map(|n| CodeDifference::FileChanged(format!("{n}.rs"))).collect();
        assert_eq!(listed(&all[..1]), "`0.rs` has changed");
        assert_eq!(listed(&all[..8]).matches("; ").count(), 7);
        assert!(listed(&all).ends_with("`7.rs` has changed; and 992 more"), "{}", listed(&all));
    }
}
