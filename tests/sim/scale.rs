//! What many ranks cost on the control plane: messages, bytes and the coordinator's time of each
//! phase of a save with a first plan, of one with the plan of before, and of a load. All ranks run
//! the real code, as coroutines of one thread; the disk takes no time.

use std::rc::Rc;
use std::sync::Arc;

use tch_checkpoint::OnExisting;
use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};

use crate::disk::{Disk, Lie, SimStorage};
use crate::machine::faults::Plan;
use crate::machine::{Machine, Pace, traffic::Cost};
use crate::tier;

/// Tensors of the model, of each of which every rank has a part.
const TENSORS: u64 = 100;
/// Tensors of the model that is ten times as large.
const MANY: u64 = 1000;
const DIRECTORY: &str = "/runs";

fn slices(group: &ProcessGroup, tensors: u64) -> Vec<(TensorName, TensorSpec, Slice)> {
    let (rank, ranks) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let slice = |index| {
        let name = TensorName::new(format!("layers.{index:04}.weight")).unwrap();
        let spec = TensorSpec::new(Dtype::U8, vec![ranks]).unwrap();
        (name, spec, Slice::new(vec![rank], vec![1]).unwrap())
    };
    (0..tensors).map(slice).collect()
}

fn save_once(group: &ProcessGroup, storage: &dyn Storage, tensors: u64, step: u64) {
    let mut state = StateDict::new();
    for (name, spec, slice) in slices(group, tensors) {
        let source = Arc::new(vec![step as u8; 1]);
        state.add_slice(&Component::model(), name, spec, slice, source).unwrap();
    }
    let name = CheckpointName::new(&format!("s{step}")).unwrap();
    let on_existing = OnExisting::Refuse;
    let options = SaveOptions { step, on_existing, ..SaveOptions::default() };
    save(group, storage, &CheckpointPath::new(DIRECTORY, name), &state, &options).unwrap();
}

fn load_once(group: &ProcessGroup, storage: &dyn Storage, tensors: u64) {
    let slices = slices(group, tensors);
    let mut buffers = vec![0u8; slices.len()];
    let mut targets = LoadTargets::new();
    for ((name, spec, slice), buffer) in slices.into_iter().zip(buffers.chunks_mut(1)) {
        targets.add_slice(name, spec, slice, Box::new(buffer)).unwrap();
    }
    let (wanted, rules) = (Wanted::latest(DIRECTORY), LoadRules::default());
    load(group, storage, &wanted, &mut targets, &rules, Atomicity::Atomic).unwrap();
    drop(targets);
    assert!(buffers.iter().all(|byte| *byte == 1));
}

/// One job of so many ranks; what its phases cost.
fn run(ranks: usize, tensors: u64) -> Vec<((&'static str, String), Cost)> {
    let disk = Disk::new(true, Lie::None);
    let storage: Arc<dyn Storage> = Arc::new(SimStorage(disk.clone()));
    let machine = Machine::new(disk, 1, false);
    let seen = machine.clone();
    let body = move |group: ProcessGroup| {
        for (what, step) in [("save, first plan", 0), ("save, same plan", 1)] {
            seen.begins(what);
            save_once(&group, storage.as_ref(), tensors, step);
        }
        seen.begins("load");
        load_once(&group, storage.as_ref(), tensors);
        seen.begins("leave");
        group.finish().unwrap();
    };
    let ended = machine.live(ranks, Plan::none(), Pace::default(), &(Rc::new(body) as Rc<_>));
    assert!(!ended.hung && !ended.panicked);
    machine.costs()
}

fn of<'a>(costs: &'a [((&str, String), Cost)], what: &str, phase: &str) -> &'a Cost {
    let is_it = |((of, name), _): &&((&str, String), Cost)| *of == what && name == phase;
    &costs.iter().find(is_it).unwrap_or_else(|| panic!("no {what}, {phase}: {costs:?}")).1
}

/// One vote and one answer per rank and phase, whatever happens between; what a plan that was told
/// once takes does not grow with the model.
#[test]
fn every_phase_takes_two_messages_a_rank_and_a_plan_is_told_once() {
    let ranks = tier::count(64, 256) as usize;
    let (few, many) = (run(ranks, TENSORS), run(ranks, MANY));
    let others = ranks as u64 - 1;
    for ((what, phase), cost) in few.iter().filter(|((_, phase), _)| !phase.is_empty()) {
        assert_eq!((cost.votes.0, cost.answers.0), (others, others), "{what}, {phase}");
    }
    let same = |costs| *of(costs, "save, same plan", "plan");
    assert_eq!(same(&few).votes.1, same(&many).votes.1);
    assert!(same(&few).answers.1.abs_diff(same(&many).answers.1) <= others);
    assert!(of(&few, "save, first plan", "plan").votes.1 > 10 * same(&few).votes.1);
}

/// Reports the costs per rank for the table in docs/protocol.md. Every rank holds the manifest, all
/// of them in this one process: the largest job has a smaller model.
#[test]
fn costs_of_many_ranks_are_reported() {
    let full = [(64, TENSORS), (256, TENSORS), (1024, TENSORS / 10)];
    let worlds = if tier::is_full() { &full[..] } else { &[(16, TENSORS)] };
    for (ranks, tensors) in worlds {
        for ((what, phase), cost) in run(*ranks, *tensors) {
            let each = |bytes: u64| bytes / (*ranks as u64 - 1);
            let text = format!(
                "votes {} B, answers {} B a rank; {:.1} us a rank",
                each(cost.votes.1),
                each(cost.answers.1),
                1e6 * cost.computed.as_secs_f64() / *ranks as f64
            );
            let name = format!("{ranks} ranks, {tensors} tensors, {what}, phase \"{phase}\"");
            tier::figure(&name, text);
        }
    }
}
