//! `launch`, with shell one-liners as ranks.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;

use crate::launched::{Launch, read, within_deadline};
use crate::snapshot::{Made, assert_snapshot};
use crate::{Folder, command, run};

/// Waits, inside a rank, until all three of this start have left a file.
const ALL_HERE: &str = "k=$TORCHELASTIC_RESTART_COUNT; touch here$RANK.$k; \
    until [ -e here0.$k -a -e here1.$k -a -e here2.$k ]; do sleep 0.02; done;";

fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Launch {
    let mut command = command(&[&["launch"], arguments].concat());
    Launch::prepared(&mut command, |command, _| {
        command.envs(variables.iter().copied());
    })
}

/// Three ranks of `sh -c rank`.
fn ranks(options: &[&str], rank: &str) -> Launch {
    let rank = format!("{ALL_HERE} {rank}");
    start(&[&["-n", "3"], options, &["sh", "-c", &rank]].concat(), &[])
}

#[test]
fn every_rank_gets_its_variables_and_arguments() {
    let rank = r#"echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR \
$OMP_NUM_THREADS $TORCHELASTIC_RESTART_COUNT/$TORCHELASTIC_MAX_RESTARTS \
[$TORCHELASTIC_RUN_ID$TORCHELASTIC_USE_AGENT_STORE] $1 $2" > out$RANK
echo "$MASTER_PORT $TCH_CHECKPOINT_TOKEN" > job$RANK"#;
    let further_up = [("TORCHELASTIC_RUN_ID", "outer"), ("TORCHELASTIC_USE_AGENT_STORE", "True")];
    let launch = || {
        let arguments = ["-n", "3", "sh", "-c", rank, "name", "two words", "--json"];
        let ended = start(&arguments, &further_up).end().with_code(0);
        assert_eq!(ended.stderr, "");
        ended
    };
    let ended = launch();
    for rank in 0..3 {
        let line = format!("{rank} {rank} 3 3 127.0.0.1 1 0/0 [] two words --json\n");
        assert_eq!(ended.read(&format!("out{rank}")), line);
        assert_eq!(ended.read(&format!("job{rank}")), ended.read("job0"));
    }
    let job = ended.read("job0");
    let (port, token) = job.trim().split_once(' ').unwrap();
    assert!((20_000..32_000).contains(&port.parse::<u16>().unwrap()), "{port}");
    assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
    assert!(!launch().read("job0").contains(token), "the token is not random");
}

#[test]
fn variables_and_the_port_given_are_kept_and_output_is_that_of_the_ranks() {
    let rank = "echo $MASTER_PORT $OMP_NUM_THREADS $TCH_CHECKPOINT_TOKEN; printf half >&2";
    let arguments = ["-n", "1", "--master-port", "12345", "sh", "-c", rank];
    let given = [("OMP_NUM_THREADS", "3"), ("TCH_CHECKPOINT_TOKEN", "mine")];
    let ended = start(&arguments, &given).end().with_code(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("12345 3 mine\n", "half"));
}

/// As under `env -i`, and as a script leaves a variable that nobody set.
#[test]
fn variables_that_are_missing_or_empty_have_their_defaults() {
    let empty =
        [("OMP_NUM_THREADS", ""), ("TCH_CHECKPOINT_TOKEN", ""), ("TCH_CHECKPOINT_GRACE", "")];
    let rank = "echo $OMP_NUM_THREADS ${#TCH_CHECKPOINT_TOKEN}";
    let mut command = command(&["launch", "-n", "1", "sh", "-c", rank]);
    let ended = Launch::prepared(command.env_remove("PATH"), |command, _| {
        command.envs(empty);
    });
    let ended = ended.end().with_code(0);
    assert_eq!(ended.stdout, "1 32\n");
    // Where the command is linked with libtorch, libgomp complains of an empty number of its own.
    assert!(!ended.stderr.contains("launch"), "{}", ended.stderr);
}

#[test]
fn without_restarts_the_code_of_a_failing_rank_is_returned_and_the_others_are_ended() {
    let ended = ranks(&[], "[ $RANK = 1 ] && exit 7; sleep 300").end().with_code(7);
    assert!(ended.stderr.contains("launch: rank 1 ended with code 7\n"), "{}", ended.stderr);
    let killed = ranks(&[], "[ $RANK = 2 ] && kill -KILL $$; sleep 300").end();
    let killed = killed.with_code(137);
    assert!(killed.stderr.contains("rank 2 ended with code 137 (SIGKILL)"), "{}", killed.stderr);
}

