use std::sync::Arc;

use tch::{Device, Kind, Tensor, nn};

use super::*;
use crate::ErrorKind;
use crate::cast::cast;
use crate::catalog::CheckpointPath;
use crate::export::{ExportOptions, export};
use crate::save::{SaveOptions, save};
use crate::select::{Rename, SelectionRules};
use crate::state::StateDict;
use crate::storage::MemoryStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};
use crate::torch::{TchSource, add_var_store};

fn filled(path: &nn::Path<'_>, name: &str, value: f64) {
    let _ = path.var(name, &[3], nn::Init::Const(value));
}

/// A model of `module.encoder.w`, `module.encoder.b` and `module.head.w`, all ones.
fn saved(storage: &MemoryStorage) -> Wanted {
    let store = nn::VarStore::new(Device::Cpu);
    let module = store.root() / "module";
    for name in ["w", "b"] {
        filled(&(&module / "encoder"), name, 1.0);
    }
    filled(&(&module / "head"), "w", 1.0);
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "", &store).unwrap();
    let path = CheckpointPath::parse("runs/a").unwrap();
    save(&ProcessGroup::solo(), storage, &path, &state, &SaveOptions::default()).unwrap();
    Wanted::from(path)
}

fn first(store: &nn::VarStore, name: &str) -> f64 {
    store.variables()[name].double_value(&[0])
}

#[test]
fn a_new_head_keeps_its_values() {
    let storage = MemoryStorage::new();
    let wanted = saved(&storage);
    let store = nn::VarStore::new(Device::Cpu);
    for (part, name) in [("encoder", "w"), ("encoder", "b"), ("head", "w"), ("extra", "w")] {
        filled(&(&store.root() / part), name, 5.0);
    }
    // Tied: the stored name is the second one of this variable.
    let tied = store.variables()["encoder.b"].shallow_clone();
    store.variables_.lock().unwrap().named_variables.insert("a.tied".into(), tied);
    let selection = Selection::new(SelectionRules {
        exclude: vec!["head.*".into()],
        rename: vec![Rename::new("module.*", "*")],
        ..SelectionRules::default()
    })
    .unwrap();
    let group = ProcessGroup::solo();
    let load = |strict| {
        let options = PartialOptions { strict, ..PartialOptions::default() };
        load_partial_into(&group, &storage, &wanted, &store, &selection, &options)
    };
    let error = load(true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.message().contains("1 missing in the checkpoint: extra.w"), "{error}");
    assert_eq!(first(&store, "encoder.w"), 5.0);
    let report = load(false).unwrap().report;
    let shown: Vec<String> = report.filled.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["encoder.b from module.encoder.b", "encoder.w from module.encoder.w"]);
    assert_eq!(report.missing[0].as_str(), "extra.w");
    assert_eq!(report.unselected[0].as_str(), "head.w");
    assert_eq!(report.unused[0].as_str(), "module.head.w");
    for (name, value) in [("encoder.w", 1.0), ("encoder.b", 1.0), ("head.w", 5.0), ("extra.w", 5.0)]
    {
        assert_eq!(first(&store, name), value, "{name}");
    }
}

/// Bit patterns of every class: zeros, subnormals, ties of either kind and their neighbours, the
/// ends of what F16 and BF16 hold, infinities, NaNs.
fn patterns() -> Vec<f32> {
    let mut bits = vec![0u32, 1, 0x007F_FFFF, 0x0080_0000, 0x7F7F_FFFF, 0x7F80_0000];
    bits.extend([0x7F80_0001, 0x7FC0_0000, 0x7FFF_FFFF]);
    // Around every exponent, and around the half-way points of both formats.
    for exponent in 0..=254u32 {
        for (kept, shift) in [(7, 16), (10, 13)] {
            let tie = 1u32 << (shift - 1);
            for mantissa in [0, 1, 2, (1 << kept) - 1] {
                let near = (exponent << 23) | (mantissa << shift);
                bits.extend([near, near + tie - 1, near + tie, near + tie + 1]);
            }
        }
    }
    // Subnormals of F16 are spaced by 2^-24.
    bits.extend(
        (0..64u32).map(|n| (f32::from(u8::try_from(n).unwrap()) * 2f32.powi(-26)).to_bits()),
    );
    bits.iter().flat_map(|b| [f32::from_bits(*b), -f32::from_bits(*b)]).collect()
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let source = TchSource::new(tensor).unwrap();
    let mut bytes = vec![0; usize::try_from(source.spec().size_bytes()).unwrap()];
    crate::state::TensorSource::read_into(&source, 0, &mut bytes).unwrap();
    bytes
}

