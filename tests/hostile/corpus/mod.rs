//! Hostile checkpoints, one for each rule: a table of how each is made and what must be said of it.

mod foreign;
mod headers;
mod manifests;
mod names;
mod places;
mod pointers;
mod sealed;
mod single;

use std::time::Duration;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::catalog::Wanted;

use crate::forge::Forge;
use crate::judge::{self, Read};
use crate::scene::Scene;
use crate::{alone, tier};

/// How the checkpoint comes to be.
pub enum Make {
    /// A manifest and its files, in each version of the format.
    Forged(fn(&mut Forge)),
    Placed(fn(&Scene)),
}

/// One rule.
pub struct Case {
    rule: &'static str,
    kind: ErrorKind,
    /// Part of what is said.
    word: &'static str,
    /// The name that is read, below the directory of checkpoints.
    at: &'static str,
    /// Whether files of other tools are wanted.
    unverified: bool,
    make: Make,
}

const fn case(rule: &'static str, kind: ErrorKind, word: &'static str, make: Make) -> Case {
    Case { rule, kind, word, at: "a", unverified: false, make }
}

const fn placed(rule: &'static str, kind: ErrorKind, word: &'static str, make: fn(&Scene)) -> Case {
    case(rule, kind, word, Make::Placed(make))
}

/// What a whole table comes to.
#[derive(Default)]
struct Tally {
    rules: usize,
    reads: usize,
    slow: usize,
    longest: Duration,
    peak: u64,
    faults: Vec<String>,
}

impl Tally {
    fn count(&mut self, case: &Case, read: &Read, memory: u64) {
        self.reads += 1;
        self.slow += usize::from(read.took > Duration::from_millis(100));
        self.longest = self.longest.max(read.took);
        self.peak = self.peak.max(read.peak);
        let fault = judge::fault_of(read, case.kind, case.word, memory);
        let told = fault.map(|fault| format!("{}: {}: {fault}", case.rule, read.reader));
        self.faults.extend(told);
    }

    fn try_case(&mut self, case: &Case) {
        self.rules += 1;
        match &case.make {
            Make::Placed(make) => self.try_one(case, make),
            Make::Forged(change) => {
                self.try_one(case, &|scene: &Scene| scene.forge(1, *change));
                self.try_one(case, &|scene: &Scene| scene.forge(2, *change));
            }
        }
    }

    fn try_one(&mut self, case: &Case, make: &dyn Fn(&Scene)) {
        let scene = Scene::new();
        make(&scene);
        let path = scene.dir().join(case.at);
        let wanted = Wanted::parse(&path).unwrap();
        let wanted = if case.unverified { wanted.or_unverified() } else { wanted };
        let (reads, trace) = judge::without_a_trace(&scene, || {
            let reads = judge::read_all(&scene, &wanted);
            // A process takes longer than all of the readers: the verbs take turns.
            let path = path.to_str().unwrap();
            let said = match self.rules % 4 {
                0 => judge::command_fault(&["verify", path], true),
                1 => judge::command_fault(&["inspect", path], false),
                _ => None,
            };
            self.faults.extend(said.map(|what| format!("{}: {what}", case.rule)));
            reads
        });
        self.faults.extend(trace.map(|what| format!("{}: {what}", case.rule)));
        let memory = judge::memory_for(&scene.dir());
        reads.iter().for_each(|read| self.count(case, read, memory));
    }
}

fn each_is_refused(what: &str, cases: &[Case]) {
    let _alone = alone();
    let mut tally = Tally::default();
    cases.iter().for_each(|case| tally.try_case(case));
    let Tally { rules, reads, slow, longest, peak, faults } = tally;
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    tier::figure(
        &format!("hostile {what}"),
        format!(
            "{rules} rules, {reads} reads, longest {longest:?}, {slow} over 100 ms, at most {peak} \
             bytes taken"
        ),
    );
}

/// The checkpoint that is altered in all of the others is good as it is, in both versions, and so
/// is the file of another tool.
#[test]
fn what_is_not_altered_is_read() {
    let _alone = alone();
    for version in [1, 2] {
        let scene = Scene::new();
        scene.forge(version, |_| ());
        let wanted = Wanted::parse(scene.a()).unwrap();
        let (reads, trace) = judge::without_a_trace(&scene, || judge::read_all(&scene, &wanted));
        assert_eq!(trace, None);
        for read in reads {
            assert_eq!(read.result, Ok(()), "version {version}: {}", read.reader);
        }
    }
    let scene = Scene::new();
    scene.put("a.safetensors", crate::scene::plain());
    let wanted = Wanted::parse(scene.dir().join("a.safetensors")).unwrap().or_unverified();
    for read in judge::read_all(&scene, &wanted) {
        assert_eq!(read.result.is_ok(), read.reader != "verify", "{}", read.reader);
    }
}

/// The figure of rules that docs and threat model name.
#[test]
fn there_are_enough_of_them() {
    let tables: [&[Case]; 9] = [
        &manifests::CASES,
        &manifests::MORE,
        &headers::UNKNOWN,
        &sealed::CASES,
        &places::CASES,
        &headers::CASES,
        &single::CASES,
        &foreign::CASES,
        &pointers::CASES,
    ];
    let all: Vec<&str> = tables.iter().flat_map(|table| table.iter().map(|c| c.rule)).collect();
    let unique: std::collections::BTreeSet<&str> = all.iter().copied().collect();
    let twice = unique.iter().filter(|rule| all.iter().filter(|r| r == rule).count() > 1);
    assert_eq!(twice.collect::<Vec<_>>(), [&""; 0], "there twice");
    assert!(all.len() + names::COUNT >= 150, "{} rules", all.len());
}
