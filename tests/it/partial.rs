//! Loading some tensors of a checkpoint, under other names, and leaving the rest alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::load::{PartialLoaded, PartialOptions, load_partial, read_floats, read_tensor};
use tch_checkpoint::manifest::Manifest;
use tch_checkpoint::select::{Rename, Selection, SelectionRules};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict, Values};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Atomicity, Destination, ErrorKind, Rank, Result, SaveOptions, save};

use crate::harness::*;

fn select(include: &[&str], exclude: &[&str], rename: &[(&str, &str)]) -> Selection {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Selection::new(SelectionRules {
        include: texts(include),
        exclude: texts(exclude),
        rename: rename.iter().map(|(from, to)| Rename::new(*from, *to)).collect(),
        ..SelectionRules::default()
    })
    .unwrap()
}

/// Buffers of a destination, by name; `0xEE` where nothing was filled.
struct Buffers(BTreeMap<String, (TensorSpec, Slice, Vec<u8>)>);

impl Buffers {
    fn of(tensors: &[TestTensor], group: &ProcessGroup) -> Self {
        let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        let mut buffers = BTreeMap::new();
        for tensor in tensors {
            let Some(slice) = tensor.held(rank, n) else { continue };
            let bytes = vec![0xEE; (slice.elements() * tensor.spec.dtype().size_bytes()) as usize];
            buffers.insert(tensor.name.clone(), (tensor.spec.clone(), slice, bytes));
        }
        Self(buffers)
    }

    fn load(
        &mut self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        selection: &Selection,
        options: PartialOptions,
    ) -> Result<PartialLoaded> {
        let wanted = wanted("runs/a").or_unverified();
        load_partial(group, storage, &wanted, self, selection, &options)
    }

    /// Whether `name` holds what `stored` held in generation 1.
    fn holds(&self, name: &str, stored: &str) -> bool {
        let (spec, slice, bytes) = &self.0[name];
        *bytes == content(stored, spec, slice, 1)
    }

    fn untouched(&self, name: &str) -> bool {
        self.0[name].2.iter().all(|byte| *byte == 0xEE)
    }
}

impl Destination for Buffers {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        for (text, (spec, slice, bytes)) in &mut self.0 {
            let sink = Box::new(bytes.as_mut_slice());
            targets.add_slice(name(text), spec.clone(), slice.clone(), sink)?;
        }
        Ok(targets)
    }

    fn check_values(&self, _: &Manifest, _: Option<&Values>) -> Result<()> {
        panic!("values are nothing to a partial load")
    }

    fn take_values(&mut self, _: &Manifest, _: Option<&Values>) -> Result<()> {
        panic!("values are nothing to a partial load")
    }
}

fn model() -> Vec<TestTensor> {
    vec![
        TestTensor::new("enc.0.weight", Dtype::F32, &[300, 70], None),
        TestTensor::new("enc.0.bias", Dtype::F32, &[70], None),
        TestTensor::new("enc.table", Dtype::I32, &[13, 40], Some(1)),
        TestTensor::new("head.weight", Dtype::F32, &[70, 4], None),
    ]
}

fn names(list: &[impl ToString]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// Ranks of another number, each with its own slice, only the encoder, under another name.
#[test]
fn a_part_under_other_names_on_another_world_size() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, "runs/a", &model(), 1);
    let reports = on_ranks(3, move |group| {
        let mut own = model();
        for tensor in &mut own {
            tensor.name = tensor.name.replace("enc.", "backbone.");
        }
        own.push(TestTensor::new("backbone.new", Dtype::F32, &[2], None));
        let mut buffers = Buffers::of(&own, &group);
        let selection = select(&["backbone.*"], &["*.bias"], &[("enc.*", "backbone.*")]);
        let done = buffers.load(&group, &memory, &selection, PartialOptions::default()).unwrap();
        assert!(buffers.holds("backbone.0.weight", "enc.0.weight"));
        assert!(buffers.holds("backbone.table", "enc.table"));
        for untouched in ["backbone.0.bias", "backbone.new", "head.weight"] {
            assert!(buffers.untouched(untouched), "{untouched}");
        }
        done.report
    });
    for report in reports {
        let expected = ["backbone.0.weight from enc.0.weight", "backbone.table from enc.table"];
        assert_eq!(names(&report.filled), expected);
        assert_eq!(names(&report.missing), ["backbone.new"]);
        assert_eq!(names(&report.unselected), ["backbone.0.bias", "head.weight"]);
        assert_eq!(names(&report.unused), ["enc.0.bias", "head.weight"]);
    }
}

