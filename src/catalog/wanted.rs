//! Which checkpoint is meant.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CheckpointPath;
use crate::autosave::Mode;
use crate::error::Result;
use crate::layout::{self, CheckpointName, SaveId};
use crate::shown;
use crate::storage::check_is_path;

/// Which checkpoint of a directory is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Which {
    /// The one of this name.
    Named(CheckpointName),
    /// The newest, see [`CheckpointInfo::age_key`](crate::manifest::CheckpointInfo::age_key):
    /// highest generation, then step, epoch, time of saving.
    Latest,
    /// The one that the link `best` names, or, where there are no links, `best.json`.
    Best,
    /// The one of this step; the newest of several.
    Step(u64),
    /// The best by one of its metrics, as manifests hold them. Of equals the oldest.
    BestBy {
        /// Which number.
        monitor: String,
        /// Which way it is to go.
        mode: Mode,
    },
}

/// A checkpoint to be found: a directory, and which one of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    directory: PathBuf,
    which: Which,
    /// Whether files of other tools, which cannot be verified, will do.
    pub(super) unverified: bool,
    /// Saves that were found damaged.
    except: Vec<SaveId>,
}

impl Wanted {
    /// As [`CheckpointPath::parse`], also for addresses; the last component `latest` stands for the
    /// newest, and `best` for the one that the link of this name names.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the last component can be no
    /// checkpoint's name, or if it is an address (`s3://…`).
    pub fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        check_is_path(path)?;
        let which = match path.file_name() {
            Some(name) if name == layout::LATEST => Which::Latest,
            Some(name) if name == layout::BEST => Which::Best,
            _ => return CheckpointPath::parse(path).map(Self::from),
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(Self::new(directory.unwrap_or(Path::new(".")), which))
    }

    /// One checkpoint of a directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, which: Which) -> Self {
        Self { directory: directory.into(), which, unverified: false, except: Vec::new() }
    }

    /// The newest checkpoint of a directory.
    #[must_use]
    pub fn latest(directory: impl Into<PathBuf>) -> Self {
        Self::new(directory, Which::Latest)
    }

    /// The checkpoint that the link `best` of a directory names.
    #[must_use]
    pub fn best(directory: impl Into<PathBuf>) -> Self {
        Self::new(directory, Which::Best)
    }

    /// The checkpoint of this step.
    #[must_use]
    pub fn step(directory: impl Into<PathBuf>, step: u64) -> Self {
        Self::new(directory, Which::Step(step))
    }

    /// The best checkpoint of a directory by one of its metrics, whatever `best` names.
    #[must_use]
    pub fn best_by(directory: impl Into<PathBuf>, monitor: impl Into<String>, mode: Mode) -> Self {
        Self::new(directory, Which::BestBy { monitor: monitor.into(), mode })
    }

    /// Accepts files of other tools too: safetensors, which have no sums, so that nothing can be
    /// verified, and what PyTorch writes, of which storages that are read as a whole are.
    #[must_use]
    pub fn or_unverified(self) -> Self {
        Self { unverified: true, ..self }
    }

    /// Leaves out saves that were found damaged, so that the next one in order is found: this is
    /// how to fall back. With at least one of them, a checkpoint whose data or sums files are
    /// missing or of another length is passed over too, with a log line, and if nothing is left
    /// the error is [`Corrupt`](crate::ErrorKind::Corrupt). Replaces an earlier list; without one
    /// (the default), a damaged file of the checkpoint in question fails the load.
    #[must_use]
    pub fn except(self, damaged: Vec<SaveId>) -> Self {
        Self { except: damaged, ..self }
    }

    /// The directory that holds checkpoints.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which of them.
    #[must_use]
    pub fn which(&self) -> &Which {
        &self.which
    }

    /// The saves that [`Wanted::except`] leaves out.
    #[must_use]
    pub fn left_out(&self) -> &[SaveId] {
        &self.except
    }
}

impl From<CheckpointPath> for Wanted {
    fn from(path: CheckpointPath) -> Self {
        let (directory, name) = path.into();
        Self::new(directory, Which::Named(name))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |path: &Path| shown::without_credentials(&path.to_string_lossy()).into_owned();
        let (at, directory) = (|name: &str| told(&self.directory.join(name)), &self.directory);
        match &self.which {
            Which::Named(name) => f.write_str(&at(name.as_str())),
            Which::Latest => f.write_str(&at(layout::LATEST)),
            Which::Best => f.write_str(&at(layout::BEST)),
            Which::Step(step) => write!(f, "{} (step {step})", told(directory)),
            Which::BestBy { monitor, mode } => {
                write!(f, "{} (best by `{monitor}`, {})", told(directory), mode.as_str())
            }
        }
    }
}