/// What is there to go on from is told.
#[test]
fn a_killed_rank_starts_all_again_up_to_the_limit() {
    let folder = Folder::new();
    Made::new(300, 3).floats("w", &[2], &[1.0, 2.0]).save(&folder);
    let rank = "echo $MASTER_PORT > port$RANK.$k; echo $TCH_CHECKPOINT_TOKEN > token$RANK.$k; \
        [ $RANK = 1 ] && { until [ -s token0.$k -a -s token2.$k ]; do sleep 0.02; done; \
        kill -KILL $$; }; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let options = ["--max-restarts", "2", "--dir", folder.path()];
    let ended = ranks(&options, rank).end().with_code(137);
    for restart in 0..3 {
        assert_ne!(ended.read(&format!("port0.{restart}")), "", "start {restart}");
        assert_eq!(ended.read(&format!("token2.{restart}")), ended.read("token0.0"));
    }
    assert!(!ended.dir.path().join("here0.3").exists(), "started more often than asked for");
    let told = format!("launch: restart 2 of 2, from {} (step 300)", folder.at("step-0300"));
    assert!(ended.stderr.contains(&told), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("rank 1 ended with code 137 (SIGKILL)").count(), 3);
}

#[test]
fn a_job_that_succeeds_after_a_restart_has_code_0() {
    let rank = "[ $RANK.$k = 2.0 ] && exit 9; [ $k = 1 ] && exit 0; sleep 300";
    let ended = ranks(&["--max-restarts", "5"], rank).end().with_code(0);
    assert!(ended.stderr.contains("restart 1 of 5"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("restart 2"), "{}", ended.stderr);
}

#[test]
fn a_job_that_wants_a_requeue_is_not_started_again() {
    let rank = "[ $RANK = 0 ] && exit 75; sleep 0.3; touch saved$RANK; exit 75";
    let ended = ranks(&["--max-restarts", "5"], rank).end().with_code(75);
    assert!(ended.stderr.contains("rank 0 ended with code 75 (saved, wants a requeue)"));
    // The others were not sent a signal while they saved.
    assert!(ended.dir.path().join("saved1").exists() && ended.dir.path().join("saved2").exists());
    assert!(!ended.dir.path().join("here0.1").exists(), "{}", ended.stderr);
}

#[test]
fn signals_reach_every_rank_once_and_end_the_job_for_good() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 75), (Signal::USR1, 75)] {
        // Rank 0 leaves first; the others are still busy with their save.
        let save = "n=$((n+1)); sleep 0.$((RANK * 2)); echo $n > signals$RANK";
        let rank = format!(
            "n=0; trap '{save}; exit {code}' TERM INT USR1; touch ready$RANK; while :; do sleep 0.05; done"
        );
        let launch = ranks(&["--max-restarts", "3"], &rank);
        launch.wait_for_files(&["ready0", "ready1", "ready2"]);
        launch.signal(signal);
        let ended = launch.end().with_code(code);
        for rank in 0..3 {
            assert_eq!(ended.read(&format!("signals{rank}")), "1\n", "{signal:?}");
        }
        assert!(!ended.dir.path().join("here0.1").exists(), "{signal:?}: {}", ended.stderr);
    }
}

/// As under `nohup`, where the terminal goes and the job stays.
#[test]
fn what_was_ignored_from_the_beginning_stays_so() {
    let rank = "echo > ready; until [ -e go ]; do sleep 0.02; done";
    let program = env!("CARGO_BIN_EXE_tch-checkpoint");
    let start = format!("trap '' HUP; exec {program} launch -n 1 sh -c '{rank}'");
    let launch = Launch::prepared(Command::new("sh").args(["-c", &start]), |_, _| {});
    launch.wait_for_files(&["ready"]);
    launch.signal(Signal::HUP);
    launch.signal(Signal::INT);
    let ended = launch.end().with_code(130);
    assert!(!ended.stderr.contains("SIGTERM"), "{}", ended.stderr);
}

#[test]
fn what_does_not_listen_is_killed_after_the_grace_period_or_by_a_second_signal() {
    let deaf = "trap '' TERM; touch ready$RANK; sleep 300 & while :; do sleep 0.05; done";
    let launch = ranks(&["--grace", "0"], deaf);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::TERM);
    launch.end().with_code(137);
    let noting = "trap 'touch term$RANK' TERM; touch ready$RANK; while :; do sleep 0.05; done";
    let launch = ranks(&["--grace", "3600"], noting);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::TERM);
    launch.wait_for_files(&["term0", "term1", "term2"]);
    // One that follows the first at once is the same one.
    let killed = || {
        launch.signal(Signal::TERM);
        launch.left_over().is_empty()
    };
    assert!(within_deadline(killed), "{}", read(launch.dir.path(), "stderr"));
    launch.end().with_code(137);
}

