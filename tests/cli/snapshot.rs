//! What a verb prints, compared with what is kept in `tests/cli/snapshots`, and checkpoints to print
//! something of.
//!
//! `TCH_CHECKPOINT_UPDATE_SNAPSHOTS=1` writes the files anew: look at what has changed.

use std::path::PathBuf;
use std::sync::Arc;

use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{ProcessGroup, SaveOptions, save};

use crate::{Folder, Ran, run};

/// Compares the output of a command, ids, times and the folder aside.
#[track_caller]
pub(crate) fn assert_snapshot(name: &str, ran: &Ran, folder: &Folder) {
    let code = ran.code.map_or("none".to_owned(), |code| code.to_string());
    let text = format!("exit code {code}\n{}{}", ran.stdout, said(&ran.stderr));
    assert_text(name, &normalised(&text, folder.path()));
}

/// Compares a text with the one that is kept.
#[track_caller]
pub(crate) fn assert_text(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli/snapshots");
    let file = file.join(format!("{name}.txt"));
    if std::env::var_os("TCH_CHECKPOINT_UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == text, "{}: is now\n{text}", file.display());
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("-- stderr\n{stderr}") }
}

/// Without what differs from run to run.
fn normalised(text: &str, folder: &str) -> String {
    let text = text.replace(folder, "DIR");
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            word.push(c);
        } else {
            out.push_str(&plain(&std::mem::take(&mut word), &out));
            out.push(c);
        }
    }
    out + &word
}

fn plain(word: &str, before: &str) -> String {
    let is_hex = word.bytes().all(|b| b.is_ascii_hexdigit());
    let is_age = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if before.ends_with("unix_ms\":") {
        return "TIME".to_owned();
    }
    match word.len() {
        32 if is_hex => "ID".to_owned(),
        8 if is_hex && is_after_id_mark(before) => "SHORTID_".to_owned(),
        // An age takes the place of its digits, or tables would move.
        2 if word.strip_suffix('s').is_some_and(is_age) => "0s".to_owned(),
        _ => word.to_owned(),
    }
}

/// In parentheses, or in the name of a file.
fn is_after_id_mark(before: &str) -> bool {
    before.ends_with('(') || before.ends_with("-of-00001.")
}

/// A checkpoint of one rank.
pub(crate) struct Made {
    pub(crate) step: u64,
    pub(crate) epoch: u64,
    pub(crate) state: StateDict,
}

impl Made {
    pub(crate) fn new(step: u64, epoch: u64) -> Self {
        Self { step, epoch, state: StateDict::new() }
    }

    pub(crate) fn metric(mut self, name: &str, value: f64) -> Self {
        self.state.values.set(format!("metrics.{name}"), value);
        self
    }

    /// As a policy saves: one may remove it.
    pub(crate) fn automatic(mut self) -> Self {
        self.state.values.set("checkpoint.automatic", true);
        self
    }

    pub(crate) fn tensor(self, name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Self {
        self.tensor_of("model", name, dtype, shape, bytes)
    }

    pub(crate) fn tensor_of(
        mut self,
        component: &str,
        name: &str,
        dtype: Dtype,
        shape: &[u64],
        bytes: Vec<u8>,
    ) -> Self {
        let spec = TensorSpec::new(dtype, shape).unwrap();
        let (component, name) =
            (Component::new(component).unwrap(), TensorName::new(name).unwrap());
        self.state.add(&component, name, spec, Arc::new(bytes)).unwrap();
        self
    }

    pub(crate) fn floats(self, name: &str, shape: &[u64], floats: &[f32]) -> Self {
        let bytes = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name, Dtype::F32, shape, bytes)
    }

    /// Saves it under its step; its path.
    pub(crate) fn save(self, folder: &Folder) -> String {
        let name = format!("step-{:04}", self.step);
        self.save_as(folder, &name)
    }

    pub(crate) fn save_as(self, folder: &Folder, name: &str) -> String {
        // What a test damages is then one checkpoint.
        self.save_with(folder, name, true)
    }

    /// What has not changed since an earlier one of the folder is linked.
    pub(crate) fn save_linked(self, folder: &Folder) -> String {
        let name = format!("step-{:04}", self.step);
        self.save_with(folder, &name, false)
    }

    fn save_with(self, folder: &Folder, name: &str, copy_unchanged: bool) -> String {
        let at = folder.at(name);
        let options = SaveOptions {
            step: self.step,
            epoch: self.epoch,
            copy_unchanged,
            ..SaveOptions::default()
        };
        let path = CheckpointPath::parse(&at).unwrap();
        save(&ProcessGroup::solo(), &LocalStorage::new(), &path, &self.state, &options).unwrap();
        at
    }
}

/// A verb with arguments after a directory.
pub(crate) fn verb(name: &str, at: &str, more: &[&str]) -> Ran {
    run(&[&[name, at], more].concat())
}

/// The objects that a verb with `--json` has printed.
pub(crate) fn verb_lines(ran: &Ran) -> Vec<serde_json::Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
