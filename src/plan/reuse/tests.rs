use super::*;
use crate::codec;
use crate::manifest::OtherFile;
use crate::plan::SaveTarget;
use crate::slice::Slice;
use crate::state::Values;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

fn name(text: &str) -> TensorName {
    TensorName::new(text).unwrap()
}

fn plan(tensors: usize) -> LocalPlan {
    let item = |i: usize| WriteItem {
        name: name(&format!("layers.{i}.weight")),
        component: Component::model(),
        spec: TensorSpec::new(Dtype::F32, [4, 2]).unwrap(),
        slice: Slice::new(vec![0, 0], vec![2, 2]).unwrap(),
    };
    let target = SaveTarget {
        directory: "runs".into(),
        name: "a".into(),
        step: 7,
        epoch: 0,
        ..SaveTarget::default()
    };
    LocalPlan {
        target,
        items: (0..tensors).map(item).collect(),
        aliases: vec![(name("tied"), name("layers.0.weight"))],
        values: Values::new(),
        rank_values: Values::new(),
        attached: vec![OtherFile { name: "code/model.rs".into(), len: 3, hash: [5; 16] }],
    }
}

/// Every field of a structure changes the hash; what is told each time does not.
#[test]
fn a_structure_is_all_that_a_plan_depends_on() {
    type Change = fn(&mut LocalPlan);
    let first = structure_of(&plan(3));
    let same: [Change; 5] = [
        |_| {},
        |p| p.target.step += 1,
        |p| p.target.name = "b".into(),
        |p| p.values.set("loss", 0.5),
        |p| p.rank_values.set("seed", 1i64),
    ];
    for change in same {
        let mut other = plan(3);
        change(&mut other);
        assert_eq!(structure_of(&other), first);
    }
    let unlike: [Change; 14] = [
        |p| drop(p.items.pop()),
        |p| p.items.reverse(),
        |p| p.items[1].name = name("layers.1.bias"),
        |p| p.items[1].component = Component::optimizer(),
        |p| p.items[1].spec = TensorSpec::new(Dtype::I32, [4, 2]).unwrap(),
        |p| p.items[1].spec = TensorSpec::new(Dtype::F32, [5, 2]).unwrap(),
        |p| p.items[1].slice = Slice::new(vec![1, 0], vec![2, 2]).unwrap(),
        |p| p.items[1].slice = Slice::new(vec![0, 0], vec![3, 2]).unwrap(),
        |p| p.aliases.clear(),
        |p| p.aliases[0].0 = name("other"),
        |p| p.aliases[0].1 = name("layers.1.weight"),
        |p| p.attached[0].name = "code/lib.rs".into(),
        |p| p.attached[0].len += 1,
        |p| p.attached[0].hash[15] ^= 1,
    ];
    let mut seen = vec![first];
    for change in unlike {
        let mut other = plan(3);
        change(&mut other);
        let structure = structure_of(&other);
        assert!(!seen.contains(&structure), "{other:?}");
        seen.push(structure);
    }
}

#[test]
fn a_vote_of_what_is_known_is_as_long_for_many_tensors_as_for_few() {
    let len = |vote: &PlanVote| codec::encode(vote).unwrap().len();
    let lens = [1, 10_000].map(|tensors| {
        let (short, whole) = PlanVote::whole(plan(tensors)).shortened(vec![[1; 32]; 4]);
        assert!(!short.is_whole() && whole.is_whole());
        assert_eq!((short.structure, &short.plan.target), (whole.structure, &whole.plan.target));
        (len(&short), len(&whole))
    });
    assert_eq!(lens[0].0, lens[1].0);
    assert!(lens[0].0 < 512 && lens[1].1 > 1_000_000, "{lens:?}");
}

#[test]
fn the_structures_of_ranks_make_that_of_the_job_in_their_order() {
    let votes = [plan(1), plan(2)].map(PlanVote::whole);
    let swapped = [plan(2), plan(1)].map(PlanVote::whole);
    assert_eq!(job_of(&votes), job_of(&votes.clone()));
    assert_ne!(job_of(&votes), job_of(&swapped));
    assert_ne!(job_of(&votes), job_of(&votes[..1]));
}

#[test]
fn the_longest_unused_is_forgotten() {
    let mut cache = PlanCache::default();
    let empty = SavePlan { save_id: SaveId::from_bytes([1; 16]), files: vec![], sums_file: None };
    for job in 0..4 {
        cache.keep_own([job; 32], [9; 32], &empty);
    }
    cache.keep_own([0; 32], [9; 32], &empty);
    cache.keep_own([4; 32], [8; 32], &empty);
    let jobs: Vec<u8> = cache.known(&[9; 32]).iter().map(|(job, _)| job[0]).collect();
    assert_eq!(jobs, [2, 3, 0]);
    assert_eq!(cache.known(&[8; 32]).len(), 1);
    assert!(cache.known(&[7; 32]).is_empty());
}
