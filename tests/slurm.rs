//! `launch/slurm.sbatch`, with stubs for Slurm's commands.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]

#[path = "jobs/launched.rs"]
mod launched;
#[path = "jobs/marked.rs"]
mod marked;
#[path = "jobs/scripts.rs"]
mod scripts;

use std::fs;

use rustix::process::Signal;

use launched::Launch;
use scripts::{script, start, stub};

/// `slurm.sbatch` with one task and stubs for Slurm's commands.
fn slurm_job(program: &str) -> Launch {
    start("slurm.sbatch", &["sh", "-c", program], |command, dir| {
        let srun = "until [ \"${1#--}\" = \"$1\" ]; do shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0; exec \"$@\"";
        stub(command, dir, "srun", srun);
        let scontrol = "if [ $1 = show ]; then printf 'n1\\nn2\\n'; else echo \"scontrol $*\"; fi";
        stub(command, dir, "scontrol", scontrol);
        command.env("SLURM_JOB_ID", "42").env("SLURM_JOB_NODELIST", "n[1-2]");
        command.env("SLURM_CPUS_PER_TASK", "4");
    })
}

#[test]
fn a_slurm_job_forwards_sigusr1_and_requeues_on_75() {
    let program = "trap 'exit 75' USR1; touch ready; while :; do sleep 0.1; done";
    let launch = slurm_job(program);
    launch.wait_for_files(&["ready"]);
    launch.signal(Signal::USR1);
    let ended = launch.end();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.stdout.contains("scontrol requeue 42"), "{}", ended.stdout);
    let text = fs::read_to_string(script("slurm.sbatch")).unwrap();
    assert!(text.lines().any(|line| line == "#SBATCH --signal=B:USR1@120"), "{text}");
}

#[test]
fn a_slurm_task_gets_its_variables_and_another_code_is_no_requeue() {
    let program = "echo $RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS; \
                   [ ${#TCH_CHECKPOINT_TOKEN} = 32 ] && exit 3";
    let ended = slurm_job(program).end();
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert_eq!(ended.stdout, "0 1 0 n1 20042 4\n");
}

/// Two nodes of eight GPUs, as `srun` starts and ends their tasks.
#[test]
fn all_ranks_of_a_large_slurm_job_are_told_to_save_and_the_job_is_requeued_once() {
    let task = "trap 'echo saved > saved$RANK; exit 75' USR1; \
        echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $SRUN_CPUS_PER_TASK $TCH_CHECKPOINT_TOKEN \
        > ready$RANK; while :; do sleep 0.1; done";
    let launch = start("slurm.sbatch", &["sh", "-c", task], |command, dir| {
        let srun = "until [ \"${1#--}\" = \"$1\" ]; do shift; done; pids=
trap \"for pid in \\$pids; do kill -USR1 \\$pid; done\" USR1
export SLURM_PROCID=0 SLURM_NTASKS=16 SLURM_LOCALID
while [ $SLURM_PROCID -lt 16 ]; do
SLURM_LOCALID=$((SLURM_PROCID % 8)); \"$@\" & pids=\"$pids $!\"; SLURM_PROCID=$((SLURM_PROCID + 1))
done
worst=0; for pid in $pids; do
wait $pid; code=$?; while kill -0 $pid 2>/dev/null; do wait $pid; code=$?; done
[ $code -gt $worst ] && worst=$code; done; exit $worst";
        stub(command, dir, "srun", srun);
        let scontrol = "if [ $1 = show ]; then printf 'n1\\nn2\\n'; else echo \"scontrol $*\"; fi";
        stub(command, dir, "scontrol", scontrol);
        command.env("SLURM_JOB_ID", "42").env("SLURM_JOB_NODELIST", "n[1-2]");
        command.env("SLURM_CPUS_PER_TASK", "8").env_remove("SRUN_CPUS_PER_TASK");
    });
    let ready: Vec<String> = (0..16).map(|rank| format!("ready{rank}")).collect();
    launch.wait_for_files(&ready.iter().map(String::as_str).collect::<Vec<_>>());
    launch.signal(Signal::USR1);
    let ended = launch.end().with_code(75);
    assert_eq!(ended.stdout.matches("scontrol requeue 42").count(), 1, "{}", ended.stdout);
    let token = ended.read("ready0").split_whitespace().last().unwrap().to_owned();
    for rank in 0..16 {
        let line = format!("{rank} {} 16 n1 8 {token}\n", rank % 8);
        assert_eq!(ended.read(&format!("ready{rank}")), line);
        assert_eq!(ended.read(&format!("saved{rank}")), "saved\n");
    }
}

/// What a cluster must be asked for, since none is here to say what it lacks.
#[test]
fn the_slurm_script_asks_for_a_task_a_gpu_and_for_being_told_in_time() {
    let text = fs::read_to_string(script("slurm.sbatch")).unwrap();
    let asked = |option: &str| {
        let start = format!("#SBATCH --{option}");
        let mut found = text.lines().filter_map(|line| line.strip_prefix(start.as_str()));
        found.next().unwrap_or_else(|| panic!("no --{option}")).trim_start_matches('=').to_owned()
    };
    assert_eq!(asked("ntasks-per-node"), asked("gpus-per-node"));
    assert!(asked("nodes").parse::<u32>().unwrap() > 1);
    assert_eq!((asked("requeue"), asked("open-mode")), (String::new(), "append".to_owned()));
    assert_eq!(asked("signal"), "B:USR1@120");
}
