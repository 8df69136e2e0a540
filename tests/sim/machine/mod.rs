//! One thread that runs all ranks of a job, one at a time, and decides by chance what happens next.
//!
//! A rank is a coroutine. It runs until it touches the storage, sends, or waits; then anything may
//! come first: another rank, something that arrives, or a fault. A rank that is killed runs on to
//! its end as a ghost, so that its memory is freed: it touches nothing, is heard by nobody, and
//! waits for nothing.

pub mod faults;
mod run;
pub mod trace;
pub mod traffic;
mod wires;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use corosensei::{Coroutine, Yielder};
use rustix::io::Errno;
use tch_checkpoint::simulation::{Network, Node, Parcel, World};

use crate::disk::Shared;
use crate::rng::Rng;
use faults::{Failing, Fault, Plan};
use trace::Trace;
use traffic::{Cost, Traffic};
use wires::{Arrival, Wires};

thread_local! {
    static MACHINE: RefCell<Option<Rc<Machine>>> = const { RefCell::new(None) };
}

/// How an operation on the storage ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Does,
    Fails(Errno),
    DoesAndFails(Errno),
    /// The caller is dead: nothing happens.
    Dead,
}

/// What a rank does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready,
    /// Ready at that time, or, if it waits, when something arrives.
    Until(Duration, IsWaiting),
    Done,
}

type IsWaiting = bool;

struct Slot {
    /// Present while the process lives.
    node: Option<Node>,
    process: u64,
    coroutine: Option<Coroutine<(), (), ()>>,
    yielder: *const Yielder<(), ()>,
    status: Status,
    stopped_until: Duration,
    depth: u32,
    is_dead: bool,
    failing: Option<(Failing, bool)>,
}

/// How time passes in one life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// One operation in so many takes long; 0 for none.
    pub slow_operations: u64,
    /// One message in so many takes long; 0 for none.
    pub slow_messages: u64,
}

/// What was done, for the figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    pub operations: u64,
    pub messages: u64,
    pub faults: u64,
    pub cuts: u64,
    pub lives: u64,
}

impl Stats {
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.messages += other.messages;
        self.faults += other.faults;
        self.cuts += other.cuts;
        self.lives += other.lives;
    }
}

struct State {
    rng: Rng,
    trace: Trace,
    now: Duration,
    tick: Duration,
    next_tick: Duration,
    slots: Vec<Slot>,
    wires: Wires,
    current: Option<usize>,
    plan: Plan,
    pace: Pace,
    /// Operations and messages of this life.
    number: u64,
    processes: u64,
    has_power: bool,
    panicked: bool,
    stats: Stats,
    traffic: Traffic,
}

/// A machine (or several that share a disk) on which jobs run.
pub struct Machine {
    disk: Shared,
    state: RefCell<State>,
}

impl Machine {
    pub fn new(disk: Shared, seed: u64, is_shown: bool) -> Rc<Self> {
        let state = State {
            rng: Rng::new(seed),
            trace: Trace::new(is_shown),
            now: Duration::ZERO,
            tick: Duration::ZERO,
            next_tick: Duration::ZERO,
            slots: Vec::new(),
            wires: Wires::default(),
            current: None,
            plan: Plan::none(),
            pace: Pace::default(),
            number: 0,
            processes: 0,
            has_power: true,
            panicked: false,
            stats: Stats::default(),
            traffic: Traffic::default(),
        };
        Rc::new(Self { disk, state: RefCell::new(state) })
    }

