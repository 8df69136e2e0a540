//! What was written is what is read.

use proptest::prelude::*;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::manifest::{BLOCK_BYTES, SUMS_HEADER_BYTES};
use crate::state::TensorSource;

/// Every piece whole, by both ways of reading.
fn assert_reads_back(dir: &Arc<MemoryDir>, plan: &SavePlan, state: &StateDict, receipt: &Receipt) {
    let (files, sums, pieces) = records(plan, receipt);
    let reader = reader(dir, &files, &sums);
    reader.check_lengths().unwrap();
    reader.verify_sums_file(0).unwrap();
    let mut scratch = Vec::new();
    for (index, planned) in plan.files.iter().enumerate() {
        reader.verify_header(index).unwrap();
        assert_eq!(reader.verify_file(index, &pieces[index], &mut |_| {}), []);
        let header = read_header(&*dir.clone().open_file(&planned.name).unwrap()).unwrap();
        assert_eq!(header.tensors.len(), planned.pieces.len());
        for (piece, at) in planned.pieces.iter().zip(&pieces[index]) {
            let want = expected(state, piece);
            let mut got = vec![0; want.len()];
            reader.read_into(*at, 0, &mut scratch, &mut got).unwrap();
            assert_eq!(got, want, "{}", piece.name);
            let mut got = Vec::new();
            let mut visit = |offset: u64, bytes: &[u8]| {
                assert_eq!(offset, got.len() as u64);
                got.extend_from_slice(bytes);
                Ok(())
            };
            reader.read_range(*at, 0..at.bytes, &mut scratch, &mut visit).unwrap();
            assert_eq!(got, want, "{}", piece.name);
        }
    }
}

#[test]
fn a_small_state_in_two_files_reads_back() {
    let (state, plan) = small();
    let dir = Arc::new(MemoryDir::default());
    let receipt = save(&dir, &plan, &state).unwrap();
    let whole_sums = &dir.0.lock().files["sums.bin"].clone();
    assert_eq!(receipt.sums_file.as_ref().unwrap().hash, crate::manifest::hash16(whole_sums));
    assert_reads_back(&dir, &plan, &state, &receipt);
    let operations = dir.0.lock().operations.clone();
    assert_eq!(operations.last().unwrap(), "sync .");
    assert_eq!(operations.iter().filter(|o| o.starts_with("finish")).count(), 3);
}

