//! The table of how a process may be started.

use std::collections::HashMap;

use super::super::env::{Launch, Meet, TcpLaunch, check_mpi, deadlines_from, launch_from};
use super::*;

fn vars(text: &str) -> impl Fn(&str) -> Option<String> + use<> {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    let map: HashMap<String, String> = pairs.map(|(k, v)| (k.into(), v.into())).collect();
    move |name| map.get(name).cloned()
}

fn launch(text: &str) -> Result<Launch> {
    launch_from(vars(text), false)
}

#[track_caller]
fn tcp(text: &str) -> TcpLaunch {
    match launch(text) {
        Ok(Launch::Tcp(tcp)) => *tcp,
        other => panic!("{text}: {other:?}"),
    }
}

fn address(bind: &str, connect: &str) -> Meet {
    Meet::Address { bind: bind.into(), connect: connect.into() }
}

const TORCH: &str = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=n0 MASTER_PORT=29500 ";
const MPI: &str = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 ";
const SLURM: &str = "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_JOB_ID=123456 \
                     SLURM_STEP_ID=0 SLURM_STEP_NODELIST=gpu[03-07,11],login1 ";

#[test]
fn the_first_of_launcher_torch_mpi_slurm_counts() {
    for text in ["", "SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", "RANK=0 WORLD_SIZE=1", "RANK="] {
        assert_eq!(launch(text), Ok(Launch::Solo), "{text}");
    }
    assert_eq!(launch("PMI_RANK=0 PMI_SIZE=1"), Ok(Launch::Solo));
    for place in [TORCH, SLURM] {
        assert_eq!(launch(&format!("{place} TCH_CHECKPOINT_LAUNCHER=solo")), Ok(Launch::Solo));
    }
    assert_eq!(tcp(&format!("{SLURM}{TORCH}")).job, "123456#0");
    assert_eq!(tcp(&format!("{MPI}{TORCH}")).meet, address("n0:29500", "n0:29500"));
    assert_eq!(launch_from(vars(&format!("{SLURM}{MPI}")), true), Ok(Launch::Mpi));
    let forced = format!("{TORCH} TCH_CHECKPOINT_LAUNCHER=mpi");
    assert_eq!(launch_from(vars(&forced), true), Ok(Launch::Mpi));
    let forced = format!("{MPI}{SLURM} TCH_CHECKPOINT_LAUNCHER=slurm");
    assert_eq!(tcp(&forced).job, "123456.0#0");
    let forced = format!("{TORCH} OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 ");
    assert_eq!(tcp(&format!("{forced} TCH_CHECKPOINT_LAUNCHER=tcp")).rank, 3);
}

#[test]
fn what_cannot_work_is_an_error_that_names_the_variable() {
    let cases = [
        ("RANK=0", "WORLD_SIZE"),
        ("WORLD_SIZE=2", "RANK"),
        ("RANK=2 WORLD_SIZE=2", "RANK=2 WORLD_SIZE=2"),
        ("RANK=0 WORLD_SIZE=0", "RANK=0 WORLD_SIZE=0"),
        ("RANK=x WORLD_SIZE=2", "RANK=x"),
        ("RANK=-1 WORLD_SIZE=2", "RANK=-1"),
        ("RANK=0 WORLD_SIZE=2", "MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", "MASTER_PORT"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000", "MASTER_PORT=70000"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=0", "MASTER_PORT=0"),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=9 TCH_CHECKPOINT_MASTER_PORT=0",
            "TCH_CHECKPOINT_MASTER_PORT=0",
        ),
        (
            "SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0 SLURM_JOB_ID=1 MASTER_ADDR=a MASTER_PORT=0",
            "MASTER_PORT=0",
        ),
        ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK"),
        ("PMI_RANK=0 PMI_SIZE=2", "PMI_RANK"),
        ("MV2_COMM_WORLD_RANK=0 MV2_COMM_WORLD_SIZE=2", "MV2_COMM_WORLD_RANK"),
        ("PMI_RANK=0", "PMI_SIZE"),
        ("SLURM_STEP_NUM_TASKS=2", "SLURM_PROCID"),
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0", "SLURM_JOB_ID"),
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0 SLURM_JOB_ID=1", "MASTER_ADDR"),
        ("TCH_CHECKPOINT_LAUNCHER=mpi", "TCH_CHECKPOINT_LAUNCHER=mpi"),
        ("TCH_CHECKPOINT_LAUNCHER=tcp", "RANK"),
        ("TCH_CHECKPOINT_LAUNCHER=slurm", "SLURM_PROCID"),
        ("TCH_CHECKPOINT_LAUNCHER=gloo", "gloo"),
    ];
    for (text, named) in cases {
        let error = launch(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        assert!(error.message().contains(named), "{text}: {error}");
        assert!(error.help().is_some(), "{text}");
    }
}

