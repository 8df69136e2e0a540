//! What has changed, however little, is written.

use std::sync::Arc;

use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::LocalStorage;

use super::{Held, Job, bytes_of};
use crate::harness::{content, name, on_ranks, path};

/// Saves as it is and as `change` makes it, on two ranks; whether the trunk was linked.
fn links_after(change: impl Fn(&mut Job) + Send + Sync + 'static) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let linked = on_ranks(2, move |group| {
        let mut job = Job::usual();
        job.aliases.push(("trunk.tied", "trunk.0.bias"));
        job.save(&group, &root.join("a"));
        change(&mut job);
        let saved = job.save(&group, &root.join("b"));
        job.check(&group, &LocalStorage::new(), &root.join("b"));
        let of_others = bytes_of(&root.join("b"), "head") + bytes_of(&root.join("b"), "optimizer");
        saved.report.linked_bytes > of_others
    });
    linked.into_iter().all(|linked| linked)
}

#[test]
fn another_structure_is_written() {
    assert!(links_after(|_| ()), "nothing has changed");
    assert!(!links_after(|job| job.tensors.retain(|t| t.name != "trunk.1.weight")), "one less");
    let more = |job: &mut Job| {
        let more = Held { name: "trunk.2.weight".to_owned(), ..job.tensor("trunk.0.bias").clone() };
        job.tensors.push(more);
    };
    assert!(!links_after(more), "one more");
    assert!(!links_after(|job| job.tensor("trunk.1.weight").rows += 1), "another shape");
    assert!(!links_after(|job| job.aliases.clear()), "no second name");
    assert!(!links_after(|job| job.aliases[0].0 = "trunk.bound"), "another second name");
    assert!(!links_after(|job| job.aliases[0].1 = "trunk.1.weight"), "of another tensor");
    let renamed = |job: &mut Job| job.tensor("trunk.1.weight").name = "trunk.9.weight".to_owned();
    assert!(!links_after(renamed), "another name");
    let elsewhere = |job: &mut Job| job.tensor("trunk.1.weight").component = "head";
    assert!(!links_after(elsewhere), "in another component");
    let all = |job: &mut Job| {
        job.tensors.iter_mut().filter(|t| t.component == "trunk").for_each(|t| {
            t.component = "body";
        });
    };
    assert!(!links_after(all), "all in another component");
    assert!(!links_after(|job| job.tensor("trunk.0.bias").generation += 1), "other bytes");
}

/// The state of one rank whose trunk has other bits at `flipped`, counted in bytes of the tensor.
fn with_a_flipped_bit(group: &ProcessGroup, tensor: &str, flipped: usize) -> StateDict {
    let mut state = StateDict::new();
    for held in Job::usual().tensors {
        let slice = held.of(group);
        let mut bytes = content(&held.name, &held.spec(), &slice, held.generation);
        if held.name == tensor {
            bytes[flipped] ^= 0x10;
        }
        let component = super::Component::new(held.component).unwrap();
        state.add(&component, name(&held.name), held.spec(), Arc::new(bytes)).unwrap();
    }
    state
}

/// Every block of every piece is looked at: one bit anywhere is a change.
#[test]
fn one_bit_is_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        Job::usual().save(&group, &root.join("a"));
        let (first, last) = (700 * 400, 333 * 400);
        let spots = [
            ("trunk.0.weight", 0),
            ("trunk.0.weight", 20_000),
            ("trunk.0.weight", first / 2 + 17),
            ("trunk.0.weight", first - 1),
            ("trunk.0.bias", 399),
            ("trunk.1.weight", last - 1),
        ];
        for (number, (tensor, flipped)) in spots.into_iter().enumerate() {
            let at = root.join(format!("b{number}"));
            let (to, options) = (path(at.to_str().unwrap()), SaveOptions::default());
            let state = with_a_flipped_bit(&group, tensor, flipped);
            let saved = save(&group, &LocalStorage::new(), &to, &state, &options).unwrap();
            let others = bytes_of(&at, "head") + bytes_of(&at, "optimizer");
            assert_eq!(saved.report.linked_bytes, others, "{tensor} {flipped}");
        }
    });
}

/// Where replicas have drifted apart, the rank that judges a piece decides, as the rank that writes
/// it would: the audit is for finding that.
#[test]
fn a_rank_that_has_changed_alone_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let mut job = Job::usual();
        job.tensor("trunk.0.weight").is_sharded = true;
        job.save(&group, &root.join("a"));
        if group.rank().get() == 1 {
            job.tensor("trunk.0.weight").generation += 1;
        }
        let at = root.join("b");
        let saved = job.save(&group, &at);
        let others = bytes_of(&at, "head") + bytes_of(&at, "optimizer");
        assert_eq!(saved.report.linked_bytes, others);
    });
}