/// Whether two elements are the same bits, or both NaN.
fn same(dtype: Dtype, ours: &[u8], theirs: &[u8]) -> bool {
    let is_nan = |bytes: &[u8]| {
        let mut wide = Vec::new();
        cast(dtype, Dtype::F32, bytes, &mut wide).unwrap();
        f32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]]).is_nan()
    };
    ours == theirs || (is_nan(ours) && is_nan(theirs))
}

#[test]
fn casts_are_those_of_libtorch() {
    let kinds = [
        (Kind::Half, Dtype::F16),
        (Kind::BFloat16, Dtype::BF16),
        (Kind::Float, Dtype::F32),
        (Kind::Double, Dtype::F64),
    ];
    let values = Tensor::from_slice(&patterns());
    let shaken = (values.to_kind(Kind::Double) * 1.000_000_06).to_kind(Kind::Double);
    for (from_kind, from) in kinds {
        let source = if from == Dtype::F64 { &shaken } else { &values }.to_kind(from_kind);
        let source_bytes = bytes_of(&source);
        for (to_kind, to) in kinds {
            let mut ours = Vec::new();
            cast(from, to, &source_bytes, &mut ours).unwrap();
            let theirs = bytes_of(&source.to_kind(to_kind));
            assert_eq!(ours.len(), theirs.len());
            let size = usize::try_from(to.size_bytes()).unwrap();
            for (index, (a, b)) in ours.chunks(size).zip(theirs.chunks(size)).enumerate() {
                let value = source.double_value(&[i64::try_from(index).unwrap()]);
                assert!(same(to, a, b), "{from} to {to} of {value:e}: {a:02x?}, libtorch {b:02x?}");
            }
        }
    }
}

#[test]
fn libtorch_reads_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let storage = crate::storage::LocalStorage::new();
    let (at, out) = (dir.path().join("a"), dir.path().join("model.safetensors"));
    let values = Tensor::from_slice(&patterns()).reshape([-1, 2]);
    let mut state = StateDict::new();
    let bytes = Arc::new(bytes_of(&values));
    let shape: Vec<u64> = values.size().iter().map(|d| d.unsigned_abs()).collect();
    let spec = TensorSpec::new(Dtype::F32, shape).unwrap();
    state.add(&Component::model(), TensorName::new("w").unwrap(), spec, bytes).unwrap();
    let (group, path) = (ProcessGroup::solo(), CheckpointPath::parse(&at).unwrap());
    save(&group, &storage, &path, &state, &SaveOptions::default()).unwrap();
    let options = ExportOptions { cast: Some(Dtype::BF16), ..ExportOptions::default() };
    export(&group, &storage, &Wanted::from(path), &out, &options).unwrap();
    let read = Tensor::read_safetensors(&out).unwrap();
    let (name, tensor) = &read[0];
    assert_eq!((name.as_str(), tensor.kind()), ("w", Kind::BFloat16));
    let expected = values.to_kind(Kind::BFloat16).to_kind(Kind::Double);
    let same = tensor.to_kind(Kind::Double).allclose(&expected, 0.0, 0.0, true);
    assert!(same, "values differ");
}
