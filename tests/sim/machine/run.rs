//! The scheduler: what runs next, and the beginning and end of a job.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use tch_checkpoint::group::{Deadlines, ProcessGroup};
use tch_checkpoint::simulation::{Network, Node, install, swap_depth};
use tch_checkpoint::{Rank, WorldSize};

use super::faults::{DEADLINE, FOR_EVER, Plan};
use super::wires::{Arrival, Wires};
use super::{Air, Here, MACHINE, Machine, Pace, Slot, State, Status};

/// Enough for an unoptimised build.
const STACK_BYTES: usize = 1 << 20;
/// No life of a job may take longer, whatever happens to it: all waits have deadlines.
const LIFE_MAX: Duration = Duration::from_secs(300);

thread_local! {
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// What each rank of a job runs.
pub type Body = Rc<dyn Fn(ProcessGroup)>;

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The power went, and with it what was not durable.
    pub was_cut: bool,
    /// Some rank was killed, or all.
    pub had_dead: bool,
    /// Ranks were still waiting when all deadlines were long over.
    pub hung: bool,
    /// A panic came out of the code of some rank.
    pub panicked: bool,
}

/// What can come next.
#[derive(Clone, Copy)]
enum Next {
    Rank(usize),
    Wire((usize, usize)),
}

impl Machine {
    /// Runs one job to its end, through the faults of `plan`.
    pub fn live(self: &Rc<Self>, ranks: usize, plan: Plan, pace: Pace, body: &Body) -> Ended {
        let _world = install(Rc::new(Here(self.clone())));
        MACHINE.set(Some(self.clone()));
        self.boot(ranks, plan, pace, body);
        let hung = !self.run();
        let ended = self.shut_down(hung);
        MACHINE.set(None);
        ended
    }

    fn boot(&self, ranks: usize, plan: Plan, pace: Pace, body: &Body) {
        let network: Arc<dyn Network> = Arc::new(Air);
        let deadlines = Deadlines { progress: DEADLINE, ..Deadlines::default() };
        let world = WorldSize::new(ranks as u32).expect("some ranks");
        let nodes = Node::job(world, &deadlines, &network);
        let mut state = self.state.borrow_mut();
        state.wires = Wires::default();
        (state.plan, state.pace, state.number) = (plan, pace, 0);
        state.has_power = true;
        state.stats.lives += 1;
        state.tick = nodes[0].tick();
        state.next_tick = state.now + state.tick;
        for node in nodes {
            state.processes += 1;
            let process = state.processes;
            let (rank, group) = (state.slots.len(), node.group().clone());
            state.slots.push(Slot {
                node: Some(node),
                process,
                coroutine: Some(coroutine(rank, group, body.clone())),
                yielder: std::ptr::null(),
                status: Status::Ready,
                stopped_until: Duration::ZERO,
                depth: 0,
                is_dead: false,
                failing: None,
            });
        }
    }

    /// Whether all ranks came to their end.
    fn run(&self) -> bool {
        let began = self.state.borrow().now;
        let (mut choices, mut hung) = (Vec::new(), false);
        loop {
            let mut state = self.state.borrow_mut();
            if state.slots.iter().all(|slot| slot.status == Status::Done) {
                return !hung;
            }
            if let Some(ghost) = state.slots.iter().position(Slot::is_ghost) {
                drop(state);
                self.resume(ghost);
                continue;
            }
            let is_over = state.now > began + LIFE_MAX;
            if is_over || state.slots.iter().all(Slot::is_lost) {
                hung |= is_over;
                let disk = &self.disk;
                (0..state.slots.len()).for_each(|rank| state.kill(rank, disk));
                continue;
            }
            state.choices(&mut choices);
            if choices.is_empty() {
                let Some(next) = state.next_moment() else { return false };
                state.now = state.now.max(next);
                let ticks = state.now >= state.next_tick;
                drop(state);
                if ticks {
                    self.tick();
                }
                continue;
            }
            let chosen = choices[state.rng.index(choices.len())];
            match chosen {
                Next::Wire(ends) => {
                    drop(state);
                    self.deliver(ends);
                }
                Next::Rank(rank) => {
                    drop(state);
                    self.resume(rank);
                }
            }
        }
    }

    /// What the threads that announce progress do.
    fn tick(&self) {
        let ranks = self.state.borrow().slots.len();
        for rank in 0..ranks {
            let mut state = self.state.borrow_mut();
            let now = state.now;
            let slot = &mut state.slots[rank];
            let can = slot.stopped_until <= now && !slot.is_dead;
            let Some(mut node) = slot.node.take_if(|_| can) else { continue };
            drop(state);
            node.beat();
            self.state.borrow_mut().slots[rank].node = Some(node);
        }
        let mut state = self.state.borrow_mut();
        state.next_tick = state.now + state.tick;
    }

