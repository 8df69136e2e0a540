use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::*;
use crate::layout::SaveId;
use crate::plan::PlannedFile;
use crate::slice::Slice;
use crate::tensor::{Dtype, TensorSpec};

mod devices;
mod files;

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

fn share(plan: &SavePlan) -> Share<'_> {
    Share { plan, rank: Rank::COORDINATOR, step: 3 }
}

fn stage(plan: &SavePlan, state: &StateDict, copying: Copying) -> Result<Staging> {
    Staging::begin(share(plan), state, copying, None, &Progress::default())
}

/// The data of the first file.
fn data(staged: &Staged) -> Vec<u8> {
    staged.region.bytes()[staged.files[0].data.clone()].to_vec()
}

#[test]
fn only_the_share_is_copied_and_only_it_can_be_read() {
    let (upper, lower) = (piece("w", 10, 2, 4), piece("x", 10, 7, 8));
    let mut state = StateDict::new();
    add(&mut state, &upper, Arc::new((0..20).collect::<Vec<u8>>()));
    add(&mut state, &lower, Arc::new((100..120).collect::<Vec<u8>>()));
    add(&mut state, &piece("other", 100, 0, 100), Arc::new(vec![0u8; 200]));
    let plan = plan(vec![upper, lower]);
    let staging = stage(&plan, &state, Copying::Now).unwrap();
    let (staged, _) = staging.finish(share(&plan), &Progress::default()).unwrap();
    assert_eq!(data(&staged), [4, 5, 6, 7, 114, 115]);
    assert_eq!(staged.files.len(), 1);
}

#[test]
fn steady_boxes_wait_and_the_rest_does_not() {
    let plan = plan(vec![piece("buffer", 3, 0, 3), piece("weight", 3, 0, 3)]);
    let pieces = &plan.files[0].pieces;
    let (buffer, weight) = (Cell::new(vec![1; 6], false), Cell::new(vec![2; 6], true));
    let mut state = StateDict::new();
    add(&mut state, &pieces[0], buffer.clone());
    add(&mut state, &pieces[1], weight.clone());
    let staging = stage(&plan, &state, Copying::SteadyLater).unwrap();
    assert_eq!(data(&staging.staged)[..6], [1; 6]);
    assert_eq!(data(&staging.staged)[6..], [0; 6], "the weight is not copied yet");
    buffer.set(9);
    let (staged, watch) = staging.finish(share(&plan), &Progress::default()).unwrap();
    assert_eq!(data(&staged), [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    watch.check().unwrap();
    weight.set(9);
    let error = watch.check().unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("weight")));

    let staging = stage(&plan, &state, Copying::Now).unwrap();
    assert_eq!(data(&staging.staged), [9; 12], "all is copied at once");
    weight.set(10);
    staging.finish(share(&plan), &Progress::default()).unwrap();
}

#[test]
fn a_steady_box_that_changed_before_it_was_copied_is_named() {
    let plan = plan(vec![piece("a", 2, 0, 2), piece("b", 2, 0, 1)]);
    let pieces = &plan.files[0].pieces;
    let (a, b) = (Cell::new(vec![1; 4], true), Cell::new(vec![2; 4], true));
    let mut state = StateDict::new();
    add(&mut state, &pieces[0], a);
    add(&mut state, &pieces[1], b.clone());
    let staging = stage(&plan, &state, Copying::SteadyLater).unwrap();
    b.set(3);
    let error = staging.finish(share(&plan), &Progress::default()).err().unwrap();
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