#[test]
fn nothing_planned_writes_nothing() {
    let plan = SavePlan { save_id: SAVE_ID, files: vec![], sums_file: None };
    let dir = MemoryDir::default();
    assert_eq!(save(&dir, &plan, &StateDict::new()).unwrap(), Receipt::default());
    assert_eq!(dir.0.lock().operations, Vec::<String>::new());
    let (state, mut plan) = small();
    plan.sums_file = None;
    assert_eq!(save(&dir, &plan, &state).unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn any_shape() -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![
        4 => prop::collection::vec(0u64..5, 0..4),
        1 => (30_000u64..90_000).prop_map(|n| vec![n, 2]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_states_read_back(
        tensors in prop::collection::vec((any_shape(), prop::sample::select(&Dtype::ALL)), 0..12),
        files in 1usize..4,
    ) {
        let mut state = StateDict::new();
        let mut shares: Vec<Vec<_>> = vec![Vec::new(); files];
        for (i, (shape, dtype)) in tensors.iter().enumerate() {
            shares[i % files].push(whole(&mut state, &format!("t{i}"), *dtype, shape));
        }
        let planned = shares.into_iter().enumerate();
        let plan = plan_of(planned.map(|(i, p)| planned_file(&format!("f{i}"), p)).collect());
        let dir = Arc::new(MemoryDir::default());
        let receipt = save(&dir, &plan, &state).unwrap();
        assert_reads_back(&dir, &plan, &state, &receipt);
    }

    #[test]
    fn any_range_of_a_piece_reads_back(begin in 0u64..200_000, len in 0u64..200_000) {
        let (plan, state, dir, receipt) = one_large();
        let (files, sums, pieces) = records(&plan, &receipt);
        let reader = reader(&dir, &files, &sums);
        let at = pieces[0][1];
        let (begin, end) = (begin.min(at.bytes), (begin + len).min(at.bytes));
        let want = expected(&state, &plan.files[0].pieces[1]);
        let index = |n| usize::try_from(n).unwrap();
        let want = &want[index(begin)..index(end)];
        let mut out = vec![0; want.len()];
        reader.read_into(at, begin, &mut Vec::new(), &mut out).unwrap();
        prop_assert_eq!(out.as_slice(), want);
        let data = (end.next_multiple_of(BLOCK_BYTES).min(at.bytes)).saturating_sub(begin / BLOCK_BYTES * BLOCK_BYTES);
        let sums = SUMS_HEADER_BYTES + 16 * files[0].sums_count;
        prop_assert_eq!(reader.bytes_read(), if begin == end { 0 } else { data + sums });
    }
}

/// One file with a piece that starts off a block boundary and ends in a short block.
fn one_large() -> (SavePlan, StateDict, Arc<MemoryDir>, Receipt) {
    let mut state = StateDict::new();
    let pieces = vec![
        whole(&mut state, "a", Dtype::U8, &[100]),
        whole(&mut state, "b", Dtype::U8, &[3 * 65536 + 77]),
    ];
    let plan = plan_of(vec![planned_file("f", pieces)]);
    let dir = Arc::new(MemoryDir::default());
    let receipt = save(&dir, &plan, &state).unwrap();
    (plan, state, dir, receipt)
}

#[test]
fn ranges_outside_a_piece_are_refused() {
    let (plan, _, dir, receipt) = one_large();
    let (files, sums, pieces) = records(&plan, &receipt);
    let reader = reader(&dir, &files, &sums);
    let at = pieces[0][0];
    let mut ignore = |_: u64, _: &[u8]| Ok(());
    let mut read = |at, range| reader.read_range(at, range, &mut Vec::new(), &mut ignore);
    assert_eq!(read(at, 0..101).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(read(PieceAt { begin: 0, ..at }, 0..1).is_err());
    assert!(read(PieceAt { begin: files[0].len - 99, ..at }, 0..1).is_err());
    assert!(read(PieceAt { bytes: u64::MAX, ..at }, 0..1).is_err());
    assert!(read(PieceAt { first_sum: u64::MAX, ..at }, 0..1).is_err());
    assert!(read(PieceAt { file: 1, ..at }, 0..1).is_err());
}

/// A source that is not host memory.
struct Device(Vec<u8>);

impl TensorSource for Device {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_into(offset, out)
    }
}

#[test]
fn pieces_are_cut_from_the_middle_of_held_boxes() {
    let spec = TensorSpec::new(Dtype::F32, vec![100, 300, 40]).unwrap();
    let held = Slice::new(vec![10, 0, 0], vec![50, 300, 40]).unwrap();
    let slice = Slice::new(vec![17, 0, 0], vec![30, 300, 40]).unwrap();
    let bytes = bytes_of(held.elements() * 4, 5);
    let mut state = StateDict::new();
    let mut pieces = Vec::new();
    let sources: [(&str, Arc<dyn TensorSource>); 2] =
        [("device", Arc::new(Device(bytes.clone()))), ("host", Arc::new(bytes))];
    for (text, source) in sources {
        let component = Component::model();
        state.add_slice(&component, name(text), spec.clone(), held.clone(), source).unwrap();
        let (held, slice) = (held.clone(), slice.clone());
        pieces.push(PlannedPiece { name: name(text), spec: spec.clone(), held, slice });
    }
    let plan = plan_of(vec![planned_file("f", pieces)]);
    let dir = Arc::new(MemoryDir::default());
    let receipt = save(&dir, &plan, &state).unwrap();
    assert_eq!(receipt.files[0].piece_bytes, [30 * 300 * 40 * 4; 2]);
    assert_reads_back(&dir, &plan, &state, &receipt);
}

#[test]
fn many_small_tensors_cost_few_writes_and_all_are_reported() {
    let mut state = StateDict::new();
    let pieces =
        (0..5000).map(|i| whole(&mut state, &format!("t{i:05}"), Dtype::F32, &[1024])).collect();
    let plan = plan_of(vec![planned_file("f", pieces)]);
    let dir = Arc::new(MemoryDir::default());
    let total = std::sync::atomic::AtomicU64::new(0);
    let count = |bytes| {
        total.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    let receipt = write_shards(&*dir, &plan, RANK, STEP, &state, &count).unwrap();
    let written = receipt.files[0].len + receipt.sums_file.as_ref().unwrap().len;
    assert_eq!(total.into_inner(), written);
    let writes = dir.0.lock().operations.iter().filter(|o| *o == "write f").count();
    // 1, 2, 4 and 8 MiB, and the rest.
    assert_eq!(writes, 5);
    assert_reads_back(&dir, &plan, &state, &receipt);
}

#[test]
fn plans_that_do_not_fit_the_state_are_refused_before_a_file_is_made() {
    let (state, plan) = small();
    let refused = |change: &dyn Fn(&mut PlannedPiece)| -> Error {
        let mut plan = plan.clone();
        change(&mut plan.files[0].pieces[2]);
        let dir = MemoryDir::default();
        let error = save(&dir, &plan, &state).unwrap_err();
        assert_eq!(dir.0.lock().operations, Vec::<String>::new());
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error
    };
    let of = |o: [u64; 2], l: [u64; 2]| Slice::new(o.to_vec(), l.to_vec()).unwrap();
    assert_eq!(refused(&|p| p.held = of([0, 0], [5, 6])).tensor(), Some("weight"));
    refused(&|p| p.slice = of([0, 1], [2, 3]));
    refused(&|p| p.spec = TensorSpec::new(Dtype::I32, vec![5, 7]).unwrap());
    refused(&|p| p.name = name("unknown"));
}

#[test]
fn a_source_of_the_wrong_length_is_refused() {
    let mut state = StateDict::new();
    let piece = whole(&mut state, "t", Dtype::U8, &[4]);
    let mut wrong = StateDict::new();
    let source = Arc::new(vec![0u8; 5]);
    wrong.add(&Component::model(), name("t"), piece.spec.clone(), source).unwrap();
    let plan = plan_of(vec![planned_file("f", vec![piece])]);
    let error = save(&MemoryDir::default(), &plan, &wrong).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("t")));
}
