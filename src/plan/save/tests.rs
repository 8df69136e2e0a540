use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::plan::OnExisting;
use crate::slice::Slice;
use crate::tensor::{Dtype, TensorSpec};

const ID: SaveId = SaveId::from_bytes([7; 16]);

fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

fn item(component: &str, tensor: &str, dtype: Dtype, shape: &[u64], slice: Slice) -> WriteItem {
    WriteItem {
        name: name(tensor),
        component: Component::new(component).unwrap(),
        spec: TensorSpec::new(dtype, shape).unwrap(),
        slice,
    }
}

fn whole(tensor: &str, dtype: Dtype, shape: &[u64]) -> WriteItem {
    item("model", tensor, dtype, shape, Slice::full(shape))
}

fn rows(tensor: &str, total: u64, range: std::ops::Range<u64>) -> WriteItem {
    let slice = Slice::new(vec![range.start, 0], vec![range.end - range.start, 8]).unwrap();
    item("model", tensor, Dtype::F32, &[total, 8], slice)
}

fn plan(items: Vec<WriteItem>) -> LocalPlan {
    let target = SaveTarget {
        directory: "ck".into(),
        name: "a".into(),
        step: 3,
        epoch: 1,
        ..SaveTarget::default()
    };
    let (values, rank_values) = (Values::new(), Values::new());
    LocalPlan { target, items, aliases: Vec::new(), values, rank_values, attached: Vec::new() }
}

fn bytes_of(plan: &SavePlan) -> u64 {
    plan.files.iter().flat_map(|f| &f.pieces).map(PlannedPiece::size_bytes).sum()
}

