//! What is looked at when the ranks have ended.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Kind;
use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::progressive::{Rack, StageHistory};
use tch_checkpoint::storage::LocalStorage;

use super::model::Letters;

/// Every check that was made, and whether all held.
#[derive(Default)]
pub(crate) struct Checks(Vec<(&'static str, bool)>);

impl Checks {
    pub(crate) fn that(&mut self, what: &'static str, holds: bool) {
        self.0.push((what, holds));
    }

    /// Prints them; whether all hold.
    pub(crate) fn tell(self) -> bool {
        say!("");
        for (what, holds) in &self.0 {
            say!("  {} {what}", if *holds { "ok    " } else { "FAILED" });
        }
        self.0.iter().all(|(_, holds)| *holds)
    }
}

/// How a run has ended.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Of every variable.
    pub(crate) hash: String,
    pub(crate) history: Vec<StageHistory>,
    /// The loss on text that was not trained on, after each stage.
    pub(crate) validation: Vec<f64>,
}

impl Outcome {
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(directory.join("outcome.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(crate) fn write(&self, directory: &Path) {
        if let Ok(text) = serde_json::to_string(self) {
            let _ = std::fs::write(directory.join("outcome.json"), text);
        }
    }
}

/// A hash of the name and every bit of every variable.
pub(crate) fn hash_of(rack: &Rack<Letters>) -> String {
    let mut variables: Vec<_> = rack.store().variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    let mut all = Vec::new();
    for (name, tensor) in variables {
        all.extend_from_slice(name.as_bytes());
        let flat = tensor.detach().contiguous().flatten(0, -1).view_dtype(Kind::Uint8);
        all.extend(Vec::<u8>::try_from(flat).unwrap_or_default());
    }
    blake3::hash(&all).to_hex().to_string()
}

/// Bytes of the files that this checkpoint shares with no other, and of the tensors of its adapters
/// and their optimizer state.
pub(crate) fn own_bytes(checkpoint: &Path) -> tch_checkpoint::Result<(u64, u64)> {
    let found = catalog::find(&LocalStorage::new(), &Wanted::parse(checkpoint)?)?;
    let own = std::fs::read_dir(checkpoint).into_iter().flatten().flatten();
    let facts = own.filter_map(|entry| entry.metadata().ok());
    let own = facts.filter(|facts| facts.nlink() == 1).map(|facts| facts.len()).sum();
    let is_needed =
        |component: &str| component.starts_with("adapters_") || component == "optimizer";
    let needed = found.manifest.tensors().iter().filter(|t| is_needed(t.component.as_str()));
    Ok((own, needed.map(|tensor| tensor.spec.size_bytes()).sum()))
}
