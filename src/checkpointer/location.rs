//! Where experiments lie: decided from what the machine is.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Location;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::CHECKPOINT_NAME_BYTES_MAX;
use crate::shown;

/// Where experiments lie on this machine, below the working directory.
const LOCAL: &str = "checkpoints";
/// Where Colab keeps everything; gone with the machine.
const CONTENT: &str = "/content";
/// What Colab sets for every program of a notebook.
const COLAB_VARIABLES: [&str; 3] = ["COLAB_RELEASE_TAG", "COLAB_BACKEND_VERSION", "COLAB_GPU"];
const MOUNT_HELP: &str = "run `from google.colab import drive; drive.mount('/content/drive')` in \
                          a cell of the notebook, then start again";

/// Google Drive on Colab. Only the notebook can mount it: a program has no way to ask its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColabDrive {
    /// Where experiments lie in Drive. `My Drive`, as the web page calls it, stands for `MyDrive`,
    /// as Colab mounts it. Default: `MyDrive/tch_checkpoints`.
    pub drive_path: PathBuf,
    /// Where the notebook mounted Drive. Default: `/content/drive`.
    pub mount_point: PathBuf,
    /// Warn when less than this, in MiB, would be left after a save, also if the configuration says
    /// less. Default: 200.
    pub space_warning_mib: u64,
}

impl Default for ColabDrive {
    fn default() -> Self {
        Self {
            drive_path: PathBuf::from("MyDrive/tch_checkpoints"),
            mount_point: PathBuf::from("/content/drive"),
            space_warning_mib: 200,
        }
    }
}

/// Where the checkpoints of one experiment lie.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The directory; it need not exist.
    pub directory: PathBuf,
    /// What kind of place it is.
    pub kind: PlaceKind,
    /// Warn when less than this, in MiB, would be left after a save; 0 where the place asks for
    /// no warning of its own.
    pub space_warning_mib: u64,
}

/// What kind of place checkpoints lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceKind {
    /// A directory that somebody named, or the default one.
    Directory,
    /// Google Drive, mounted.
    Drive,
    /// The disk of a Colab machine, which is gone when the machine is: Drive is not mounted.
    Ephemeral,
}

impl Place {
    fn directory(directory: PathBuf) -> Self {
        Self { directory, kind: PlaceKind::Directory, space_warning_mib: 0 }
    }
}

/// What is asked of a machine to find the place of an experiment; [`ThisMachine`], or a test.
pub trait Environment: fmt::Debug {
    /// An environment variable.
    fn variable(&self, name: &str) -> Option<OsString>;
    /// Whether this is a directory, links followed.
    fn is_directory(&self, path: &Path) -> bool;
    /// Whether a file system is mounted at this directory.
    fn is_mount_point(&self, path: &Path) -> bool;
}

/// The machine that this program runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisMachine;

impl Environment for ThisMachine {
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn is_mount_point(&self, path: &Path) -> bool {
        let entry = path.symlink_metadata();
        let parent = path.join("..").metadata();
        match (entry, parent) {
            (Ok(entry), Ok(parent)) if entry.is_dir() => {
                // The root is its own parent.
                entry.dev() != parent.dev() || entry.ino() == parent.ino()
            }
            _ => false,
        }
    }
}

impl Location {
    /// Where the checkpoints of `experiment` lie. Looks and makes nothing; a fallback to a place
    /// that does not last is logged as a warning, and stands in [`Place::kind`]. Machines may
    /// differ, so that one rank asks and tells the others.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a name that is not one component of a path, or a path in
    /// Drive that leads out of it; [`ErrorKind::Unsupported`] for Drive outside Colab.
    pub fn resolve(&self, experiment: &str, environment: &dyn Environment) -> Result<Place> {
        match self {
            Self::Auto if is_colab(environment) => {
                Self::colab_drive(experiment, &ColabDrive::default(), environment)
            }
            Self::Auto | Self::Local => Self::local(experiment),
            Self::Path(directory) => Self::path(directory, experiment),
            Self::ColabDrive => Self::colab_drive(experiment, &ColabDrive::default(), environment),
            Self::ColabDriveAt(drive) => Self::colab_drive(experiment, drive, environment),
        }
    }

