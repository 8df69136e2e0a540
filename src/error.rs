//! One error type. It crosses ranks inside a vote, so it is plain data: every rank of a job can
//! hold the same value.

mod nested;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::rank::Rank;
use crate::shown::{self, without_credentials};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller would act on it differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No checkpoint (or file, or tensor) of that name.
    NotFound,
    /// The name is taken and replacing it was not asked for.
    AlreadyExists,
    /// Bytes on disk are not what was committed.
    Corrupt,
    /// A format version or feature that this version of the library does not know.
    Incompatible,
    /// Names, shapes or dtypes differ between checkpoint and destination.
    Mismatch,
    /// Ranks disagree about what to save or load.
    Disagreement,
    /// The storage refused an operation: full, read-only, no permission, I/O error.
    Storage,
    /// Files written by one rank are not seen by the coordinator.
    NotShared,
    /// libtorch or a device failed.
    Device,
    /// An argument, variable or template that can never work.
    InvalidInput,
    /// Something valid that this build or this version does not do.
    Unsupported,
    /// A rank died, or its connection closed.
    PeerLost,
    /// The coordinator died, or its connection closed, while this rank waited for a verdict.
    CoordinatorLost,
    /// No progress within the deadline.
    Deadline,
    /// A rank panicked inside a phase.
    Panic,
    /// Another job committed under this name meanwhile.
    Superseded,
    /// The checkpoint was renamed to its name, but the directory could not be made durable.
    DurabilityUncertain,
    /// This rank voted and then lost the coordinator; the disk decides.
    OutcomeUnknown,
    /// An earlier in-place load or training step failed half-way; load again before training or
    /// saving.
    Poisoned,
    /// What is about to be written does not fit into what the storage has left; nothing was
    /// written. (A storage that runs full while it is written to is [`ErrorKind::Storage`].)
    NoSpace,
}

impl ErrorKind {
    /// The words used in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::Corrupt => "corrupt checkpoint",
            Self::Incompatible => "incompatible format",
            Self::Mismatch => "mismatch",
            Self::Disagreement => "ranks disagree",
            Self::Storage => "storage error",
            Self::NotShared => "directory not shared",
            Self::Device => "device error",
            Self::InvalidInput => "invalid input",
            Self::Unsupported => "unsupported",
            Self::PeerLost => "peer lost",
            Self::CoordinatorLost => "coordinator lost",
            Self::Deadline => "deadline passed",
            Self::Panic => "panic",
            Self::Superseded => "superseded",
            Self::DurabilityUncertain => "durability uncertain",
            Self::OutcomeUnknown => "outcome unknown",
            Self::Poisoned => "poisoned",
            Self::NoSpace => "no space left",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `ENOMEM`.
const NO_MEMORY: i32 = rustix::io::Errno::NOMEM.raw_os_error();

/// An error that says what, where, on which rank, in which phase, and what to do next.
///
/// Equal on every rank after a vote. `Display` escapes control characters, so that names taken
/// from a file cannot drive a terminal. Of addresses, user, password and query are never kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error(Box<Detail>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Detail {
    kind: ErrorKind,
    message: String,
    path: Option<String>,
    tensor: Option<String>,
    offset: Option<u64>,
    rank: Option<Rank>,
    phase: Option<String>,
    os_code: Option<i32>,
    help: Option<String>,
    #[serde(deserialize_with = "nested::deserialize")]
    failures: Vec<Error>,
}

