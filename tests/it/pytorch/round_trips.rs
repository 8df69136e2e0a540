//! Ours, theirs, and back: every bit of every tensor, and every value.

use std::sync::Arc;

use tch_checkpoint::export::{ExportOptions, PyTorch, PyTorchForm, export};
use tch_checkpoint::import::ImportOptions;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{StateDict, Value};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ErrorKind, SaveOptions, save};

use super::*;

pub(super) const FORMS: [PyTorchForm; 2] = [PyTorchForm::Pt, PyTorchForm::Dcp];

pub(super) fn everything(form: PyTorchForm) -> ExportOptions {
    let pytorch = Some(PyTorch::new(form));
    ExportOptions { components: None, pytorch, ..ExportOptions::default() }
}

const CONFIG: &str = r#"{"algorithm":"adam_w","lr":0.001,"betas":[0.9,0.999],"eps":1e-8,"weight_decay":0.01,"amsgrad":false}"#;

/// A training with tensors of every dtype, an optimizer, averages, a part of its own, and values of
/// every kind; `rank` of `ranks` holds its rows of the larger ones.
pub(super) fn training(rank: u32, ranks: u32) -> StateDict {
    let mut state = StateDict::new();
    for dtype in Dtype::ALL {
        let text = format!("kind.{dtype}").to_lowercase();
        add(&mut state, &Component::model(), &text, dtype, &[3]);
    }
    add(&mut state, &Component::model(), "scalar", Dtype::F32, &[]);
    add(&mut state, &Component::model(), "empty", Dtype::F32, &[0, 4]);
    let rows = 24 / u64::from(ranks);
    for tensor in ["w", "optimizer.w.exp_avg", "optimizer.w.exp_avg_sq", "ema.w"] {
        let component = match tensor.split('.').next() {
            Some("optimizer") => Component::optimizer(),
            Some("ema") => Component::ema(),
            _ => Component::model(),
        };
        let spec = TensorSpec::new(Dtype::F32, [24, 5]).unwrap();
        let slice = Slice::new(vec![u64::from(rank) * rows, 0], vec![rows, 5]).unwrap();
        let bytes = content(tensor, &spec, &slice, 1);
        state.add_slice(&component, name(tensor), spec, slice, Arc::new(bytes)).unwrap();
    }
    add(&mut state, &Component::optimizer(), "optimizer.w.step", Dtype::F32, &[]);
    add(&mut state, &Component::new("callbacks").unwrap(), "callbacks.best.w", Dtype::F32, &[4]);
    state.add_alias(name("tied"), name("w")).unwrap();
    let values = &mut state.values;
    values.set("optimizer.config", Value::Json(CONFIG.to_owned()));
    values.set("optimizer.lr", vec![2.5e-4]);
    values.set("optimizer.weight_decay", vec![0.01]);
    values.set("a.flag", true);
    values.set("a.count", i64::MIN);
    values.set("a.nan", f64::NAN);
    values.set("a.zero", -0.0);
    values.set("a.text", "é\n\"");
    values.set("a.bytes", vec![0u8, 127, 128, 255]);
    values.set("a.losses", vec![1.5, f64::INFINITY]);
    values.set("a.nothing", Vec::<f64>::new());
    values.set("a.json", Value::Json("{\"a\": [1, null]}".to_owned()));
    state
}

fn add(state: &mut StateDict, component: &Component, text: &str, dtype: Dtype, shape: &[u64]) {
    let spec = TensorSpec::new(dtype, shape.to_vec()).unwrap();
    let mut bytes = content(text, &spec, &Slice::full(shape), 1);
    if dtype == Dtype::Bool {
        bytes.iter_mut().for_each(|byte| *byte &= 1);
    }
    state.add(component, name(text), spec, Arc::new(bytes)).unwrap();
}

