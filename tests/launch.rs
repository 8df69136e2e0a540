//! The launch scripts, with shell one-liners as ranks.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]

#[path = "jobs/launched.rs"]
mod launched;
#[path = "jobs/marked.rs"]
mod marked;
#[path = "jobs/scripts.rs"]
mod scripts;

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use launched::{Launch, read, within_deadline};
use scripts::{start, stub};

/// Waits, inside a rank, until all three have left a file.
const ALL_HERE: &str = "touch $LAUNCH_TEST_DIR/here$RANK; until [ -e here0 -a -e here1 -a -e here2 ]; do sleep 0.05; done;";

/// Three ranks of `sh -c rank` under `torchrun.sh`.
fn ranks(grace_s: &str, rank: &str) -> Launch {
    let rank = format!("{ALL_HERE} {rank}");
    start("torchrun.sh", &["-n", "3", "sh", "-c", &rank], |command, _| {
        command.env("TCH_CHECKPOINT_GRACE", grace_s);
    })
}

#[test]
fn every_rank_gets_its_variables_and_arguments() {
    let rank = r#"echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR \
$OMP_NUM_THREADS $1" > out$RANK; echo "$MASTER_PORT $TCH_CHECKPOINT_TOKEN" > job$RANK"#;
    let launch = || {
        let rank = ["-n", "3", "sh", "-c", rank, "name", "two words"];
        let ended = start("torchrun.sh", &rank, |_, _| {}).end();
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        ended.dir
    };
    let dir = launch();
    for rank in 0..3 {
        let line = format!("{rank} {rank} 3 3 127.0.0.1 1 two words\n");
        assert_eq!(read(dir.path(), &format!("out{rank}")), line);
        assert_eq!(read(dir.path(), &format!("job{rank}")), read(dir.path(), "job0"));
    }
    let job = read(dir.path(), "job0");
    let (port, token) = job.trim().split_once(' ').unwrap();
    assert!(port.parse::<u16>().unwrap() >= 1024, "{port}");
    assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
    assert!(!read(launch().path(), "job0").contains(token), "the token is not random");
}

#[test]
fn variables_and_the_port_given_are_kept() {
    let rank = "echo $MASTER_PORT $OMP_NUM_THREADS $TCH_CHECKPOINT_TOKEN";
    let arguments = ["-n", "1", "--master-port", "12345", "sh", "-c", rank];
    let ended = start("torchrun.sh", &arguments, |command, _| {
        command.env("OMP_NUM_THREADS", "3").env("TCH_CHECKPOINT_TOKEN", "mine");
    })
    .end();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "12345 3 mine\n"));
}

/// On each of two machines with 8 GPUs, by hand.
#[test]
fn ranks_of_several_machines_are_counted_through() {
    let rank = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT \
                ${TCH_CHECKPOINT_TOKEN:-none} > out$RANK";
    for node in 0..2 {
        let node_rank = node.to_string();
        let of_job = ["-n", "8", "--nodes", "2", "--node-rank", &node_rank];
        let at = ["--master-addr", "gpu01", "--master-port", "29500", "sh", "-c", rank];
        let ended =
            start("torchrun.sh", &[&of_job[..], &at].concat(), |_, _| {}).end().with_code(0);
        for local in 0..8 {
            let rank = node * 8 + local;
            // A random token would differ on the other machine.
            let line = format!("{rank} {local} 16 8 gpu01:29500 none\n");
            assert_eq!(ended.read(&format!("out{rank}")), line);
        }
    }
    let rank = "echo $TCH_CHECKPOINT_TOKEN; exit 75";
    let of_job = ["-n", "1", "--nodes", "2", "--node-rank", "1", "--master-addr", "gpu01"];
    let at = ["--master-port", "29500", "sh", "-c", rank];
    let given = |command: &mut Command, _: &Path| {
        command.env("TCH_CHECKPOINT_TOKEN", "mine");
    };
    let ended = start("torchrun.sh", &[&of_job[..], &at].concat(), given).end().with_code(75);
    assert_eq!(ended.stdout, "mine\n");
}

#[test]
fn the_code_of_a_failing_rank_is_returned_and_the_others_are_ended() {
    let ended = ranks("30", "[ $RANK = 1 ] && exit 7; sleep 300").end();
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 1 ended with code 7"), "{}", ended.stderr);
}