/// Each process of `prun`, which tells no number of ranks, would else save as rank 0 of one.
#[test]
fn a_rank_by_pmix_is_never_a_rank_alone() {
    let error = launch("PMIX_RANK=0").unwrap_err();
    assert!(error.message().contains("PMIX_RANK=0") && error.help().is_some(), "{error}");
    assert_eq!(launch_from(vars("PMIX_RANK=1"), true), Ok(Launch::Mpi));
    assert_eq!(launch("PMIX_RANK=0 TCH_CHECKPOINT_LAUNCHER=solo"), Ok(Launch::Solo));
    assert!(launch("PMIX_RANK=x").unwrap_err().message().contains("PMIX_RANK=x"));
    // Whoever tells both, rank and world, is asked first.
    assert_eq!(tcp(&format!("{TORCH} PMIX_RANK=0")).rank, 3);
    assert_eq!(tcp(&format!("{SLURM} PMIX_RANK=3")).rank, 3);
    assert_eq!(
        launch("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 PMIX_RANK=0"),
        Ok(Launch::Solo)
    );
}

/// `srun -n1`, or a batch script, in which another launcher has started several processes: the
/// step's number of tasks says nothing of them.
#[test]
fn a_slurm_step_of_one_task_tells_only_its_own_ranks() {
    let step =
        "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_NTASKS=1";
    let batch = "SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0";
    for outer in [step, batch] {
        for inner in [
            "PMIX_RANK=0",
            "PMIX_RANK=2",
            "PMIX_RANK=0 PMIX_NAMESPACE=prterun-n0-42@1",
            "PMIX_RANK=2 PMIX_NAMESPACE=prterun-n0-42@1",
        ] {
            let text = format!("{outer} {inner}");
            assert_eq!(launch_from(vars(&text), true), Ok(Launch::Mpi), "{text}");
            let error = launch(&text).expect_err(&text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.message().contains("PMIX_RANK=") && error.help().is_some(), "{error}");
        }
    }
    // By its own PMIx the step's one task is a job of one, and several are ranks of a Slurm job.
    let own = "PMIX_RANK=0 PMIX_NAMESPACE=slurm.pmix.7.0";
    for has_mpi in [false, true] {
        assert_eq!(launch_from(vars(&format!("{step} {own}")), has_mpi), Ok(Launch::Solo));
    }
    assert_eq!(tcp(&format!("{SLURM} PMIX_RANK=3 PMIX_NAMESPACE=slurm.pmix.123456.0")).rank, 3);
    // Four processes of another launcher in each task would all have the task's rank.
    for inner in ["PMIX_RANK=1", "PMIX_RANK=3 PMIX_NAMESPACE=prterun-n0-42@1"] {
        let text = format!("{SLURM} {inner}");
        assert_eq!(launch_from(vars(&text), true), Ok(Launch::Mpi), "{text}");
        assert!(launch(&text).is_err(), "{text}");
    }
}

#[test]
fn a_job_of_one_with_another_rank_by_pmix_is_a_contradiction() {
    for (text, named) in [
        ("PMI_RANK=0 PMI_SIZE=1 PMIX_RANK=2 SLURM_STEP_NUM_TASKS=1", "PMI_SIZE=1"),
        ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 PMIX_RANK=2", "OMPI_COMM_WORLD_SIZE=1"),
        ("RANK=0 WORLD_SIZE=1 PMIX_RANK=2", "WORLD_SIZE=1"),
    ] {
        for has_mpi in [false, true] {
            let error = launch_from(vars(text), has_mpi).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.message().contains(named), "{error}");
            assert!(error.message().contains("PMIX_RANK=2") && error.help().is_some(), "{error}");
        }
        let solo = format!("{text} TCH_CHECKPOINT_LAUNCHER=solo");
        assert_eq!(launch(&solo), Ok(Launch::Solo));
    }
}

#[test]
fn an_mpi_that_does_not_know_its_launcher_is_refused() {
    let check = |text: &str, rank, world| {
        check_mpi(vars(text), Rank::new(rank), WorldSize::new(world).unwrap())
    };
    for good in ["", MPI, "PMIX_RANK=3", "PMI_RANK=3 PMI_SIZE=4"] {
        assert_eq!(check(good, 3, 4), Ok(()), "{good}");
    }
    // What an outer launcher has left.
    assert_eq!(check(&format!("{MPI} PMI_RANK=0 PMI_SIZE=1 PMIX_RANK=0"), 3, 4), Ok(()));
    for (text, named) in [
        (MPI, "OMPI_COMM_WORLD_RANK=3"),
        ("PMIX_RANK=3", "PMIX_RANK=3"),
        ("PMI_RANK=0 PMI_SIZE=4", "PMI_SIZE=4"),
    ] {
        let error = check(text, 0, 1).unwrap_err();
        assert!(error.message().contains(named), "{error}");
    }
}

