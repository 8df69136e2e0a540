//! Trainings of every optimizer: out, and back; and opened by the real PyTorch, which trains on.

use std::path::{Path, PathBuf};

use tch_checkpoint::ErrorKind;
use tch_checkpoint::Result;
use tch_checkpoint::catalog::{CheckpointPath, Wanted, find};
use tch_checkpoint::export::{ExportOptions, PyTorch, PyTorchForm, export};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::import::{ImportOptions, import};
use tch_checkpoint::load::read_tensor;
use tch_checkpoint::storage::LocalStorage;

use crate::tier;

const MODULES: &str = "numpy, torch.distributed.checkpoint";
const FORMS: [(PyTorchForm, &str); 2] = [(PyTorchForm::Pt, "pt"), (PyTorchForm::Dcp, "dcp")];
const TRAININGS: [&str; 6] = ["adamw", "adam", "sgd", "rmsprop", "named", "groups"];

fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// What torch wrote, as a checkpoint.
fn imported(from: &Path, to: &Path) {
    let to = CheckpointPath::parse(to).unwrap();
    let options = ImportOptions::default();
    import(&ProcessGroup::solo(), &LocalStorage::new(), from, &to, &options)
        .unwrap_or_else(|e| panic!("{}: {e}", from.display()));
}

fn exported(from: &Path, to: &Path, form: PyTorch, overwrite: bool) -> Result<()> {
    let options = ExportOptions {
        components: None,
        pytorch: Some(form),
        overwrite,
        ..ExportOptions::default()
    };
    let wanted = Wanted::parse(from).unwrap();
    export(&ProcessGroup::solo(), &LocalStorage::new(), &wanted, to, &options).map(drop)
}

fn of(form: PyTorchForm) -> PyTorch {
    PyTorch::new(form)
}

fn assert_same(a: &Path, b: &Path) {
    let storage = LocalStorage::new();
    let (a, b) = (Wanted::parse(a).unwrap(), Wanted::parse(b).unwrap());
    let [one, other] = [&a, &b].map(|wanted| find(&storage, wanted).unwrap().manifest);
    assert_eq!(one.values().first_difference(other.values()), None);
    assert_eq!(one.aliases(), other.aliases());
    assert_eq!((one.step(), one.epoch()), (other.step(), other.epoch()));
    assert_eq!(one.tensors().len(), other.tensors().len());
    for tensor in one.tensors() {
        let name = tensor.name.as_str();
        let theirs = other.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!((&tensor.spec, &tensor.component), (&theirs.spec, &theirs.component), "{name}");
        let bytes = |wanted| read_tensor(&storage, wanted, name).unwrap().1;
        assert_eq!(bytes(&a), bytes(&b), "{name}");
    }
}

#[test]
fn what_goes_out_comes_back_bit_for_bit_with_optimizer_and_values() {
    let dir = tempfile::tempdir().unwrap();
    for name in TRAININGS.iter().chain(&["tensors", "ddp"]) {
        let ours = dir.path().join(name);
        imported(&own(&format!("fixtures/pt/{name}.pt")), &ours);
        for (form, ending) in FORMS {
            let out = dir.path().join(format!("{name}.{ending}"));
            exported(&ours, &out, of(form), false).unwrap();
            let back = dir.path().join(format!("{name}.{ending}.back"));
            imported(&out, &back);
            assert_same(&ours, &back);
        }
    }
}

#[test]
fn data_files_of_limited_size_are_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    imported(&own("fixtures/pt/adam.pt"), &ours);
    let (out, back) = (dir.path().join("dcp"), dir.path().join("back"));
    let form = PyTorch { max_file_bytes: 6000, ..of(PyTorchForm::Dcp) };
    exported(&ours, &out, form, false).unwrap();
    assert!(std::fs::read_dir(&out).unwrap().count() > 4);
    imported(&out, &back);
    assert_same(&ours, &back);
}

#[test]
fn only_an_earlier_export_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    imported(&own("fixtures/pt/adamw.pt"), &ours);
    for (form, ending) in FORMS {
        let out = dir.path().join(format!("out.{ending}"));
        exported(&ours, &out, of(form), false).unwrap();
        let again = exported(&ours, &out, of(form), false).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        exported(&ours, &out, of(form), true).unwrap();
    }
    let theirs = dir.path().join("theirs.pt");
    std::fs::copy(own("fixtures/pt/adamw.pt"), &theirs).unwrap();
    let refused = exported(&ours, &theirs, of(PyTorchForm::Pt), true).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    std::fs::write(dir.path().join("out.dcp/notes.txt"), "mine").unwrap();
    let beside = exported(&ours, &dir.path().join("out.dcp"), of(PyTorchForm::Dcp), true);
    assert_eq!(beside.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

/// The script asserts; see there.
#[test]
fn the_real_torch_loads_it_and_trains_on_as_if_nothing_had_happened() {
    if tier::python(MODULES).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = own("it/pytorch/trainings.py");
    let run = |verb: &str| {
        let mut python = tier::python(MODULES).unwrap();
        let done = python.arg(&script).arg(verb).arg(dir.path()).output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{verb}: {out}{err}");
    };
    run("train");
    let names = std::fs::read_to_string(dir.path().join("parameters")).unwrap();
    let parameters: Vec<String> = names.lines().map(str::to_owned).collect();
    for name in ["adamw", "adam", "sgd", "plain", "rmsprop", "kinds"] {
        let ours = dir.path().join(name);
        imported(&dir.path().join(format!("{name}.torch.pt")), &ours);
        for (form, ending) in FORMS {
            let out = dir.path().join(format!("{name}.{ending}"));
            exported(&ours, &out, PyTorch { max_file_bytes: 6000, ..of(form) }, false).unwrap();
        }
        if name != "kinds" {
            let form = PyTorch { parameters: Some(parameters.clone()), ..of(PyTorchForm::Pt) };
            exported(&ours, &dir.path().join(format!("{name}.numbers.pt")), form, false).unwrap();
        }
    }
    run("check");
}
