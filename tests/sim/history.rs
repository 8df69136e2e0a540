//! One seed: a job that saves until something happens to it, others that come after it, and a last
//! one that nothing happens to. After each, the disk is looked at.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tch_checkpoint::autosave::{KeepBest, Mode, Retention};
use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::simulation::AfterCommit;
use tch_checkpoint::storage::Storage;
use tch_checkpoint::{ErrorKind, OnExisting, ProcessGroup};

use crate::campaign::quiet_panics;
use crate::content::{self, Buffers, Sizes};
use crate::disk::{Disk, Lie, SimStorage};
use crate::machine::faults::{Fault, Plan};
use crate::machine::{Machine, Pace, Stats};
use crate::oracle::{Oracle, RUNS, Told, Violation};
use crate::rng::Rng;

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// Of everything that happened, in order.
    pub hash: u64,
    pub stats: Stats,
    pub violation: Option<Violation>,
}

/// How the jobs of a seed are set up.
#[derive(Debug, Clone)]
struct Setup {
    sizes: Sizes,
    keeps: Option<usize>,
    /// So many names are used in turn, and replaced.
    names: u64,
    /// Whether ranks say goodbye when they are done.
    is_polite: bool,
}

/// What the ranks of one job do.
#[derive(Debug, Clone)]
struct Job {
    ranks: usize,
    /// Whether it begins with a load of the newest checkpoint.
    loads: bool,
    steps: std::ops::Range<u64>,
}

struct History {
    machine: Rc<Machine>,
    storage: Arc<dyn Storage>,
    setup: Setup,
    oracle: Rc<RefCell<Oracle>>,
    /// What ranks found wrong while they ran.
    found: Rc<RefCell<Option<Violation>>>,
    next_step: u64,
}

/// Runs everything that follows from `seed`.
pub fn run(seed: u64, lie: Lie, is_shown: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut history = History::new(seed, lie, is_shown, &mut rng);
    let violation = history.lives(&mut rng).err();
    Outcome { hash: history.machine.hash(), stats: history.machine.stats(), violation }
}

/// A job of one rank that is killed in front of operation `number`, one that saves, and a power
/// cut. Then the disk is looked at.
///
/// # Errors
/// The first broken promise.
pub fn saved_after_a_kill(seed: u64, number: u64) -> Result<(), Violation> {
    let mut history = History::new(seed, Lie::None, false, &mut Rng::new(seed));
    for plan in [Plan::one(number, Fault::KillAll), Plan::none()] {
        let step = history.next_step;
        history.next_step += 1;
        let job = Job { ranks: 1, loads: false, steps: step..step + 1 };
        history.live(&job, plan, Pace::default())?;
    }
    history.machine.cut();
    history.oracle.borrow().check(&history.storage).map(drop)
}

impl History {
    fn new(seed: u64, lie: Lie, is_shown: bool, rng: &mut Rng) -> Self {
        quiet_panics();
        let disk = Disk::new(!rng.one_in(4), lie);
        let machine = Machine::new(disk.clone(), rng.next(), is_shown);
        let sizes = Sizes { whole: 1 + rng.below(1200), shared: rng.below(1500) + 8 };
        let keeps = (!rng.one_in(3)).then(|| 1 + rng.index(3));
        let setup = Setup { sizes, keeps, names: rng.pick(&[1, 2, 9]), is_polite: rng.one_in(2) };
        if is_shown {
            eprintln!("seed {seed}: {setup:?}");
        }
        let oracle = Rc::new(RefCell::new(Oracle::new(sizes, keeps)));
        let storage: Arc<dyn Storage> = Arc::new(SimStorage(disk));
        let (found, next_step) = (Rc::default(), 1);
        Self { machine, storage, setup, oracle, found, next_step }
    }

    fn lives(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let troubled = rng.pick(&[1, 1, 1, 2]);
        for life in 0..troubled {
            let job = self.job(rng, life > 0);
            let operations = 40 + job.steps.clone().count() as u64 * (50 + 12 * job.ranks as u64);
            let plan = Plan::draw(rng, job.ranks, operations);
            self.live(&job, plan, pace(rng))?;
            if rng.one_in(4) {
                self.machine.cut();
            }
            self.machine.note("check", "");
            self.oracle.borrow().check(&self.storage)?;
        }
        self.recover(rng)
    }

    fn job(&mut self, rng: &mut Rng, loads: bool) -> Job {
        let ranks = rng.pick(&[1, 1, 2, 2, 2, 3, 3, 4, 5, 8]);
        let begin = self.next_step;
        self.next_step += rng.pick(&[1, 1, 2, 2, 3, 4]);
        Job { ranks, loads, steps: begin..self.next_step }
    }

    /// A job that meets no fault loads, saves, and leaves everything in order.
    fn recover(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let last = self.next_step;
        self.next_step += 1;
        let job = Job { ranks: rng.pick(&[1, 1, 2, 3]), loads: true, steps: last..last + 1 };
        self.live(&job, Plan::none(), Pace::default())?;
        self.machine.note("check", "");
        self.oracle.borrow().check_tidy(&self.storage, last)
    }