/// GPT-2 (124M) and the moments of its Adam, as one rank of a DDP job declares them.
fn gpt2() -> Vec<WriteItem> {
    let (d, mut shapes) = (768, vec![("wte".to_owned(), vec![50257, 768])]);
    shapes.push(("wpe".to_owned(), vec![1024, d]));
    for layer in 0..12 {
        for (part, out, inp) in [
            ("attn.c_attn", 3 * d, d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", 4 * d, d),
            ("mlp.c_proj", d, 4 * d),
        ] {
            shapes.push((format!("h.{layer}.{part}.weight"), vec![inp, out]));
            shapes.push((format!("h.{layer}.{part}.bias"), vec![out]));
        }
        for norm in ["ln_1", "ln_2"] {
            shapes.push((format!("h.{layer}.{norm}.weight"), vec![d]));
            shapes.push((format!("h.{layer}.{norm}.bias"), vec![d]));
        }
    }
    let mut items = Vec::new();
    for (tensor, shape) in &shapes {
        items.push(whole(tensor, Dtype::F32, shape));
        for moment in ["exp_avg", "exp_avg_sq"] {
            let full = Slice::full(shape);
            let tensor = format!("optimizer.{tensor}.{moment}");
            items.push(item("optimizer", &tensor, Dtype::F32, shape, full));
        }
        let step = format!("optimizer.{tensor}.step");
        items.push(item("optimizer", &step, Dtype::F32, &[], Slice::full(&[])));
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    items
}

#[test]
fn replicated_state_is_shared_evenly() {
    for world in [2usize, 3, 4, 8, 16, 64] {
        let plans = vec![plan(gpt2()); world];
        let merged = merge_plans(ID, &plans).unwrap();
        let loads: Vec<u64> = merged.plans.iter().map(bytes_of).collect();
        let total: u64 = loads.iter().sum();
        assert_eq!(total, plans[0].items.iter().map(|i| i.spec.size_bytes()).sum::<u64>());
        let max = *loads.iter().max().unwrap() as f64;
        assert!(max * world as f64 / total as f64 <= 1.01, "{world} ranks: {loads:?}");
        check_written_once(&plans, &merged);
        // Told once for all ranks.
        let rank_values: Vec<Values> = plans.iter().map(|plan| plan.rank_values.clone()).collect();
        assert_eq!(merge_equal_plans(ID, &plans[0], &rank_values).unwrap(), merged);
    }
}

#[test]
fn replicas_go_to_ranks_that_hold_less_of_their_own() {
    let own =
        |rows_held| vec![rows("own", 90_000, rows_held), whole("shared", Dtype::F32, &[40_000, 8])];
    let plans = [plan(own(0..20_000)), plan(own(20_000..90_000))];
    let merged = merge_plans(ID, &plans).unwrap();
    let loads: Vec<u64> = merged.plans.iter().map(bytes_of).collect();
    assert_eq!(loads, [60_000 * 32, 70_000 * 32]);
}

#[test]
fn what_a_rank_was_given_of_one_tensor_counts_for_the_next() {
    let (a, b) = (whole("a", Dtype::F32, &[60_000, 8]), whole("b", Dtype::F32, &[60_000, 8]));
    let plans = [plan(vec![a.clone()]), plan(vec![a, b.clone()]), plan(vec![b])];
    let merged = merge_plans(ID, &plans).unwrap();
    let loads: Vec<u64> = merged.plans.iter().map(bytes_of).collect();
    assert_eq!(loads, [30_000 * 32, 45_000 * 32, 45_000 * 32]);
}

#[test]
fn bytes_are_shared_evenly_and_not_elements() {
    let both = vec![whole("f", Dtype::F64, &[40_000, 8]), whole("u", Dtype::U8, &[40_000, 8])];
    let merged = merge_plans(ID, &[plan(both.clone()), plan(both)]).unwrap();
    let loads: Vec<u64> = merged.plans.iter().map(bytes_of).collect();
    assert!(loads[0].abs_diff(loads[1]) <= 64, "more than a row: {loads:?}");
}

#[test]
fn a_second_box_of_a_tensor_goes_to_a_further_file() {
    let plans = [
        plan(vec![rows("w", 6, 0..2), rows("w", 6, 4..6), whole("b", Dtype::F64, &[3])]),
        plan(vec![rows("w", 6, 2..4)]),
    ];
    let merged = merge_plans(ID, &plans).unwrap();
    let names: Vec<Vec<&str>> =
        merged.plans.iter().map(|p| p.files.iter().map(|f| f.name.as_str()).collect()).collect();
    let file = |share: &str| format!("model-{share}.{ID}.safetensors");
    assert_eq!(names[0], [file("00001-of-00002"), file("00001-of-00002-2")]);
    assert_eq!(names[1], [file("00002-of-00002")]);
    let order: Vec<_> = merged.plans[0].files[0].pieces.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(order, ["b", "w"], "larger elements first");
    check_written_once(&plans, &merged);
}

#[test]
fn no_share_no_file() {
    let plans = [plan(vec![whole("w", Dtype::F32, &[4])]), plan(Vec::new())];
    let merged = merge_plans(ID, &plans).unwrap();
    assert!(merged.plans[0].sums_file.is_some());
    assert_eq!(merged.plans[1], SavePlan { save_id: ID, files: Vec::new(), sums_file: None });
}

#[test]
fn empty_tensors_are_kept_and_empty_boxes_are_not() {
    let mut state = StateDict::new();
    let (model, none) = (Component::model(), || std::sync::Arc::new(Vec::new()));
    let spec = TensorSpec::new(Dtype::F32, vec![4, 8]).unwrap();
    let nothing = Slice::new(vec![4, 0], vec![0, 8]).unwrap();
    state.add_slice(&model, name("w"), spec, nothing, none()).unwrap();
    let empty = TensorSpec::new(Dtype::F32, vec![0, 8]).unwrap();
    state.add(&model, name("z"), empty, none()).unwrap();
    let target = plan(Vec::new()).target;
    let part = Slice::new(vec![0, 2], vec![0, 6]).unwrap();
    let part = item("model", "z", Dtype::F32, &[0, 8], part);
    let plans = [local_plan(target, &state), plan(vec![rows("w", 4, 0..4), part])];
    assert_eq!(plans[0].items.len(), 1, "nothing of `w` is not worth a word");
    let merged = merge_plans(ID, &plans).unwrap();
    let pieces: Vec<_> = merged.plans[0].files.iter().flat_map(|f| &f.pieces).collect();
    assert_eq!((pieces.len(), pieces[0].name.as_str(), pieces[0].size_bytes()), (1, "z", 0));
    assert!(pieces[0].slice.is_full(&[0, 8]));
    assert_eq!(merged.plans[1].files[0].pieces.len(), 1);
}

fn file(name: &str) -> OtherFile {
    OtherFile { name: name.into(), len: 4, hash: [7; 16] }
}

#[test]
fn disagreements_name_both_ranks_and_what_differs() {
    type Change = fn(&mut LocalPlan);
    let table: [(&str, Change); 14] = [
        ("directory", |p| p.target.directory.push('x')),
        ("name", |p| p.target.name.push('x')),
        ("step", |p| p.target.step += 1),
        ("epoch", |p| p.target.epoch += 1),
        ("on_existing", |p| p.target.on_existing = OnExisting::Replace),
        ("value `loss`", |p| p.values.set("loss", f64::NAN)),
        ("value `more`", |p| p.values.set("more", 1i64)),
        ("dtype", |p| p.items[0] = whole("w", Dtype::F16, &[4, 8])),
        ("shape", |p| p.items[0] = whole("w", Dtype::F32, &[8, 4])),
        ("component", |p| p.items[0].component = Component::optimizer()),
        ("alias `tied`", |p| p.aliases.clear()),
        ("attached file `code/a`", |p| p.attached[0].hash = [8; 16]),
        ("attached file `code/a`", |p| p.attached.clear()),
        ("attached file `code/b`", |p| p.attached.push(file("code/b"))),
    ];
    let mut base = plan(vec![whole("v", Dtype::F32, &[2]), whole("w", Dtype::F32, &[4, 8])]);
    base.items.swap(0, 1);
    base.values.set("loss", 1.0);
    base.aliases.push((name("tied"), name("w")));
    base.attached.push(file("code/a"));
    assert!(merge_plans(ID, &vec![base.clone(); 3]).is_ok());
    for (what, change) in table {
        let mut plans = vec![base.clone(); 3];
        change(&mut plans[2]);
        let error = merge_plans(ID, &plans).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{what}: {error}");
        let text = error.to_string();
        for part in [what, "rank 0", "rank 2"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}

#[test]
fn aliases_may_be_unknown_only_where_their_tensor_is() {
    let mut with = plan(vec![whole("w", Dtype::F32, &[4])]);
    with.aliases.push((name("tied"), name("w")));
    let without = plan(vec![whole("v", Dtype::F32, &[4])]);
    let merged = merge_plans(ID, &[with.clone(), without.clone()]).unwrap();
    assert_eq!(merged.aliases, with.aliases);
    let mut other = without.clone();
    other.aliases.push((name("tied"), name("v")));
    let error = merge_plans(ID, &[with.clone(), other]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    let clash = plan(vec![whole("tied", Dtype::F32, &[4])]);
    let error = merge_plans(ID, &[with, clash]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disagreement);
    let mut dangling = without;
    dangling.aliases.push((name("tied"), name("gone")));
    assert_eq!(merge_plans(ID, &[dangling]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn gaps_and_partial_overlaps_are_refused() {
    for (second, words) in [(3..6, "40 of 48"), (1..6, "overlap"), (2..5, "40 of 48")] {
        let plans = [plan(vec![rows("w", 6, 0..2)]), plan(vec![rows("w", 6, second.clone())])];
        let error = merge_plans(ID, &plans).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::InvalidInput, Some("w")));
        let text = error.to_string();
        assert!(text.contains("rank 1 holds"), "{text}");
        assert!(text.contains(words), "{text}");
    }
    let mut outside = rows("w", 6, 0..6);
    outside.slice = Slice::full(&[6, 9]);
    let error = merge_plans(ID, &[plan(vec![outside])]).unwrap_err();
    assert!(error.message().contains("is not inside"), "{error}");
    assert!(merge_plans(ID, &[]).is_err());
}

#[test]
fn a_box_listed_twice_by_one_rank_is_one_box() {
    let twice = plan(vec![rows("w", 9000, 0..9000), rows("w", 9000, 0..9000)]);
    let merged = merge_plans(ID, &[twice]).unwrap();
    assert_eq!(merged.plans[0].files.iter().map(|f| f.pieces.len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn sizes_whose_sum_overflows_are_refused() {
    let huge = |tensor: &str| whole(tensor, Dtype::U8, &[i64::MAX as u64]);
    assert!(merge_plans(ID, &[plan(vec![huge("a"), huge("b"), huge("c")])]).is_err());
}

/// Every element of every tensor is in exactly one piece, and each piece is a contiguous part of
/// a box that its rank declared.
fn check_written_once(plans: &[LocalPlan], merged: &MergedPlan) {
    let mut pieces: BTreeMap<&TensorName, Vec<&PlannedPiece>> = BTreeMap::new();
    for (local, plan) in plans.iter().zip(&merged.plans) {
        for file in &plan.files {
            let mut names: Vec<_> = file.pieces.iter().map(|p| &p.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), file.pieces.len(), "a name twice in {}", file.name);
            for piece in &file.pieces {
                let declared = local.items.iter().find(|i| {
                    i.name == piece.name && i.slice == piece.held && i.spec == piece.spec
                });
                assert_eq!(declared.unwrap().component, file.component);
                if piece.slice.elements() > 0 {
                    assert_eq!(piece.held.intersect(&piece.slice).as_ref(), Some(&piece.slice));
                    assert_eq!(piece.held.runs_of(&piece.slice).count(), 1, "not contiguous");
                }
                pieces.entry(&piece.name).or_default().push(piece);
            }
        }
    }
    let declared: std::collections::BTreeSet<_> =
        plans.iter().flat_map(|p| p.items.iter().map(|i| &i.name)).collect();
    assert!(pieces.keys().copied().eq(declared));
    for pieces in pieces.values() {
        let total: u64 = pieces.iter().map(|p| p.slice.elements()).sum();
        assert_eq!(total, pieces[0].spec.elements());
        for (i, a) in pieces.iter().enumerate() {
            assert!(pieces[i + 1..].iter().all(|b| a.slice.intersect(&b.slice).is_none()));
        }
    }
}

/// A tensor: dtype, rows (in units that make some of them splittable), columns, cuts between
/// boxes, and for each box which ranks hold it.
type Shape = (Dtype, u64, u64, Vec<u64>, Vec<u8>);

fn any_tensor() -> impl Strategy<Value = Shape> {
    (
        prop::sample::select(vec![Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::I64]),
        0u64..3000,
        prop::sample::select(vec![1u64, 3, 64]),
        prop::collection::vec(0u64..3000, 0..3),
        prop::collection::vec(any::<u8>(), 4),
    )
}

fn plans_of(world: usize, tensors: &[Shape]) -> Vec<LocalPlan> {
    let mut plans = vec![plan(Vec::new()); world];
    for (index, (dtype, total, columns, cuts, holders)) in tensors.iter().enumerate() {
        let mut bounds: Vec<u64> = cuts.iter().map(|c| c % (total + 1)).collect();
        bounds.extend([0, *total]);
        bounds.sort_unstable();
        for (range, mask) in bounds.windows(2).zip(holders) {
            let slice = Slice::new(vec![0, range[0], 0], vec![1, range[1] - range[0], *columns]);
            let tensor = format!("t{index}");
            let item = item("model", &tensor, *dtype, &[1, *total, *columns], slice.unwrap());
            let none = mask % (1 << world) == 0;
            for (rank, plan) in plans.iter_mut().enumerate() {
                if none || mask >> rank & 1 == 1 {
                    plan.items.push(item.clone());
                }
            }
        }
    }
    plans
}

proptest! {
    #[test]
    fn every_byte_is_written_exactly_once(
        world in 1usize..6,
        tensors in prop::collection::vec(any_tensor(), 0..8),
    ) {
        let plans = plans_of(world, &tensors);
        let merged = merge_plans(ID, &plans).unwrap();
        check_written_once(&plans, &merged);
        prop_assert_eq!(&merge_plans(ID, &plans).unwrap(), &merged);
        // The order in which a rank lists its boxes does not matter.
        let mut shuffled = plans;
        shuffled.iter_mut().for_each(|p| p.items.reverse());
        prop_assert_eq!(&merge_plans(ID, &shuffled).unwrap(), &merged);
    }
}
