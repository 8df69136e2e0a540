//! A network that is cut between two hosts, each a network namespace, and heals.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::job::{HANG, Job, Notes, Plan, Random, behind, now, within};
use crate::looks::{debris, owner, steps};
use crate::tier::{self, Need, program};

const NEEDS: [Need; 2] = [Need::Root, Need::Program("ip")];
/// Of the host of rank 0.
const ADDRESS: &str = "10.77.0.1";
const DEADLINE_MS: u64 = 1500;
/// Cuts beside each other.
const AT_ONCE: u64 = 3;

/// Two namespaces with a cable between them.
struct Hosts {
    near: String,
    far: String,
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = program("ip");
    command.args(arguments);
    command
}

fn done(arguments: &[&str]) {
    let output = ip(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

impl Hosts {
    fn connected() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { near: format!("near-{number}"), far: format!("far-{number}") };
        let (near, far) = (hosts.near.as_str(), hosts.far.as_str());
        done(&["netns", "add", near]);
        done(&["netns", "add", far]);
        let cable = ["link", "add", "cable", "netns", near, "type", "veth"];
        done(&[&cable[..], &["peer", "name", "cable", "netns", far]].concat());
        for (host, address) in [(near, ADDRESS), (far, "10.77.0.2")] {
            done(&["-n", host, "addr", "add", &format!("{address}/24"), "dev", "cable"]);
            done(&["-n", host, "link", "set", "lo", "up"]);
            done(&["-n", host, "link", "set", "cable", "up"]);
        }
        hosts
    }

    fn cut(&self) {
        done(&["-n", &self.far, "link", "set", "cable", "down"]);
    }

    fn heal(&self) {
        done(&["-n", &self.far, "link", "set", "cable", "up"]);
    }

    /// Ranks 0 and 1 here, 2 and 3 there.
    fn start(&self, plan: &Plan, random: &mut Random) -> Job {
        Job::start(plan, random, |rank, arguments| {
            let host = if rank < 2 { &self.near } else { &self.far };
            let mut command = behind(&["ip", "netns", "exec", host], arguments);
            command.env("TCH_CHECKPOINT_IFADDR", ADDRESS);
            command
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.near, &self.far] {
            let _ = ip(&["netns", "del", host]).status();
        }
    }
}

/// When each rank had its verdict, in milliseconds after the cut.
fn verdict_times(notes: &Notes, cut_at: u64) -> Vec<u64> {
    let time = |rank| notes.find(rank, "FAILED").map(|note| note.at.saturating_sub(cut_at));
    (0..4).filter_map(time).collect()
}

/// Cuts once, at a random time; how long the last rank took to its verdict.
fn cut_once(random: &mut Random) -> u64 {
    let (hosts, place) = (Hosts::connected(), tempfile::tempdir().unwrap());
    let dir = place.path().join("runs");
    let plan = Plan {
        ranks: 4,
        bytes: 500_000,
        deadline_ms: DEADLINE_MS,
        address: ADDRESS,
        keep: Some(3),
        ..Plan::of(&dir)
    };
    let job = hosts.start(&plan, random);
    job.wait_for_commits(1);
    std::thread::sleep(Duration::from_millis(random.below(150)));
    hosts.cut();
    let cut_at = now();
    std::thread::sleep(Duration::from_millis(2 * DEADLINE_MS));
    hosts.heal();
    let all_know = || verdict_times(&job.notes(), cut_at).len() == 4;
    assert!(within(HANG, all_know), "without a verdict: {}", job.said());
    let said = job.said();
    let notes = job.end();
    let worst = verdict_times(&notes, cut_at).into_iter().max().unwrap();
    check_verdicts(&notes, &said);
    // What is there is what the coordinator calls committed, whatever the others believe.
    let committed = notes.committed(0);
    let last = committed.last().unwrap();
    assert_eq!(steps(&dir).last(), Some(&last.0), "{said}");
    for step in steps(&dir) {
        assert!(committed.contains(&(step, owner(&dir, step).0)), "{step}: {said}");
    }
    for rank in 1..4 {
        assert!(notes.committed(rank).iter().all(|save| committed.contains(save)), "{said}");
    }
    let first = last.0 + 1;
    let again = hosts.start(&Plan { first, last: first, ..plan }, random);
    let (said, notes) = (again.said(), again.end());
    assert!((0..4).all(|rank| notes.committed(rank).len() == 1), "{said} {notes:?}");
    assert_eq!(debris(&dir), [""; 0]);
    worst
}

fn check_verdicts(notes: &Notes, said: &str) {
    let kind = |rank| notes.failed(rank).unwrap().0;
    assert!(["Deadline", "PeerLost"].contains(&kind(0).as_str()), "{said}");
    assert_eq!(kind(1), kind(0), "{said}");
    for far in [2, 3] {
        assert!(["CoordinatorLost", "OutcomeUnknown"].contains(&kind(far).as_str()), "{said}");
    }
}

#[test]
fn a_network_that_is_cut_while_saving_ends_both_sides_and_commits_on_one() {
    if !tier::has(&NEEDS) {
        return;
    }
    let count = tier::count(3, 20);
    let mut random = Random::seeded();
    let mut worst = 0;
    // Each waits for its deadline most of the time.
    for _ in 0..count.div_ceil(AT_ONCE) {
        let cuts: Vec<_> = (0..AT_ONCE)
            .map(|_| random.fork())
            .map(|mut random| std::thread::spawn(move || cut_once(&mut random)))
            .collect();
        worst = cuts.into_iter().map(|cut| cut.join().unwrap()).fold(worst, u64::max);
    }
    tier::figure("networks cut and healed", count.next_multiple_of(AT_ONCE));
    tier::figure(&format!("ms to the last verdict, deadline {DEADLINE_MS}"), worst);
}
