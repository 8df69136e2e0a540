use proptest::prelude::*;

use super::*;
use crate::layout::SaveId;
use crate::manifest::tests::receipts;
use crate::manifest::{BLOCK_BYTES, SealInfo};
use crate::plan::cover::tests::cut;
use crate::plan::save::merge_plans;
use crate::plan::{LocalPlan, SaveTarget, WriteItem};
use crate::state::Values;
use crate::tensor::Dtype;

fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

fn spec(dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(dtype, shape).unwrap()
}

/// One tensor: component, name, spec and its boxes, one per rank.
type Tensor<'a> = (&'a str, &'a str, TensorSpec, Vec<Slice>);

/// A checkpoint of these tensors; `tied` is an alias of the first.
fn manifest(tensors: &[Tensor]) -> Manifest {
    let world = tensors.iter().map(|t| t.3.len()).max().unwrap();
    let plan = |rank: usize| {
        let held = tensors.iter().filter_map(|t| Some((t, t.3.get(rank)?.clone())));
        let items: Vec<WriteItem> = held
            .map(|((component, tensor, spec, _), slice)| WriteItem {
                name: name(tensor),
                component: Component::new(*component).unwrap(),
                spec: spec.clone(),
                slice,
            })
            .collect();
        let first = name(tensors[0].1);
        let aliases = items.iter().filter(|i| i.name == first);
        LocalPlan {
            target: SaveTarget {
                directory: "ck".into(),
                name: "a".into(),
                step: 0,
                epoch: 0,
                ..SaveTarget::default()
            },
            aliases: aliases.map(|i| (name("tied"), i.name.clone())).collect(),
            items,
            values: Values::new(),
            rank_values: Values::new(),
            attached: Vec::new(),
        }
    };
    let plans: Vec<LocalPlan> = (0..world).map(plan).collect();
    let merged = merge_plans(SaveId::from_bytes([7; 16]), &plans).unwrap();
    let receipts = receipts(&merged);
    Manifest::seal(&merged, receipts, Vec::new(), SealInfo::default()).unwrap()
}

fn whole<'a>(component: &'a str, tensor: &'a str, dtype: Dtype, shape: &[u64]) -> Tensor<'a> {
    (component, tensor, spec(dtype, shape), vec![Slice::full(shape)])
}

fn want(tensor: &str, dtype: Dtype, shape: &[u64]) -> WantedBox {
    WantedBox::new(name(tensor), spec(dtype, shape), Slice::full(shape)).unwrap()
}

fn words(names: &[TensorName]) -> Vec<&str> {
    names.iter().map(TensorName::as_str).collect()
}

