//! What can happen to a rank, where, and to which one.

use std::fmt;

use crate::tier::Need;

/// Ranks of a job.
pub const RANKS: u32 = 4;

/// What the ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Threads of one process.
    Threads,
    /// Processes that talk over TCP.
    Tcp,
    /// Processes of `mpirun --enable-recovery`, which leaves those alone that are left.
    MpiRecovery,
    /// Processes of `mpirun`, which ends all of them with the first.
    Mpi,
}

impl Way {
    const ALL: [Self; 4] = [Self::Threads, Self::Tcp, Self::MpiRecovery, Self::Mpi];

    pub fn needs(self) -> &'static [Need] {
        if self.is_mpi() { &[Need::Program("mpirun")] } else { &[] }
    }

    pub fn is_mpi(self) -> bool {
        matches!(self, Self::Mpi | Self::MpiRecovery)
    }
}

/// What a rank does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Kill,
    /// Stopped until the others have given up, then resumed.
    Stop,
    Exit,
    Exit0,
    /// In its own part of a phase, as the next: all hear of it by the vote.
    Panic,
    Fail,
    /// Outside of every phase, as the next two.
    PanicBetween,
    /// Returns an error that no other rank is told, and from `main`.
    Return,
    /// The same, but the process goes on without its handle.
    Drop,
}

impl Act {
    const ALL: [Self; 9] = [
        Self::Kill,
        Self::Stop,
        Self::Exit,
        Self::Exit0,
        Self::Panic,
        Self::Fail,
        Self::PanicBetween,
        Self::Return,
        Self::Drop,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Exit => "exit",
            Self::Exit0 => "exit0",
            Self::Panic => "panic",
            Self::Fail => "fail",
            Self::PanicBetween => "panic-between",
            Self::Return => "return",
            Self::Drop => "drop",
        }
    }

    /// As the failpoints call it.
    pub fn sabotage(self) -> &'static str {
        match self {
            Self::PanicBetween => "panic",
            Self::Return | Self::Drop => "fail",
            _ => self.name(),
        }
    }

    /// Whether every rank lives on, and hears of it by the vote.
    pub fn is_voted(self) -> bool {
        matches!(self, Self::Panic | Self::Fail)
    }

    /// Whether it happens between phases.
    pub fn is_between(self) -> bool {
        matches!(self, Self::PanicBetween | Self::Return | Self::Drop)
    }

    fn is_possible(self, way: Way) -> bool {
        match way {
            Way::Tcp => true,
            Way::Threads => self.is_voted() || self.is_between(),
            Way::MpiRecovery => !self.is_voted() && !self.is_between(),
            Way::Mpi => self.is_between(),
        }
    }

    fn all(way: Way) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |act| act.is_possible(way))
    }
}

/// What the ranks do together, and the phases that it has.
pub const SCENARIOS: [(&str, &[&str]); 6] = [
    ("save", &["audit", "plan", "commit"]),
    ("files", &["plan file", "commit"]),
    ("beside", &["plan beside", "commit"]),
    ("load", &["manifest", "plan", "read", "place"]),
    ("loop", &["configure", "look", "due", "poll", "state", "commit"]),
    ("train", &["devices", "build", "train", "callbacks", "poll", "state", "commit"]),
];

/// One job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    pub way: Way,
    pub scenario: String,
    pub act: Act,
    pub phase: String,
    pub point: String,
    pub rank: u32,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { way, scenario, act, phase, point, rank } = self;
        write!(f, "{way:?}:{scenario}:{}@{phase}.{point}@{rank}", act.name())
    }
}

impl Cell {
    fn new(way: Way, scenario: &str, act: Act, place: (&str, &str), rank: u32) -> Self {
        let (phase, point) = (place.0.to_owned(), place.1.to_owned());
        Self { way, scenario: scenario.to_owned(), act, phase, point, rank }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (way, rest) = text.split_once(':')?;
        let (scenario, rest) = rest.split_once(':')?;
        let mut parts = rest.split('@');
        let act = parts.next()?;
        let place = parts.next()?.rsplit_once('.')?;
        let rank = parts.next()?.parse().ok()?;
        let way = Way::ALL.into_iter().find(|known| format!("{known:?}") == way)?;
        let act = Act::ALL.into_iter().find(|known| known.name() == act)?;
        Some(Self::new(way, scenario, act, place, rank))
    }