#[test]
fn only_the_bytes_wanted_are_read() {
    let memory = MemoryStorage::new();
    let mut tensors = model();
    tensors.push(TestTensor::new("huge", Dtype::F32, &[1 << 20], None));
    saved(memory.clone(), 1, "runs/a", &tensors, 1);
    let group = ProcessGroup::solo();
    let mut buffers = Buffers::of(&tensors, &group);
    let selection = select(&["head.*"], &[], &[]);
    let done = buffers.load(&group, &memory, &selection, PartialOptions::default()).unwrap();
    assert!(done.loaded.bytes_read < 100_000, "{} bytes", done.loaded.bytes_read);
}

/// By default an optimizer's tensors are not seen, even where names fit.
#[test]
fn weights_only_unless_asked_for_more() {
    let memory = MemoryStorage::new();
    let solo = ProcessGroup::solo();
    let spec = TensorSpec::new(Dtype::U8, [2]).unwrap();
    let mut state = StateDict::new();
    let optimizer = Component::optimizer();
    state.add(&Component::model(), name("w"), spec.clone(), Arc::new([1u8; 2])).unwrap();
    state.add(&optimizer, name("w.exp_avg"), spec.clone(), Arc::new([2u8; 2])).unwrap();
    state.add_alias(name("tied"), name("w")).unwrap();
    save(&solo, &memory, &path("runs/a"), &state, &SaveOptions::default()).unwrap();
    let own: Vec<_> =
        ["w", "w.exp_avg", "tied"].map(|name| TestTensor::new(name, Dtype::U8, &[2], None)).into();
    let mut buffers = Buffers::of(&own, &solo);
    let done =
        buffers.load(&solo, &memory, &Selection::default(), PartialOptions::default()).unwrap();
    // Two destinations of one stored tensor are fine.
    assert_eq!(names(&done.report.filled), ["tied", "w"]);
    assert_eq!(names(&done.report.missing), ["w.exp_avg"]);
    assert_eq!(done.report.unused, []);
    let rules = SelectionRules { components: None, ..SelectionRules::default() };
    let all = Selection::new(rules).unwrap();
    let done = buffers.load(&solo, &memory, &all, PartialOptions::default()).unwrap();
    assert_eq!(names(&done.report.filled), ["tied", "w", "w.exp_avg"]);
    assert_eq!(buffers.0["w.exp_avg"].2, [2, 2]);
}

#[test]
fn what_does_not_fit_is_told_at_once_and_nothing_changes() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, "runs/a", &model(), 1);
    let verdicts = on_ranks(2, move |group| {
        let mut own = model();
        own[0] = TestTensor::new("enc.0.weight", Dtype::BF16, &[300, 70], None);
        own[3] = TestTensor::new("top.weight", Dtype::F32, &[70, 5], None);
        own.push(TestTensor::new("new", Dtype::F32, &[2], None));
        let mut buffers = Buffers::of(&own, &group);
        let selection = select(&[], &[], &[("head.*", "top.*")]);
        let options = PartialOptions { strict: true, ..PartialOptions::default() };
        let verdict = buffers.load(&group, &memory, &selection, options);
        assert!(buffers.0.keys().all(|name| buffers.untouched(name)));
        verdict
    });
    let error = one_error(&verdicts, "unfit");
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    for part in [
        "2 of another dtype or shape: enc.0.weight (wanted BF16 [300, 70], found F32 [300, 70]), \
         top.weight from head.weight (wanted F32 [70, 5], found F32 [70, 4])",
        "1 missing in the checkpoint: new",
    ] {
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn nothing_selected_is_an_error_that_lists_what_there_is() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &model(), 1);
    let verdicts = on_ranks(2, move |group| {
        let mut buffers = Buffers::of(&model(), &group);
        buffers.load(&group, &memory, &select(&["encodr.*"], &[], &[]), PartialOptions::default())
    });
    let error = one_error(&verdicts, "nothing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("4 stored: enc.0.bias, enc.0.weight"), "{error}");
    assert!(error.path().unwrap().ends_with("runs/a"), "{error}");
}

/// A rank that holds nothing of what was selected is no failure.
#[test]
fn a_rank_may_have_nothing_to_fill() {
    let memory = MemoryStorage::new();
    let tensors = [TestTensor::new("row", Dtype::F32, &[1, 8], Some(0))];
    saved(memory.clone(), 1, "runs/a", &tensors, 1);
    let filled = on_ranks(2, move |group| {
        let mut buffers = Buffers::of(&tensors, &group);
        let options = PartialOptions { strict: true, atomicity: Atomicity::InPlace };
        let done = buffers.load(&group, &memory, &Selection::default(), options).unwrap();
        done.report.filled.len()
    });
    assert_eq!(filled, [0, 1]);
}

