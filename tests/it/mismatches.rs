//! What a checkpoint and a destination may differ in, each refused, all of it at once, with nothing
//! changed; and what permits it, and nothing else.

use std::sync::Arc;

use tch_checkpoint::load::{Atomicity, PartialOptions, load, load_partial};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::select::{Rename, Selection, SelectionRules};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result, SaveOptions, save};

use crate::harness::*;
use crate::tier;

const UNTOUCHED: u8 = 0xEE;

/// A tensor of one side: `optimizer.…` and `ema.…` belong to components of that name.
pub type Side = Vec<(String, Dtype, Vec<u64>)>;

fn side(tensors: &[(&str, Dtype, &[u64])]) -> Side {
    tensors.iter().map(|(n, dtype, shape)| ((*n).to_owned(), *dtype, shape.to_vec())).collect()
}

pub fn names(list: &[&str]) -> Side {
    list.iter().map(|name| ((*name).to_owned(), Dtype::F32, vec![3, 4])).collect()
}

fn component(name: &str) -> Component {
    match name.split('.').next() {
        Some("optimizer") => Component::optimizer(),
        Some("ema") => Component::ema(),
        _ => Component::model(),
    }
}

pub fn stored(side: &Side) -> MemoryStorage {
    let (memory, mut state) = (MemoryStorage::new(), StateDict::new());
    for (tensor, dtype, shape) in side {
        let spec = TensorSpec::new(*dtype, shape.clone()).unwrap();
        let bytes = Arc::new(vec![1u8; spec.size_bytes() as usize]);
        state.add(&component(tensor), name(tensor), spec, bytes).unwrap();
    }
    let options = SaveOptions::default();
    save(&ProcessGroup::solo(), &memory, &path("runs/a"), &state, &options).unwrap();
    memory
}

pub fn filled(side: &Side) -> Vec<(String, TensorSpec, Vec<u8>)> {
    let buffers = side.iter().map(|(name, dtype, shape)| {
        let spec = TensorSpec::new(*dtype, shape.clone()).unwrap();
        let bytes = vec![UNTOUCHED; spec.size_bytes() as usize];
        (name.clone(), spec, bytes)
    });
    buffers.collect()
}

pub fn targets(buffers: &mut [(String, TensorSpec, Vec<u8>)]) -> LoadTargets<'_> {
    let mut targets = LoadTargets::new();
    for (tensor, spec, bytes) in buffers {
        targets.add(name(tensor), spec.clone(), Box::new(bytes.as_mut_slice())).unwrap();
    }
    targets
}

pub fn is_untouched(buffers: &[(String, TensorSpec, Vec<u8>)]) -> bool {
    buffers.iter().all(|(.., bytes)| bytes.iter().all(|byte| *byte == UNTOUCHED))
}

/// Loads, and says which tensors were filled; a failed load must have changed nothing, not even in
/// place.
fn try_load(memory: &MemoryStorage, wants: &Side, rules: &LoadRules) -> Result<Vec<String>> {
    let mut results = Vec::new();
    for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
        let mut buffers = filled(wants);
        let solo = ProcessGroup::solo();
        let mut destination = targets(&mut buffers);
        let done = load(&solo, memory, &wanted("runs/a"), &mut destination, rules, atomicity);
        drop(destination);
        results.push(match done {
            Err(error) => {
                assert!(is_untouched(&buffers), "changed by {error}");
                Err(error)
            }
            Ok(_) => {
                let is_filled = |bytes: &Vec<u8>| bytes.iter().all(|byte| *byte == 1);
                let filled = buffers.into_iter().filter(|(.., bytes)| is_filled(bytes));
                Ok(filled.map(|(name, ..)| name).collect())
            }
        });
    }
    assert_eq!(results[0], results[1]);
    results.remove(0)
}

fn lenient() -> LoadRules {
    LoadRules { strict: false, ..LoadRules::default() }
}

