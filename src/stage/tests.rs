use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::*;
use crate::layout::SaveId;
use crate::plan::PlannedFile;
use crate::tensor::Dtype;

/// Host or device memory that others may change, with a version.
struct Cell {
    bytes: Mutex<Vec<u8>>,
    version: AtomicU64,
    steady: bool,
}

impl Cell {
    fn new(bytes: Vec<u8>, steady: bool) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(bytes), version: AtomicU64::new(0), steady })
    }

    fn set(&self, byte: u8) {
        self.bytes.lock().fill(byte);
        self.version.fetch_add(1, SeqCst);
    }
}

impl TensorSource for Cell {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.bytes.lock().read_into(offset, out)
    }
    fn is_steady(&self) -> bool {
        self.steady
    }
    fn version(&self) -> Option<u64> {
        Some(self.version.load(SeqCst))
    }
}

fn piece(name: &str, rows: u64, begin: u64, end: u64) -> PlannedPiece {
    let held = Slice::full(&[rows, 2]);
    PlannedPiece {
        name: TensorName::new(name).unwrap(),
        spec: TensorSpec::new(Dtype::U8, vec![rows, 2]).unwrap(),
        slice: held.rows(begin..end).unwrap(),
        held,
    }
}

fn plan(pieces: Vec<PlannedPiece>) -> SavePlan {
    let file =
        PlannedFile { name: "f".to_owned(), component: Component::model(), pieces: pieces.into() };
    let save_id = SaveId::from_bytes([1; 16]);
    SavePlan { save_id, files: vec![file], sums_file: Some("s".to_owned()) }
}

fn add(state: &mut StateDict, piece: &PlannedPiece, source: Arc<dyn TensorSource>) {
    let (name, spec) = (piece.name.clone(), piece.spec.clone());
    state.add(&Component::model(), name, spec, source).unwrap();
}

fn stage(plan: &SavePlan, state: &StateDict, copying: Copying) -> Result<Staging> {
    Staging::begin(plan, state, copying, &Progress::default())
}

fn held(staging: &Staging) -> usize {
    let ranges = staging.boxes.values().flat_map(|b| b.ranges.by_begin.values());
    ranges.map(Vec::capacity).sum()
}

#[test]
fn only_the_share_is_copied_and_only_it_can_be_read() {
    let (upper, lower) = (piece("w", 10, 2, 4), piece("w", 10, 7, 8));
    let mut state = StateDict::new();
    add(&mut state, &upper, Arc::new((0..20).collect::<Vec<u8>>()));
    add(&mut state, &piece("other", 100, 0, 100), Arc::new(vec![0u8; 200]));
    let staging = stage(&plan(vec![upper, lower]), &state, Copying::Now).unwrap();
    assert_eq!(held(&staging), 6);
    let (staged, _) = staging.finish(&Progress::default()).unwrap();
    assert_eq!(staged.tensors().count(), 1);
    let source = &staged.boxes("w")[0].source;
    assert!(source.bytes().is_none(), "it is not the whole box");
    let mut out = [0; 3];
    source.read_into(5, &mut out).unwrap();
    assert_eq!(out, [5, 6, 7]);
    source.read_into(14, &mut out[..2]).unwrap();
    assert_eq!(out[..2], [14, 15]);
    for (offset, len) in [(3, 2), (7, 2), (8, 1), (13, 1), (15, 2), (16, 1), (u64::MAX, 1)] {
        let error = source.read_into(offset, &mut out[..len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{offset} + {len}");
    }
}

#[test]
fn steady_boxes_wait_and_the_rest_does_not() {
    let pieces = vec![piece("buffer", 3, 0, 3), piece("weight", 3, 0, 3)];
    let (buffer, weight) = (Cell::new(vec![1; 6], false), Cell::new(vec![2; 6], true));
    let mut state = StateDict::new();
    add(&mut state, &pieces[0], buffer.clone());
    add(&mut state, &pieces[1], weight.clone());
    let staging = stage(&plan(pieces.clone()), &state, Copying::SteadyLater).unwrap();
    assert_eq!(held(&staging), 6, "the weight is not copied yet");
    buffer.set(9);
    let (staged, watch) = staging.finish(&Progress::default()).unwrap();
    for (name, byte) in [("buffer", 1), ("weight", 2)] {
        assert_eq!(staged.boxes(name)[0].source.bytes(), Some(&[byte; 6][..]), "{name}");
    }
    watch.check().unwrap();
    weight.set(9);
    let error = watch.check().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("weight")));

    let staging = stage(&plan(pieces), &state, Copying::Now).unwrap();
    assert_eq!(held(&staging), 12, "all is copied at once");
    weight.set(10);
    staging.finish(&Progress::default()).unwrap();
}

#[test]
fn a_steady_box_that_changed_before_it_was_copied_is_named() {
    let pieces = vec![piece("a", 2, 0, 2), piece("b", 2, 0, 1), piece("b", 2, 1, 2)];
    let (a, b) = (Cell::new(vec![1; 4], true), Cell::new(vec![2; 4], true));
    let mut state = StateDict::new();
    add(&mut state, &pieces[0], a);
    add(&mut state, &pieces[1], b.clone());
    let staging = stage(&plan(pieces), &state, Copying::SteadyLater).unwrap();
    b.set(3);
    let error = staging.finish(&Progress::default()).err().unwrap();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("b")));
    assert!(error.help().unwrap().contains("wait_copied"), "{error}");
}

#[test]
fn a_plan_that_does_not_fit_is_an_error_that_names_the_tensor() {
    let error = stage(&plan(vec![piece("w", 2, 0, 1)]), &StateDict::new(), Copying::Now);
    assert_eq!(error.err().unwrap().tensor(), Some("w"));
    let mut state = StateDict::new();
    add(&mut state, &piece("w", 2, 0, 2), Arc::new(vec![0u8; 3]));
    let error = stage(&plan(vec![piece("w", 2, 0, 1)]), &state, Copying::Now).err().unwrap();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("w")));
}
