//! A save of a checkpointer with all that follows it: links that move, checkpoints that go.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog;
use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig};
use tch_checkpoint::storage::{Directory, MemoryStorage, Storage};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

use super::matrix::{After, Scenario, able, poor};
use crate::checkpointer::toy::{Toy, at, config};
use crate::harness::*;

const PLACE: &str = "/runs/run";

/// The newest and the best stay. After step 3 these are 3 and 2; step 4 is both.
fn rules() -> CheckpointerConfig {
    CheckpointerConfig {
        keep_last: Some(1),
        monitor: Some("loss".to_owned()),
        ..config(Path::new("/runs"))
    }
}

const LOSSES: [f64; 5] = [1.0, 0.9, 1.0, 0.5, 0.4];

fn save_step(checkpointer: &mut Checkpointer, toy: &mut Toy, step: u64) -> Result<()> {
    let at = at(step).metric("loss", LOSSES[step as usize - 1]);
    toy.with(|parts| checkpointer.save(&at, parts)).map(drop)
}

fn keep(group: &ProcessGroup, storage: &Arc<dyn Storage>, arm: &dyn Fn()) -> Result<()> {
    let mut checkpointer = Checkpointer::with_storage(group, storage.clone(), rules()).unwrap();
    let mut toy = Toy::new();
    for step in 1..=3 {
        save_step(&mut checkpointer, &mut toy, step).unwrap();
    }
    arm();
    save_step(&mut checkpointer, &mut toy, 4)
}

fn name_of(step: u64) -> String {
    format!("checkpoint_step_{step:08}")
}

fn place(memory: &MemoryStorage) -> Arc<dyn Directory> {
    memory.open_dir(Path::new(PLACE)).unwrap()
}

/// The steps of what is visible, each of which is whole.
fn visible(memory: &MemoryStorage) -> Vec<u64> {
    let mut steps = Vec::new();
    catalog::visit(place(memory).as_ref(), &mut |name, found| {
        steps.push(found.unwrap().manifest.step());
        assert_good(memory, &format!("{PLACE}/{name}"));
    })
    .unwrap();
    steps.sort_unstable();
    steps
}

/// The link and its file name something that is there; what the link names.
fn led_to(memory: &MemoryStorage, link: &str, what: &str) -> String {
    let text = place(memory).read_link(link).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(entries(memory, PLACE).contains(&text), "{what}: {link} leads to {text}");
    let json = memory.read(&Path::new(PLACE).join(format!("{link}.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let named = json["name"].as_str().unwrap().to_owned();
    assert!(entries(memory, PLACE).contains(&named), "{what}: {link}.json names {named}");
    text
}

fn check(after: &After<'_>) {
    let (memory, what) = (after.memory, after.what);
    let steps = visible(memory);
    let is_there = steps.contains(&4);
    match after.verdict.map(tch_checkpoint::Error::kind) {
        None | Some(ErrorKind::DurabilityUncertain) => assert!(is_there, "{what}: {steps:?}"),
        Some(ErrorKind::OutcomeUnknown) => {}
        Some(_) => assert!(!is_there, "{what}: {steps:?}"),
    }
    if after.verdict.is_some() {
        assert!(steps.starts_with(&[2, 3]), "{what}: an older one is gone: {steps:?}");
    }
    for link in ["latest", "best"] {
        led_to(memory, link, what);
    }
    check_next(after);
}

/// Resumed without faults, the run goes on and leaves nothing behind.
fn check_next(after: &After<'_>) {
    let (storage, what) = (after.memory.clone(), after.what);
    let resumed = on_ranks(after.ranks, move |group| {
        let storage = Arc::new(storage.clone());
        let mut checkpointer = Checkpointer::with_storage(&group, storage, rules())?;
        let mut toy = Toy::new();
        let resumed = toy.with(|parts| checkpointer.resume(parts))?.unwrap();
        save_step(&mut checkpointer, &mut toy, 5)?;
        Ok::<_, tch_checkpoint::Error>(resumed.state.step)
    });
    let resumed: Vec<u64> =
        resumed.into_iter().map(|r| r.unwrap_or_else(|e| panic!("{what}: {e}"))).collect();
    assert!(resumed.iter().all(|step| *step == resumed[0]), "{what}: {resumed:?}");
    let mut left: Vec<String> =
        ["best", "best.json", "latest", "latest.json"].map(Into::into).into();
    left.extend([name_of(resumed[0]), name_of(5)]);
    left.sort();
    assert_eq!(entries(after.memory, PLACE), left, "{what}");
    for link in ["latest", "best"] {
        assert_eq!(led_to(after.memory, link, what), name_of(5), "{what}");
    }
}

pub const KEEP: Scenario = Scenario {
    name: "save, links and retention",
    storage: able,
    before: |_, _| (),
    act: keep,
    check,
};

const KEEP_POOR: Scenario =
    Scenario { name: "save, links and retention without locks", storage: poor, ..KEEP };

#[test]
fn every_error_of_a_save_with_links_and_retention() {
    KEEP.fails_at_each_operation();
}

#[test]
fn every_error_of_a_save_with_links_and_retention_on_a_poor_storage() {
    KEEP_POOR.fails_at_each_operation();
}