/// Refused, with every offender in the text; whether the lenient rule permits it is `is_permitted`.
fn refuse(what: &str, has: &Side, wants: &Side, offenders: &[&str], is_permitted: bool) {
    let memory = stored(has);
    let error = try_load(&memory, wants, &LoadRules::default())
        .expect_err(&format!("{what}: a strict load took it"));
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
    let text = error.to_string();
    for offender in offenders {
        assert!(text.contains(offender), "{what}: `{offender}` is not named: {text}");
    }
    match try_load(&memory, wants, &lenient()) {
        Ok(_) => assert!(is_permitted, "{what}: a lenient load took it"),
        Err(error) => {
            assert!(!is_permitted, "{what}: {error}");
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
        }
    }
}

#[test]
fn no_dtype_is_taken_for_another() {
    let mut pairs = 0;
    for has in Dtype::ALL {
        for wants in Dtype::ALL.into_iter().filter(|dtype| *dtype != has) {
            let (ours, theirs) = (side(&[("w", has, &[3, 4])]), side(&[("w", wants, &[3, 4])]));
            let offender = format!("w (wanted {}, found {})", spec(&theirs), spec(&ours));
            refuse(&format!("{has} as {wants}"), &ours, &theirs, &[&offender], false);
            pairs += 1;
        }
    }
    assert_eq!(pairs, 240);
    tier::figure("pairs of dtypes refused", pairs);
}

fn spec(side: &Side) -> TensorSpec {
    let (_, dtype, shape) = side.first().unwrap();
    TensorSpec::new(*dtype, shape.clone()).unwrap()
}

/// Shapes that could be broadcast, reshaped or transposed into each other, stored and wanted, each
/// also the other way round.
const SHAPES: [(&[u64], &[u64]); 24] = [
    (&[], &[1]),
    (&[], &[1, 1]),
    (&[], &[4]),
    (&[], &[3, 4]),
    (&[1], &[4]),
    (&[1], &[1, 1]),
    (&[1], &[3, 4]),
    (&[4], &[3, 4]),
    (&[3], &[3, 4]),
    (&[1, 4], &[3, 4]),
    (&[3, 1], &[3, 4]),
    (&[1, 1], &[3, 4]),
    (&[4], &[1, 4]),
    (&[4], &[4, 1]),
    (&[1, 4], &[4, 1]),
    (&[3, 4], &[1, 3, 4]),
    (&[3, 4], &[3, 4, 1]),
    (&[3, 4], &[4, 3]),
    (&[3, 4], &[12]),
    (&[3, 4], &[2, 6]),
    (&[3, 4], &[3, 5]),
    (&[3, 4], &[4, 4]),
    (&[0], &[0, 4]),
    (&[4, 0], &[0, 4]),
];

#[test]
fn no_shape_is_broadcast_reshaped_or_cut() {
    let mut cases = 0;
    let both_ways = SHAPES.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]);
    // Nothing at all is not one element either.
    for (has, wants) in both_ways.chain([(&[0][..], &[][..]), (&[], &[0]), (&[0], &[1])]) {
        let ours = side(&[("w", Dtype::F32, has), ("fits", Dtype::F32, &[2])]);
        let theirs = side(&[("w", Dtype::F32, wants), ("fits", Dtype::F32, &[2])]);
        let offender = format!("w (wanted {}, found {})", spec(&theirs), spec(&ours));
        refuse(&format!("{has:?} as {wants:?}"), &ours, &theirs, &[&offender], false);
        cases += 1;
    }
    tier::figure("pairs of shapes refused", cases);
}

