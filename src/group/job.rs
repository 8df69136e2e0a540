//! The name and the secret of a job.

use std::fmt;

/// What tells the ranks of one job from those of another.
#[derive(Clone, PartialEq, Eq)]
pub struct JobId {
    pub(super) id: String,
    pub(super) token: String,
}

impl JobId {
    /// A job `id`, whose ranks all know `token`.
    pub fn new(id: impl Into<String>, token: impl Into<String>) -> Self {
        Self { id: id.into(), token: token.into() }
    }

    /// A job without a secret: whoever can guess `id` and reach rank 0 can join.
    pub fn without_secret(id: impl Into<String>) -> Self {
        let id = id.into();
        Self { token: id.clone(), id }
    }
}

/// Shows the id, never the token.
impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobId").field("id", &self.id).finish_non_exhaustive()
    }
}