    /// Draws from the machine's chance.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.state.borrow_mut().rng)
    }

    pub fn note(&self, what: &'static str, detail: &str) {
        let mut state = self.state.borrow_mut();
        let (now, current) = (state.now, state.current);
        state.trace.note(now, current, what, detail);
    }

    /// Whether the rank that runs is dead: whatever it finds, nobody hears of it.
    pub fn is_dead(&self) -> bool {
        let state = self.state.borrow();
        state.current.is_some_and(|rank| state.slots[rank].is_dead)
    }

    pub fn hash(&self) -> u64 {
        self.state.borrow().trace.hash()
    }

    /// What the rank that runs sends from now on is about this.
    pub fn begins(&self, what: &'static str) {
        let mut state = self.state.borrow_mut();
        let rank = state.current.unwrap_or_default();
        state.traffic.begins(rank, what);
    }

    /// What was sent, and what it took the coordinator, by what it was about and by phase.
    pub fn costs(&self) -> Vec<((&'static str, String), Cost)> {
        let state = self.state.borrow();
        state.traffic.costs().map(|(key, cost)| (key.clone(), *cost)).collect()
    }

    pub fn stats(&self) -> Stats {
        self.state.borrow().stats
    }

    /// One operation of the rank that runs; others may run first. Whoever only looks at the disk
    /// from outside is never disturbed.
    fn operation(&self, what: &'static str, path: &Path, name: &str) -> Turn {
        let Some(rank) = self.state.borrow().current else { return Turn::Does };
        self.begin_turn(rank);
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[rank];
        if slot.is_dead {
            return Turn::Dead;
        }
        let failing = slot.failing;
        if failing.is_some_and(|(_, persistent)| !persistent) {
            slot.failing = None;
        }
        let turn = match failing.map(|(how, _)| how) {
            None => Turn::Does,
            Some(how) if how.errno == Errno::NOSPC && !needs_space(what) => Turn::Does,
            Some(Failing { errno, is_done: true, .. }) => Turn::DoesAndFails(errno),
            Some(Failing { errno, is_done: false, .. }) => Turn::Fails(errno),
        };
        state.stats.operations += 1;
        let now = state.now;
        let path = path.to_str().unwrap_or_default();
        state.trace.operation(now, rank, what, path, name, turn);
        drop(state);
        let panics = failing.is_some_and(|(how, _)| how.panics) && turn != Turn::Does;
        assert!(!panics, "{}", faults::PANIC);
        turn
    }

    /// Lets faults, and other ranks, come before what `rank` is about to do.
    fn begin_turn(&self, rank: usize) {
        let mut state = self.state.borrow_mut();
        if state.slots[rank].is_dead {
            return;
        }
        state.number += 1;
        let number = state.number;
        while let Some(fault) = state.plan.due(number) {
            state.strike(fault, &self.disk);
        }
        let takes = state.operation_takes();
        let at = state.now + takes;
        let slot = &mut state.slots[rank];
        if slot.is_dead || std::thread::panicking() {
            return;
        }
        slot.status = Status::Until(at, false);
        drop(state);
        self.suspend(rank);
    }

    /// Gives the thread back to the scheduler until this rank's turn comes.
    fn suspend(&self, rank: usize) {
        let yielder = self.state.borrow().slots[rank].yielder;
        // SAFETY: set by the coroutine of this rank when it began, from a reference that lasts as
        // long as it runs; and it is what runs now.
        #[allow(unsafe_code)]
        unsafe { &*yielder }.suspend(());
    }

    fn wait(&self, until: Duration, is_waiting: bool) {
        let mut state = self.state.borrow_mut();
        let Some(rank) = state.current else {
            state.now = state.now.max(until);
            return;
        };
        let slot = &mut state.slots[rank];
        if slot.is_dead || std::thread::panicking() {
            return;
        }
        slot.status = Status::Until(until, is_waiting);
        drop(state);
        self.suspend(rank);
    }

    fn send(&self, parcel: Parcel) {
        let (from, to) = (parcel.from().index(), parcel.to().index());
        if self.state.borrow().current == Some(from) {
            self.begin_turn(from);
        }
        let mut state = self.state.borrow_mut();
        if state.slots.get(from).is_none_or(|slot| slot.is_dead) {
            return;
        }
        state.stats.messages += 1;
        state.traffic.sent(&parcel);
        let now = state.now;
        state.trace.parcel(now, from, to, "send", &parcel);
        let delay = state.message_takes();
        state.wires.send(from, to, Arrival::Parcel(parcel), now, delay);
    }
}