#[test]
fn contradictions_are_printed_in_full() {
    let text = format!("{MPI} RANK=1 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=1");
    for has_mpi in [false, true] {
        let error = launch_from(vars(&text), has_mpi).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        for part in ["RANK=1", "WORLD_SIZE=4", "OMPI_COMM_WORLD_RANK=3"] {
            assert!(error.message().contains(part), "{error}");
        }
    }
}

#[test]
fn torchs_variables_give_place_address_job_and_token() {
    let found = tcp(&format!("{TORCH} TORCHELASTIC_RUN_ID=run TORCHELASTIC_RESTART_COUNT=2"));
    assert_eq!((found.rank, found.world, found.local_rank), (3, 4, 1));
    assert_eq!((found.job.as_str(), found.token.as_deref()), ("run#2", None));
    let own = "TCH_CHECKPOINT_MASTER_PORT=7 TCH_CHECKPOINT_IFADDR=0.0.0.0 TCH_CHECKPOINT_TOKEN=t";
    let found = tcp(&format!("{TORCH} {own}"));
    assert_eq!(found.meet, address("0.0.0.0:7", "n0:7"));
    assert_eq!(found.token.as_deref(), Some("t"));
    let found = tcp("RANK=1 WORLD_SIZE=2 MASTER_ADDR=::1 MASTER_PORT=9");
    assert_eq!((found.meet, found.local_rank), (address("[::1]:9", "[::1]:9"), 0));
}

#[test]
fn a_port_that_torchruns_agent_owns_is_never_bound() {
    let agent = format!("{TORCH} TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=r ");
    let found = tcp(&format!("{agent} TCH_CHECKPOINT_MASTER_PORT=7"));
    assert_eq!(found.meet, address("n0:7", "n0:7"));
    let found = tcp(&format!("{agent} LOCAL_WORLD_SIZE=4"));
    assert_eq!(found.meet, Meet::PrivateFile("r#0 29500".into()));
    for text in [agent.clone(), format!("{agent} LOCAL_WORLD_SIZE=2")] {
        let error = launch(&text).unwrap_err();
        assert!(error.help().is_some_and(|help| help.contains("TCH_CHECKPOINT_MASTER_PORT")));
    }
}

#[test]
fn slurms_variables_give_the_first_host_and_a_port() {
    let found = tcp(SLURM);
    assert_eq!((found.rank, found.world, found.local_rank), (3, 4, 1));
    assert_eq!(found.meet, address("gpu03:23456", "gpu03:23456"));
    let found = tcp(&format!("{SLURM} MASTER_ADDR=x MASTER_PORT=5"));
    assert_eq!(found.meet, address("x:5", "x:5"));
    let base = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_JOB_ID=1 SLURM_STEP_NODELIST=";
    for (nodes, host) in [
        ("a", "a"),
        ("a,b", "a"),
        ("r[2-3]n[07,09]", "r2n07"),
        ("n[5],m", "n5"),
        ("n[8-9]-x", "n8-x"),
    ] {
        let at = format!("{host}:20001");
        assert_eq!(tcp(&format!("{base}{nodes}")).meet, address(&at, &at));
    }
    for (job, step, port) in [(11_999, 0, 31_999), (12_000, 0, 20_000), (1, 1, 20_998)] {
        let step = format!("SLURM_JOB_ID={job} SLURM_STEP_ID={step} MASTER_ADDR=a");
        let at = format!("a:{port}");
        let found = tcp(&format!("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 {step}"));
        assert_eq!(found.meet, address(&at, &at));
    }
    let last = format!("{SLURM} MASTER_ADDR=a SLURM_STEP_ID={} SLURM_JOB_ID={0}", u64::MAX);
    assert!(matches!(tcp(&last).meet, Meet::Address { .. }));
    for nodes in ["n[1", ",b"] {
        assert!(launch(&format!("{base}{nodes}")).is_err(), "{nodes}");
    }
}

#[test]
fn the_deadline_for_progress_comes_from_its_variable() {
    assert_eq!(deadlines_from(vars("")).unwrap(), Deadlines::default());
    let deadlines = deadlines_from(vars("TCH_CHECKPOINT_DEADLINE_MS=1500")).unwrap();
    assert_eq!(deadlines.progress, Duration::from_millis(1500));
    for bad in ["0", "-1", "2s"] {
        let text = format!("TCH_CHECKPOINT_DEADLINE_MS={bad}");
        assert!(deadlines_from(vars(&text)).is_err(), "{bad}");
    }
}