#[test]
fn ranks_that_select_differently_are_told_so() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &model(), 1);
    let verdicts = on_ranks(3, move |group| {
        let other = if group.rank().get() == 2 { "head.*" } else { "enc.*" };
        let mut buffers = Buffers::of(&model(), &group);
        buffers.load(&group, &memory, &select(&[other], &[], &[]), PartialOptions::default())
    });
    let error = one_error(&verdicts, "selections");
    assert!(error.message().contains("`include` differs"), "{error}");
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(2))));
}

#[test]
fn damage_leaves_the_destination_as_it_was() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &model(), 1);
    let file = entries(&memory, "runs/a").into_iter().find(|name| name.starts_with("model-"));
    let file = Path::new("runs/a").join(file.unwrap());
    let last = memory.read(&file).unwrap().len() as u64 - 1;
    memory.corrupt(&file, last, 1).unwrap();
    let group = ProcessGroup::solo();
    let mut buffers = Buffers::of(&model(), &group);
    let load = |buffers: &mut Buffers, selection| {
        buffers.load(&group, &memory, &selection, PartialOptions::default())
    };
    let error = load(&mut buffers, Selection::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(buffers.0.keys().all(|name| buffers.untouched(name)));
    // The damaged tensor is not needed.
    let damaged = error.tensor().unwrap().to_owned();
    load(&mut buffers, select(&[], &[&damaged], &[])).unwrap();
}

#[test]
fn files_of_other_tools_fill_a_part() {
    let memory = MemoryStorage::new();
    let header = br#"{"module.w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"module.x":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, b"abc"].concat();
    memory.create_dir_all(Path::new("runs")).unwrap();
    memory.write(Path::new("runs/a"), &file).unwrap();
    let group = ProcessGroup::solo();
    let mut buffers = Buffers::of(&[TestTensor::new("w", Dtype::U8, &[2], None)], &group);
    let selection = select(&[], &[], &[("module.*", "*")]);
    let done = buffers.load(&group, &memory, &selection, PartialOptions::default()).unwrap();
    assert_eq!(buffers.0["w"].2, b"ab");
    assert_eq!(names(&done.report.unused), ["module.x"]);
}

#[test]
fn floats_are_read_of_floating_dtypes_and_of_no_others() {
    let memory = MemoryStorage::new();
    let solo = ProcessGroup::solo();
    // 1, -2 and infinity.
    let floats: [(Dtype, Vec<u8>); 4] = [
        (Dtype::F16, [0x3C00u16, 0xC000, 0x7C00].map(u16::to_le_bytes).concat()),
        (Dtype::BF16, [0x3F80u16, 0xC000, 0x7F80].map(u16::to_le_bytes).concat()),
        (Dtype::F32, [1f32, -2.0, f32::INFINITY].map(f32::to_le_bytes).concat()),
        (Dtype::F64, [1f64, -2.0, 1e300].map(f64::to_le_bytes).concat()),
    ];
    let mut state = StateDict::new();
    for dtype in Dtype::ALL {
        let spec = TensorSpec::new(dtype, [3]).unwrap();
        let known = floats.iter().find(|(known, _)| *known == dtype);
        let zeros = || vec![0; spec.size_bytes() as usize];
        let bytes = Arc::new(known.map_or_else(zeros, |(_, bytes)| bytes.clone()));
        state.add(&Component::model(), name(dtype.as_str()), spec, bytes).unwrap();
    }
    save(&solo, &memory, &path("runs/a"), &state, &SaveOptions::default()).unwrap();
    for dtype in Dtype::ALL {
        let read = read_floats(&memory, &wanted("runs/a"), dtype.as_str());
        if floats.iter().any(|(known, _)| *known == dtype) {
            assert_eq!(read.unwrap().1, [1.0, -2.0, f32::INFINITY], "{dtype}");
        } else {
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{dtype}: {error}");
            assert_eq!(error.tensor(), Some(dtype.as_str()));
        }
    }
}

#[test]
fn one_tensor_is_read_whole_and_verified() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 3, "runs/a", &usual_tensors(), 1);
    for tensor in usual_tensors() {
        let (spec, bytes) = read_tensor(&memory, &wanted("runs/latest"), &tensor.name).unwrap();
        let whole = Slice::full(spec.shape());
        assert_eq!(spec, tensor.spec);
        assert!(bytes == content(&tensor.name, &spec, &whole, 1), "{}", tensor.name);
    }
    let (spec, floats) = read_floats(&memory, &wanted("runs/a"), "sharded.rows").unwrap();
    assert_eq!(floats.len() as u64, spec.elements());
    let error = read_floats(&memory, &wanted("runs/a"), "empty").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let error = read_tensor(&memory, &wanted("runs/a"), "nope").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("stored: embedding, empty"), "{error}");
}