    fn live(&self, job: &Job, plan: Plan, pace: Pace) -> Result<(), Violation> {
        let is_quiet = plan.is_empty() && pace == Pace::default();
        let ranks = Rc::new(Ranks {
            storage: self.storage.clone(),
            setup: self.setup.clone(),
            job: job.clone(),
            oracle: self.oracle.clone(),
            found: self.found.clone(),
            machine: self.machine.clone(),
            is_quiet,
        });
        let ended =
            self.machine.live(job.ranks, plan, pace, &{ Rc::new(move |group| ranks.body(&group)) });
        if ended.hung {
            return Err("ranks wait for ever".to_owned());
        }
        if ended.panicked {
            return Err("a panic came out of a call".to_owned());
        }
        self.found.borrow_mut().take().map_or(Ok(()), Err)
    }
}

fn pace(rng: &mut Rng) -> Pace {
    let slow = |rng: &mut Rng| rng.pick(&[0, 0, 0, 0, 200, 40]);
    Pace { slow_operations: slow(rng), slow_messages: slow(rng) }
}

/// What all ranks of a job share.
struct Ranks {
    storage: Arc<dyn Storage>,
    setup: Setup,
    job: Job,
    oracle: Rc<RefCell<Oracle>>,
    found: Rc<RefCell<Option<Violation>>>,
    machine: Rc<Machine>,
    /// Nothing happens to this job, so it must succeed.
    is_quiet: bool,
}

impl Ranks {
    fn body(&self, group: &ProcessGroup) {
        let after = AfterCommit::new(PathBuf::from(RUNS), self.retention(), monitor());
        if self.job.loads && !self.load(group) {
            return;
        }
        for step in self.job.steps.clone() {
            if !self.save(group, step, &after) {
                return;
            }
        }
        if self.setup.is_polite {
            drop(group.clone().finish());
        }
    }

    fn retention(&self) -> Retention {
        let Some(keeps) = self.setup.keeps else { return Retention::default() };
        let best = Some(KeepBest::one("loss", Mode::Min));
        Retention { last: (keeps as u64).try_into().ok(), best, ..Retention::default() }
    }

    /// Whether the rank goes on.
    fn save(&self, group: &ProcessGroup, step: u64, after: &AfterCommit) -> bool {
        let name = format!("s{}", step % self.setup.names);
        let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        self.oracle.borrow_mut().begin(step, &name);
        let path = CheckpointPath::new(RUNS, CheckpointName::new(&name).expect("a good name"));
        let on_existing = OnExisting::Replace;
        let options = SaveOptions { step, on_existing, ..SaveOptions::default() };
        let state = content::state(self.setup.sizes, step, rank, n);
        let saved = save(group, self.storage.as_ref(), &path, &state, &options);
        if self.machine.is_dead() {
            return false;
        }
        self.machine.note("saved", if saved.is_ok() { "" } else { "not" });
        let why = || format!("{:?}", saved.as_ref().err());
        self.oracle.borrow_mut().told(step, Told::of(&saved), why);
        match saved {
            Ok(saved) => after.run(group, &self.storage, &saved),
            Err(error) => return self.goes_on_after(&error, "save"),
        }
        true
    }

    fn load(&self, group: &ProcessGroup) -> bool {
        let (rank, n) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
        let mut buffers = Buffers::of(self.setup.sizes, rank, n);
        let mut targets = buffers.targets();
        let rules = LoadRules { strict: n == 1, ..LoadRules::default() };
        let wanted = Wanted::latest(RUNS);
        let storage = self.storage.as_ref();
        let loaded = load(group, storage, &wanted, &mut targets, &rules, Atomicity::Atomic);
        drop(targets);
        if self.machine.is_dead() {
            return false;
        }
        match loaded {
            Ok(loaded) => {
                if let Err(wrong) = buffers.check(&loaded.manifest) {
                    self.found.borrow_mut().get_or_insert(wrong);
                }
                true
            }
            Err(e) if e.kind() == ErrorKind::NotFound => true,
            Err(error) => self.goes_on_after(&error, "load"),
        }
    }

    /// A group that has lost a rank is useless; any other error may be gone next time.
    fn goes_on_after(&self, error: &tch_checkpoint::Error, what: &str) -> bool {
        if self.is_quiet {
            let wrong = format!("nothing was wrong, and a {what} failed: {error:?}");
            self.found.borrow_mut().get_or_insert(wrong);
        }
        if error.kind() == ErrorKind::Corrupt {
            let wrong = format!("a {what} found damage: {error:?}");
            self.found.borrow_mut().get_or_insert(wrong);
        }
        let lost = [ErrorKind::PeerLost, ErrorKind::CoordinatorLost, ErrorKind::OutcomeUnknown];
        !lost.contains(&error.kind())
    }
}

fn monitor() -> Option<(String, Mode)> {
    Some(("loss".to_owned(), Mode::Min))
}