    /// `checkpoints/<experiment>`, below the working directory.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a name that is not one component of a path.
    pub fn local(experiment: &str) -> Result<Place> {
        Self::path(Path::new(LOCAL), experiment)
    }

    /// `<directory>/<experiment>`.
    ///
    /// # Errors
    /// As [`Location::local`].
    pub fn path(directory: &Path, experiment: &str) -> Result<Place> {
        check_experiment(experiment)?;
        Ok(Place::directory(directory.join(experiment)))
    }

    /// In Drive; if that is not mounted, `/content/checkpoints/<experiment>`, with a warning.
    ///
    /// # Errors
    /// As [`Location::resolve`].
    pub fn colab_drive(
        experiment: &str,
        drive: &ColabDrive,
        environment: &dyn Environment,
    ) -> Result<Place> {
        check_experiment(experiment)?;
        let drive_path = drive.checked_path()?;
        if !is_colab(environment) {
            let message = "Google Drive is mounted on Colab only, and this machine is not Colab";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_path(&drive.mount_point)
                .with_help("choose location `local`, `path` or `auto`"));
        }
        if let Some(folder) = drive.folder(drive_path, environment) {
            return Ok(Place {
                directory: folder.join(experiment),
                kind: PlaceKind::Drive,
                space_warning_mib: drive.space_warning_mib,
            });
        }
        let directory = Path::new(CONTENT).join(LOCAL).join(experiment);
        tracing::warn!(
            mount_point = %shown::path(&drive.mount_point),
            directory = %shown::path(&directory),
            help = MOUNT_HELP,
            "Google Drive is not mounted: checkpoints are lost when this machine ends"
        );
        Ok(Place { kind: PlaceKind::Ephemeral, ..Place::directory(directory) })
    }
}

impl ColabDrive {
    /// The path in Drive, which has to stay there.
    pub(super) fn checked_path(&self) -> Result<&Path> {
        let path = &self.drive_path;
        let is_name = |part: Component<'_>| matches!(part, Component::Normal(_));
        if path.as_os_str().is_empty() || !path.components().all(is_name) {
            let message = "the path in Drive has to be relative, without `..`";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_path(path)
                .with_help("for example `MyDrive/tch_checkpoints`"));
        }
        Ok(path)
    }

    /// The directory of experiments, if Drive is mounted and has the drive that the path begins
    /// with. Anything may be made below a mount point that nothing is mounted at, and is lost.
    fn folder(&self, path: &Path, environment: &dyn Environment) -> Option<PathBuf> {
        if !environment.is_mount_point(&self.mount_point) {
            return None;
        }
        let mut parts = path.components();
        let first = Path::new(parts.next()?.as_os_str());
        let first = if first == Path::new("My Drive") { Path::new("MyDrive") } else { first };
        let root = self.mount_point.join(first);
        environment.is_directory(&root).then(|| root.join(parts.as_path()))
    }
}

/// Colab sets its variables for every program of a notebook, and has `/content`; elsewhere somebody
/// may have copied the variables.
fn is_colab(environment: &dyn Environment) -> bool {
    let is_set = |name: &str| environment.variable(name).is_some_and(|value| !value.is_empty());
    COLAB_VARIABLES.iter().any(|name| is_set(name)) && environment.is_directory(Path::new(CONTENT))
}

/// Why an experiment cannot have this name, which is one component of a path, visible, not too
/// long.
pub(super) fn experiment_fault(name: &str) -> Option<&'static str> {
    if name.trim().is_empty() {
        Some("is empty")
    } else if name.len() > CHECKPOINT_NAME_BYTES_MAX {
        Some("is longer than 200 bytes")
    } else if name.starts_with('.') {
        Some("begins with a dot")
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        Some("holds `/`, `\\` or control characters")
    } else {
        None
    }
}

fn check_experiment(name: &str) -> Result<()> {
    let Some(fault) = experiment_fault(name) else { return Ok(()) };
    let shown: String = name.chars().take(80).collect();
    Err(Error::new(ErrorKind::InvalidInput, format!("the name {shown:?} of an experiment {fault}"))
        .with_help("choose one name, not a path; where it lies is said by the location"))
}

#[cfg(test)]
mod tests;