#[test]
fn a_rank_killed_by_a_signal_gives_128_and_the_signal() {
    let ended = ranks("30", "[ $RANK = 2 ] && kill -KILL $$; sleep 300").end();
    assert_eq!(ended.code, Some(128 + 9), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 2 ended with code 137 (SIGKILL)"), "{}", ended.stderr);
}

#[test]
fn a_lost_peer_does_not_hide_its_cause() {
    let rank = "until [ -e go ]; do sleep 0.05; done; [ $RANK = 2 ] && exit 9; exit 5";
    let launch = ranks("30", rank);
    launch.wait_for_files(&["here0", "here1", "here2"]);
    // Stopped, so that it finds all three ended at once.
    launch.signal(Signal::STOP);
    fs::write(launch.dir.path().join("go"), "").unwrap();
    let ranks_ended = within_deadline(|| launch.left_over().len() == 1);
    launch.signal(Signal::CONT);
    assert!(ranks_ended);
    assert_eq!(launch.end().code, Some(9));
}

#[test]
fn ranks_and_children_that_ignore_sigterm_are_killed_after_the_grace_period() {
    let rank = "[ $RANK = 0 ] && exit 3; trap '' TERM; sleep 300 & sleep 300; sleep 300";
    assert_eq!(ranks("1", rank).end().code, Some(3));
}

#[test]
fn children_left_by_ranks_that_succeeded_are_ended() {
    let ended = ranks("30", "sleep 300 & exit 0").end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn sigterm_reaches_every_rank_and_ends_what_does_not_listen() {
    let deaf = "trap '' TERM; touch ready$RANK; while :; do sleep 0.1; done";
    let polite =
        "trap 'touch term$RANK; exit 143' TERM; touch ready$RANK; while :; do sleep 0.1; done";
    let rank = format!("if [ $RANK = 1 ]; then {deaf}; else {polite}; fi");
    let launch = ranks("1", &rank);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::TERM);
    let ended = launch.end();
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    for name in ["term0", "term2"] {
        assert!(ended.dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_second_sigterm_does_not_wait_for_the_grace_period() {
    let rank = "trap 'touch term$RANK' TERM; touch ready$RANK; while :; do sleep 0.1; done";
    let launch = ranks("3600", rank);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::TERM);
    launch.wait_for_files(&["term0", "term1", "term2"]);
    // One that follows the first at once is the same one.
    let killed = || {
        launch.signal(Signal::TERM);
        launch.left_over().is_empty()
    };
    assert!(within_deadline(killed), "{}", read(launch.dir.path(), "stderr"));
    assert_eq!(launch.end().code, Some(137));
}

/// As when a terminal goes, or when `timeout` tells its child and then its group.
#[test]
fn signals_that_come_together_are_one() {
    let saving = "trap 'sleep 0.2; exit 75' TERM; touch ready$RANK; while :; do sleep 0.05; done";
    let launch = ranks("3600", saving);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    for signal in [Signal::STOP, Signal::HUP, Signal::TERM, Signal::CONT] {
        launch.signal(signal);
    }
    let ended = launch.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(!ended.stderr.contains("again"), "{}", ended.stderr);
}

/// A rank that saves because another one has failed would take a second signal as "at once".
#[test]
fn a_signal_after_a_failure_is_not_passed_on() {
    let saving = "[ $RANK = 1 ] && { until [ -e ready0 -a -e ready2 ]; do sleep 0.02; done; exit 9; }; \
        trap 'echo signal >> signals$RANK' TERM; touch ready$RANK; \
        until [ -e go -a -s signals$RANK ]; do sleep 0.02; done";
    let launch = ranks("3600", saving);
    launch.wait_for_files(&["signals0", "signals2"]);
    launch.signal(Signal::TERM);
    let heard = || read(launch.dir.path(), "stderr").contains("SIGTERM");
    assert!(within_deadline(heard));
    std::fs::write(launch.dir.path().join("go"), "").unwrap();
    let ended = launch.end();
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(!ended.stderr.contains("forwarded"), "{}", ended.stderr);
    for rank in ["signals0", "signals2"] {
        assert_eq!(read(ended.dir.path(), rank), "signal\n");
    }
}

#[test]
fn ranks_end_with_a_launcher_that_is_killed() {
    let launch = ranks("30", "trap '' TERM; touch ready$RANK; exec sleep 300");
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::KILL);
    let gone = within_deadline(|| launch.left_over().is_empty());
    assert!(gone, "{:?} go on", launch.left_over());
    assert_eq!(launch.end().code, None);
}

#[test]
fn ranks_that_are_saving_get_one_signal_only() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 75), (Signal::USR1, 75)] {
        // Rank 0 leaves first; the others are still busy with their save.
        let save = "n=$((n+1)); sleep 0.$((RANK * 4)); echo $n > signals$RANK";
        let rank = format!(
            "n=0; trap '{save}; exit {code}' TERM INT USR1; touch ready$RANK; while :; do sleep 0.1; done"
        );
        let launch = ranks("30", &rank);
        launch.wait_for_files(&["ready0", "ready1", "ready2"]);
        launch.signal(signal);
        let ended = launch.end();
        assert_eq!(ended.code, Some(code), "{signal:?}: {}", ended.stderr);
        for rank in 0..3 {
            assert_eq!(read(ended.dir.path(), &format!("signals{rank}")), "1\n", "{signal:?}");
        }
    }
}

