//! `stress`: each verb, over both transports.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Folder, HANG, assert_code, command, flip, output_of, run, shard};

const TRANSPORTS: [&str; 2] = ["threads", "tcp"];

fn load(folder: &Folder, more: &[&str]) -> crate::Ran {
    run(&[&["stress", "load", "--dir", folder.path()], more].concat())
}

#[test]
fn what_is_saved_is_loaded_by_any_number_of_ranks() {
    let folder = Folder::new();
    let ways: [&[&str]; 4] = [
        &["--transport", "threads"],
        &["--transport", "tcp"],
        &["--transport", "threads", "--async"],
        &["--transport", "tcp", "--async"],
    ];
    for (step, way) in ["1", "2", "3", "4"].into_iter().zip(ways) {
        let ran = folder.save(step, &[&["--ranks", "3", "--bytes", "200003"], way].concat());
        assert_code(&ran, 0);
        let id = ran.stdout.trim_end().strip_prefix(&format!("COMMITTED {step} ")).unwrap();
        assert_eq!((id.len(), ran.stderr.as_str()), (32, ""), "{}", ran.stdout);
        for (ranks, transport) in [("1", "threads"), ("5", "threads"), ("2", "tcp")] {
            let how = ["--ranks", ranks, "--transport", transport, "--step", step];
            let loaded = load(&folder, &how);
            assert_code(&loaded, 0);
            assert_eq!(loaded.stdout, format!("LOADED {step} {id}\n"), "{how:?}");
        }
    }
    assert!(load(&folder, &["--step", "latest"]).stdout.starts_with("LOADED 4 "));
    assert!(load(&folder, &[]).stdout.starts_with("LOADED 4 "));
}

#[test]
fn a_load_names_the_damaged_place() {
    let folder = Folder::new();
    folder.saved("1");
    let file = shard(&folder.at("step-00000001"));
    flip(&file, 4096 + 20_000);
    for transport in TRANSPORTS {
        let ran = load(&folder, &["--ranks", "2", "--transport", transport]);
        assert_code(&ran, 3);
        assert_eq!(ran.stdout, "");
        let name = file.file_name().unwrap().to_str().unwrap();
        for words in [name, "stress.1", "offset", "checksum mismatch"] {
            assert!(ran.stderr.contains(words), "{words} is not in {}", ran.stderr);
        }
        assert_eq!(ran.stderr.matches("tch-checkpoint: ").count(), 1, "{}", ran.stderr);
    }
}

#[test]
fn a_load_of_what_is_not_there_or_of_others() {
    let folder = Folder::new();
    assert_code(&load(&folder, &[]), 7);
    folder.saved("1");
    for (step, words) in [("2", "step 2"), ("18446744073709551615", "step")] {
        let ran = load(&folder, &["--step", step]);
        assert_code(&ran, 7);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    for bad in ["newest", "-1", ""] {
        assert_code(&load(&folder, &["--step", bad]), 2);
    }
    let other = Folder::new();
    tch_checkpoint::save::save(
        &tch_checkpoint::ProcessGroup::solo(),
        &tch_checkpoint::storage::LocalStorage::new(),
        &tch_checkpoint::CheckpointPath::parse(other.at("x")).unwrap(),
        &tch_checkpoint::state::StateDict::new(),
        &tch_checkpoint::SaveOptions::default(),
    )
    .unwrap();
    let ran = load(&other, &[]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("not a checkpoint of `stress save`"), "{}", ran.stderr);
}

#[test]
fn a_step_that_exists_is_refused_once() {
    let folder = Folder::new();
    let first = folder.saved("1");
    for transport in TRANSPORTS {
        let ran = folder.save("1", &["--bytes", "10", "--ranks", "3", "--transport", transport]);
        assert_code(&ran, 7);
        assert_eq!(ran.stderr.matches("already exists").count(), 1, "{}", ran.stderr);
    }
    assert_eq!(folder.entries(), [".tch-checkpoint.lock", "step-00000001"]);
    assert_eq!(load(&folder, &[]).stdout, first.replace("COMMITTED", "LOADED"));
}

#[test]
fn the_newest_stay() {
    let folder = Folder::new();
    folder.saved("1");
    for (step, transport) in [("2", "threads"), ("3", "tcp"), ("4", "threads"), ("5", "tcp")] {
        let how = ["--bytes", "5000", "--ranks", "2", "--keep", "2", "--transport", transport];
        let more: &[&str] = if step == "4" { &["--async"] } else { &[] };
        assert_code(&folder.save(step, &[&how[..], more].concat()), 0);
    }
    let left = [
        ".tch-checkpoint.lock",
        "latest",
        "latest.json",
        "step-00000001",
        "step-00000004",
        "step-00000005",
    ];
    assert_eq!(folder.entries(), left);
    let link = std::fs::read_link(folder.at("latest")).unwrap();
    assert_eq!(link.to_str(), Some("step-00000005"));
    assert_code(&run(&["verify", "--all", "--dir", folder.path()]), 0);
}

/// A loop that goes on until it is killed.
struct Loop {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Loop {
    fn start(folder: &Folder, more: &[&str]) -> Self {
        let how = ["stress", "loop", "--dir", folder.path(), "--bytes", "20000", "--ranks", "3"];
        let mut command = command(&[&how, more].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(HANG).expect("another line")
    }

    /// Kills the parent; all that was printed until every process has let go of the output.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(HANG) {
                Ok(line) => lines.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return lines,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("a rank goes on"),
            }
        }
    }

    /// The processes of the ranks, by rank.
    fn ranks(&self) -> Vec<i32> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let mut ranks: Vec<(String, i32)> = children
            .split_whitespace()
            .map(|pid| {
                let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
                let variables = String::from_utf8_lossy(&variables).into_owned();
                let seat = variables.split('\0').find(|v| v.contains("STRESS_RANK=")).unwrap();
                (seat.to_owned(), pid.parse().unwrap())
            })
            .collect();
        ranks.sort();
        ranks.into_iter().map(|(_, pid)| pid).collect()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn step_of(line: &str) -> u64 {
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("COMMITTED"), "{line}");
    words.next().unwrap().parse().unwrap()
}