    /// For the variable of the failpoints.
    pub fn sabotage(&self) -> String {
        format!("{}@{}.{}@{}", self.act.sabotage(), self.phase, self.point, self.rank)
    }

    /// Whether the vote of the rank may count all the same.
    pub fn is_after_vote(&self) -> bool {
        matches!(self.point.as_str(), "voted" | "decided" | "removed")
    }
}

/// The points at which an act makes a difference on that rank.
fn points(act: Act, rank: u32) -> &'static [&'static str] {
    match act {
        Act::PanicBetween | Act::Return | Act::Drop => &["before"],
        Act::Panic | Act::Fail => &["enter"],
        _ if rank == 0 => &["enter", "voted", "decided"],
        _ => &["enter", "voted"],
    }
}

/// Scenarios and their phases, as far as that way goes through them.
fn places(way: Way) -> Vec<(&'static str, &'static str)> {
    let all = SCENARIOS.into_iter();
    let all = all.flat_map(|(scenario, phases)| phases.iter().map(move |phase| (scenario, *phase)));
    // The control plane of mpirun's ranks is that of the others; its jobs take longer.
    let is_core = |place: &(&str, &str)| {
        matches!(place, ("save" | "load", _) | ("beside", "commit")) || !way.is_mpi()
    };
    all.filter(is_core).collect()
}

/// The ranks to which it happens.
fn odd_ranks(way: Way) -> &'static [u32] {
    if way == Way::Mpi { &[0, 2] } else { &[0, 1, 2, 3] }
}

/// All cells of a way, or a spread of them.
pub fn cells(way: Way, full: bool) -> Vec<Cell> {
    if full { all(way) } else { spread(way) }
}

fn all(way: Way) -> Vec<Cell> {
    let mut all = Vec::new();
    for (number, (scenario, phase)) in places(way).into_iter().enumerate() {
        for act in Act::all(way) {
            for rank in odd_ranks(way) {
                let points = points(act, *rank);
                // One of them, each in its turn over phases and ranks.
                let point = points[(number + *rank as usize) % points.len()];
                all.push(Cell::new(way, scenario, act, (phase, point), *rank));
            }
        }
    }
    for rank in odd_ranks(way) {
        // Outside of all phases: in the sum of gradients. The point cannot fail in a vote.
        let acts = Act::all(way).filter(|act| !act.is_voted());
        all.extend(acts.map(|act| Cell::new(way, "train", act, ("train", "step"), *rank)));
        // In the middle of writing, where nothing can fail, but panic.
        let acts = Act::all(way).filter(|act| !act.is_between() && *act != Act::Fail);
        all.extend(acts.map(|act| Cell::new(way, "save", act, ("write", "part"), *rank)));
    }
    // After the verdict.
    let acts = Act::all(way).filter(|act| !act.is_voted() && !act.is_between());
    all.extend(acts.map(|act| Cell::new(way, "loop", act, ("retain", "removed"), 0)));
    all
}

/// Few cells in which each phase, each act and each rank occurs.
fn spread(way: Way) -> Vec<Cell> {
    let acts: Vec<Act> = Act::all(way).collect();
    let ranks = odd_ranks(way);
    let mut cells = Vec::new();
    for (number, (scenario, phase)) in places(way).into_iter().enumerate() {
        // Threads go through few cells that processes do not.
        if way == Way::Threads && number % 2 == 1 {
            continue;
        }
        let act = acts[number % acts.len()];
        let rank = ranks[(number + number / ranks.len()) % ranks.len()];
        let points = points(act, rank);
        let point = points[number % points.len()];
        cells.push(Cell::new(way, scenario, act, (phase, point), rank));
    }
    if way == Way::Tcp {
        cells.push(Cell::new(way, "train", Act::Kill, ("train", "step"), 2));
        cells.push(Cell::new(way, "save", Act::Stop, ("write", "part"), 3));
        cells.push(Cell::new(way, "loop", Act::Kill, ("retain", "removed"), 0));
    }
    cells
}