/// Whether an operation fails on a full disk.
fn needs_space(what: &str) -> bool {
    matches!(what, "create_dir" | "mkdir" | "create_file" | "write_at" | "fsync" | "create_link")
}

impl State {
    fn operation_takes(&mut self) -> Duration {
        let one_in = self.pace.slow_operations;
        if one_in > 0 && self.rng.one_in(one_in) {
            return faults::DEADLINE * self.rng.below(60) as u32 / 20;
        }
        Duration::from_micros(self.rng.below(100))
    }

    fn message_takes(&mut self) -> Duration {
        let one_in = self.pace.slow_messages;
        if one_in > 0 && self.rng.one_in(one_in) {
            return faults::DEADLINE * self.rng.below(40) as u32 / 20;
        }
        Duration::from_micros(self.rng.below(300))
    }

    fn strike(&mut self, fault: Fault, disk: &Shared) {
        let (now, current) = (self.now, self.current);
        self.stats.faults += 1;
        self.trace.fault(now, current, &fault);
        match fault {
            Fault::PowerCut => {
                self.has_power = false;
                (0..self.slots.len()).for_each(|rank| self.kill(rank, disk));
            }
            Fault::KillAll => (0..self.slots.len()).for_each(|rank| self.kill(rank, disk)),
            Fault::Kill(rank) => self.kill(rank, disk),
            Fault::Stop(rank, time) => self.slots[rank].stopped_until = now + time,
            Fault::Partition(rank, noticed) => {
                self.wires.cut(rank, 0, now, noticed);
                self.wires.cut(0, rank, now, noticed);
            }
            Fault::Storage { rank, how, persistent } => {
                let all = 0..self.slots.len();
                for rank in rank.map_or(all, |rank| rank..rank + 1) {
                    self.slots[rank].failing = Some((how, persistent));
                }
            }
        }
    }

    fn kill(&mut self, rank: usize, disk: &Shared) {
        let (now, ranks) = (self.now, self.slots.len());
        let slot = &mut self.slots[rank];
        if slot.is_dead || slot.status == Status::Done {
            return;
        }
        slot.is_dead = true;
        slot.stopped_until = Duration::ZERO;
        if let Some(node) = &slot.node {
            node.end_waits();
        }
        disk.lock().release_locks_of(slot.process);
        self.wires.close_all(rank, ranks, now, &mut self.rng);
    }
}

/// The machine of this thread as time, chance and network.
struct Here(Rc<Machine>);

impl World for Here {
    fn now(&self) -> Duration {
        self.0.state.borrow().now
    }

    fn wait_until(&self, time: Duration) {
        self.0.wait(time, true);
    }

    fn sleep_until(&self, time: Duration) {
        self.0.wait(time, false);
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.0.draw(|rng| rng.fill(bytes));
    }
}

/// The network of the machine of this thread.
struct Air;

impl Network for Air {
    fn send(&self, parcel: Parcel) {
        if let Some(machine) = here() {
            machine.send(parcel);
        }
    }
}

fn here() -> Option<Rc<Machine>> {
    MACHINE.with_borrow(Clone::clone)
}

/// An operation of whoever runs on this thread.
pub fn operation(what: &'static str, path: &Path, name: &str) -> Turn {
    here().map_or(Turn::Does, |machine| machine.operation(what, path, name))
}

/// Number of the process that runs on this thread; 0 outside of a job.
pub fn process() -> u64 {
    let of = |machine: Rc<Machine>| {
        let state = machine.state.borrow();
        state.current.map_or(0, |rank| state.slots[rank].process)
    };
    here().map_or(0, of)
}

/// Draws from the chance of the machine of this thread.
pub fn with_rng(draw: impl FnOnce(&mut Rng)) {
    if let Some(machine) = here() {
        machine.draw(draw);
    }
}