#[test]
fn a_loop_goes_on_after_the_newest_and_is_killed() {
    let folder = Folder::new();
    let mut next = 1;
    for more in [
        &["--transport", "threads"][..],
        &["--transport", "tcp", "--async", "--keep", "3"],
        &["--transport", "threads", "--async"],
        &["--transport", "tcp"],
    ] {
        let running = Loop::start(&folder, more);
        assert_eq!(step_of(&running.line()), next, "{more:?}");
        assert_eq!(step_of(&running.line()), next + 1, "{more:?}");
        let told = running.kill().last().map_or(next + 1, |line| step_of(line));
        let verified = run(&["verify", "--all", "--dir", folder.path()]);
        assert_code(&verified, 0);
        let newest = verified.stdout.lines().last().unwrap();
        let newest: u64 = newest.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(newest == told || newest == told + 1, "{newest} after {told}");
        assert_code(&load(&folder, &["--ranks", "2"]), 0);
        next = newest + 1;
    }
}

#[test]
fn a_loop_leaves_names_of_others_alone() {
    let folder = Folder::new();
    std::fs::create_dir(folder.at("step-00000001")).unwrap();
    std::fs::create_dir(folder.at("step-00000003")).unwrap();
    let how = ["stress", "loop", "--dir", folder.path(), "--bytes", "100"];
    let ran = run(&how);
    assert_code(&ran, 7);
    assert!(ran.stdout.starts_with("COMMITTED 2 ") && ran.stdout.lines().count() == 1);
    assert!(ran.stderr.contains("already exists"), "{}", ran.stderr);
    let taken = [".tch-checkpoint.lock", "step-00000001", "step-00000002", "step-00000003"];
    assert_eq!(folder.entries(), taken);
    let running = Loop::start(&folder, &[]);
    assert_eq!(step_of(&running.line()), 4);
}