#[test]
fn all_that_does_not_fit_is_reported_at_once() {
    let manifest = manifest(&[
        whole("model", "a", Dtype::F32, &[4, 2]),
        whole("model", "b", Dtype::F32, &[1]),
        whole("model", "c", Dtype::F32, &[4]),
        whole("model", "d", Dtype::F32, &[4]),
        whole("optimizer", "o", Dtype::F32, &[4]),
    ]);
    let wanted = [
        want("a", Dtype::F32, &[2, 4]),
        want("b", Dtype::F32, &[4]),
        want("c", Dtype::F16, &[4]),
        want("x", Dtype::F32, &[4]),
        want("x", Dtype::F32, &[4]),
    ];
    let mut rules = LoadRules::default();
    let (plan, report) = plan_load(&manifest, &wanted, &rules);
    assert_eq!((plan.reads.len(), plan.bytes_wanted()), (0, 0));
    assert_eq!(words(&report.missing), ["x"]);
    assert_eq!(words(&report.unexpected), ["d", "o"]);
    let mismatched: Vec<_> = report.mismatched.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(mismatched, ["a", "b", "c"], "no broadcasting, no other dtype");
    let error = report.check(&rules).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let text = error.to_string();
    for part in ["c (wanted F16 [4], found F32 [4])", "b (wanted", "1 missing", "d, o"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    rules.strict = false;
    assert!(report.check(&rules).is_err(), "shapes matter always");
    rules.components = Some(vec![Component::model()]);
    let (_, report) = plan_load(&manifest, &wanted[3..4], &rules);
    assert_eq!(words(&report.unexpected), ["a", "b", "c", "d"]);
    report.check(&rules).unwrap();
    rules.strict = true;
    assert!(report.check(&rules).is_err());
}

#[test]
fn long_lists_are_cut() {
    let missing: Vec<_> = (0..25).map(|i| name(&format!("t{i:02}"))).collect();
    let report = LoadReport { missing, ..LoadReport::default() };
    let text = report.check(&LoadRules::default()).unwrap_err().to_string();
    assert!(text.contains("25 missing") && text.contains("t19 and 5 more"), "{text}");
    assert!(!text.contains("t20"), "{text}");
}

#[test]
fn aliases_lead_to_their_tensor() {
    let manifest =
        manifest(&[whole("model", "w", Dtype::F32, &[4]), whole("model", "v", Dtype::F32, &[2])]);
    let rules = LoadRules::default();
    for names in [vec!["w", "v"], vec!["tied", "v"], vec!["tied", "v", "w"]] {
        let length = |tensor: &str| if tensor == "v" { 2 } else { 4 };
        let wanted: Vec<_> = names.iter().map(|n| want(n, Dtype::F32, &[length(n)])).collect();
        let (plan, report) = plan_load(&manifest, &wanted, &rules);
        assert!(report.is_clean(), "{names:?}: {report:?}");
        assert_eq!(plan.bytes_wanted(), wanted.iter().map(WantedBox::size_bytes).sum::<u64>());
        let reads = &plan.reads[0].reads;
        let first = reads.iter().find(|r| r.target == 0).unwrap();
        assert_eq!(first.source, Slice::full(&[4]), "{names:?}");
    }
    let (_, report) = plan_load(&manifest, &[want("v", Dtype::F32, &[2])], &rules);
    assert_eq!(words(&report.unexpected), ["w"], "the tensor, not its alias");
}

#[test]
fn gaps_of_a_block_are_not_read() {
    for (columns, items) in [(BLOCK_BYTES + 9, 1), (BLOCK_BYTES + 10, 3)] {
        let shape = [3, columns];
        let manifest = manifest(&[whole("model", "w", Dtype::U8, &shape)]);
        let slice = Slice::new(vec![0, 0], vec![3, 10]).unwrap();
        let wanted = WantedBox::new(name("w"), spec(Dtype::U8, &shape), slice).unwrap();
        let (plan, _) = plan_load(&manifest, &[wanted], &LoadRules::default());
        assert_eq!(plan.reads[0].reads.len(), items, "{columns} columns");
        assert_eq!(plan.bytes_wanted(), 30);
        let read = if items == 3 { 30 } else { 2 * columns + 10 };
        assert_eq!(plan.bytes_read(), read);
    }
}

#[test]
fn only_pieces_near_a_box_are_looked_at() {
    let row = |i| Slice::new(vec![0, i, 0], vec![1, 1, 4]).unwrap();
    let tensor = ("model", "w", spec(Dtype::U8, &[1, 100, 4]), (0..100).map(row).collect());
    let manifest = manifest(&[tensor]);
    let index = PieceIndex::new(&manifest.tensors()[0]);
    let near = |begin, length| {
        index.near(&Slice::new(vec![0, begin, 1], vec![1, length, 2]).unwrap()).len()
    };
    assert_eq!((near(0, 100), near(10, 5), near(99, 1), near(50, 0)), (100, 5, 1, 0));
}

#[test]
fn empty_tensors_and_boxes_need_no_reads() {
    let manifest = manifest(&[
        whole("model", "w", Dtype::F32, &[4]),
        whole("model", "z", Dtype::F32, &[0, 3]),
    ]);
    let nothing = Slice::new(vec![4], vec![0]).unwrap();
    let empty = WantedBox::new(name("w"), spec(Dtype::F32, &[4]), nothing).unwrap();
    let wanted = [want("z", Dtype::F32, &[0, 3]), empty];
    let (plan, report) = plan_load(&manifest, &wanted, &LoadRules::default());
    assert_eq!((plan, report), (LoadPlan::default(), LoadReport::default()));
    let outside = Slice::full(&[5]);
    assert!(WantedBox::new(name("w"), spec(Dtype::F32, &[4]), outside).is_err());
}

/// A file image per data file: each element holds its row-major index in the whole tensor.
fn images(manifest: &Manifest) -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    for (index, file) in manifest.data_files().iter().enumerate() {
        let mut image = vec![0xee; usize::try_from(file.len).unwrap()];
        for (tensor, piece) in manifest.pieces_of_file(index) {
            let content = content(tensor.spec.shape(), &piece.slice);
            let begin = usize::try_from(piece.begin).unwrap();
            image[begin..begin + content.len()].copy_from_slice(&content);
        }
        images.push(image);
    }
    images
}