impl Error {
    /// An error of `kind`; `message` says what happened, in lower case, without a full stop.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Detail {
            kind,
            message: told(message.into()),
            path: None,
            tensor: None,
            offset: None,
            rank: None,
            phase: None,
            os_code: None,
            help: None,
            failures: Vec::new(),
        }))
    }

    /// A failed operation of the operating system; `doing` is a gerund phrase ("writing").
    /// `NotFound` and `AlreadyExists` keep their kind, everything else is [`ErrorKind::Storage`].
    #[must_use]
    pub fn io(error: &io::Error, doing: &str, path: &Path) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Storage,
        };
        let mut made = Self::new(kind, format!("{doing}: {error}")).with_path(path);
        made.0.os_code = error.raw_os_error();
        made
    }

    /// Memory that could not be had: [`ErrorKind::Storage`], with the error number `ENOMEM`.
    pub(crate) fn no_memory(bytes: u64) -> Self {
        let message = format!("no memory for a buffer of {bytes} bytes");
        let mut made = Self::new(ErrorKind::Storage, message);
        made.0.os_code = Some(NO_MEMORY);
        made
    }

    pub(crate) fn is_no_memory(&self) -> bool {
        self.0.os_code == Some(NO_MEMORY)
    }

    /// Merges what failed on several ranks into one verdict. The first failure (lowest rank, but
    /// a cause before a consequence) gives kind and message; all are kept in [`Error::failures`], but
    /// for what lies too deep in theirs.
    ///
    /// # Panics
    /// If `failures` is empty.
    #[must_use]
    pub fn from_failures(mut failures: Vec<Error>) -> Self {
        let consequence =
            |e: &Error| matches!(e.kind(), ErrorKind::PeerLost | ErrorKind::CoordinatorLost);
        let first = failures.iter().find(|e| !consequence(e)).or_else(|| failures.first());
        #[expect(clippy::expect_used, reason = "documented panic; callers hold at least one")]
        let mut verdict = first.expect("at least one failure").clone();
        if failures.len() > 1 {
            failures.iter_mut().for_each(|failure| failure.cut(nested::DEPTH_MAX - 1));
            verdict.0.failures = failures;
        }
        verdict
    }

    /// The file or directory concerned.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path = Some(shown::of_path(&path.as_ref().to_string_lossy()).into_owned());
        self
    }

    /// The tensor concerned.
    #[must_use]
    pub fn with_tensor(mut self, name: impl Into<String>) -> Self {
        self.0.tensor = Some(name.into());
        self
    }

    /// The byte offset in the file concerned.
    #[must_use]
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// The rank it happened on, unless one is named already.
    #[must_use]
    pub fn at_rank(mut self, rank: Rank) -> Self {
        self.0.rank.get_or_insert(rank);
        self
    }

    /// The protocol phase it happened in, unless one is named already.
    #[must_use]
    pub fn in_phase(mut self, phase: &str) -> Self {
        self.0.phase.get_or_insert_with(|| phase.to_owned());
        self
    }

    /// What is still safe, and what to do next.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(told(help.into()));
        self
    }

    /// The same error under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, without place and rank.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file or directory concerned, if one is.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// The tensor concerned, if one is.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// The byte offset in the file concerned, if known.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The rank it happened on, if a rank is to blame.
    #[must_use]
    pub fn rank(&self) -> Option<Rank> {
        self.0.rank
    }

    /// The protocol phase it happened in.
    #[must_use]
    pub fn phase(&self) -> Option<&str> {
        self.0.phase.as_deref()
    }

    /// The operating system's error number, if it came from there.
    #[must_use]
    pub fn os_code(&self) -> Option<i32> {
        self.0.os_code
    }

    /// What is still safe and what to do next.
    #[must_use]
    pub fn help(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// One error per failed rank, when more than one failed.
    #[must_use]
    pub fn failures(&self) -> &[Error] {
        &self.0.failures
    }

    /// The exit code of a command or training program that ends with this error:
    /// 3 damaged or not committed · 5 peer lost or deadline · 6 durability uncertain or outcome
    /// unknown · 7 bad input · 1 anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            ErrorKind::PeerLost | ErrorKind::CoordinatorLost | ErrorKind::Deadline => 5,
            ErrorKind::DurabilityUncertain | ErrorKind::OutcomeUnknown => 6,
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Incompatible
            | ErrorKind::Mismatch
            | ErrorKind::Disagreement
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported => 7,
            ErrorKind::Corrupt
            | ErrorKind::Storage
            | ErrorKind::NotShared
            | ErrorKind::Panic
            | ErrorKind::Superseded
            | ErrorKind::NoSpace => 3,
            ErrorKind::Device | ErrorKind::Poisoned => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.0;
        write!(f, "{}: {}", detail.kind, printable(&detail.message))?;
        let mut places = Vec::new();
        places.extend(detail.path.as_deref().map(|p| format!("`{}`", shown::line(p))));
        places.extend(detail.tensor.as_deref().map(|t| format!("tensor `{}`", shown::line(t))));
        places.extend(detail.offset.map(|o| format!("offset {o}")));
        places.extend(detail.rank.map(|r| format!("rank {r}")));
        places.extend(detail.phase.as_deref().map(|p| format!("phase \"{}\"", shown::line(p))));
        if !places.is_empty() {
            write!(f, " ({})", places.join(", "))?;
        }
        if let Some(help) = &detail.help {
            write!(f, "; {}", printable(help))?;
        }
        for other in &detail.failures {
            let same = (other.kind(), other.message()) == (self.kind(), self.message());
            match other.rank() {
                rank if rank == self.rank() => {}
                Some(rank) if same => write!(f, "\n  also on rank {rank}")?,
                _ => write!(f, "\n  also {other}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// What of a text may be told.
fn told(text: String) -> String {
    match without_credentials(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(told) => told,
    }
}

/// `text` with control characters (line breaks excepted) escaped, and those that show what follows
/// in another order.
#[must_use]
pub fn printable(text: &str) -> String {
    shown::lines(text)
}

#[cfg(test)]
mod tests;