/// What it is, the names that are stored, those that are wanted, and what the error says.
type Names =
    (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

#[test]
fn names_on_one_side_only_are_refused_and_ignored_when_asked() {
    let cases: [Names; 17] = [
        ("missing", &["a"], &["a", "b"], &["1 missing in the checkpoint: b"]),
        ("unexpected", &["a", "b"], &["a"], &["1 unexpected in the checkpoint: b"]),
        ("renamed", &["a", "old"], &["a", "new"], &["missing in the checkpoint: new", ": old"]),
        ("of another case", &["A"], &["a"], &[": a", ": A"]),
        ("wrapped", &["module.a"], &["a"], &["missing in the checkpoint: a", ": module.a"]),
        ("unwrapped", &["a"], &["module.a"], &["missing in the checkpoint: module.a", ": a"]),
        ("longer", &["a.weight2"], &["a.weight"], &[": a.weight", ": a.weight2"]),
        ("with another separator", &["a/w"], &["a.w"], &[": a.w", ": a/w"]),
        ("an index that is off by one", &["l.0", "l.1"], &["l.1", "l.2"], &[": l.2", ": l.0"]),
        ("no destination", &["a", "b"], &[], &["2 unexpected in the checkpoint: a, b"]),
        ("an empty checkpoint", &[], &["a", "b"], &["2 missing in the checkpoint: a, b"]),
        (
            "no optimizer",
            &["a"],
            &["a", "optimizer.a.m", "optimizer.a.v"],
            &["2 missing in the checkpoint: optimizer.a.m, optimizer.a.v"],
        ),
        ("an optimizer too many", &["a", "optimizer.a.m"], &["a"], &[": optimizer.a.m"]),
        ("averages too many", &["a", "ema.a"], &["a"], &[": ema.a"]),
        (
            "an optimizer of other parameters",
            &["a", "optimizer.b.m"],
            &["a", "optimizer.a.m"],
            &[
                "missing in the checkpoint: optimizer.a.m",
                "unexpected in the checkpoint: optimizer.b.m",
            ],
        ),
        (
            "another optimizer",
            &["a", "optimizer.a.momentum"],
            &["a", "optimizer.a.exp_avg"],
            &[": optimizer.a.exp_avg", ": optimizer.a.momentum"],
        ),
        (
            "a component of another name",
            &["a", "ema.a"],
            &["a", "average.a"],
            &["missing in the checkpoint: average.a", "unexpected in the checkpoint: ema.a"],
        ),
    ];
    for (what, has, wants, offenders) in cases {
        refuse(what, &names(has), &names(wants), offenders, true);
        let common: Vec<&str> = wants.iter().filter(|name| has.contains(name)).copied().collect();
        let filled = try_load(&stored(&names(has)), &names(wants), &lenient()).unwrap();
        assert_eq!(filled, common, "{what}");
    }
}

/// However many, of every sort, in one error.
#[test]
fn every_offender_is_listed_at_once() {
    let has = side(&[
        ("broadcast", Dtype::F32, &[1, 4]),
        ("retyped", Dtype::BF16, &[4]),
        ("transposed", Dtype::F32, &[3, 4]),
        ("fits", Dtype::F32, &[2]),
        ("extra.1", Dtype::F32, &[2]),
        ("extra.2", Dtype::F32, &[2]),
    ]);
    let wants = side(&[
        ("broadcast", Dtype::F32, &[3, 4]),
        ("retyped", Dtype::F16, &[4]),
        ("transposed", Dtype::F32, &[4, 3]),
        ("fits", Dtype::F32, &[2]),
        ("absent.1", Dtype::F32, &[2]),
        ("absent.2", Dtype::F32, &[2]),
    ]);
    let offenders = [
        "3 of another dtype or shape: broadcast",
        "retyped (wanted",
        "transposed (wanted",
        "2 missing in the checkpoint: absent.1, absent.2",
        "2 unexpected in the checkpoint: extra.1, extra.2",
    ];
    refuse("everything", &has, &wants, &offenders, false);
}

/// One rank whose model differs keeps every rank from changing anything.
#[test]
fn one_rank_that_differs_is_every_ranks_error() {
    let has = side(&[("w", Dtype::F32, &[1, 4]), ("b", Dtype::F32, &[4])]);
    let others: [Side; 4] = [
        side(&[("w", Dtype::F32, &[3, 4]), ("b", Dtype::F32, &[4])]),
        side(&[("w", Dtype::I32, &[1, 4]), ("b", Dtype::F32, &[4])]),
        side(&[("w", Dtype::F32, &[4]), ("b", Dtype::F32, &[4])]),
        side(&[("w", Dtype::F32, &[1, 4]), ("b", Dtype::F32, &[4]), ("c", Dtype::F32, &[4])]),
    ];
    let memory = stored(&has);
    for (ranks, other) in [2, 4].into_iter().flat_map(|n| others.iter().map(move |o| (n, o))) {
        for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
            let (memory, has, other) = (memory.clone(), has.clone(), other.clone());
            let results = on_ranks(ranks, move |group| {
                let odd = group.rank().get() + 1 == group.world_size().get();
                let mut buffers = filled(if odd { &other } else { &has });
                let (wanted, rules) = (wanted("runs/a"), LoadRules::default());
                let mut destination = targets(&mut buffers);
                let done = load(&group, &memory, &wanted, &mut destination, &rules, atomicity);
                drop(destination);
                assert!(is_untouched(&buffers));
                done.map(drop)
            });
            let error = one_error(&results, "one differs");
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
            assert_eq!(error.rank().map(|rank| rank.get()), Some(ranks - 1), "{error}");
        }
    }
}