    fn deliver(&self, ends: (usize, usize)) {
        let mut state = self.state.borrow_mut();
        let Some(arrival) = state.wires.take(ends) else { return };
        let now = state.now;
        let Some(node) = state.slots[ends.1].node.take() else { return };
        match arrival {
            Arrival::Parcel(parcel) => {
                state.trace.parcel(now, ends.0, ends.1, "arrives", &parcel);
                drop(state);
                parcel.deliver();
            }
            Arrival::Lost(peer) => {
                state.trace.note(now, Some(ends.1), "loses", "");
                drop(state);
                node.lose(Rank::new(peer as u32));
            }
        }
        let slot = &mut self.state.borrow_mut().slots[ends.1];
        slot.node = Some(node);
        if let Status::Until(_, true) = slot.status {
            slot.status = Status::Ready;
        }
    }

    fn resume(&self, rank: usize) {
        let mut state = self.state.borrow_mut();
        state.current = Some(rank);
        let slot = &mut state.slots[rank];
        slot.status = Status::Ready;
        let depth = slot.depth;
        let mut coroutine = slot.coroutine.take().expect("a rank that is not done");
        drop(state);
        let outside = swap_depth(depth);
        let began = Instant::now();
        let result = coroutine.resume(());
        let depth = swap_depth(outside);
        let mut state = self.state.borrow_mut();
        state.current = None;
        state.traffic.computed(rank, began.elapsed());
        let slot = &mut state.slots[rank];
        slot.depth = depth;
        match result {
            CoroutineResult::Yield(()) => slot.coroutine = Some(coroutine),
            CoroutineResult::Return(()) => {
                slot.status = Status::Done;
                let (node, process) = (slot.node.take(), slot.process);
                drop(state);
                // The connections of a process that has ended close.
                drop(node);
                self.disk.lock().release_locks_of(process);
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
            }
        }
    }

    /// The power goes while no job runs.
    pub fn cut(&self) {
        let mut state = self.state.borrow_mut();
        state.stats.cuts += 1;
        self.disk.lock().cut(&mut state.rng);
    }

    fn shut_down(&self, hung: bool) -> Ended {
        let mut state = self.state.borrow_mut();
        let was_cut = !state.has_power;
        let had_dead = state.slots.iter().any(|slot| slot.is_dead);
        let slots = std::mem::take(&mut state.slots);
        state.wires = Wires::default();
        drop(state);
        if was_cut {
            self.cut();
        }
        drop(slots);
        let panicked = self.state.borrow().panicked;
        Ended { was_cut, had_dead, hung, panicked }
    }
}

impl Slot {
    /// Dead, and not at its end yet.
    fn is_ghost(&self) -> bool {
        self.is_dead && self.status != Status::Done
    }

    /// At its end, or stopped for ever.
    fn is_lost(&self) -> bool {
        self.status == Status::Done || self.stopped_until >= FOR_EVER
    }
}

impl State {
    fn choices(&self, choices: &mut Vec<Next>) {
        choices.clear();
        let is_ready = |slot: &Slot| match slot.status {
            Status::Ready => slot.stopped_until <= self.now,
            Status::Until(at, _) => at.max(slot.stopped_until) <= self.now,
            Status::Done => false,
        };
        let ranks = self.slots.iter().enumerate().filter(|(_, slot)| is_ready(slot));
        choices.extend(ranks.map(|(rank, _)| Next::Rank(rank)));
        choices.extend(self.wires.arrived(self.now).map(Next::Wire));
    }

    /// When something can happen next, if nothing can now.
    fn next_moment(&self) -> Option<Duration> {
        let ready_at = |slot: &Slot| match slot.status {
            Status::Ready => Some(slot.stopped_until),
            Status::Until(at, _) => Some(at.max(slot.stopped_until)),
            Status::Done => None,
        };
        let moments = self.slots.iter().filter_map(ready_at).chain(self.wires.next());
        let next = moments.min()?;
        Some(if self.slots.len() > 1 { next.min(self.next_tick) } else { next })
    }
}

fn coroutine(rank: usize, group: ProcessGroup, body: Body) -> Coroutine<(), (), ()> {
    let stack = STACKS.with_borrow_mut(Vec::pop);
    let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory"));
    Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
        if let Some(machine) = super::here() {
            machine.state.borrow_mut().slots[rank].yielder = yielder;
        }
        let ended = catch_unwind(AssertUnwindSafe(|| body(group)));
        if ended.is_err()
            && let Some(machine) = super::here()
        {
            machine.state.borrow_mut().panicked = true;
        }
        drop(body);
    })
}
