//! The real PyTorch opens what we export, and goes on training from it as if it had never stopped.

use std::net::TcpListener;
use std::process::Command;

use tch_checkpoint::export::{ExportOptions, PyTorch, PyTorchForm, export};
use tch_checkpoint::import::ImportOptions;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::Component;
use tch_checkpoint::{SaveOptions, save};

use super::round_trips::training;
use super::*;
use crate::tier;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/pytorch/opened.py");
const MODULES: &str = "safetensors.torch, torch.distributed.checkpoint.state_dict";

fn succeed(command: &mut Command) {
    let ran = command.output().unwrap();
    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{error}");
}

/// Exports what lies at `from`, under this name.
fn exported(root: &Path, from: &str, name: &str, pytorch: Option<PyTorch>) {
    let at = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let components = if pytorch.is_some() { None } else { Some(vec![Component::model()]) };
    let repeat_tied = pytorch.is_none();
    let options = ExportOptions { components, pytorch, repeat_tied, ..ExportOptions::default() };
    let storage = LocalStorage::new();
    export(&ProcessGroup::solo(), &storage, &wanted(&at(from)), at(name), &options).unwrap();
}

fn of(form: PyTorchForm, parameters: Option<Vec<String>>) -> Option<PyTorch> {
    Some(PyTorch { parameters, ..PyTorch::new(form) })
}

#[test]
fn the_real_pytorch_goes_on_from_what_was_exported() {
    let Some(mut python) = tier::python(MODULES) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    succeed(python.arg(SCRIPT).arg(root).arg("make"));
    let (solo, storage) = (ProcessGroup::solo(), LocalStorage::new());
    let to = path(root.join("trained").to_str().unwrap());
    let options = ImportOptions::default();
    import(&solo, &storage, root.join("made.pt"), &to, &options).unwrap();
    let parameters = std::fs::read_to_string(root.join("parameters.txt")).unwrap();
    let parameters = parameters.lines().map(str::to_owned).collect();
    exported(root, "trained", "trained.pt", of(PyTorchForm::Pt, None));
    exported(root, "trained", "numbered.pt", of(PyTorchForm::Pt, Some(parameters)));
    exported(root, "trained", "trained.dcp", of(PyTorchForm::Dcp, None));
    let to = path(root.join("kinds").to_str().unwrap());
    save(&solo, &storage, &to, &training(0, 1), &SaveOptions::default()).unwrap();
    exported(root, "kinds", "kinds.pt", of(PyTorchForm::Pt, None));
    exported(root, "kinds", "kinds.dcp", of(PyTorchForm::Dcp, None));
    exported(root, "kinds", "kinds.safetensors", None);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut python = tier::python(MODULES).unwrap();
    succeed(python.arg(SCRIPT).arg(root).arg(port.to_string()));
}
