//! Model code in checkpoints, for reproducibility: which source a model was trained with.
//!
//! [`model_code!`](crate::model_code) captures source texts when the program is compiled, with
//! package, version, git revision and features. They are stored under `code/` in a checkpoint,
//! read back with [`read_code`], compared with [`ModelCode::differences`], and never executed:
//! a model is rebuilt from its configuration by the program that loads it.
//!
//! # Git revision and features
//! Both are taken from variables at compile time, `TCH_CHECKPOINT_GIT_REVISION` and
//! `TCH_CHECKPOINT_FEATURES` (separated by commas); what is not set is not recorded. A `build.rs`
//! that sets them:
//!
//! ```no_run
//! use std::{env, process::Command};
//!
//! fn main() {
//!     let git = |args: &[&str]| {
//!         let done = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
//!         Some(String::from_utf8_lossy(&done.stdout).trim().to_owned())
//!     };
//!     if let Some(head) = git(&["rev-parse", "HEAD"]) {
//!         let changes = git(&["--no-optional-locks", "status", "--porcelain"]);
//!         let dirty = if changes.is_some_and(|c| c.is_empty()) { "" } else { "-dirty" };
//!         println!("cargo::rustc-env=TCH_CHECKPOINT_GIT_REVISION={head}{dirty}");
//!     }
//!     let features = env::var("CARGO_CFG_FEATURE").unwrap_or_default();
//!     println!("cargo::rustc-env=TCH_CHECKPOINT_FEATURES={features}");
//!     // Else a commit alone, which changes no source, would not run this again.
//!     let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
//!     let watched = ["build.rs", "Cargo.toml", "src"].map(str::to_owned);
//!     for path in watched.into_iter().chain(log.filter(|l| std::path::Path::new(l).exists())) {
//!         println!("cargo::rerun-if-changed={path}");
//!     }
//! }
//! ```

mod capture;
mod differences;
pub(crate) mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

#[doc(hidden)]
pub use self::capture::{captured, check_captured};
pub use self::differences::CodeDifference;
pub use self::read::{load_model_code, read_code};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{CODE_DIR, check_code_file};
use crate::state::StateDict;

/// The file under `code/` that holds everything but the sources, as JSON.
pub const PROVENANCE: &str = "provenance.json";

/// The source of a model and where it comes from. Text for people and for comparison; never
/// executed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ModelCode {
    files: BTreeMap<String, String>,
    facts: Facts,
}

/// What [`PROVENANCE`] holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Facts {
    package: String,
    version: String,
    git_revision: Option<String>,
    features: BTreeSet<String>,
}

impl ModelCode {
    /// Equal for the same code only.
    #[cfg(feature = "torch")]
    pub(crate) fn digest(&self) -> Result<[u8; 16]> {
        Ok(crate::manifest::hash16(&crate::codec::encode(&(&self.files, &self.facts))?))
    }

    /// Code that was obtained otherwise than by [`model_code!`](crate::model_code). `files` are
    /// texts by path below `code/`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a path that
    /// [`is_code_path`](crate::layout::is_code_path) refuses, for [`PROVENANCE`], and beyond the
    /// limits of [`StateDict::attach_file`].
    pub fn new(
        files: BTreeMap<String, String>,
        package: impl Into<String>,
        version: impl Into<String>,
        git_revision: Option<String>,
        features: BTreeSet<String>,
    ) -> Result<Self> {
        if files.contains_key(PROVENANCE) {
            let message = format!("`{PROVENANCE}` is written by the save itself");
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_help("give that source another name"));
        }
        let (package, version) = (package.into(), version.into());
        let code = Self { files, facts: Facts { package, version, git_revision, features } };
        code.attach_to(&mut StateDict::new())?;
        Ok(code)
    }

    /// The source texts, by path.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.files
    }

    /// Name of the package that was compiled; may be empty.
    #[must_use]
    pub fn package(&self) -> &str {
        &self.facts.package
    }

    /// Version of that package; may be empty.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.facts.version
    }

    /// Its git revision, if recorded; by convention with `-dirty` at the end if there were
    /// changes that are not in it.
    #[must_use]
    pub fn git_revision(&self) -> Option<&str> {
        self.facts.git_revision.as_deref()
    }

    /// Its features, as far as recorded.
    #[must_use]
    pub fn features(&self) -> &BTreeSet<String> {
        &self.facts.features
    }

    /// Attaches sources and facts to a state that is to be saved.
    ///
    /// # Errors
    /// As [`StateDict::attach_file`].
    pub fn attach_to(&self, state: &mut StateDict) -> Result<()> {
        for (path, text) in &self.files {
            state.attach_file(format!("{CODE_DIR}/{path}"), text.as_bytes())?;
        }
        let facts = serde_json::to_vec_pretty(&self.facts).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("facts about code as JSON: {e}"))
        })?;
        state.attach_file(format!("{CODE_DIR}/{PROVENANCE}"), facts)
    }

    /// The code among attached files, by their names (`code/…`); none if there are none. Files
    /// that were attached without [`PROVENANCE`] come without facts.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for a file that is no text, or facts that cannot be read;
    /// [`ErrorKind::InvalidInput`] for names or sizes that [`StateDict::attach_file`] refuses.
    pub fn from_attached<B: AsRef<[u8]>>(attached: &BTreeMap<String, B>) -> Result<Option<Self>> {
        let (mut code, mut seen, mut total) = (Self::default(), BTreeMap::new(), 0);
        for (name, bytes) in attached {
            let bytes = bytes.as_ref();
            check_code_file(&seen, total, name, bytes.len() as u64)?;
            seen.insert(name.clone(), ());
            total += bytes.len() as u64;
            let unfit = |what: &str| Error::new(ErrorKind::Mismatch, format!("`{name}` {what}"));
            let text = std::str::from_utf8(bytes).map_err(|_| unfit("is no UTF-8 text"))?;
            match name.strip_prefix(CODE_DIR).and_then(|rest| rest.strip_prefix('/')) {
                Some(PROVENANCE) => {
                    let facts = serde_json::from_str(text);
                    code.facts = facts.map_err(|e| unfit(&format!("cannot be read: {e}")))?;
                }
                Some(path) => drop(code.files.insert(path.to_owned(), text.to_owned())),
                None => {}
            }
        }
        Ok((!attached.is_empty()).then_some(code))
    }
}

/// Shows sizes, not texts.
impl fmt::Debug for ModelCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: BTreeMap<_, _> = self.files.iter().map(|(path, t)| (path, t.len())).collect();
        f.debug_struct("ModelCode").field("files", &sizes).field("facts", &self.facts).finish()
    }
}

#[cfg(test)]
mod tests;