/// Leaving a component out permits its names, and nothing of the others.
#[test]
fn a_component_that_is_left_out_permits_its_names_alone() {
    let has = names(&["a", "b", "optimizer.a.m", "ema.a"]);
    let rules = |components: &[Component]| LoadRules {
        components: Some(components.to_vec()),
        ..LoadRules::default()
    };
    let memory = stored(&has);
    let model = rules(&[Component::model()]);
    assert_eq!(try_load(&memory, &names(&["a", "b"]), &model).unwrap(), ["a", "b"]);
    let error = try_load(&memory, &names(&["a"]), &model).unwrap_err();
    assert!(error.to_string().contains("unexpected in the checkpoint: b"), "{error}");
    let error = try_load(&memory, &names(&["a", "b", "c"]), &model).unwrap_err();
    assert!(error.to_string().contains("missing in the checkpoint: c"), "{error}");
    let both = rules(&[Component::model(), Component::ema()]);
    let error = try_load(&memory, &names(&["a", "b"]), &both).unwrap_err();
    assert!(error.to_string().contains("unexpected in the checkpoint: ema.a"), "{error}");
}

/// A rule that renames permits other names, but no other dtype or shape.
#[test]
fn renaming_permits_other_names_alone() {
    let memory = stored(&names(&["module.a", "module.b"]));
    let rename = vec![Rename::new("module.*", "*")];
    let selection = Selection::new(SelectionRules { rename, ..SelectionRules::default() }).unwrap();
    let options = PartialOptions { strict: true, ..PartialOptions::default() };
    let partial = |wants: &Side| {
        let mut buffers = filled(wants);
        let solo = ProcessGroup::solo();
        let mut destination = targets(&mut buffers);
        let at = wanted("runs/a");
        let done = load_partial(&solo, &memory, &at, &mut destination, &selection, &options);
        drop(destination);
        assert!(done.is_ok() || is_untouched(&buffers));
        done.map(|done| done.report.filled.len())
    };
    assert_eq!(partial(&names(&["a", "b"])).unwrap(), 2);
    for wants in [
        names(&["a", "b", "c"]),
        side(&[("a", Dtype::F32, &[4, 3])]),
        side(&[("a", Dtype::F32, &[12])]),
        side(&[("a", Dtype::I32, &[3, 4])]),
    ] {
        let error = partial(&wants).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    }
}

#[test]
fn a_box_outside_its_tensor_is_no_destination() {
    let spec = TensorSpec::new(Dtype::F32, vec![3, 4]).unwrap();
    let boxes: [(&[u64], &[u64]); 6] = [
        (&[1, 0], &[3, 4]),
        (&[0, 1], &[3, 4]),
        (&[3, 0], &[1, 4]),
        (&[0], &[3]),
        (&[0, 0, 0], &[3, 4, 1]),
        (&[u64::MAX, 0], &[1, 4]),
    ];
    let mut refused = 0;
    for (offsets, lengths) in boxes {
        // Where the numbers alone are impossible there is no box at all.
        let Ok(slice) = Slice::new(offsets.to_vec(), lengths.to_vec()) else { continue };
        let mut buffer = [0; 48];
        let mut targets = LoadTargets::new();
        let added = targets.add_slice(name("w"), spec.clone(), slice, Box::new(&mut buffer[..]));
        assert_eq!(added.unwrap_err().kind(), ErrorKind::InvalidInput, "{offsets:?} {lengths:?}");
        refused += 1;
    }
    assert!(refused >= 5, "{refused}");
}