#[test]
fn wrong_usage_is_told_and_has_code_2() {
    for (script, arguments, told) in [
        ("torchrun.sh", &[][..], "-n needs"),
        ("torchrun.sh", &["-n", "0", "true"], "-n needs"),
        ("torchrun.sh", &["-n", "x", "true"], "-n needs"),
        ("torchrun.sh", &["-n"], "-n needs"),
        ("torchrun.sh", &["-n", "2"], "no program given"),
        ("torchrun.sh", &["-n", "2", "./missing"], "no program ./missing"),
        ("torchrun.sh", &["-n", "2", "free_port"], "no program free_port"),
        ("torchrun.sh", &["--fast", "2"], "unknown option --fast"),
        ("torchrun.sh", &["-n", "8", "--nodes", "2", "true"], "--node-rank needs"),
        ("torchrun.sh", &["-n", "8", "--node-rank", "1", "true"], "without --nodes"),
        ("torchrun.sh", &["-n", "2", "--master-port", "70000", "true"], "needs a port"),
        ("mpirun.sh", &["-n", "many", "true"], "-n needs"),
        ("mpirun.sh", &["-n", "2"], "no program given"),
        ("slurm.sbatch", &[], "usage: sbatch"),
    ] {
        let ended = start(script, arguments, |_, _| {}).end();
        assert_eq!(ended.code, Some(2), "{script} {arguments:?}");
        assert!(ended.stderr.contains(told), "{script} {arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn mpirun_gets_its_options_and_passes_variables_to_other_machines_only() {
    let run = |extra: &[&str]| {
        let arguments = [&["-n", "3"], extra, &["prog", "a b"]].concat();
        let ended = start("mpirun.sh", &arguments, |command, dir| {
            let body = "printf '%s|' \"$@\"; echo; env | grep ^OMP | sort";
            stub(command, dir, "mpirun", body);
            command.env("TCH_CHECKPOINT_IFADDR", "10.0.0.1").env("RUST_LOG", "info");
        })
        .end();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    let alone = run(&[]);
    assert!(alone.starts_with("-n|3|--bind-to|none|prog|a b|\n"), "{alone}");
    for line in [
        "OMPI_ALLOW_RUN_AS_ROOT=1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "OMPI_MCA_rmaps_base_oversubscribe=1",
        "OMP_NUM_THREADS=1",
    ] {
        assert!(alone.lines().any(|l| l == line), "{line} not in {alone}");
    }
    let many = run(&["--host", "a:2,b:2"]);
    assert!(many.starts_with("-n|3|--bind-to|none|--host|a:2,b:2|-x|"), "{many}");
    for name in ["TCH_CHECKPOINT_IFADDR", "RUST_LOG", "OMP_NUM_THREADS"] {
        assert!(many.contains(&format!("|-x|{name}|")), "{name} not in {many}");
    }
    assert!(many.contains("|prog|a b|\n") && !many.contains("|-x|PATH|"), "{many}");
}

#[test]
fn a_missing_mpirun_is_told_with_the_way_to_get_it() {
    let ended = start("mpirun.sh", &["-n", "2", "true"], |command, dir| {
        // A search path on which there is bash and nothing else.
        let bash = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];
        let bash = bash.into_iter().find(|path| Path::new(path).exists()).unwrap();
        std::os::unix::fs::symlink(bash, dir.join("bash")).unwrap();
        command.env("PATH", dir);
    })
    .end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("no mpirun"), "{}", ended.stderr);
    assert!(ended.stderr.contains("launch/setup.sh"), "{}", ended.stderr);
}