#[test]
fn ranks_end_with_the_process_that_started_them() {
    let folder = Folder::new();
    let running = Loop::start(&folder, &["--transport", "tcp"]);
    running.line();
    let ranks = running.ranks();
    assert_eq!(ranks.len(), 3);
    // Also one that was stopped.
    kill_process(Pid::from_raw(ranks[1]).unwrap(), Signal::STOP).unwrap();
    running.kill();
    let until = Instant::now() + HANG;
    while let Some(rank) = ranks.iter().find(|pid| is_alive(**pid)) {
        assert!(Instant::now() < until, "rank {rank} goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = state.rsplit(") ").next().unwrap_or_default();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}

/// The exit code of a loop that ends by itself, and what it says.
fn ended(mut running: Loop) -> (Option<i32>, String) {
    let mut pipe = running.child.stderr.take().unwrap();
    let (sender, read) = mpsc::channel();
    std::thread::spawn(move || {
        let mut stderr = String::new();
        drop(pipe.read_to_string(&mut stderr));
        drop(sender.send(stderr));
    });
    let stderr = read.recv_timeout(HANG).expect("the loop ends");
    (running.child.wait().unwrap().code(), stderr)
}

#[test]
fn a_lost_rank_ends_the_loop() {
    for (victim, codes) in [(2, [5, 5]), (0, [5, 6])] {
        let folder = Folder::new();
        let running = Loop::start(&folder, &["--transport", "tcp", "--deadline-ms", "5000"]);
        running.line();
        kill_process(Pid::from_raw(running.ranks()[victim]).unwrap(), Signal::KILL).unwrap();
        let (code, stderr) = ended(running);
        assert!(codes.map(Some).contains(&code), "{code:?}: {stderr}");
        assert!(stderr.contains(&format!("rank {victim}")), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert_code(&run(&["verify", "--dir", folder.path()]), 0);
    }
}

#[test]
fn a_rank_that_stops_ends_the_loop_by_its_deadline() {
    let folder = Folder::new();
    let running = Loop::start(&folder, &["--transport", "tcp", "--deadline-ms", "2000"]);
    running.line();
    kill_process(Pid::from_raw(running.ranks()[1]).unwrap(), Signal::STOP).unwrap();
    let (code, stderr) = ended(running);
    assert_eq!(code, Some(5), "{stderr}");
    for words in ["deadline passed", "rank 1", "was killed"] {
        assert!(stderr.contains(words), "{words} is not in {stderr}");
    }
    assert_code(&run(&["verify", "--dir", folder.path()]), 0);
}

#[test]
fn an_output_that_nobody_reads_ends_a_loop_after_the_save() {
    for transport in TRANSPORTS {
        let folder = Folder::new();
        let how = ["stress", "loop", "--dir", folder.path(), "--bytes", "999", "--ranks", "2"];
        let how = [&how[..], &["--transport", transport]].concat();
        let mut child =
            command(&how).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = output_of(child, "a closed pipe");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(folder.entries(), [".tch-checkpoint.lock", "step-00000001"]);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let child = command(&how).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = output_of(child, "a full output");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("standard output") && !stderr.contains("panicked"), "{stderr}");
        assert_code(&run(&["verify", "--all", "--dir", folder.path()]), 0);
        assert!(load(&folder, &[]).stdout.starts_with("LOADED 2 "));
    }
}

/// The variable that messages about deadlines name counts here too.
#[test]
fn a_deadline_may_come_from_the_variable() {
    let folder = Folder::new();
    let mut save = command(&["stress", "save", "--dir", folder.path(), "--step", "1"]);
    save.args(["--bytes", "9"]).env("TCH_CHECKPOINT_DEADLINE_MS", "soon");
    let child = save.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = output_of(child, "a deadline that is no number");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("deadline"));
    assert_eq!(folder.entries(), [""; 0]);
}

#[test]
fn what_can_never_work_leaves_nothing_behind() {
    let folder = Folder::new();
    let dir = folder.at("new");
    let save = ["stress", "save", "--dir", &dir, "--step", "1"];
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--bytes", "1", "--ranks", "0"], 7, "at least one rank"),
        (&["--bytes", "1", "--ranks", "1025"], 7, "at most 1024"),
        (&["--bytes", "1", "--ranks", "129", "--transport", "tcp"], 7, "at most 128"),
        (&["--bytes", "1", "--ranks", "2", "--transport", "mpi"], 2, "tcp"),
        (&["--bytes", "18446744073709551616"], 2, "bytes"),
        (&["--bytes", "1", "--deadline-ms", "0"], 2, "deadline"),
        (&["--bytes", "1", "--deadline-ms", "18446744073709551615"], 2, "deadline"),
        (&["--bytes", "1", "--keep", "0"], 2, "keep"),
    ];
    for (more, code, words) in cases {
        let ran = run(&[&save, more].concat());
        assert_code(&ran, code);
        assert!(ran.stderr.contains(words), "{words} is not in {}", ran.stderr);
        assert!(!Path::new(&dir).exists(), "{more:?}");
    }
    for transport in TRANSPORTS {
        for (bytes, code, words) in [
            ("18446744073709551615", 7, "more than any storage can hold"),
            ("1000000000000000000", 3, "no space left"),
        ] {
            let how = ["--bytes", bytes, "--ranks", "2", "--transport", transport];
            let ran = run(&[&save, &how[..]].concat());
            assert_code(&ran, code);
            assert!(ran.stderr.contains(words), "{}", ran.stderr);
            assert_eq!(Path::new(&dir).exists(), code == 3);
        }
        // The directory is there once it was asked how much fits into it.
        assert!(!crate::entries(dir.as_ref()).iter().any(|name| name.contains("step")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::write(folder.at("file"), "text").unwrap();
    for dir in ["/proc/nothing/here", &folder.at("file"), &folder.at("file/below")] {
        for verb in [&["loop", "--bytes", "9"][..], &["load"]] {
            for transport in TRANSPORTS {
                let how = ["--dir", dir, "--ranks", "2", "--transport", transport];
                let ran = run(&[&["stress"][..], verb, &how].concat());
                assert!(matches!(ran.code, Some(3 | 7)), "{how:?}: {:?} {}", ran.code, ran.stderr);
                assert_eq!(ran.stderr.matches("tch-checkpoint: ").count(), 1, "{}", ran.stderr);
            }
        }
    }
    assert_eq!(folder.entries(), ["file"]);
    let mut alone = command(&["stress", "load", "--dir", &dir]);
    alone.env("TCH_CHECKPOINT_STRESS_RANK", "1").stderr(Stdio::piped());
    let output = output_of(alone.spawn().unwrap(), "a rank without a parent");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn no_step_follows_the_last() {
    let folder = Folder::new();
    assert_code(&folder.save("18446744073709551614", &["--bytes", "9"]), 0);
    for _ in 0..2 {
        let how = ["stress", "loop", "--dir", folder.path(), "--bytes", "9", "--ranks", "2"];
        let ran = run(&how);
        assert_code(&ran, 7);
        assert!(ran.stderr.contains("no step can follow"), "{}", ran.stderr);
    }
    assert!(load(&folder, &[]).stdout.starts_with("LOADED 18446744073709551615 "));
}