/// The bytes of a box of a tensor whose elements are their own indices.
fn content(shape: &[u64], slice: &Slice) -> Vec<u8> {
    let runs = Slice::full(shape).runs_of(slice);
    let indices = runs.flat_map(|run| run.from..run.from + run.elements);
    indices.flat_map(|i| u32::try_from(i).unwrap().to_le_bytes()).collect()
}

/// Applies a plan to the images, checking that only the planned ranges are touched.
fn apply(plan: &LoadPlan, wanted: &[WantedBox], images: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let size = |n: u64| usize::try_from(n).unwrap();
    let mut filled: Vec<Vec<u8>> =
        wanted.iter().map(|w| vec![0xff; size(w.size_bytes())]).collect();
    let mut copied = 0;
    for file in &plan.reads {
        let mut position = 0;
        for item in &file.reads {
            assert!(item.piece_begin + item.bytes.start >= position, "not in file order");
            position = item.piece_begin + item.bytes.start;
            assert!(item.bytes.end <= item.piece_bytes && !item.bytes.is_empty());
            let mut last = item.bytes.start;
            for run in item.copies(&wanted[item.target]) {
                assert!(run.from >= item.bytes.start && run.from + run.bytes <= item.bytes.end);
                let from = size(item.piece_begin + run.from);
                let source = &images[file.file as usize][from..from + size(run.bytes)];
                filled[item.target][size(run.to)..size(run.to + run.bytes)].copy_from_slice(source);
                copied += run.bytes;
                last = run.from + run.bytes;
            }
            assert_eq!(last, item.bytes.end, "reads past what is wanted");
        }
    }
    assert_eq!(copied, plan.bytes_wanted());
    filled
}

fn any_box(shape: [u64; 3]) -> impl Strategy<Value = Slice> {
    let range = |n: u64| (0..=n).prop_flat_map(move |o| (Just(o), 0..=n - o));
    (range(shape[0]), range(shape[1]), range(shape[2]))
        .prop_map(|(a, b, c)| Slice::new(vec![a.0, b.0, c.0], vec![a.1, b.1, c.1]).unwrap())
}

proptest! {
    #[test]
    fn any_box_is_read_out_of_any_pieces(
        cuts in prop::collection::vec((0usize..20, 0usize..3, 0u64..7), 0..10),
        boxes in prop::collection::vec(any_box([5, 6, 7]), 1..5),
        gap_bytes in prop::sample::select(vec![1u64, 8, 40, 200, 1 << 16]),
    ) {
        let shape = [5, 6, 7];
        let tensors = [
            ("model", "w", spec(Dtype::U32, &shape), cut(shape, &cuts)),
            whole("model", "v", Dtype::U32, &[3]),
        ];
        let manifest = manifest(&tensors);
        let mut wanted = vec![want("v", Dtype::U32, &[3])];
        for (i, slice) in boxes.into_iter().enumerate() {
            let alias = name(if i % 2 == 0 { "w" } else { "tied" });
            wanted.push(WantedBox::new(alias, spec(Dtype::U32, &shape), slice).unwrap());
        }
        let rules = LoadRules::default();
        let (plan, report) = plan_with_gap(&manifest, &wanted, &rules, gap_bytes);
        prop_assert!(report.is_clean());
        let filled = apply(&plan, &wanted, &images(&manifest));
        for (bytes, want) in filled.iter().zip(&wanted) {
            prop_assert_eq!(bytes, &content(want.spec().shape(), want.slice()));
        }
        if gap_bytes <= 4 {
            prop_assert_eq!(plan.bytes_read(), plan.bytes_wanted(), "gaps are not read");
        }
    }
}