/// As when a terminal goes, or when `timeout` tells its child and then its group.
#[test]
fn signals_that_come_together_are_one() {
    let saving = "trap 'sleep 0.2; exit 75' TERM; touch ready$RANK; while :; do sleep 0.05; done";
    let launch = ranks(&["--grace", "3600"], saving);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::STOP);
    launch.signal(Signal::HUP);
    launch.signal(Signal::TERM);
    launch.signal(Signal::CONT);
    let ended = launch.end().with_code(75);
    assert!(!ended.stderr.contains("again"), "{}", ended.stderr);
}

/// As on a terminal that is held with Ctrl-S.
#[test]
fn a_reader_who_does_not_read_holds_up_no_signal() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    while writer.write(&[0]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let rank = "exec 2>/dev/null; trap 'exit 7' TERM; touch ready; while :; do sleep 0.05; done";
    let start = "exec \"$0\" launch -n 1 sh -c \"$1\" 2>&0";
    let program = env!("CARGO_BIN_EXE_tch-checkpoint");
    let mut command = Command::new("sh");
    let launch =
        Launch::prepared(command.args(["-c", start, program, rank]).stdin(writer), |_, _| {});
    launch.wait_for_files(&["ready"]);
    launch.signal(Signal::TERM);
    launch.end().with_code(7);
    drop(reader);
}

/// A rank that saves because another one has failed would take a second signal as "at once".
#[test]
fn a_signal_after_a_failure_stops_restarts_and_is_not_passed_on() {
    let saving = "[ $RANK = 1 ] && { until [ -e ready0 -a -e ready2 ]; do sleep 0.02; done; exit 9; }; \
        trap 'echo signal >> signals$RANK' TERM; touch ready$RANK; \
        until [ -e go -a -s signals$RANK ]; do sleep 0.02; done";
    let launch = ranks(&["--max-restarts", "5", "--grace", "3600"], saving);
    launch.wait_for_files(&["signals0", "signals2"]);
    launch.signal(Signal::TERM);
    let heard = || read(launch.dir.path(), "stderr").contains("SIGTERM");
    assert!(within_deadline(heard));
    fs::write(launch.dir.path().join("go"), "").unwrap();
    let ended = launch.end().with_code(9);
    for rank in ["signals0", "signals2"] {
        assert_eq!(ended.read(rank), "signal\n");
    }
    assert!(!ended.stderr.contains("restart"), "{}", ended.stderr);
}

#[test]
fn children_left_by_ranks_are_ended() {
    let ended = ranks(&[], "sleep 300 & exit 0").end().with_code(0);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_lost_peer_does_not_hide_its_cause() {
    let rank = "until [ -e go ]; do sleep 0.02; done; [ $RANK = 2 ] && exit 9; exit 5";
    let launch = ranks(&[], rank);
    launch.wait_for_files(&["here0.0", "here1.0", "here2.0"]);
    // Stopped, so that it finds all three ended at once.
    launch.signal(Signal::STOP);
    fs::write(launch.dir.path().join("go"), "").unwrap();
    let ranks_ended = within_deadline(|| launch.left_over().len() == 1);
    launch.signal(Signal::CONT);
    assert!(ranks_ended);
    launch.end().with_code(9);
}

#[test]
fn ranks_end_with_a_launcher_that_is_killed() {
    let rank = "trap '' TERM; touch ready$RANK; exec sleep 300";
    let launch = ranks(&["--max-restarts", "9"], rank);
    launch.wait_for_files(&["ready0", "ready1", "ready2"]);
    launch.signal(Signal::KILL);
    let gone = within_deadline(|| launch.left_over().is_empty());
    assert!(gone, "{:?} go on", launch.left_over());
    assert_eq!(launch.end().code, None);
}

#[test]
fn a_rank_that_cannot_be_started_is_no_damaged_checkpoint() {
    let folder = Folder::new();
    fs::write(folder.at("program"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(folder.at("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let ran = run(&["launch", "-n", "2", "--max-restarts", "3", &folder.at("program")]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("starting") && ran.stderr.contains(&folder.at("program")));
}

#[test]
fn wrong_usage_has_code_2() {
    for arguments in [
        &["launch"][..],
        &["launch", "-n", "2"],
        &["launch", "-n", "0", "true"],
        &["launch", "-n", "x", "true"],
        &["launch", "-n", "2", "--master-port", "70000", "true"],
        &["launch", "-n", "2", "--grace", "-1", "true"],
        &["launch", "--nodes", "2", "true"],
    ] {
        assert_eq!(run(arguments).code, Some(2), "{arguments:?}");
    }
    let folder = Folder::new();
    let missing = run(&["launch", "-n", "2", &folder.at("missing")]);
    assert_snapshot("launch_missing", &missing, &folder);
}