pub(super) fn saved(memory: &MemoryStorage, ranks: u32) {
    let inner = memory.clone();
    let options = SaveOptions { step: 9, epoch: 2, ..SaveOptions::default() };
    let done = on_ranks(ranks, move |group| {
        let state = training(group.rank().get(), ranks);
        save(&group, &inner, &path("/runs/ours"), &state, &options).map(drop)
    });
    done.into_iter().for_each(|saved| saved.unwrap());
}

#[test]
fn ours_comes_back_from_either_form_bit_for_bit_on_any_number_of_ranks() {
    for form in FORMS {
        for (saving, importing) in [(1, 1), (4, 1), (2, 3)] {
            let memory = MemoryStorage::new();
            saved(&memory, saving);
            let from = wanted("/runs/ours");
            export(&ProcessGroup::solo(), &memory, &from, "/from/theirs", &everything(form))
                .unwrap();
            let inner = memory.clone();
            let done = on_ranks(importing, move |group| {
                let from = Path::new("/from/theirs");
                import(&group, &inner, from, &path("/runs/a"), &ImportOptions::default()).map(drop)
            });
            done.into_iter().for_each(|imported| imported.unwrap());
            let what = format!("{form:?} {saving} {importing}");
            let (ours, back) = (tensors_of(&memory, "/runs/ours"), tensors_of(&memory, "/runs/a"));
            assert_same(&back, &ours, &what);
            same_rest(&memory, &what);
        }
    }
}

/// Counters, values, components and second names.
fn same_rest(memory: &MemoryStorage, what: &str) {
    let [ours, back] =
        ["/runs/ours", "/runs/a"].map(|at| catalog::find(memory, &wanted(at)).unwrap().manifest);
    assert_eq!((back.step(), back.epoch()), (ours.step(), ours.epoch()), "{what}");
    assert_eq!(back.aliases(), ours.aliases(), "{what}");
    for tensor in ours.tensors() {
        let other = back.tensor(tensor.name.as_str()).unwrap();
        assert_eq!(tensor.component, other.component, "{what}: {}", tensor.name);
    }
    let names = |manifest: &Manifest| -> Vec<String> {
        manifest.values().iter().map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(names(&back), names(&ours), "{what}");
    for (name, value) in ours.values().iter() {
        let other = back.values().find(name).unwrap();
        assert!(value.same(other), "{what}: {name}: {value:?} became {other:?}");
    }
}

#[test]
fn an_export_replaces_an_export_and_nothing_else() {
    for form in FORMS {
        let memory = MemoryStorage::new();
        saved(&memory, 1);
        let alone = |options: &ExportOptions| {
            export(&ProcessGroup::solo(), &memory, &wanted("/runs/ours"), "/out/it", options)
        };
        alone(&everything(form)).unwrap();
        let error = alone(&everything(form)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        let again = ExportOptions { overwrite: true, ..everything(form) };
        alone(&again).unwrap();
        let real = if form == PyTorchForm::Pt { "pt/adamw.pt" } else { "dcp/nested" };
        let memory = MemoryStorage::new();
        saved(&memory, 1);
        theirs_at_out(&memory, real);
        let theirs =
            export(&ProcessGroup::solo(), &memory, &wanted("/runs/ours"), "/out/it", &again);
        assert_eq!(theirs.unwrap_err().kind(), ErrorKind::AlreadyExists, "{form:?}");
    }
}

/// What the real PyTorch wrote, where the export would go.
fn theirs_at_out(memory: &MemoryStorage, real: &str) {
    let from = fixture(real);
    if from.is_file() {
        memory.create_dir_all(Path::new("/out")).unwrap();
        memory.write(Path::new("/out/it"), &std::fs::read(from).unwrap()).unwrap();
        return;
    }
    memory.create_dir_all(Path::new("/out/it")).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let at = Path::new("/out/it").join(entry.file_name());
        memory.write(&at, &std::fs::read(entry.path()).unwrap()).unwrap();
    }
}
